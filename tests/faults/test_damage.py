"""A damaged artifact is named and made again, never read; `bam verify` finds what sizes do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bam_core.graph.record import record_checksum
from tests.e2e.kit import Place, executed


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def with_output_path(path: str) -> Callable[[Path], None]:
    def edit(record: Path) -> None:
        value = json.loads(record.read_text())
        value["outputs"][0]["path"] = path
        record.write_text(json.dumps(value))

    return edit


def of_another_key(path: Path) -> None:
    record = json.loads(path.read_text()) | {"key": "0" * 64}
    path.write_text(json.dumps(record | {"checksum": record_checksum(record)}))


DAMAGE: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "truncated shard": ("data.law", "train/00000.arrow", truncate, "output train/00000.arrow has"),
    "deleted weights": ("expert.law", "model.safetensors", Path.unlink, "output model.safetensors is missing"),
    "empty weights": ("seed", "model.safetensors", lambda path: path.write_bytes(b""), "model.safetensors has 0 bytes"),
    "record is garbage": ("mix.bam", "record.json", lambda path: path.write_bytes(b"\0garbage"), "is not JSON"),
    "record is a list": ("mix.bam", "record.json", lambda path: path.write_text("[]"), "not a record of this version"),
    "record is empty": ("evaluate", "record.json", lambda path: path.write_text(""), "is not JSON"),
    "record leaves its folder": ("seed", "record.json", with_output_path("../x"), "leaves the artifact's folder"),
    "record is absolute": ("seed", "record.json", with_output_path("/etc/passwd"), "leaves the artifact's folder"),
    "record of another key": (
        "expert.code",
        "record.json",
        of_another_key,
        "its record is of",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_made_again(done: Place, finished: Place, name: str) -> None:
    stage, file, damage, words = DAMAGE[name]
    others = {path: path.stat().st_mtime_ns for path in done.store.glob("artifacts/data.code/**/*") if path.is_file()}
    damage(done.artifact(stage) / file)
    outside = done.artifact(stage).parent / "x"
    plan = done.plan("--only", stage).stages()[stage]
    assert (plan["action"], plan["cause"]) == ("run", "damaged")
    assert words in plan["reason"]

    before = done.attempts()
    answer = done.run("--only", stage)
    assert answer.status == 0, answer.err
    assert executed(before, done.attempts()) == {stage}
    assert done.record(stage)["outputs"] == finished.record(stage)["outputs"]
    assert not outside.exists()
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert set(done.run().actions().values()) == {"reuse"}, "made again with the same bytes: the rest still holds"


def test_a_whole_run_repairs_what_is_damaged_and_ends_in_the_same_bytes(done: Place, finished: Place) -> None:
    truncate(done.artifact("expert.law") / "model.safetensors")
    (done.artifact("evaluate") / "perplexity.json").unlink()
    answer = done.run()
    assert answer.status == 0, answer.err
    assert answer.actions()["seed"] == answer.actions()["expert.code"] == answer.actions()["dense"] == "reuse"
    assert done.perplexity() == finished.perplexity()


def test_a_damaged_input_is_refused_by_a_stage_on_its_own(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    truncate(place.artifact("seed") / "model.safetensors")
    answer = place.bam("stage", "expert.law", str(place.recipe))
    assert answer.status == 2
    assert "needs seed" in answer.err
    assert place.artifacts("expert.law") == []


@pytest.mark.parametrize(("stage", "file"), [("seed", "model.safetensors"), ("data.law", "train/00000.arrow")])
def test_an_input_with_a_flipped_bit_is_never_read(
    up_to: Callable[..., Place], finished: Place, stage: str, file: str
) -> None:
    """Its size shows nothing: it is found when a stage is about to read it."""
    place = up_to("tokenizer", "data.*", "seed")
    flip_a_byte(place.artifact(stage) / file)
    answer = place.run("--only", "expert.law")
    assert answer.status == 1
    assert f"{stage}@{finished.record(stage)['key'][:12]}: {file} has other bytes than recorded" in answer.err
    assert not place.is_done("expert.law")
    assert place.run("--only", "expert.law", "--only", stage, "--force", stage).status == 0
    assert place.record("expert.law")["outputs"] == finished.record("expert.law")["outputs"]


def test_verify_finds_a_flipped_bit_and_exits_1(done: Place) -> None:
    whole = done.bam("verify", "train.bam")
    assert whole.status == 0
    assert "are as recorded" in whole.out
    flip_a_byte(done.artifact("train.bam") / "model.safetensors")
    answer = done.bam("verify", "train.bam", "--json")
    assert answer.status == 1
    assert answer.json["ok"] is False
    [fault] = answer.json["faults"]
    assert "model.safetensors" in fault
    assert "sha256" in fault
    assert done.bam("verify", "expert.law").status == 0
    assert done.bam("verify", "no-such").status == 2


def test_get_never_hands_out_other_bytes_than_recorded(done: Place, tmp_path: Path) -> None:
    flip_a_byte(done.artifact("train.bam") / "model.safetensors")
    answer = done.bam("get", "train.bam:model.safetensors", str(tmp_path / "copy"))
    assert answer.status == 1
    assert "model.safetensors" in answer.err
    assert not (tmp_path / "copy").exists()


def test_a_checkpoint_that_cannot_be_read_is_named(up_to: Callable[..., Place], finished: Place) -> None:
    """With what to do about it; then the same command ends in the same bytes."""
    from tests.faults.processes import KillPoint, Process

    place = up_to("tokenizer", "data.*", "seed")
    Process(place, "run", str(place.recipe), kill=KillPoint("os.rename", "expert.code-*/*/step-000015")).end()
    [newest] = place.store.glob("training/expert.code-*/*/step-000010")
    [tensors] = newest.glob("state-*.safetensors")
    truncate(tensors)
    answer = place.run("--only", "expert.code")
    assert answer.status == 1
    assert f"{newest}: not a whole checkpoint" in answer.err
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert place.run("--only", "expert.code").status == 0
    assert place.record("expert.code")["outputs"] == finished.record("expert.code")["outputs"]
