"""What a record contradicts of itself and of its inputs, each on its own and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bam_core.graph.key import stage_key, stage_payload
from bam_core.graph.lineage import origin_of
from bam_core.graph.record import InputRef, Output, Record, artifact_digest
from bam_core.graph.stage import Stage
from bam_core.graph.verify import input_faults, origin_faults, record_faults

SEED = InputRef("seed", "5" * 64, "d" * 64)
FILES = (Output("config.json", 2, "a" * 64), Output("model.safetensors", 9, "b" * 64))


def record(
    outputs: tuple[Output, ...] = FILES, config: dict[str, Any] | None = None, stage: str = "expert.law"
) -> Record:
    spec = Stage(stage, stage.partition(".")[0], 1, config or {"phase": {"lr": 0.5}}, {"seed": "seed"})
    payload = stage_payload(spec, {"seed": SEED.key})
    return Record(
        stage=stage,
        key=stage_key(payload),
        payload=payload,
        inputs={"seed": SEED},
        outputs=outputs,
        digest=artifact_digest(outputs),
        metrics={},
        provenance={},
        started=1.0,
        ended=2.0,
        attempt=1,
    )


def with_payload(**changes: Any) -> Callable[[Record], Record]:
    return lambda whole: replace(whole, payload={**whole.payload, **changes})


def test_a_record_as_written_has_no_fault() -> None:
    assert record_faults(record()) == []
    assert record_faults(Record.from_json(record().to_json(), "x")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: replace(whole, key="0" * 64), ["its key is not its payload's: 000000000000, not "]),
        (with_payload(config={"phase": {"lr": 0.25}}), ["its key is not its payload's"]),
        (with_payload(config={"phase": {"lr": float("nan")}}), ["its payload has no key: config.phase.lr"]),
        (with_payload(stage="expert.code"), ["its key is not", "its payload is of stage 'expert.code'"]),
        (
            lambda whole: replace(whole, inputs={"seed": replace(SEED, key="6" * 64)}),
            ["input seed: it names 666666666666, its payload 555555555555"],
        ),
        (lambda whole: replace(whole, inputs={}), ["input seed: it names nothing, its payload 555555555555"]),
        (
            lambda whole: replace(whole, inputs={"seed": SEED, "more": SEED}),
            ["input more: it names 555555555555, its payload nothing"],
        ),
        (lambda whole: replace(whole, digest="0" * 64), ["its digest is 000000000000, and that of its outputs "]),
        (lambda whole: replace(whole, outputs=FILES[:1]), ["its digest is "]),
    ],
)
def test_each_contradiction_is_named_alone(change: Callable[[Record], Record], words: list[str]) -> None:
    found = record_faults(change(record()))
    assert len(found) == len(words), found
    for fault, start in zip(found, words, strict=True):
        assert fault.startswith(start)


def test_an_input_with_another_digest_now_is_named_and_one_that_is_gone_is_not() -> None:
    whole = record()
    parent = replace(record(stage="seed"), key=SEED.key, digest=SEED.digest)
    place = (SEED.stage, SEED.key)
    assert input_faults(whole, {place: parent}) == []
    assert input_faults(whole, {}) == []
    [fault] = input_faults(whole, {place: replace(parent, digest="e" * 64)})
    assert fault.startswith("input seed: seed@555555555555 was read with digest dddddddddddd and has eeeeeeeeeeee now")


def adopted(foreign: Record, outputs: tuple[Output, ...] = FILES) -> Record:
    origin = {"stage": foreign.stage, "key": foreign.key, "digest": foreign.digest}
    config = {"name": "law-by-others", "digest": foreign.digest, "origin": origin}
    return record((*outputs, Output("origin.json", 5, "c" * 64)), config, stage="adopted.law-by-others")


def test_an_adopted_artifact_is_that_of_its_foreign_record() -> None:
    foreign = record()
    ours = adopted(foreign)
    assert origin_of(ours) == foreign.ref
    assert origin_of(foreign) is None
    assert record_faults(ours) == origin_faults(ours, {"record": foreign.to_json()}) == []

    changed = foreign.to_json()
    changed["metrics"] = {"loss": 0.1}
    assert origin_faults(ours, {"record": changed}) == [
        "origin.json: record.json was changed since it was written: its checksum differs"
    ]
    [fault] = origin_faults(ours, {"record": record(config={"phase": {}}).to_json()})
    assert f"and the key names expert.law@{foreign.key[:12]}" in fault
    [fault] = origin_faults(ours, {})
    assert "origin.json: not a record" in fault
    other = (FILES[0], replace(FILES[1], sha256="f" * 64))
    [fault] = origin_faults(adopted(foreign, other), {"record": foreign.to_json()})
    assert fault.startswith("output model.safetensors is not the file of expert.law@")
