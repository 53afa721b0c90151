"""`python -m tests.benchmarks.lineage`: how long lineage takes on a store of many artifacts.

Queries in this process (`wiring.lineage`, up, down and both) and as the command, whose start-up is in it; then
`bam lineage sync` into an empty SQLite MLflow, and again, when there is nothing to do. The store is
the quickstart under many seeds, with all that MLflow is shown of it: configurations, cards, histories of 120 points,
scores, and a run on record for each seed. Nothing is asserted; the result is `.bench/lineage.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bam_core.graph.key import pipeline_keys, stage_payload
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.runs import Run, RunStage
from bam_core.graph.stage import Stage
from infra.mlflow_runs import may_be_model
from infra.provenance import capture
from infra.store import ArtifactStore
from pipelines import bam, wiring
from pipelines.recipe import load_recipe
from pipelines.wiring.planning import text_digests
from pipelines.wiring.settings import Settings
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.store import RECIPE, median_s

N_POINTS = 120
ROUNDS = 5


def make_store(folder: Path, n_artifacts: int) -> ArtifactStore:
    """Finished artifacts of the recipe's pipeline, seed after seed, and a run on record for each."""
    recipe, store, seed = load_recipe(RECIPE), ArtifactStore(str(folder)), 0
    digests, made_by = text_digests(recipe), capture(["bam", "run", RECIPE])
    content = recipe.model_dump(mode="json", exclude_none=True)
    records: dict[tuple[str, str], Record] = {}
    while len(records) < n_artifacts:
        seed += 1
        run = f"{RECIPE}-{seed:05d}"
        pipeline = bam.build(recipe.model_copy(update={"seed": seed}), digests)
        keys = pipeline_keys(pipeline)
        stages = {}
        for stage in pipeline:
            parents = {role: (parent, keys[parent]) for role, parent in stage.inputs.items()}
            is_there = (stage.name, keys[stage.name]) in records  # no seed enters a tokenizer or data
            if not is_there and len(records) == n_artifacts:
                break
            stages[stage.name] = RunStage(keys[stage.name], "reuse" if is_there else "run", parents)
            if not is_there:
                inputs = {role: records[parent] for role, parent in parents.items()}
                provenance = made_by | {"run": run, "pipeline": RECIPE}
                record = write(store, stage, keys[stage.name], inputs, float(seed), provenance)
                records[stage.name, record.key] = record
        store.runs.write(Run(run, RECIPE, "done", float(seed), float(seed + 2), content, stages, made_by))
    return store


def write(
    store: ArtifactStore, stage: Stage, key: str, inputs: dict[str, Record], seed: float, provenance: dict[str, Any]
) -> Record:
    folder = Path(store.uri) / "artifacts" / stage.name / key[:12]
    folder.mkdir(parents=True)
    for name, text in contents(stage, inputs).items():
        (folder / name).write_text(text)
    outputs = store.hash_outputs(folder)
    record = Record(
        stage=stage.name,
        key=key,
        payload=stage_payload(stage, {role: parent.key for role, parent in inputs.items()}),
        inputs={role: parent.ref for role, parent in inputs.items()},
        outputs=outputs,
        digest=artifact_digest(outputs),
        metrics={f"figure_{number}": 1 / (1 + number) for number in range(20)},
        provenance=provenance,
        started=seed,
        ended=seed + 1,
        attempt=1,
    )
    (folder / "record.json").write_text(json.dumps(record.to_json(), indent=2, sort_keys=True))
    return record


def contents(stage: Stage, inputs: dict[str, Record]) -> dict[str, str]:
    """What MLflow is shown of an artifact; its weights are a word."""
    kind = stage.name.partition(".")[0]
    if kind == "evaluate":
        domains = {domain: {"perplexity": 10.0} for domain in ("general", "code", "law", "math")}
        scores = {role: {"domains": domains, "average_perplexity": 10.0} for role in inputs}
        return {"perplexity.json": json.dumps({"models": scores}), "routing.json": "{}"}
    if not may_be_model(stage.name):
        return {"stats.json": "{}"} if kind != "report" else {"report.html": "<p>A line of a report.</p>\n" * 2000}
    config = {"vocab_size": 4096, "d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 352, "ffn": {"top_k": 1}}
    card = f"# {stage.name}\n" + "A line of a card.\n" * 60
    model = {"config.json": json.dumps(config), "MODEL_CARD.md": card, "model.safetensors": "weights"}
    steps = range(10, 10 * N_POINTS + 1, 10)
    history = [{"step": n, "tokens": 4096 * n, "lr": 1e-3, "loss": 5 - n / 1e3, "grad_norm": 1.0} for n in steps]
    return model if kind == "mix" else model | {"training.json": json.dumps({"history": history})}


def measure_queries(store: ArtifactStore, rounds: int) -> dict[str, Any]:
    settings = Settings(store.uri)
    figures: dict[str, Any] = {"artifacts": len(store.records())}
    for stage, direction in (("train.bam", "up"), ("seed", "down"), ("seed", "both")):
        _, times = median_s(lambda: wiring.lineage(stage, settings, direction), rounds)  # type: ignore[arg-type] # noqa: B023
        figures[f"{stage}_{direction}_s"] = times
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "lineage", "train.bam"]
    command += ["--store", store.uri]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    _, figures["bam_lineage_s"] = median_s(lambda: subprocess.run(command, **quiet), rounds)
    return figures


def measure_sync(store: ArtifactStore) -> dict[str, Any]:
    figures: dict[str, Any] = {"artifacts": len(store.records()), "runs": len(store.runs.all())}
    for name in ("sync_s", "again_s"):
        started = time.perf_counter()
        wiring.lineage_sync(Settings(store.uri))
        figures[name] = round(time.perf_counter() - started, 1)
    _, figures["from_mlflow_s"] = median_s(
        lambda: wiring.lineage_from_mlflow("train.bam", Settings(store.uri), "up"), ROUNDS
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=int, nargs="+", default=[1000, 5000], help="of the queries")
    parser.add_argument("--sync", type=int, default=1000, help="artifacts of the sync; 0 for none")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queries = []
        for n_artifacts in given.artifacts:
            queries.append(measure_queries(make_store(Path(folder) / str(n_artifacts), n_artifacts), given.rounds))
            print(queries[-1], flush=True)
        synced = measure_sync(make_store(Path(folder) / "sync", given.sync)) if given.sync else None
        print(synced, flush=True)
    write_result("lineage", {"queries": queries, "sync": synced}, given.out)


if __name__ == "__main__":
    main()
