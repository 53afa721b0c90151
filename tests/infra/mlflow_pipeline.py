"""A whole tiny pipeline, played through a tracker as the runner does: no model, no training, real files."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bam_core.graph.record import InputRef, Output, Record, artifact_digest
from bam_core.graph.runs import Run, RunStage
from bam_core.graph.stage import Stage
from infra.mlflow_connect import connect
from infra.mlflow_tracker import MlflowTracker
from infra.run_files import RunFiles
from infra.storage import Storage

MLFLOW_WARNINGS = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
"""MLflow 3.17 calls SQLAlchemy 2.1 in a way that it deprecates."""

COMMIT = "c0ffee" + "0" * 34
PROVENANCE = {"git_commit": COMMIT, "dirty": False, "argv": ["/x/bam", "run", "tiny"], "user": "ada"}
RUN = "tiny-1"
RECIPE = {"name": "tiny", "seed": 0, "domains": {"law": {"source": {"kind": "text", "path": "law.txt"}}}}
HISTORY = [{"step": step, "tokens": 64 * step, "loss": 5.0 - step / 10, "lr": 1e-3} for step in range(1, 11)]
DOMAINS = ("general", "law")
MODELS = ("seed", "expert.law", "mix.bam", "train.bam")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(stage: str) -> str:
    return sha256(f"key of {stage}")


@functools.cache
def _template() -> Path:
    """An empty MLflow database, made once: its schema takes a second."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    file = Path(folder) / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


def fresh_tracker(store: Path, warn: Callable[[str], None] | None = None) -> MlflowTracker:
    """A tracker on an empty database inside `store`."""
    store.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), store / "mlflow.db")
    return MlflowTracker(f"sqlite:///{store / 'mlflow.db'}", str(store), warn)


@dataclass
class TinyPipeline:
    """Artifacts under `store` and their records, in the order in which they were made."""

    store: Path
    records: dict[str, Record] = field(default_factory=dict)

    def play(self, tracker: MlflowTracker) -> dict[str, Any]:
        """Run everything; returns the handle of the pipeline's run."""
        self.put_run_on_record(None)
        handle = dict(tracker.start_pipeline("tiny", RUN, RECIPE))
        for stage, files, metrics in stages():
            self.run_stage(tracker, handle, stage, files, metrics)
        self.put_run_on_record(1_700_000_100.0)
        tracker.end_pipeline(handle, "done")
        return handle

    def put_run_on_record(self, ended: float | None, status: str = "done") -> None:
        """As the wiring does: when a run starts, and when it has ended."""
        planned = {}
        for stage, _, _ in stages():
            inputs = {role: (parent, key_of(parent)) for role, parent in stage.inputs.items()}
            planned[stage.name] = RunStage(key_of(stage.name), "run", inputs)
        status = "running" if ended is None else status
        run = Run(RUN, "tiny", status, 1_700_000_000.0, ended, RECIPE, planned, PROVENANCE)  # type: ignore[arg-type]
        self.runs.write(run)

    @property
    def runs(self) -> RunFiles:
        return RunFiles(Storage(str(self.store)))

    def run_stage(
        self,
        tracker: MlflowTracker,
        parent: Mapping[str, Any],
        stage: Stage,
        files: Mapping[str, str],
        metrics: Mapping[str, Any],
    ) -> Record:
        handle = tracker.start_stage(parent, stage, key_of(stage.name), self.inputs(stage))
        for row in HISTORY[::3] if "training.json" in files else ():
            tracker.log(handle, row["step"], {"loss": row["loss"], "tokens_per_s": 1000.0})
        record = self.write(stage, files, metrics)
        record = replace(record, mlflow=tracker.end_stage(handle, record, self.folder(record)))
        self.put_on_record(record)
        return record

    def put_on_record(self, record: Record) -> None:
        self.records[record.stage] = record
        (self.folder(record) / "record.json").write_text(json.dumps(record.to_json()))

    def inputs(self, stage: Stage) -> dict[str, Record]:
        return {role: self.records[parent] for role, parent in stage.inputs.items()}

    def folder(self, record: Record) -> Path:
        return self.store / "artifacts" / record.stage / record.key[:12]

    def write(self, stage: Stage, files: Mapping[str, str], metrics: Mapping[str, Any]) -> Record:
        folder = self.store / "artifacts" / stage.name / key_of(stage.name)[:12]
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        outputs = tuple(Output(name, len(text.encode()), sha256(text)) for name, text in sorted(files.items()))
        order = len(self.records)
        return Record(
            stage=stage.name,
            key=key_of(stage.name),
            payload={
                "schema": 1,
                "stage": stage.name,
                "function": stage.function,
                "version": stage.version,
                "config": stage.config,
                "inputs": {role: record.key for role, record in self.inputs(stage).items()},
            },
            inputs={role: InputRef(r.stage, r.key, r.digest) for role, r in self.inputs(stage).items()},
            outputs=outputs,
            digest=artifact_digest(outputs),
            metrics=metrics,
            provenance=PROVENANCE | {"run": RUN, "pipeline": "tiny"},
            started=1_700_000_000.0 + 10 * order,
            ended=1_700_000_004.0 + 10 * order,
            attempt=1,
        )


