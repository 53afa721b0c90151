"""Sharded training over real processes gives what one rank gives, and goes on from what any number of ranks wrote."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from bam_core.config import ModelConfig, TrainConfig
from bam_core.errors import ArtifactDamaged, StoreError, TrainingDiverged
from bam_core.nn.lm import LM, init_tensor, init_weights
from bam_core.train import saving
from bam_core.train.loop import Pace, train
from bam_core.train.pieces import Piece, PieceFiles, whole, write_pieces
from bam_core.train.sharded import placement
from tests.golden import runs
from tests.ranks import Ranks, RankWorker, ranks

ROUNDING = 1e-9
"""float64 through some steps of AdamW, in another order of additions."""

FLOAT32_ROUNDING = 1e-5
N_STEPS = 6
PHASE = replace(runs.PHASE, tokens=N_STEPS * runs.PHASE.batch_tokens)
LONGER = replace(PHASE, tokens=2 * PHASE.tokens)
FSDP, DDP = (Pace(micro_batch_rows=2, checkpoint_steps=100, strategy=strategy) for strategy in ("fsdp", "ddp"))
BAM = runs.VARIANTS["bam-expert-kv"]
Run = tuple[list[dict[str, float]], dict[str, torch.Tensor]]
"""The history, and every master weight."""


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    with ranks(3) as started:
        yield started


def trained(
    rank: int,
    world: int,
    folder: Path,
    config: ModelConfig,
    phase: TrainConfig,
    pace: Pace,
    die_at: int | None = None,
) -> Run | None:
    """One rank of a run; None if it was killed."""
    try:
        worker = RankWorker(folder, rank, world, die_at)
        optimizer, progress = train(runs.initial(config), runs.Tokens(), phase, worker, pace)
    except KeyboardInterrupt:
        return None
    return progress.history, {name: master.clone() for name, master in optimizer.masters()}


def alone(folder: Path, config: ModelConfig, phase: TrainConfig = PHASE, pace: Pace = DDP) -> Run:
    found = trained(0, 1, folder, config, phase, pace)
    assert found is not None
    return found


def require_close(found: Run | None, expected: Run, rounding: float = ROUNDING) -> None:
    assert found is not None
    assert [entry["step"] for entry in found[0]] == [entry["step"] for entry in expected[0]]
    for one, other in zip(found[0], expected[0], strict=True):
        assert one == pytest.approx(other, rel=rounding, abs=rounding)
    assert found[1].keys() == expected[1].keys()
    for name, master in expected[1].items():
        torch.testing.assert_close(found[1][name], master, rtol=rounding, atol=rounding, msg=name)


@pytest.mark.parametrize("name", runs.VARIANTS)
def test_two_ranks_give_what_one_gives(tmp_path: Path, group: Ranks, name: str) -> None:
    """Losses (auxiliary ones too), gradient norms, learning rates and every weight, of every variant and gate."""
    config = runs.VARIANTS[name]
    expected = alone(tmp_path, config)
    assert max(entry["grad_norm"] for entry in expected[0]) > PHASE.grad_clip, "clipping must act"
    for found in group.run(trained, 2, tmp_path, config, PHASE, FSDP):
        require_close(found, expected)


@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=lambda pace: pace.strategy)
@pytest.mark.parametrize("n_rows", [2, 5, 7])
def test_ranks_with_unequal_rows_or_none(tmp_path: Path, group: Ranks, n_rows: int, strategy: Pace) -> None:
    """3 ranks: of 2 rows one has none; of 7, in micro-batches of 2, one needs two micro-batches and the others one."""
    config = runs.VARIANTS["btx-sample-top-1"]
    tokens = n_rows * runs.SEQ_LEN
    phase = replace(PHASE, tokens=N_STEPS * tokens, batch_tokens=tokens)
    expected = alone(tmp_path, config, phase)
    for found in group.run(trained, 3, tmp_path, config, phase, strategy):
        require_close(found, expected)


def test_bf16_is_what_ddp_computes(tmp_path: Path, group: Ranks) -> None:
    """The same micro-batches on two ranks: products in bf16, sums over ranks and masters in float32."""
    phase = replace(PHASE, dtype="bf16")
    sharded = group.run(trained, 2, tmp_path, BAM, phase, FSDP)[0]
    expected = group.run(trained, 2, tmp_path, BAM, phase, DDP)[0]
    assert {master.dtype for master in sharded[1].values()} == {torch.float32}
    require_close(sharded, expected, rounding=FLOAT32_ROUNDING)


@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
def test_recomputed_layers_change_no_bit(tmp_path: Path, group: Ranks, dtype: str) -> None:
    phase = replace(PHASE, dtype=dtype)
    kept = group.run(trained, 2, tmp_path, BAM, phase, FSDP)
    again = group.run(trained, 2, tmp_path, BAM, phase, replace(FSDP, activation_checkpointing=True))
    assert all(same_bits(one, other) for one, other in zip(again, kept, strict=True))


def compiled(rank: int, world: int, folder: Path) -> Run | None:
    warnings.simplefilter("ignore")  # torch hides its compiler's own warnings in a way that errors break
    try:
        return trained(rank, world, folder, BAM, PHASE, replace(FSDP, compile=True, activation_checkpointing=True))
    finally:
        warnings.simplefilter("error")


@pytest.mark.long
def test_compiled_layers_are_sharded_too(tmp_path: Path, group: Ranks) -> None:
    expected = alone(tmp_path, BAM)
    for found in group.run(compiled, 2, tmp_path):
        require_close(found, expected)


WRITERS_AND_READERS = [(2, FSDP, 3, FSDP), (3, FSDP, 1, FSDP), (1, DDP, 2, FSDP), (2, FSDP, 2, DDP), (2, FSDP, 2, FSDP)]


@pytest.mark.parametrize(
    ("n_writers", "wrote", "n_readers", "reads"),
    WRITERS_AND_READERS,
    ids=[f"{n} {a.strategy} to {m} {b.strategy}" for n, a, m, b in WRITERS_AND_READERS],
)
def test_goes_on_with_another_number_of_ranks(
    tmp_path: Path, group: Ranks, n_writers: int, wrote: Pace, n_readers: int, reads: Pace
) -> None:
    config, phase = runs.VARIANTS["bam-router-bias"], replace(PHASE, dtype="fp64")
    whole = alone(tmp_path / "whole", config, phase)
    folder = tmp_path / "run"
    killed = group.run(trained, n_writers, folder, config, phase, replace(wrote, checkpoint_steps=3), 3)
    assert killed == [None] * n_writers
    (saved,) = folder.iterdir()
    files = {path.name for path in saved.iterdir()}
    n_files = n_writers if wrote is FSDP else 1
    assert files == {"state.json"} | {f"state-{i + 1:05d}-of-{n_files:05d}.safetensors" for i in range(n_files)}
    resumed = group.run(trained, n_readers, folder, config, phase, reads)
    for found in resumed:
        require_close(found, whole)
    if (n_writers, wrote) == (n_readers, reads):
        undisturbed = group.run(trained, n_writers, tmp_path / "again", config, phase, wrote)[0]
        assert same_bits(resumed[0], undisturbed)


def same_bits(one: Run, other: Run) -> bool:
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in other[1])


class Steps(runs.Tokens):
    """Knows which step began last."""

    def __init__(self, slow: int) -> None:
        self.slow_is_over, self._slow = threading.Event(), slow
        self.began = -1

    def batch(self, step: int, rows_per_batch: int) -> np.ndarray:
        self.began = step
        if step >= self._slow:
            self.slow_is_over.set()
        return super().batch(step, rows_per_batch)


def slow_disk(rank: int, world: int, folder: Path) -> int:
    """Dies when the checkpoint of step 6 is published, which rank 1 can only write in step 8. Returns that step."""
    steps = Steps(slow=8)
    write = saving.State.write

    def slowly(self: Any, folder: Path) -> None:
        assert rank == 0 or steps.slow_is_over.wait(60)
        write(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving.State, "write", slowly)
        worker = RankWorker(folder, rank, world, die_at=6)
        with pytest.raises(KeyboardInterrupt):
            train(runs.initial(BAM), steps, LONGER, worker, replace(FSDP, checkpoint_steps=6))
    return steps.began


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, group: Ranks) -> None:
    undisturbed = group.run(trained, 2, tmp_path / "whole", BAM, LONGER, FSDP)[0]
    published_in = group.run(slow_disk, 2, tmp_path / "run")
    assert published_in[0] == published_in[1] >= 8
    resumed = group.run(trained, 2, tmp_path / "run", BAM, LONGER, FSDP)[0]
    assert same_bits(resumed, undisturbed), "the checkpoint of step 6 holds something of a later step"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_checkpoint(tmp_path: Path, group: Ranks) -> None:
    """The layout is that of torch's distributed checkpoints in safetensors."""
    pace = replace(FSDP, checkpoint_steps=3)
    group.run(trained, 2, tmp_path, BAM, PHASE, pace, 3)
    (saved,) = tmp_path.iterdir()
    alone(tmp_path / "alone", BAM, PHASE, replace(DDP, checkpoint_steps=3))
    expected = load_file(tmp_path / "alone" / "step-000003" / "state-00001-of-00001.safetensors")
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    load(state, storage_reader=HuggingFaceStorageReader(str(saved)), no_dist=True)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=ROUNDING, atol=ROUNDING, msg=name)


