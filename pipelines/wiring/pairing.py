"""Two runs of a store beside each other: what each left, as far as it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged, UsageError, nearest
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from bam_core.graph.stage import StageName, kind_of
from infra.record_files import artifact_folder
from infra.store import ArtifactStore
from pipelines.wiring.origins import name_of, whole_folder
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from pipelines.report.pair import Made, Pair, RunLeft

HISTORY = "training.json"
PACKAGES = ("torch", "ray")
NAMED = 6
"""Models that an error names."""
NEWEST = 5
"""Runs that are offered in place of one that is not there."""


def pair_runs(left: str, right: str, settings: Settings) -> Pair:
    """Raises UsageError for what is no run, one run twice, and two without a model in common; ArtifactDamaged."""
    from pipelines.report.pair import Pair

    if left == right:
        raise UsageError(f"{left}: is named twice; give two runs (`bam runs` lists them)")
    store = open_store(settings)
    records = {(record.stage, record.key): record for record in store.records()}
    runs = store.runs.all()
    a, b = (_left(_named(name, runs), store, records) for name in (left, right))
    pair = Pair(a, b)
    if not pair.models:
        has = "; ".join(f"{run.name} has {_listed(run.models)}" for run in (a, b))
        raise UsageError(f"these runs have no model in common, so there is nothing to compare: {has}")
    return pair


def _named(name: str, runs: Sequence[Run]) -> Run:
    for run in runs:
        if run.name == name:
            return run
    of_recipe = [run.name for run in runs if run.pipeline == name]
    if of_recipe:
        raise UsageError(f"{name}: is a recipe; name one of its runs, such as {of_recipe[-1]} (`bam runs {name}`)")
    hint = nearest(name, [run.name for run in runs][-NEWEST:]) if runs else "no run is on record in this store"
    raise UsageError(f"no run {name!r}: {hint} (`bam runs` lists them)")


def _left(run: Run, store: ArtifactStore, records: Mapping[tuple[str, str], Record]) -> RunLeft:
    from pipelines.report.inputs import read_evaluations
    from pipelines.report.pair import RunLeft

    made = {node[0]: records[node] for node in run.artifacts() if node in records}
    trained = {stage: record for stage, record in made.items() if _has(record, HISTORY)}
    judges = [record for stage, record in made.items() if kind_of(stage) == "evaluate"]
    if not trained and not judges:
        why = "what it made is gone from the store" if run.status == "done" else f"its status is {run.status}"
        raise UsageError(f"{run.name}: no model of it is there ({why}); the command that started it makes them")
    folders = [whole_folder(store, judge) for judge in judges]
    perplexity, documents = read_evaluations(folders) if folders else (None, None)
    return RunLeft(
        name=run.name,
        pipeline=run.pipeline,
        status=run.status,
        started=run.started,
        seconds=None if run.ended is None else run.ended - run.started,
        recipe=run.recipe,
        planned=tuple(run.stages),
        made={stage: _made(record) for stage, record in made.items()},
        perplexity=perplexity,
        documents=documents,
        training={stage: _json(store, record, HISTORY)["history"] for stage, record in trained.items()},
        tokenizer=next((judge.inputs["tokenizer"].digest for judge in judges if "tokenizer" in judge.inputs), None),
        held_out=_held_out(judges, records),
        made_by=_made_by(made.values(), trained.values()),
    )


def _made(record: Record) -> Made:
    from pipelines.report.pair import Made

    figures = record.metrics
    return Made(record.key, record.seconds, figures.get("train_tokens"), figures.get("train_flops"))


def _held_out(judges: Sequence[Record], records: Mapping[tuple[str, str], Record]) -> dict[str, str]:
    """Domain -> a digest of the rows that are kept from training; of the whole artifact where its record is gone."""
    found: dict[str, str] = {}
    for judge in judges:
        for role, ref in judge.inputs.items():
            if kind_of(role) == "data":
                record = records.get((ref.stage, ref.key))
                rows = [] if record is None else [out.sha256 for out in record.outputs if out.path.startswith("valid/")]
                found[str(StageName.parse(role).name)] = " ".join(rows) or ref.digest
    return found


def _made_by(made: Iterable[Record], trained: Iterable[Record]) -> dict[str, str]:
    """Of what was made from the start; an adopted expert's own makers are in its own records."""
    by = [record.provenance for record in made]
    commits = (
        f"{maker['git_commit'][:12]}{' and changes' if maker.get('dirty') else ''}"
        for maker in by
        if isinstance(maker.get("git_commit"), str)
    )
    versions = (
        f"{name} {maker['packages'][name]}" for maker in by for name in PACKAGES if name in maker.get("packages", {})
    )
    devices = (place.get("device") for record in trained for place in record.provenance.get("ran_on", ()))
    words = {"commit": commits, "packages": versions, "device": devices}
    return {what: ", ".join(sorted({str(one) for one in found if one})) for what, found in words.items()}


def _json(store: ArtifactStore, record: Record, path: str) -> Any:
    """One file of an artifact that may be large and far away. Raises ArtifactDamaged unless it is as recorded."""
    data = store.storage.read(f"{artifact_folder(record.stage, record.key)}/{path}")
    digest = next(output.sha256 for output in record.outputs if output.path == path)
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactDamaged(f"{name_of(record.ref)}: {path} is not as recorded; the run that made it makes it again")
    return json.loads(data)


def _has(record: Record, path: str) -> bool:
    return any(output.path == path for output in record.outputs)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
