"""What a report is made of: the figures that other stages left, as plain JSON, and how they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged
from bam_core.evaluate.resample import DocumentScores
from pipelines.report.document_files import read_documents
from pipelines.report.seeds import SEEDS, mean_over_seeds

Json = Mapping[str, Any]
ROUTED = {"summary": "routing_summary", "knock_out": "knock_out"}
GROUPS = ("seed", "expert", "dense", "ensemble", "mix", "train", "distil")
"""Models are shown in this order; others come last."""


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows. Without an optional part the report has fewer sections.

    perplexity, routing: evaluate's `perplexity.json` and `routing.json`. training: model -> history of its
    `training.json`. mixes: `mix.<variant>` -> its `mix.json`. costs: one per stage, {stage, seconds, tokens,
    train_flops, params}. lineage: a graph as `bam lineage --format json` prints it. domains: their order, the
    general one first (default: as in `perplexity`). searches: `tune.<name>` -> {best, trials}, its two files.
    tasks: the `tasks.json` of evaluate.
    data_paths: model -> how the shares of its training data changed, of `training.json`.
    overlap: the file of that name of the stage `overlap`.
    collapses: model -> the alarms of its training for experts without work. routed: {summary, knock_out}, two files of
    `routing`.
    With several seeds `perplexity` is the mean over them (`mean_over_seeds`); what else there is, is the first one's.
    documents: each document's loss under every seed, of `documents.parquet`. baselines: models that the others are
    compared with. metrics: evaluate's `metrics.json`, of plug-ins.
    """

    name: str
    perplexity: Json
    routing: Json | None = None
    training: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    mixes: Mapping[str, Json] = field(default_factory=dict)
    costs: Sequence[Json] = ()
    lineage: Json | None = None
    domains: Sequence[str] = ()
    searches: Mapping[str, Json] = field(default_factory=dict)
    tasks: Json | None = None
    collapses: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    routed: Json | None = None
    overlap: Json | None = None
    data_paths: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    documents: DocumentScores | None = None
    baselines: Sequence[str] = ()
    metrics: Json | None = None

    @classmethod
    def read(
        cls,
        name: str,
        *,
        evaluate: Path,
        models: Mapping[str, Path],
        costs: Sequence[Json] = (),
        lineage: Json | None = None,
        domains: Sequence[str] = (),
        searches: Mapping[str, Path] | None = None,
        routed: Path | None = None,
        overlap: Path | None = None,
        other_seeds: Sequence[Path] = (),
        baselines: Sequence[str] = (),
    ) -> ReportInputs:
        """Read the files of an `evaluate` and a `routing` artifact, of model folders and of searches (name -> folder).

        other_seeds: the `evaluate` artifacts of further seeds. A model folder gives its `training.json` and its
        `mix.json` where it has them.
        Raises ArtifactDamaged, naming the file that is missing or is not what it should be.
        """
        histories = {model: _read(folder / "training.json") for model, folder in models.items()}
        mixes = {model: _read(folder / "mix.json") for model, folder in models.items()}
        perplexity, documents = read_evaluations([evaluate, *other_seeds])
        return cls(
            name=name,
            perplexity=perplexity,
            documents=documents,
            baselines=baselines,
            routing=_read(evaluate / "routing.json"),
            tasks=_read(evaluate / "tasks.json"),
            metrics=_read(evaluate / "metrics.json"),
            training={model: data["history"] for model, data in histories.items() if data},
            collapses={model: found for model, data in histories.items() if (found := (data or {}).get("collapse"))},
            data_paths={model: found for model, data in histories.items() if (found := (data or {}).get("data_path"))},
            routed={name: _read(routed / f"{file}.json") for name, file in ROUTED.items()} if routed else None,
            overlap=_read(overlap / "overlap.json") if overlap else None,
            mixes={model: data for model, data in mixes.items() if data},
            costs=costs,
            lineage=lineage,
            domains=domains,
            searches={
                name: {"best": _read(folder / "best.json"), "trials": _read(folder / "trials.json")}
                for name, folder in (searches or {}).items()
            },
        )

    @property
    def scoring(self) -> Json | None:
        """{context, stride} in tokens, by which documents were scored; None of an older evaluation, of rows."""
        found: Json | None = self.perplexity.get("scoring")
        return found

    @property
    def seeds(self) -> list[int]:
        """Of all models, the first one's first."""
        models: Mapping[str, Json] = self.perplexity.get("models", {})
        return list(dict.fromkeys(seed for model in models.values() for seed in model.get(SEEDS, ())))

    @property
    def models(self) -> dict[str, Json]:
        """The evaluated models: seed, experts, dense, mixtures before and after their training, others."""
        found: Mapping[str, Json] = self.perplexity.get("models", {})
        return {name: found[name] for name in in_order(found, self.domain_names)}

    @property
    def domain_names(self) -> list[str]:
        """Every evaluated domain, in the given order; unlisted ones follow as found."""
        found: dict[str, None] = {}
        for model in self.perplexity.get("models", {}).values():
            found.update(dict.fromkeys(model.get("domains", {})))
        listed = [domain for domain in self.domains if domain in found]
        return listed + [domain for domain in found if domain not in listed]


