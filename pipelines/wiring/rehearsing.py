"""A pipeline of next to nothing, run for its times: what each kind of stage takes beside its work, and for text.

The text's stages run twice, on little and on more text: the difference of their times over that of their bytes is
what a byte costs; what is left is what the kind of stage costs. Tracked as runs are, in a database of its own: MLflow
takes memory in every process that trains, and time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bam_core.errors import UsageError
from bam_core.graph.record import Record
from bam_core.graph.select import Selection
from bam_core.graph.stage import StageName, kind_of
from bam_core.planner.calibration import Calibration
from bam_core.planner.estimate import seconds
from bam_core.planner.work import Counts
from infra.sources import TextSources
from pipelines import bam
from pipelines.recipe import Recipe
from pipelines.recipe.load import recipe_from
from pipelines.runner import StageState
from pipelines.wiring.planning import text_digests
from pipelines.wiring.running import run
from pipelines.wiring.settings import Settings, open_store
from pipelines.workload import TextFacts, works

Say = Callable[[str], None]
SMALL_BYTES, LARGE_BYTES = 100_000, 1_500_000
TEXT_KINDS = ("tokenizer", "data", "overlap")


def rehearsed(bare: Calibration, executors: Sequence[str], say: Say, apart: Callable[..., Any]) -> Calibration:
    """`bare` with what the rehearsals say. apart: calls a function in a process that has done nothing else.

    Raises BamError if a rehearsal fails.
    """
    fixed, found = {}, bare
    with tempfile.TemporaryDirectory(prefix="bam-rehearsal-") as folder:
        here = Path(folder)
        small, large = (_recipe(_text(here / f"{n}.jsonl", n)) for n in (SMALL_BYTES, LARGE_BYTES))
        for executor in executors:
            say(f"a pipeline of next to nothing, executor {executor}")
            settings = Settings(str(here / executor), executor=executor)
            records = _run(small, settings, Selection())
            if executor == "local":
                say("the same with more text")
                more = _run(large, settings, Selection(until=("overlap",)))
                found = replace(found, **_of_text(records, more, small, large))
                if bare.kind == "cpu":
                    peak = apart(_peak_of_seed, small[0], settings)
                    found = replace(found, idle_bytes={executor: peak - found.peak(_trained_bytes(small)["seed"])})
            elif bare.kind == "cpu":
                found = replace(found, idle_bytes={**found.idle_bytes, executor: _idle(records, small, found)})
            fixed[executor] = _fixed(records, small, found)
    return replace(found, fixed_s=fixed)


def _text(path: Path, n_bytes: int) -> tuple[Path, list[int]]:
    """Text that every Python installation has, as lines of JSON; and the bytes of each document."""
    sizes: list[int] = []
    with path.open("w") as file:
        for document in TextSources().read({"kind": "python-code"}):
            sizes.append(len(document.text.encode()))
            file.write(json.dumps({"text": document.text}) + "\n")
            if sum(sizes) >= n_bytes:
                break
    return path, sizes


Rehearsal = tuple[Recipe, list[int]]


def _recipe(text: tuple[Path, list[int]]) -> Rehearsal:
    path, sizes = text
    source = {"kind": "jsonl", "path": str(path)}
    phase = {"tokens": 4 * 256, "batch_tokens": 256, "lr": 1e-3}
    document: dict[str, Any] = {
        "name": "rehearsal",
        "domains": {name: {"source": source, "valid_frac": 0.2} for name in ("general", "other")},
        "tokenizer": {"kind": "bpe", "vocab_size": 4096, "domains": ["general"]},
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": 64},
        "phases": {name: dict(phase) for name in ("seed", "expert", "mixture")},
        "variants": {"bam": {"attention": {"routing": "soft"}, "ffn": {"top_k": 1}}},
        "evaluate": {"tokens": 256, "allow_overlap": True, "routing": {"tokens": 64, "knock_out_tokens": 0}},
    }
    document["phases"]["seed"]["data"] = {"general": 1.0}
    return recipe_from(document, "rehearsal"), sizes


class Silent:
    """A `runner.Display` that shows nothing."""

    def update(self, states: list[StageState]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def _run(rehearsal: Rehearsal, settings: Settings, selection: Selection) -> dict[str, Record]:
    """Stage -> the record of this run."""
    ended = run(rehearsal[0], settings, selection, Silent())
    failed = [stage.error for stage in ended.stages if stage.error]
    if failed:
        raise UsageError(f"the rehearsal failed: {failed[0]}")
    store = open_store(settings)
    made = {stage.stage: stage.key for stage in ended.stages if stage.status == "done"}
    return {stage: record for stage, key in made.items() if (record := store.record(stage, key)) is not None}


def _peak_of_seed(recipe: Recipe, settings: Settings) -> int:
    """Of a process that makes the seed once more, with all that a stage loads beside torch."""
    from bam_core.train.peak import forget_peak, peak_of_process

    forget_peak("cpu")
    _run((recipe, []), settings, Selection(only=("seed",), force=("seed",)))
    return peak_of_process("cpu")


def _idle(records: Mapping[str, Record], rehearsal: Rehearsal, device: Calibration) -> float:
    """Of a worker process that has all of an executor in it beside what its training holds; each has done but one."""
    peaks = {name: device.peak(counts) for name, counts in _trained_bytes(rehearsal).items()}
    return float(median(records[name].metrics["peak_memory_bytes"] - peak for name, peak in peaks.items()))


def _trained_bytes(rehearsal: Rehearsal) -> dict[str, Counts]:
    """Stage that trains -> what it holds at its peak."""
    recipe, sizes = rehearsal
    facts = {name: TextFacts(sizes) for name in recipe.texts}
    counted = works(recipe, bam.build(recipe, text_digests(recipe)), facts, 4.0)
    return {name: work.training.peak_bytes() for name, work in counted.items() if work.training is not None}


def _of_text(
    few: Mapping[str, Record], many: Mapping[str, Record], small: Rehearsal, large: Rehearsal
) -> dict[str, Any]:
    """What the calibration says of text."""
    prices = {}
    for kind in TEXT_KINDS:
        times = [median(r.seconds for name, r in records.items() if kind_of(name) == kind) for records in (few, many)]
        sizes = [sum(rehearsal[1]) * (2 if kind == "overlap" else 1) for rehearsal in (small, large)]
        prices[kind] = max(0.0, (times[1] - times[0]) / (sizes[1] - sizes[0]))
    metrics = many["data.general"].metrics
    tokens = metrics["train_tokens"] + metrics["valid_tokens"]
    return {"text_s_per_byte": prices, "bytes_per_token": sum(large[1]) / tokens}


def _fixed(records: Mapping[str, Record], rehearsal: Rehearsal, device: Calibration) -> dict[str, float]:
    """Kind of stage -> its seconds without what its work is said to take.

    Those that train are alike: their median, since the first of a process loads what the others find.
    """
    recipe, sizes = rehearsal
    facts = {name: TextFacts(sizes) for name in recipe.texts}
    counted = works(recipe, bam.build(recipe, text_digests(recipe)), facts, device.bytes_per_token)
    free = replace(device, fixed_s={"local": dict.fromkeys(map(kind_of, counted), 0.0)})
    kinds: dict[str, list[float]] = {}
    for name, record in records.items():
        kind = "train" if counted[name].training is not None else kind_of(StageName.parse(name).plain)
        kinds.setdefault(kind, []).append(max(0.0, record.seconds - seconds(counted[name], free, "local")))
    found = {kind: median(its) for kind, its in kinds.items()}
    return dict.fromkeys(("seed", "expert", "dense", "distil", "tune"), found["train"]) | found
