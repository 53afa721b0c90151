"""A mixture with one expert more, or one fewer: `bam expert add | remove`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bam_core.documents import read_json
from bam_core.errors import InvalidInput, Problem
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from bam_core.graph.stage import Stage, StageName, kind_of
from infra.store import ArtifactStore
from pipelines.runner import Display, RunResult
from pipelines.stages import KINDS
from pipelines.stages.inputs import require_fitting
from pipelines.wiring.origins import Known, known_records, model_record, upstream
from pipelines.wiring.running import run_given
from pipelines.wiring.settings import Settings, open_store


@dataclass(frozen=True)
class Edited:
    """report: the artifact's edit.json, without its tensors; None if it was not made."""

    result: RunResult
    report: Mapping[str, Any] | None


def add_expert(
    ref: str,
    expert_ref: str,
    name: str,
    settings: Settings,
    display: Display,
    *,
    new: str | None = None,
    router_row: str = "zeros",
    tokens: int,
) -> Edited:
    """Make `edit.<new>`: the mixture with one expert more. tokens: held-out tokens per domain to measure it on.

    Raises InvalidInput with all that does not fit, before anything is written.
    """
    from bam_core.checkpoint import open_tensors, read_config
    from bam_core.upcycle.compat import expert_problems
    from bam_core.upcycle.edit import adding

    store = open_store(settings)
    known = known_records(store)
    base, expert = model_record(ref, known), model_record(expert_ref, known)
    dense = read_config(store.localize(expert))
    adding(read_config(store.localize(base)), dense, name)
    config = {"operation": "add", "name": name, "router_row": router_row, "tokens": tokens}
    if factors := _factors(base, known, store):
        config["factors"] = factors
    stage, inputs = _stage(new or f"{_short(base)}-{name}", config, {"base": base, "expert": expert}, known)
    problems = list(_of_another_seed(base, expert, known))
    problems += expert_problems({"the expert": dense}, {"the expert": open_tensors(store.localize(expert))})
    if problems:
        raise InvalidInput("expert to add", problems)
    return _make(stage, inputs, settings, display)


def remove_expert(
    ref: str, name: str, settings: Settings, display: Display, *, new: str | None = None, tokens: int
) -> Edited:
    """Make `edit.<new>`: the mixture without an expert. Raises InvalidInput for an unknown expert, or the last one."""
    from bam_core.checkpoint import read_config
    from bam_core.upcycle.edit import removing

    store = open_store(settings)
    known = known_records(store)
    base = model_record(ref, known)
    removing(read_config(store.localize(base)), name)
    config = {"operation": "remove", "name": name, "tokens": tokens}
    stage, inputs = _stage(new or f"{_short(base)}-without-{name}", config, {"base": base}, known)
    return _make(stage, inputs, settings, display)


def _stage(
    new: str, config: Mapping[str, Any], models: Mapping[str, Record], known: Known
) -> tuple[Stage, dict[str, Record]]:
    """The stage and what fills its roles: the models, and the text that they were made with. Raises InvalidInput."""
    inputs = dict(models)
    for model in models.values():
        for record in upstream(model, known):
            if record.stage.startswith("data."):
                inputs.setdefault(record.stage, record)
    roles = {role: record.stage for role, record in inputs.items()}
    stage = Stage(f"edit.{new}", "edit", KINDS["edit"].version, config, roles)
    require_fitting(stage, inputs)
    return stage, inputs


def _make(stage: Stage, inputs: Mapping[str, Record], settings: Settings, display: Display) -> Edited:
    result = run_given(stage, inputs, settings, display)
    store = open_store(settings)
    made = store.record(stage.name, result.stages[0].key) if result.status == "done" else None
    if made is None:
        return Edited(result, None)
    report = read_json(store.localize(made) / "edit.json")
    return Edited(result, {name: value for name, value in report.items() if name != "tensors"})


def _of_another_seed(base: Record, expert: Record, known: Known) -> Iterator[Problem]:
    """Dense models that branched from different seeds do not share a space."""
    behind = [
        {
            key12(ref.key)
            for made in (model, *upstream(model, known))
            for ref in (made.ref, *made.inputs.values())
            if kind_of(ref.stage) == "seed"
        }
        for model in (base, expert)
    ]
    if all(behind) and not behind[0] & behind[1]:
        wanted = f"must be the mixture's, {', '.join(sorted(behind[0]))}"
        yield Problem("the expert.seed", sorted(behind[1])[0], wanted, "train the expert from the mixture's seed")


def _factors(base: Record, known: Known, store: ArtifactStore) -> dict[str, float]:
    """What the mixture's experts were multiplied by when they went in (`scale` of a variant)."""
    mixed = _mixed(base, known)
    if mixed is None:
        return {}
    tensors = read_json(store.localize(mixed) / "mix.json")["tensors"]
    return {name: entry["factor"] for name, entry in tensors.items() if "factor" in entry}


def _mixed(record: Record | None, known: Known) -> Record | None:
    """The `mix.*` that a mixture began as, or None if it is gone."""
    while record is not None and not record.stage.startswith("mix."):
        ref = record.inputs.get("mix") or record.inputs.get("base")
        record = known.get((ref.stage, ref.key)) if ref is not None else None
    return record


def _short(record: Record) -> str:
    """`bam` of `train.bam`, `bam-s1` of `train.bam.s1`: a name has no dot."""
    named = StageName.parse(record.stage)
    return "-".join([named.name or named.kind, *([f"s{named.seed}"] if named.seed is not None else [])])