def expert_labels(routing: Json, router: str) -> Sequence[str]:
    """A name for each expert of a mixture's branch, in the order of its figures.

    Before the two branches could differ, `routing.json` had one list for both.
    """
    labels: Sequence[str] = routing.get(f"{router}_experts") or routing["experts"]
    return labels


def soft_layers(routing: Json, router: str) -> Sequence[int]:
    """Layers of a branch in which every token goes to all experts, though it is sparse elsewhere."""
    layers: Sequence[int] = routing.get(f"{router}_soft_layers", ())
    return layers


def is_of(label: str, domain: str) -> bool:
    """Whether an expert came from this domain's dense model: `law`, a copy `law#2`, a part of its columns `law/1`."""
    return re.fullmatch(rf"{re.escape(domain)}([#/]\d+)*", label) is not None


def group(model: str) -> str:
    """The kind of a model by its stage name: `expert` for `expert.law`, and for one that was adopted."""
    kind = model.split(".", 1)[0]
    kind = "expert" if kind == "adopted" else kind
    return kind if kind in GROUPS else "other"


def in_order(models: Mapping[str, Any], domains: Sequence[str] = ()) -> list[str]:
    """Model names by group; experts by their domain's place, the rest as found."""
    groups = (*GROUPS, "other")

    def place(name: str) -> tuple[int, int]:
        domain = name.partition(".")[2]
        is_listed = group(name) == "expert" and domain in domains
        return groups.index(group(name)), list(domains).index(domain) if is_listed else len(domains)

    return sorted(models, key=place)


def read_evaluations(folders: Sequence[Path]) -> tuple[Json, DocumentScores | None]:
    """The perplexities of `evaluate` artifacts, one for each seed, as their mean, and each document's loss, if written.

    Raises ArtifactDamaged.
    """
    scores = {folder: _perplexity(folder) for folder in folders}
    return mean_over_seeds(list(scores.values())), _documents(scores)


def _perplexity(evaluate: Path) -> Json:
    found = _read(evaluate / "perplexity.json")
    if not isinstance(found, Mapping) or not isinstance(found.get("models"), Mapping):
        raise ArtifactDamaged(f"{evaluate / 'perplexity.json'}: has no models to report on")
    return found


def _documents(scores: Mapping[Path, Json]) -> DocumentScores | None:
    """Of all seeds; None of evaluations that wrote none, as older ones did."""
    files = {_seed(found, place): folder / "documents.parquet" for place, (folder, found) in enumerate(scores.items())}
    if not any(file.exists() for file in files.values()):
        return None
    return read_documents(files)


def _seed(perplexity: Json, place: int) -> int:
    """The seed of an evaluation; its place among them where it does not say."""
    seeds = [seed for model in perplexity["models"].values() for seed in model.get(SEEDS, ())]
    return int(seeds[0]) if seeds else place


def _read(path: Path) -> Any:
    """The file's JSON, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactDamaged(f"{path}: cannot be read as JSON ({error})") from error