def model_files(name: str, mixture: bool = False) -> dict[str, str]:
    experts = {"n_experts": 2, "top_k": 1} if mixture else None
    config = {
        "d_model": 8,
        "ffn": experts,
        "experts": ["general", "law"] if mixture else [],
        "bam": {"stage": name},
    }
    return {
        "config.json": json.dumps(config),
        "model.safetensors": f"weights of {name}",
        "tokenizer.json": "{}",
        "MODEL_CARD.md": f"# {name}\n",
    }


def text_of(domain: str) -> dict[str, Any]:
    return {"source": {"kind": "text", "digest": sha256(f"text of {domain}")}, "valid_frac": 0.1}


def stage_of(name: str, config: Mapping[str, Any], *inputs: str, **roles: str) -> Stage:
    return Stage(name, name.partition(".")[0], 1, config, {**roles, **{parent: parent for parent in inputs}})


def stages() -> list[tuple[Stage, dict[str, str], dict[str, Any]]]:
    """(stage, output files, metrics) in an order in which they can run."""
    data = [f"data.{domain}" for domain in DOMAINS]
    trained = {
        "loss": HISTORY[-1]["loss"],
        "train_tokens": 640,
        "train_flops": 10**12,
        "note": "not a number",
    }
    curve = {"training.json": json.dumps({"history": HISTORY})}
    phase = {"phase": {"lr": 1e-3, "shares": {"general": 0.5, "law": 0.5}}}
    scores = {
        name: {
            "domains": {domain: {"perplexity": 10.0 + place} for place, domain in enumerate(DOMAINS)},
            "average_perplexity": 10.5 + number,
        }
        for number, name in enumerate(MODELS)
    }
    texts = {"kind": "bpe", "domains": {domain: text_of(domain) for domain in DOMAINS}}
    return [
        (stage_of("tokenizer", texts), {"tokenizer.json": "{}"}, {"vocab_size": 64}),
        *(
            (
                stage_of(f"data.{domain}", {"domain": domain, **text_of(domain)}, "tokenizer"),
                {"train/00000.arrow": f"rows of {domain}", "stats.json": "{}"},
                {"train_tokens": 1000},
            )
            for domain in DOMAINS
        ),
        (stage_of("seed", phase, "tokenizer", *data), model_files("seed") | curve, trained),
        (stage_of("expert.law", phase, "seed", *data), model_files("expert.law") | curve, trained),
        (
            stage_of("mix.bam", {"experts": list(DOMAINS)}, "seed", "expert.law"),
            model_files("mix.bam", mixture=True) | {"mix.json": "{}"},
            {},
        ),
        (
            stage_of("train.bam", phase, *data, mix="mix.bam"),
            model_files("train.bam", mixture=True) | curve,
            trained,
        ),
        (
            stage_of("evaluate", {"models": list(MODELS)}, *MODELS, *data),
            {"perplexity.json": json.dumps({"models": scores})},
            {f"average_perplexity.{name}": scores[name]["average_perplexity"] for name in MODELS},
        ),
        (
            stage_of("report", {"recipe": "tiny"}, "evaluate"),
            {"report.html": "<h1>Report</h1>", "tables/perplexity.csv": "model,law\nseed,10\n"},
            {},
        ),
    ]
