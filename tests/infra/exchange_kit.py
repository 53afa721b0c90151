"""Stores of teams that share a seed, filled by hand: nothing is trained, every record's key is its payload's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bam_core.checkpoint import write_model
from bam_core.config import ModelConfig
from bam_core.graph.key import key12, stage_key, stage_payload
from bam_core.graph.record import Output, Record, artifact_digest, record_checksum
from bam_core.graph.stage import Stage
from bam_core.nn.lm import LM, init_weights
from infra.store import ArtifactStore

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=12, max_seq_len=16)
WIDE = replace(DENSE, d_ff=16)
COSTS = {"train_tokens": 100, "train_flops": 1000, "lineage_tokens": 300, "lineage_flops": 3000}
HISTORY = '{"history": [{"step": 1, "tokens": 64, "loss": 2.0}]}'


class Team:
    """One store. `made` has the newest record of each stage."""

    def __init__(self, uri: str | Path) -> None:
        self.store = ArtifactStore(str(uri))
        self.made: dict[str, Record] = {}

    def folder(self, stage: str) -> Path:
        record = self.made[stage]
        return Path(self.store.uri) / "artifacts" / stage / key12(record.key)

    def commit(
        self,
        stage: str,
        write: Callable[[Path], None],
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        metrics: Mapping[str, Any],
    ) -> Record:
        spec = Stage(stage, stage.partition(".")[0], 1, config, inputs)
        payload = stage_payload(spec, {role: self.made[parent].key for role, parent in inputs.items()})
        key = stage_key(payload)
        with self.store.scratch(stage, key) as out:
            write(out)
            outputs = self.store.hash_outputs(out)
            record = Record(
                stage=stage,
                key=key,
                payload=payload,
                inputs={role: self.made[parent].ref for role, parent in inputs.items()},
                outputs=outputs,
                digest=artifact_digest(outputs),
                metrics=metrics,
                provenance={"git_commit": None, "user": "somebody"},
                started=1.0,
                ended=2.0 + len(self.made),
                attempt=1,
            )
            self.store.commit(out, record)
        self.made[stage] = record
        return record

    def seed(self, number: int = 0, config: ModelConfig = DENSE, vocabulary: str = "{}") -> Record:
        """number: of its initial weights. Equal arguments give equal bytes in every store."""
        self.commit("tokenizer", lambda out: _write(out / "tokenizer.json", vocabulary), {"of": vocabulary}, {}, {})
        return self.model("seed", {"tokenizer": "tokenizer"}, number, config, vocabulary)

    def model(
        self,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        number: int = 7,
        config: ModelConfig = DENSE,
        vocabulary: str = "{}",
        metrics: Mapping[str, Any] = COSTS,
        put: Mapping[str, float] | None = None,
        history: str = HISTORY,
    ) -> Record:
        """A model folder as a training leaves it. put: tensor -> what its first number becomes."""

        def write(out: Path) -> None:
            model = LM(config)
            init_weights(model, seed=number)
            for name, value in (put or {}).items():
                model.state_dict()[name].view(-1)[0] = value
            _write(out / "tokenizer.json", vocabulary)
            _write(out / "training.json", history)
            write_model(out, config, model.state_dict().items(), tokenizer=None, card=f"# {stage}\n")

        return self.commit(stage, write, {"number": number}, inputs or {"seed": "seed"}, {"loss": 2.0, **metrics})


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def reseal(folder: Path, **changes: Any) -> None:
    """Change fields of a record, as somebody who means it would: digest and checksum hold."""
    record = json.loads((folder / "record.json").read_text()) | changes
    record["digest"] = artifact_digest([Output(**output) for output in record["outputs"]])
    (folder / "record.json").write_text(json.dumps(record | {"checksum": record_checksum(record)}))


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