@pytest.mark.parametrize("damage", ["missing file", "truncated file", "other tensors", "a file twice", "a hole"])
def test_damaged_checkpoint_is_named(tmp_path: Path, group: Ranks, damage: str) -> None:
    group.run(trained, 3, tmp_path, BAM, PHASE, replace(FSDP, checkpoint_steps=3), 3)
    (saved,) = tmp_path.iterdir()
    first, file = (saved / f"state-0000{i}-of-00003.safetensors" for i in (1, 2))
    if damage == "missing file":
        file.unlink()
    elif damage == "truncated file":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "a file twice":
        shutil.copy(first, file)
    elif damage == "a hole":
        save_file({}, file, metadata={"DCP_SHARDING_INFO": "{}"})
    other = runs.VARIANTS["dense"] if damage == "other tensors" else BAM
    for world in (1, 2):
        for message in group.run(refused, world, tmp_path, other):
            assert "step-000003: not a whole checkpoint" in message


def test_a_piece_in_two_files_is_no_whole_tensor(tmp_path: Path) -> None:
    """Of parts of equal size, one twice would fill as many values as all of them."""
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        write_pieces(path, {"w": Piece(torch.full((2, 4), float(i)), (2 * i, 0), (6, 4))})
    found = whole(torch.empty(6, 4))
    PieceFiles(paths).read_into("w", found)
    assert found.tensor[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    shutil.copy(paths[0], paths[1])
    with pytest.raises(ValueError, match=r"1.safetensors has a piece of w that another file has too"):
        PieceFiles(paths)


def refused(rank: int, world: int, folder: Path, config: ModelConfig) -> str:
    with pytest.raises(ArtifactDamaged) as raised:
        trained(rank, world, folder, config, PHASE, FSDP)
    return str(raised.value)


def test_experts_are_sharded_along_experts_where_they_divide() -> None:
    def dim(*shape: int, world: int) -> int:
        return placement(torch.nn.Parameter(torch.empty(shape, device="meta")), world).dim

    assert dim(4, 24, 16, world=2) == 0
    assert dim(4, 24, 16, world=8) == 1  # along experts half of the ranks would hold nothing
    assert dim(3, 24, 16, world=2) == 1
    assert dim(3, 5, 8, world=2) == 2
    assert dim(3, 5, 7, world=2) == 0
    assert dim(61, 16, world=4) == 0


def shares(rank: int, world: int, folder: Path) -> dict[str, int]:
    worker = RankWorker(folder, rank, world)
    optimizer, _ = train(runs.initial(BAM), runs.Tokens(), replace(PHASE, tokens=1), worker, FSDP)
    return {name: piece.tensor.numel() for name, piece in optimizer.pieces().items()}


def test_each_rank_holds_its_share_alone(tmp_path: Path, group: Ranks) -> None:
    """Masters and moments: half of each tensor, but for routers."""
    whole = {name: tensor.numel() for name, tensor in alone(tmp_path, BAM)[1].items()}
    for held in group.run(shares, 2, tmp_path):
        for name, n_values in whole.items():
            n_held = {held[f"{kind}.{name}"] for kind in ("master", "exp_avg", "exp_avg_sq")}
            expected = {n_values} if name.endswith("router") else {n_values // 2, -(-n_values // 2)}
            assert n_held <= expected | ({31 * 16, 30 * 16} if name == "embed.weight" else set()), name


def from_weights(rank: int, world: int, folder: Path) -> Run:
    """From a model on the meta device, whose weights are read by name."""
    with torch.device("meta"):
        model = LM(BAM)
    asked: list[str] = []

    def weights(name: str) -> torch.Tensor:
        asked.append(name)
        return init_tensor(name, model.get_parameter(name).shape, BAM.n_layers, 7)

    worker = RankWorker(folder, rank, world)
    optimizer, progress = train(model, runs.Tokens(), replace(PHASE, dtype="bf16"), worker, FSDP, weights)
    assert sorted(asked) == sorted(name for name, _ in optimizer.masters())
    return progress.history, {name: master.clone() for name, master in optimizer.masters()}


def from_model(rank: int, world: int, folder: Path) -> Run:
    model = LM(BAM)
    init_weights(model, 7)
    worker = RankWorker(folder, rank, world)
    optimizer, progress = train(model, runs.Tokens(), replace(PHASE, dtype="bf16"), worker, FSDP)
    return progress.history, {name: master.clone() for name, master in optimizer.masters()}


def test_weights_read_by_name_are_those_of_a_whole_model(tmp_path: Path, group: Ranks) -> None:
    by_name, by_model = group.run(from_weights, 3, tmp_path), group.run(from_model, 3, tmp_path)
    assert all(same_bits(one, other) for one, other in zip(by_name, by_model, strict=True))


def diverges(rank: int, world: int, folder: Path) -> tuple[str, list[int]]:
    worker = RankWorker(folder, rank, world)
    phase = replace(PHASE, lr=1e4, warmup_frac=0.0, grad_clip=1e9)
    with pytest.raises(TrainingDiverged) as raised:
        train(runs.initial(BAM), runs.Tokens(), phase, worker, replace(FSDP, checkpoint_steps=1))
    return str(raised.value), worker.saved


def test_divergence_keeps_the_newest_checkpoint(tmp_path: Path, group: Ranks) -> None:
    """All ranks stop at the same step, after publishing what was being written."""
    (message, saved), other = group.run(diverges, 2, tmp_path)
    assert (message, saved) == other
    step = int(message.removeprefix("step ").split(":")[0])
    assert saved == list(range(1, step + 1))


def disk_full_on_one(rank: int, world: int, folder: Path) -> str:
    def no_space(self: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(saving.State, "write", no_space)
        with pytest.raises(StoreError) as raised:
            trained(rank, world, folder, BAM, PHASE, replace(FSDP, checkpoint_steps=2))
    return str(raised.value)


def test_a_rank_that_cannot_write_stops_all(tmp_path: Path, group: Ranks) -> None:
    other, own = group.run(disk_full_on_one, 2, tmp_path)
    assert own == "the checkpoint of step 2: [Errno 28] No space left on device"
    assert other == "the checkpoint of step 2: 1 other rank(s) could not write it"
    assert not list(tmp_path.glob("step-*"))
