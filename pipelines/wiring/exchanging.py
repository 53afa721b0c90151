"""Experts between teams: `bam adopt`, and what a recipe's adopted experts are in this store."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from bam_core.errors import InvalidInput, Problem, StoreError, nearest
from bam_core.graph.adopted import adopted_name, is_adopted
from bam_core.graph.key import key12
from bam_core.graph.plan import Decision, Facts
from bam_core.graph.runs import Run, RunStage
from infra.adopting import Adopted, adopt, newest_adopted
from infra.provenance import capture, mask_text
from infra.store import ArtifactStore
from pipelines.recipe import Recipe
from pipelines.stages import KINDS
from pipelines.wiring.settings import Settings, open_store

ADOPTIONS = "adopted"
"""The pipeline of what was made elsewhere."""


def adopt_expert(name: str, uri: str, settings: Settings, *, replace: bool = False) -> Adopted:
    """Take an expert that somebody else trained as `adopted.<name>`. Raises InvalidInput with all against it."""
    started = time.time()
    store = open_store(settings, working=True)
    run = f"adopt-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    made_by = capture(sys.argv) | {"run": run, "pipeline": ADOPTIONS}
    owner = f"{socket.gethostname()}:{os.getpid()} {run}"
    made = adopt(
        name,
        uri,
        store,
        version=KINDS["adopt"].version,
        owner=owner,
        provenance=made_by,
        replace=replace,
    )
    if made.is_new:
        record = made.record
        inputs = {role: (ref.stage, ref.key) for role, ref in record.inputs.items()}
        stages = {record.stage: RunStage(record.key, "run", inputs)}
        asked_for = {"name": name, "uri": mask_text(uri)}
        with suppress(StoreError):  # it is adopted; this is who did it, for `bam runs`
            store.runs.write(Run(run, ADOPTIONS, "done", started, time.time(), asked_for, stages, made_by))
    return made


def adopted_configs(recipe: Recipe, store: ArtifactStore) -> dict[str, Mapping[str, Any]]:
    """What each adopted expert of the recipe is here. Raises InvalidInput naming those that are not."""
    if not recipe.adopted:
        return {}
    known = newest_adopted(record for stage in _stages(store) for record in store.records(stage))
    problems = []
    for domain, name in recipe.adopted.items():
        if name not in known:
            there = f"those here: {', '.join(sorted(known))}; {nearest(name, known)}" if known else "there is none here"
            words = f"is no adopted expert of {store.storage.shown} ({there})"
            problems.append(Problem(_path(domain), name, words, f"`bam adopt {name} URI`"))
    if problems:
        raise InvalidInput(f"recipe {recipe.name}", problems)
    return {name: known[name] for name in recipe.adopted.values()}


def _stages(store: ArtifactStore) -> list[str]:
    return [stage for stage in store.storage.folders("artifacts") if is_adopted(stage)]


def _path(domain: str) -> str:
    return f"domains.{domain}.expert"


def require_adopted(
    recipe: Recipe,
    keys: Mapping[str, str],
    decisions: Iterable[Decision],
    facts: Mapping[str, Facts],
    store: ArtifactStore,
) -> None:
    """No run can make an adopted expert, so a plan that would have to is refused. Raises InvalidInput."""
    decided = {decision.stage: decision for decision in decisions}
    problems = [
        Problem(_path(domain), name, words, remedy)
        for domain, name in recipe.adopted.items()
        if adopted_name(name) in decided
        for words, remedy in _why_not(name, keys["seed"], decided, facts[adopted_name(name)], store)
    ]
    if problems:
        raise InvalidInput(f"recipe {recipe.name}", problems)


def _why_not(
    name: str, seed: str, decided: Mapping[str, Decision], there: Facts, store: ArtifactStore
) -> Iterator[tuple[str, str]]:
    """(what is wrong, remedy) if the adopted expert cannot be taken as it is. seed: the key of this recipe's."""
    stage, again = adopted_name(name), f"`bam adopt {name} URI`"
    decision = decided[stage]
    if there.damaged is not None:
        words = there.damaged.removeprefix(f"{stage}@{key12(decision.key)}: ")
        yield f"is damaged: {words}", f"{again} fetches it again"
    elif there.record is None:
        others = [f"seed@{key12(made.inputs['seed'].key)}" for made in store.records(stage) if "seed" in made.inputs]
        words = f"was adopted for {' and '.join(dict.fromkeys(others))}, and this recipe's seed is seed@{key12(seed)}"
        yield words, f"adopt one that branched from this seed, {again}, or use the recipe that made the other"
    elif decision.cause == "forced":
        yield "was trained elsewhere and cannot be made again: --force names it", "leave it out of --force"
    elif decision.action == "run" and not decision.after:  # else the seed may yet come out as it was
        yield "was adopted for a seed of other bytes than the one that is there now", f"{again} --replace"
