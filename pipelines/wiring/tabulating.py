"""A study's tables from what its evaluations left in the store: nothing is computed again, nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bam_core.documents import read_json
from bam_core.errors import UsageError
from bam_core.graph.record import Record
from bam_core.graph.select import Selection
from bam_core.graph.stage import kind_of
from infra.store import ArtifactStore
from pipelines.recipe import Recipe
from pipelines.recipe.study import value_at
from pipelines.report import formats
from pipelines.wiring.origins import name_of, whole_folder
from pipelines.wiring.planning import Plan, make_plan
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from pipelines.results.tables import Evaluated, ShownTable


def study_results(
    recipes: Sequence[tuple[str, Recipe]], settings: Settings
) -> list[tuple[Evaluated, list[ShownTable]]]:
    """The tables of each recipe (as it was named, and what it is).

    Raises UsageError for a recipe without a study, or whose evaluations are not there; ArtifactDamaged.
    """
    from pipelines.results.tables import study_tables

    store, found = open_store(settings), []
    for name, recipe in recipes:
        if not recipe.study:
            raise UsageError(f"recipe {name} has no section `study`: it says which tables its results are shown in")
        evaluated = _evaluated(name, recipe, make_plan(recipe, settings, Selection()), store)
        found.append((evaluated, study_tables(recipe.study, evaluated)))
    return found


def _evaluated(name: str, recipe: Recipe, made: Plan, store: ArtifactStore) -> Evaluated:
    from pipelines.report.document_files import read_documents
    from pipelines.results.tables import Evaluated

    stages = [stage.name for stage in made.pipeline if kind_of(stage.name) == "evaluate"]
    records = [store.record(stage, made.keys[stage]) for stage in stages]
    there = [record for record in records if record is not None]
    if len(there) < len(stages):
        missing = ", ".join(stage for stage, record in zip(stages, records, strict=True) if record is None)
        raise UsageError(f"recipe {name}: not made yet: {missing}; make it with `bam run {name}`")
    folders = [whole_folder(store, record) for record in there]
    files = {seed: folder / "documents.parquet" for seed, folder in zip(recipe.all_seeds, folders, strict=True)}
    return Evaluated(
        recipe=Path(name).name if Path(name).is_absolute() else name,  # a page is no place for a machine's folders
        seeds=recipe.all_seeds,
        domains=tuple(recipe.domains),
        scores=read_documents(files),
        figures=read_json(folders[0] / "perplexity.json")["models"],
        made=_made(there, [record for record in store.records() if made.keys.get(record.stage) == record.key]),
        settings={key: value_at(recipe, key) for key in _settings(recipe)},
    )


def _settings(recipe: Recipe) -> set[str]:
    return {table.setting for table in recipe.study.values() if table.setting}


def _made(evaluations: Sequence[Record], records: Sequence[Record]) -> dict[str, str]:
    """Where the numbers come from. records: of every stage of the recipe."""
    trained = [record for record in records if record.metrics.get("train_tokens")]
    commits = {
        str(record.provenance.get("git_commit"))[:12] + (" and changes" if record.provenance.get("dirty") else "")
        for record in records
        if record.provenance.get("git_commit")
    }
    devices = _values(place.get("device") for record in trained for place in record.provenance.get("ran_on", ()))
    torch = _values(record.provenance.get("packages", {}).get("torch") for record in trained)
    tokens = sum(record.metrics["train_tokens"] for record in trained)
    seconds = formats.duration(sum(record.seconds for record in records))
    return {
        "evaluations": ", ".join(f"`{name_of(record.ref)}`" for record in evaluations),
        "trained on": "; ".join([*devices, *(f"torch {version}" for version in torch)]),
        "code": ", ".join(sorted(commits)),
        "cost": f"{len(trained)} trainings, {formats.count(tokens)} tokens, {seconds} of stages",
    }


def _values(found: Iterable[object]) -> list[str]:
    return sorted({str(value) for value in found if value})
