"""Records of whole pipelines without running them: a recipe's own payloads, figures made up but plausible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from bam_core.graph.key import input_keys, pipeline_keys, stage_payload
from bam_core.graph.record import InputRef, Output, Record, artifact_digest
from bam_core.graph.stage import Pipeline
from pipelines import bam
from pipelines.recipe import load_recipe

COMMIT = "c0ffee" + "0" * 34
PACKAGES = {"bam": "0.1.0", "numpy": "2.4.0", "ray": "2.60.0", "torch": "2.13.0"}
START = 1_790_000_000.0


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


TEXTS = {domain: sha256(f"text of {domain}") for domain in ("general", "code", "law", "math")}


def quickstart(*sets: str, **texts: str) -> list[Record]:
    """The quickstart's artifacts. sets: as `--set`. texts: of a domain, another content."""
    return list(_quickstart(sets, tuple(texts.items())))


@cache
def _quickstart(sets: tuple[str, ...], texts: tuple[tuple[str, str], ...]) -> tuple[Record, ...]:
    digests = TEXTS | {domain: sha256(text) for domain, text in texts}
    return tuple(made(bam.build(load_recipe("quickstart", sets), digests)))


def made(pipeline: Pipeline, **provenance: Any) -> list[Record]:
    """A record of every stage. Bytes are a function of the key, as of a deterministic computation."""
    keys, records = pipeline_keys(pipeline), dict[str, Record]()
    for number, stage in enumerate(pipeline):
        payload = stage_payload(stage, input_keys(stage, keys, {}))
        inputs = {role: records[parent].ref for role, parent in stage.inputs.items()}
        trained = stage.function in ("seed", "expert", "train", "dense")
        figures = {"loss": 2.5 - number / 40, "train_tokens": 400_000, "train_flops": 3 * 10**12}
        record = Record(
            stage=stage.name,
            key=keys[stage.name],
            payload=payload,
            inputs=inputs,
            outputs=(),
            digest="",
            metrics=figures if trained else {"n_files": 2},
            provenance={
                "git_commit": COMMIT,
                "dirty": False,
                "packages": PACKAGES,
                "python": "3.11.9",
                "argv": ["bam", "run", pipeline.name],
                "user": "ada",
                "host": "laptop",
                "ran_on": [{"host": "node-a", "rank": 0}, {"host": "node-b", "rank": 1}] if trained else [],
                "run": f"{pipeline.name}-1",
                "pipeline": pipeline.name,
                **provenance,
            },
            started=START + 60 * number,
            ended=START + 60 * number + 12.25,
            attempt=1,
        )
        records[stage.name] = with_bytes(record, record.key)
    return list(records.values())


def with_bytes(record: Record, content: str) -> Record:
    """The record with outputs that are a function of `content`."""
    outputs = (
        Output("config.json", 512, sha256(f"config {content}")),
        Output("model.safetensors", 10_545_152, sha256(f"weights {content}")),
    )
    return replace(record, outputs=outputs, digest=artifact_digest(outputs))


def of(records: Iterable[Record], stage: str) -> Record:
    return next(record for record in records if record.stage == stage)


def key(stage: str) -> str:
    return f"key of {stage}"


def record(stage: str, inputs: Mapping[str, str] = {}, config: Mapping[str, Any] = {}, **changes: Any) -> Record:
    """One by hand. inputs: role -> parent stage."""
    values: dict[str, Any] = {
        "stage": stage,
        "key": key(stage),
        "payload": {"config": dict(config)},
        "inputs": {role: InputRef(parent, key(parent), f"bytes of {parent}") for role, parent in inputs.items()},
        "outputs": (),
        "digest": f"bytes of {stage}",
        "metrics": {"loss": 2.5, "train_tokens": 1000, "train_flops": 10**9, "flag": True, "words": "no number"},
        "provenance": {"git_commit": COMMIT, "dirty": True, "packages": {"torch": "2.13.0"}},
        "started": 10.0,
        "ended": 14.0,
        "attempt": 1,
    }
    return Record(**{**values, **changes})


SOURCE = {"kind": "text", "digest": "law text", "column": "text"}


def small() -> list[Record]:
    """tokenizer -> data.law -> seed -> expert.law -> mix.bam, and a dense that nothing below mix needs."""
    return [
        record("tokenizer", config={"domains": {"law": {"source": SOURCE, "valid_frac": 0.1}}}),
        record("data.law", {"tokenizer": "tokenizer"}, {"domain": "law", "source": SOURCE}),
        record("seed", {"tokenizer": "tokenizer", "data.law": "data.law"}, {"domain": "law", "phase": {}}),
        record("expert.law", {"seed": "seed", "data.law": "data.law"}),
        record("mix.bam", {"seed": "seed", "expert.law": "expert.law"}),
        record("dense", {"seed": "seed"}),
        record("train.bam", {"mix": "mix.bam"}),
    ]


def many(n: int) -> list[Record]:
    """n artifacts: a seed and edits of it, in chains of four, each with an earlier one as its expert."""
    records = [record("seed", {}, {"domain": "law", "source": SOURCE})]
    for number in range(1, n):
        parent = records[-1 if number % 4 else 0].stage
        records.append(record(f"edit.{number}", {"mix": parent, "expert": records[number // 2].stage}))
    return records


HOSTILE = (
    '"]</script><img src=x onerror=alert(1)>',
    "--> n0; click n0 call alert(1) %% `x`",
    "a name with spaces/and/slashes\\and 'quotes'",
    "\x1b[31mred\x1b[0m\u202egnp.exe\r\n",
    "@data@ @script@ &amp; #quot; ${x}",
    "名前" * 30,
    "x" * 300,
)


def chain(n: int) -> list[Record]:
    """n artifacts, each made from the one before it and from the first."""
    records = [record("seed")]
    for number in range(1, n):
        records.append(record(f"edit.{number}", {"mix": records[-1].stage, "seed": "seed"}))
    return records


def hostile() -> list[Record]:
    """A chain of artifacts with names, texts and provenance that try to be markup."""
    records = []
    for number, name in enumerate(HOSTILE):
        parent = {name: HOSTILE[number - 1]} if number else {}
        config = {"domain": name, "source": {"kind": name, "digest": name, name: name}}
        provenance = {"git_commit": name, "dirty": True, "host": name, "packages": {name: name}, "run": name}
        records.append(record(name, parent, config, provenance=provenance, metrics={name: 1.0, "loss": float("nan")}))
    return records
