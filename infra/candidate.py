"""Whether a foreign artifact can stand among our experts: all that speaks against it, each with what would be right.

By its record first, which costs nothing; then by our own copy of its files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from infra.foreign import is_weights
from infra.record_files import artifact_folder
from infra.store import ArtifactStore

if TYPE_CHECKING:
    from bam_core.checkpoint import TensorSource

CONFIG, TOKENIZER, HISTORY = "config.json", "tokenizer.json", "training.json"
COSTS = ("train_tokens", "train_flops", "lineage_tokens", "lineage_flops")
"""Metrics that costs of a mixture are summed from."""
_ANOTHER_SEED = "ask for an expert that branched from it, or adopt this one into a store that holds its seed"
_WHOLE = "ask for a whole artifact"
_DENSE = "give the artifact of a dense model"


def seed_digest(record: Record) -> str | None:
    """Of the seed that it branched from."""
    seed = record.inputs.get("seed")
    return seed.digest if seed is not None else None


def record_problems(record: Record) -> Iterator[Problem]:
    """What every expert has on record."""
    paths = {output.path for output in record.outputs}
    for path in (CONFIG, TOKENIZER):
        if path not in paths:
            yield Problem(path, None, f"is no output of {record.stage}", _DENSE)
    if not any(is_weights(path) for path in paths):
        yield Problem("model.safetensors", None, f"is no output of {record.stage}", _DENSE)
    for metric in COSTS:
        value = record.metrics.get(metric)
        # JSON may hold a whole number beyond every float.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
            remedy = "give what a training of bam left, or what was adopted from one"
            yield Problem(f"record.json.metrics.{metric}", value, "must be a number of 0 or more", remedy)


def seed_problems(record: Record, seed: Record | None, seeds: list[Record]) -> Iterator[Problem]:
    """seed: ours, of the same bytes."""
    if seed is None:
        ours = ", ".join(f"{made.stage}@{key12(made.key)} {made.digest[:12]}" for made in reversed(seeds))
        digest, where = seed_digest(record), "record.json.inputs.seed"
        if digest is None:
            yield Problem(where, None, f"{record.stage} branched from no seed", "give an expert.* artifact")
        elif not seeds:
            remedy = "make it first, `bam run RECIPE --only seed`, with the recipe and texts that they branched from"
            yield Problem(where, digest[:12], "this store has no seed yet", remedy)
        else:
            yield Problem(where, digest[:12], f"must be the digest of a seed of this store: {ours}", _ANOTHER_SEED)
        seed = next(reversed(seeds), None)
    wanted, found = (_sha256(made, TOKENIZER) for made in (seed, record))
    if wanted and found and wanted != found:
        remedy = "equal ids must mean equal text: ask for an expert that was trained with it"
        yield Problem(TOKENIZER, f"sha256 {found[:12]}", f"must be the seed's, {wanted[:12]}", remedy)


def _sha256(record: Record | None, path: str) -> str | None:
    outputs = record.outputs if record is not None else ()
    return next((output.sha256 for output in outputs if output.path == path), None)


def model_problems(
    folder: Path, record: Record, name: str, seed: Record | None, store: ArtifactStore, found: list[Problem]
) -> Iterator[Problem]:
    """Whether the copy is a dense model of the seed's config, whole and finite. found: so far; not said twice."""
    from bam_core.checkpoint import open_tensors, read_config  # slow to import, and only this needs torch
    from bam_core.upcycle.compat import expert_problems

    broken = {problem.path for problem in found}
    if not (folder / CONFIG).is_file() or CONFIG in broken:
        return
    try:
        config = read_config(folder)
        made_by = json.loads((folder / CONFIG).read_bytes()).get("bam")
        if not isinstance(made_by, Mapping | None):
            yield Problem(f"{CONFIG}.bam", made_by, "must be an object, or left out", _WHOLE)
    except InvalidInput as error:
        yield from (problem.under(CONFIG) for problem in error.problems)
        return
    except (ArtifactDamaged, ValueError, RecursionError) as error:
        yield Problem(CONFIG, record.stage, _without(folder, error), _DENSE)
        return
    configs = {name: config}
    if seed is not None:
        configs = {f"seed@{key12(seed.key)}": _config_of(store, seed), **configs}
    sources: dict[str, TensorSource] = {}
    weights = [output.path for output in record.outputs if is_weights(output.path)]
    if weights and all((folder / path).is_file() and path not in broken for path in weights):
        try:
            sources = {name: open_tensors(folder)}
        except ArtifactDamaged as error:
            yield Problem("model.safetensors", record.stage, _without(folder, error), _WHOLE)
    yield from expert_problems(configs, sources)
    if (folder / HISTORY).is_file() and HISTORY not in broken and not _is_history(folder / HISTORY):
        yield Problem(HISTORY, record.stage, "is no history of a training", _WHOLE)


def _is_history(file: Path) -> bool:
    """Whether a report can draw it."""
    try:
        rows = json.loads(file.read_bytes())["history"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _config_of(store: ArtifactStore, seed: Record) -> ModelConfig:
    """Of our seed, without its weights."""
    path = f"{artifact_folder(seed.stage, seed.key)}/{CONFIG}"
    where = f"{seed.stage}@{key12(seed.key)}/{CONFIG}"
    try:
        content = json.loads(store.storage.read(path) or b"")
        return ModelConfig.from_json({key: value for key, value in content.items() if key != "bam"}, where=where)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{where}: not the config of a model ({error})") from error


def _without(folder: Path, error: Exception) -> str:
    """In words that do not name the copy, which is gone when they are read."""
    return str(error).replace(f"{folder}/", "")
