"""The stage that trains, sharded: it opens, trains and writes a model that no rank ever holds whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bam_core import checkpoint
from bam_core.card import Subject
from bam_core.checkpoint import load_model, open_tensors, write_model
from bam_core.config import Sparser
from bam_core.data.packing import Rows
from bam_core.data.shards import write_shards
from bam_core.errors import StoreError
from bam_core.nn.costs import params_total
from bam_core.nn.lm import LM
from pipelines.stages import training
from tests.golden import runs
from tests.ranks import Ranks, RankWorker, ranks

MODEL = runs.VARIANTS["bam-router-bias"]
PHASE = replace(runs.PHASE, dtype="fp32", tokens=5 * runs.PHASE.batch_tokens)
FLOAT32_ROUNDING = 1e-5
STARTS: dict[str, dict[str, Any]] = {
    "fresh": {"init_seed": 5, "model": MODEL.to_json()},
    "from an input": {"from": "mix"},
}
CHEAPER = {"from": "teacher", "sparser": {"top_k": 1, "kv": "shared"}}


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    with ranks(2) as started:
        yield started


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    found = {role: tmp_path / "inputs" / role for role in ("tokenizer", "mix", "data.a")}
    tokens = np.random.default_rng(0).integers(0, runs.VOCAB, (60, runs.SEQ_LEN + 1)).astype(np.uint16)
    write_shards(found["data.a"] / "train", [Rows(tokens, np.ones(60, dtype=np.int64))])
    found["tokenizer"].mkdir()
    (found["tokenizer"] / "tokenizer.json").write_text("{}")
    model = runs.initial(MODEL).float()
    write_model(
        found["mix"], MODEL, model.state_dict().items(), tokenizer=found["tokenizer"] / "tokenizer.json", card=""
    )
    return found | {"teacher": found["mix"]}


def stage(
    rank: int, world: int, folder: Path, inputs: dict[str, Path], start: dict[str, Any], strategy: str
) -> dict[str, Any]:
    """One rank of the stage; rank 0 writes the output, and the most values that a parameter had in it are told."""
    largest = 0
    place = training.LM.__init__

    def counted(model: LM, config: Any) -> None:
        nonlocal largest
        place(model, config)
        largest = sum(p.numel() for p in model.parameters() if p.device.type != "meta")

    worker = RankWorker(folder / "checkpoints", rank, world, inputs=inputs)
    config = {
        "start": start,
        "phase": PHASE.to_json(),
        "pace": {"micro_batch_rows": 2, "strategy": strategy, "checkpoint_steps": 2},
        "subject": Subject("train.bam", "k" * 64, "A test.", MODEL, phase=PHASE.to_json()),
        "ancestors": {"tokens": 0, "flops": 0},
        **({"distil": {"kl": 0.6, "gate": 0.1}} if "sparser" in start else {}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LM, "__init__", counted)
        trained = training.train_loop(worker, config)
    if rank == 0:
        (folder / "out").mkdir(parents=True)
        trained.write(folder / "out")
    return {"figures": trained.result, "values_held": largest}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_two_ranks_write_the_model_that_one_writes(
    tmp_path: Path, group: Ranks, inputs: dict[str, Path], start: dict[str, Any]
) -> None:
    (alone,) = group.run(stage, 1, tmp_path / "alone", inputs, start, "ddp")
    sharded = group.run(stage, 2, tmp_path / "sharded", inputs, start, "fsdp")
    assert alone["values_held"] > 0
    assert [rank["values_held"] for rank in sharded] == [0, 0], "a whole model was made"
    for figures in (alone["figures"], sharded[0]["figures"]):
        assert figures.pop("peak_memory_bytes") > 0
    assert sharded[0]["figures"] == pytest.approx(alone["figures"], rel=FLOAT32_ROUNDING)
    one, two = (tmp_path / which / "out" for which in ("alone", "sharded"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    expected, found = open_tensors(one), open_tensors(two)
    for name in expected.names():
        torch.testing.assert_close(found.get(name), expected.get(name), rtol=1e-3, atol=FLOAT32_ROUNDING, msg=name)
    assert load_model(two).config == MODEL
    assert not list(Path(tmp_path).rglob("bam-model-*"))


def test_two_ranks_distil_as_one_does(tmp_path: Path, group: Ranks, inputs: dict[str, Path]) -> None:
    """Each holds a whole teacher, none a whole student."""
    (alone,) = group.run(stage, 1, tmp_path / "alone", inputs, CHEAPER, "ddp")
    sharded = group.run(stage, 2, tmp_path / "sharded", inputs, CHEAPER, "fsdp")
    assert [rank["values_held"] for rank in sharded] == [params_total(MODEL)] * 2
    for figure in ("loss", "train_tokens", "train_flops", "params_total"):
        assert sharded[0]["figures"][figure] == pytest.approx(alone["figures"][figure], rel=FLOAT32_ROUNDING), figure
    student = load_model(tmp_path / "sharded" / "out")
    assert student.config == Sparser.from_json(CHEAPER["sparser"]).config(MODEL)
    for name, found in load_model(tmp_path / "alone" / "out").state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], found, rtol=1e-3, atol=FLOAT32_ROUNDING, msg=name)


def cannot_write(rank: int, world: int, folder: Path, inputs: dict[str, Path]) -> str:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", no_space)
        with pytest.raises(StoreError) as raised:
            stage(rank, world, folder, inputs, STARTS["fresh"], "fsdp")
    return str(raised.value)


def test_a_full_disk_at_the_end_is_told_by_every_rank(tmp_path: Path, group: Ranks, inputs: dict[str, Path]) -> None:
    own, other = group.run(cannot_write, 2, tmp_path, inputs)
    assert own == "the trained model cannot be written: [Errno 28] No space left on device"
    assert other == "the trained model cannot be written: see the error of rank 0"
