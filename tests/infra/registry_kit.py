"""The store of `model_store` with a second mixture and an evaluation, and runs on record, told to a real MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bam_core.graph.key import stage_key, stage_payload
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.runs import Run, RunStage
from bam_core.graph.stage import Stage
from infra.mlflow_tracker import MlflowTracker
from infra.store import ArtifactStore
from tests.infra import model_store
from tests.infra.mlflow_pipeline import fresh_tracker

RUN, RECIPE = model_store.RUN, "tiny"
SCORED = ("seed", "expert.law", "mix.bam", "train.bam", "train.btx")
BEHIND = {"train.bam": ("mix.bam", "seed", "expert.law"), "train.btx": ("seed",)}


def figures(average: float, params: int = 1000) -> dict[str, Any]:
    """One model's in perplexity.json: law is the hardest domain."""
    return {
        "domains": {"general": {"perplexity": average - 1}, "law": {"perplexity": average + 1}},
        "average_perplexity": average,
        "params_total": params,
        "params_active": params // 2,
        "flops_per_token": 2 * params,
    }


SCORES = {name: figures(10.0) for name in SCORED} | {"train.bam": figures(8.0), "train.btx": figures(9.0)}


@dataclass
class Lab:
    """The store under `folder`, which is MLflow's place too, and what it holds by stage."""

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.folder))

    def make(
        self,
        stage: str,
        files: Mapping[str, bytes | str],
        parents: Mapping[str, str] | Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> Record:
        """Commit an artifact, made last, from the newest of `parents` (role -> stage, or stages)."""
        store = self.store
        roles = dict(parents) if isinstance(parents, Mapping) else {parent: parent for parent in parents}
        given = {role: self.records[parent] for role, parent in roles.items()}
        planned = Stage(stage, stage.partition(".")[0], 1, dict(config or {}), roles)
        payload = stage_payload(planned, {role: record.key for role, record in given.items()})
        key, order = stage_key(payload), len(store.records())
        with store.scratch(stage, key) as out:
            for name, data in files.items():
                (out / name).write_bytes(data if isinstance(data, bytes) else data.encode())
            outputs = store.hash_outputs(out)
            record = Record(
                stage=stage,
                key=key,
                payload=payload,
                inputs={role: parent.ref for role, parent in given.items()},
                outputs=outputs,
                digest=artifact_digest(outputs),
                metrics={},
                provenance={"argv": ["/x/bam", "run", "tiny.yaml"], "run": RUN},
                started=100.0 + order,
                ended=101.0 + order,
                attempt=1,
            )
            store.commit(out, record)
        self.records[stage] = record
        return record

    def like(self, stage: str, model: str, parents: Mapping[str, str] | Sequence[str]) -> Record:
        """An artifact with the files of another model."""
        here = self.store.localize(self.records[model])
        files = {output.path: (here / output.path).read_bytes() for output in self.records[model].outputs}
        return self.make(stage, files, parents)

    def evaluate(
        self, scores: Mapping[str, Any] = SCORES, parents: Mapping[str, str] | None = None, **config: Any
    ) -> Record:
        files = {"perplexity.json": json.dumps({"models": scores})}
        return self.make("evaluate", files, parents or {name: name for name in scores}, config)

    def run(
        self, promote: Mapping[str, Any] | None = None, name: str = RUN, started: float = 1.0, but: Sequence[str] = ()
    ) -> Run:
        """Put a run on record that has made or reused all that there is."""
        stages = {
            stage: RunStage(record.key, "run", {role: (ref.stage, ref.key) for role, ref in record.inputs.items()})
            for stage, record in self.records.items()
            if stage not in but
        }
        content = {"name": RECIPE} | ({} if promote is None else {"promote": dict(promote)})
        command = {"argv": ["/x/bam", "run", "tiny.yaml"]}
        run = Run(name, RECIPE, "done", started, started + 1, content, stages, command)
        self.store.runs.write(run)
        return run

    def track(self, tracker: MlflowTracker | None = None) -> MlflowTracker:
        """Tell MLflow all of it, as a run does; to an empty database beside the store by default."""
        tracker = tracker or fresh_tracker(self.folder)
        handle = tracker.start_pipeline(RECIPE, RUN, {"name": RECIPE})
        for stage, record in list(self.records.items()):
            given = {role: self.records[ref.stage] for role, ref in record.inputs.items()}
            roles = {role: ref.stage for role, ref in record.inputs.items()}
            planned = Stage(stage, record.payload["function"], 1, record.payload["config"], roles)
            made = tracker.start_stage(handle, planned, record.key, given)
            self.records[stage] = replace(record, mlflow=tracker.end_stage(made, record, self.store.localize(record)))
        tracker.end_pipeline(handle, "done")
        assert not tracker.is_down
        return tracker

    def file(self, stage: str, name: str) -> Path:
        return self.store.localize(self.records[stage]) / name


def lab(folder: Path) -> Lab:
    """All of it but the run: nothing is in MLflow yet."""
    made = Lab(folder)
    made.records = model_store.fill(made.store)
    made.like("train.btx", "train.bam", ["seed"])
    made.evaluate()
    return made
