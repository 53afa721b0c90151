"""A store with a real mixture in it, made in a moment: text, seed, an expert, the mixture, and what became of it.

Every record is as a run writes it: its key is that of its payload, and its inputs are those of its payload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import open_tensors, write_model
from bam_core.config import ModelConfig
from bam_core.graph.key import stage_key, stage_payload
from bam_core.graph.record import Record, artifact_digest, record_checksum
from bam_core.graph.stage import Stage
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.edit import edited, removing
from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for
from infra.store import ArtifactStore
from pipelines.stages import KINDS

DENSE = ModelConfig(vocab_size=19, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=16)
SEED = 7
EXPERTS = {"general": "seed", "law": "expert.law"}
RUN = "tiny-1"


def made(
    store: ArtifactStore,
    stage: str,
    inputs: Mapping[str, Record],
    write: Callable[[Path], None],
    config: Mapping[str, Any] | None = None,
) -> Record:
    """Commit an artifact as `pipelines.attempt` does."""
    function = stage.partition(".")[0]
    version = KINDS[function].version if function in KINDS else 1
    spec = Stage(stage, function, version, config or {}, {role: record.stage for role, record in inputs.items()})
    payload = stage_payload(spec, {role: record.key for role, record in inputs.items()})
    key = stage_key(payload)
    with store.scratch(stage, key) as out:
        write(out)
        outputs = store.hash_outputs(out)
        record = Record(
            stage=stage,
            key=key,
            payload=payload,
            inputs={role: record.ref for role, record in inputs.items()},
            outputs=outputs,
            digest=artifact_digest(outputs),
            metrics={"loss": 2.5},
            provenance={"git_commit": "f" * 40, "run": RUN},
            started=1.0,
            ended=2.0 + len(inputs),
            attempt=1,
        )
        store.commit(out, record)
    return record


def fill(store: ArtifactStore) -> dict[str, Record]:
    """data.law -> seed -> expert.law -> mix.bam -> train.bam, and edit.small of mix.bam. Returns stage -> record."""
    found: dict[str, Record] = {}
    text = {"source": {"kind": "generated-math", "documents": 4, "seed": 0, "digest": "0" * 64}, "domain": "law"}
    found["data.law"] = made(store, "data.law", {}, lambda out: rows(out), text)
    found["seed"] = made(store, "seed", {"data.law": found["data.law"]}, lambda out: dense(out, 0))
    found["expert.law"] = made(store, "expert.law", {"seed": found["seed"]}, lambda out: dense(out, 1))
    sources = {expert: open_tensors(store.localize(found[stage])) for expert, stage in EXPERTS.items()}
    variant = VARIANTS["bam"]
    config = {
        "variant": variant.identity(),
        "experts": [list(pair) for pair in EXPERTS.items()],
        "seed": SEED,
        "domains": ["law"],
    }
    parents = {stage: found[stage] for stage in (*EXPERTS.values(), "data.law")}
    found["mix.bam"] = made(store, "mix.bam", parents, lambda out: mixture(out, sources), config)
    mix = open_tensors(store.localize(found["mix.bam"]))
    target = mixture_config(DENSE, list(EXPERTS), variant)
    moved = ((name, mix.get(name) + 0.25) for name in mix.names())
    found["train.bam"] = made(store, "train.bam", {"mix": found["mix.bam"]}, lambda out: model(out, target, moved))
    removal = {"operation": "remove", "name": "law", "tokens": 10}
    found["edit.small"] = made(store, "edit.small", {"base": found["mix.bam"]}, lambda out: edit(out, mix), removal)
    return found


def rows(out: Path) -> None:
    (out / "train").mkdir()
    (out / "train" / "00000.arrow").write_bytes(b"rows" * 100)


def dense(out: Path, seed: int) -> None:
    from bam_core.nn.shapes import tensor_shapes

    generator = torch.Generator().manual_seed(seed)
    model(out, DENSE, ((name, torch.randn(shape, generator=generator)) for name, shape in tensor_shapes(DENSE).items()))


def mixture(out: Path, sources: Mapping[str, Any]) -> None:
    target = mixture_config(DENSE, list(EXPERTS), VARIANTS["bam"])
    tensors: dict[str, Any] = {}
    model(out, target, upcycle(target, rules_for(VARIANTS["bam"], target), sources, SEED, tensors))
    mix = {"variant": asdict(VARIANTS["bam"]), "experts": EXPERTS, "tensors": tensors, "receipt": {}}
    (out / "mix.json").write_text(json.dumps(mix))


def edit(out: Path, base: Any) -> None:
    change = removing(mixture_config(DENSE, list(EXPERTS), VARIANTS["bam"]), "law")
    tensors: dict[str, Any] = {}
    model(out, change.target, edited(change, base, provenance=tensors))
    (out / "edit.json").write_text(json.dumps({"operation": "remove", "name": "law", "tensors": tensors}))


def model(out: Path, config: ModelConfig, tensors: Any) -> None:
    write_model(out, config, tensors, tokenizer=None, card="# a model\n")


def file_of(store: ArtifactStore, record: Record, path: str) -> Path:
    return store.storage.local(f"artifacts/{record.stage}/{record.key[:12]}/{path}")


def flip_a_byte(file: Path) -> None:
    """One bit of the last byte: in a safetensors file, of its last tensor."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def change_record(file: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool) -> None:
    """sealed: with a checksum that holds again, as somebody who means it would write it."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content | ({"checksum": record_checksum(content)} if sealed else {})))


def tampered(store: ArtifactStore, record: Record, change: Callable[[str, Tensor], Tensor]) -> None:
    """Other weights in an artifact, its config.json, record and checksum made to fit: nothing in it contradicts."""
    from bam_core.checkpoint import read_config

    folder = file_of(store, record, "")
    source = open_tensors(folder)
    tensors = [(name, change(name, source.get(name).clone())) for name in source.names()]
    model(folder, read_config(folder), tensors)
    outputs = [
        output
        for output in store.hash_outputs(_copy(store, record, folder))
        if output.path in {known.path for known in record.outputs}
    ]

    def fit(content: dict[str, Any]) -> None:
        content["outputs"] = [vars(output) for output in outputs]
        content["digest"] = artifact_digest(outputs)

    change_record(folder / "record.json", fit, sealed=True)


def _copy(store: ArtifactStore, record: Record, folder: Path) -> Path:
    """Only the outputs: `hash_outputs` refuses the store's own files."""
    import shutil
    import tempfile

    to = Path(tempfile.mkdtemp(dir=store.storage.local("")))
    for output in record.outputs:
        (to / output.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / output.path, to / output.path)
    return to
