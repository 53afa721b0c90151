"""The rule that a model is held against before it is promoted: whose it is, and what an evaluation says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, BamError
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from bam_core.graph.stage import StageName, kind_of
from infra.store import ArtifactStore
from pipelines.recipe import Recipe
from pipelines.recipe.promotion import NotJudged, Promote, judge, rule_of_run
from pipelines.wiring.origins import Known, name_of, whole_folder


@dataclass(frozen=True)
class Asked:
    """whose: the rule is, None where none is asked. pipeline: the recipe's name. evaluate: how to have it scored."""

    promote: Promote
    whose: str | None
    pipeline: str | None
    evaluate: str


@dataclass(frozen=True)
class Judged:
    """refused: what does not hold, or why nothing can be judged. rule: each bound's outcome. evaluation: by which."""

    refused: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    evaluation: str | None = None


def asked_of(record: Record, store: ArtifactStore, recipe: Recipe | None, given: str | None) -> Asked:
    """The rule of the recipe that was given, otherwise of the newest run that lists the artifact."""
    place = (record.stage, record.key)
    run = next((run for run in reversed(store.runs.all()) if place in run.artifacts()), None)
    if recipe is not None:
        promote = recipe.promote or Promote()
        whose = f"recipe {given}" if promote.require else None
        return Asked(promote, whose, recipe.name, _how_to_evaluate(record, run, given))
    if run is None:
        said = record.provenance.get("pipeline")
        return Asked(Promote(), None, str(said) if said else None, "")
    content = run.recipe.get("promote")
    try:
        promote = Promote() if content is None else rule_of_run(content)
    except NotJudged as error:
        raise BamError(f"run {run.name}: {error}; say --recipe RECIPE with one that it can be judged by") from error
    whose = f"run {run.name}" if promote.require else None
    return Asked(promote, whose, run.pipeline, _how_to_evaluate(record, run, _recipe_of(run)))


def _how_to_evaluate(record: Record, run: Run | None, recipe: str | None) -> str:
    """The command that scores exactly this artifact, in words."""
    named = StageName.parse(record.stage)
    judge = str(StageName("evaluate", seed=named.seed))
    judge = judge if run is not None and judge in run.stages else "evaluate"
    scored = run.stages[judge].inputs if run is not None and judge in run.stages else {}
    role = named.plain if named.plain in scored or not scored else "MODEL"
    command = f"bam stage {judge} {recipe or 'RECIPE'} --with-deps --input {role}={name_of(record.ref)}"
    note = f" (MODEL: in whose place it is scored, such as {next(iter(scored))})" if role == "MODEL" else ""
    return f"`{command}`{note}"


def _recipe_of(run: Run) -> str | None:
    """As it was typed."""
    argv = run.provenance.get("argv")
    words = list(map(str, argv)) if isinstance(argv, list) else []
    after = words[words.index("run") + 1 :] if "run" in words else []
    return after[0] if after and not after[0].startswith("-") else None


def judged(record: Record, asked: Asked, store: ArtifactStore, known: Known) -> Judged:
    """The rule, held against the newest evaluation of exactly these bytes."""
    if not asked.promote.require:
        return Judged()
    scored = [(made, role) for made in known.values() for role in _roles(made, record)]
    if not scored:
        return Judged((f"no evaluation has scored these bytes, and {asked.whose} has a rule: {asked.evaluate}",))
    evaluation, role = max(scored, key=lambda pair: (pair[0].ended, pair[0].key))
    here = name_of(evaluation.ref)
    try:
        models = dict(read_json(whole_folder(store, evaluation) / "perplexity.json")["models"])
    except (ArtifactDamaged, OSError, ValueError, TypeError, KeyError) as error:
        return Judged((f"{here} cannot be judged by: {error}",), evaluation=here)
    verdicts = judge(asked.promote.require, models, role)
    failed = tuple(verdict.words for verdict in verdicts if not verdict.holds)
    return Judged(failed, tuple(verdict.words for verdict in verdicts), here)


def _roles(made: Record, record: Record) -> Iterator[str]:
    """Under which names an evaluation has scored exactly this artifact."""
    if kind_of(made.stage) == "evaluate":
        yield from (role for role, ref in made.inputs.items() if ref == record.ref)
