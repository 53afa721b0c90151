"""`python -m tests.benchmarks.store`: how long a plan takes on a store of many artifacts.

The store is made here: artifacts of the quickstart's stages under other seeds, each with its record and its outputs
(empty files of the recorded names; sizes are looked at, bytes are not). Times are of `make_plan` in this process and
of the command `bam plan`, whose start-up is in it. Nothing is asserted; the result is `.bench/store.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bam_core.graph.key import pipeline_keys, stage_payload
from bam_core.graph.record import InputRef, Output, Record, artifact_digest
from bam_core.graph.select import Selection
from infra.provenance import capture
from pipelines import bam
from pipelines.recipe import Recipe, load_recipe
from pipelines.wiring.planning import make_plan, text_digests
from pipelines.wiring.settings import Settings
from tests.benchmarks.result import write_result

RECIPE = "quickstart"
OUTPUTS = ("config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md", "training.json")
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def fill(store: Path, recipe: Recipe, n_artifacts: int, first_seed: int = 1) -> None:
    """Finished artifacts of the recipe's pipeline, under seeds that nobody asks for unless `first_seed` is its own."""
    digests, provenance = text_digests(recipe), capture(["bam", "run", RECIPE])
    outputs = tuple(Output(path, 0, EMPTY) for path in OUTPUTS)
    digest, made, seed = artifact_digest(outputs), 0, first_seed
    while made < n_artifacts:
        pipeline = bam.build(recipe.model_copy(update={"seed": seed}), digests)
        keys = pipeline_keys(pipeline)
        for stage in pipeline:
            if made == n_artifacts:
                return
            parents = {role: keys[name] for role, name in stage.inputs.items()}
            record = Record(
                stage=stage.name,
                key=keys[stage.name],
                payload=stage_payload(stage, parents),
                inputs={role: InputRef(name, keys[name], digest) for role, name in stage.inputs.items()},
                outputs=outputs,
                digest=digest,
                metrics={f"loss_{step}": 1 / (1 + step) for step in range(20)},
                provenance=provenance,
                started=float(seed),
                ended=float(seed) + 1,
                attempt=1,
            )
            folder = store / "artifacts" / stage.name / record.key[:12]
            if folder.exists():  # a stage that no seed enters
                continue
            folder.mkdir(parents=True)
            for path in OUTPUTS:
                (folder / path).touch()
            (folder / "record.json").write_text(json.dumps(record.to_json(), indent=2, sort_keys=True))
            attempt = folder / "attempts" / "0001"
            attempt.mkdir(parents=True)
            (attempt / "log.txt").touch()
            (attempt / "progress.json").write_text("{}")
            made += 1
        seed += 1


def median_s(work: Callable[[], Any], rounds: int) -> tuple[float, list[float]]:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(round(time.perf_counter() - started, 3))
    return statistics.median(times), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="a folder to keep the store in; one that exists is used as it is")
    given = parser.parse_args()
    recipe = load_recipe(RECIPE)
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(given.store or temporary) / "store"
        if not store.exists():
            fill(store, recipe, given.artifacts)
        command = [
            sys.executable,
            "-c",
            "from pipelines.cli import main; main()",
            "plan",
            RECIPE,
            "--store",
            str(store),
        ]
        plan_s, plans = median_s(lambda: make_plan(recipe, Settings(str(store)), Selection()), given.rounds)
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command_s, commands = median_s(lambda: subprocess.run(command, **quiet), given.rounds)  # type: ignore[call-overload]
        n_artifacts = sum(1 for _ in store.glob("artifacts/*/*/record.json"))
    print(f"{n_artifacts} artifacts: make_plan {plan_s:.2f} s, `bam plan` {command_s:.2f} s (medians)")
    write_result("store", {"artifacts": n_artifacts, "make_plan_s": plans, "bam_plan_s": commands})


if __name__ == "__main__":
    main()
