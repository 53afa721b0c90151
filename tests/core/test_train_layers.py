"""Layers that are computed again or compiled give what they gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bam_core.errors import UsageError
from bam_core.nn.lm import LM
from bam_core.train.layers import recompute_activations
from bam_core.train.loop import Pace, train
from tests.golden import runs

N_STEPS = 4
PHASE = replace(runs.PHASE, tokens=N_STEPS * runs.PHASE.batch_tokens)
PACE = Pace(micro_batch_rows=3)
Run = tuple[list[dict[str, float]], dict[str, Tensor]]


def trained(folder: Path, name: str, pace: Pace) -> Run:
    config, phase = runs.RUNS[name]
    phase = replace(PHASE, dtype=phase.dtype)
    optimizer, progress = train(runs.initial(config), runs.Tokens(), phase, runs.Worker(folder), pace)
    return progress.history, dict(optimizer.masters())


@pytest.mark.parametrize("name", runs.RUNS)
def test_recomputed_activations_change_no_bit(tmp_path: Path, name: str) -> None:
    kept = trained(tmp_path, name, PACE)
    again = trained(tmp_path, name, replace(PACE, activation_checkpointing=True))
    assert again[0] == kept[0]
    assert all(torch.equal(again[1][name], master) for name, master in kept[1].items())


def saved_values(model: LM) -> int:
    """Values that a forward pass keeps for the backward pass, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.from_numpy(runs.Tokens().batch(0, 4))[:, :-1]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(tokens)  # noqa: F841  what it keeps must live while it is counted
    return sum(kept.values())


def test_activations_are_not_kept() -> None:
    model = runs.initial(runs.VARIANTS["bam-expert-kv"]).train()
    before = saved_values(model)
    recompute_activations(model)
    assert saved_values(model) < before / 3


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # torch hides its compiler's own warnings in a way that errors break
@pytest.mark.parametrize("again", [False, True], ids=["compiled", "and computed again"])
@pytest.mark.parametrize("name", ["dense", "btx-top-2-renorm", "bam-expert-kv", "bam-expert-kv bf16"])
def test_compiled_layers_differ_by_rounding(tmp_path: Path, fresh_compiler: None, name: str, again: bool) -> None:
    eager = trained(tmp_path, name, PACE)
    compiled = trained(tmp_path, name, replace(PACE, compile=True, activation_checkpointing=again))
    rounding, tie = (0.02, 1 / PHASE.batch_tokens) if name.endswith("bf16") else (1e-9, 0.0)
    for one, other in zip(compiled[0], eager[0], strict=True):
        for figure, value in other.items():
            # A token between two experts goes to the one or the other by rounding: loads are fractions of few tokens.
            loosely = 1.01 * tie if figure.endswith("_load") else 0.0
            assert one[figure] == pytest.approx(value, rel=rounding, abs=loosely), figure
        assert one.keys() == other.keys()


def test_compiling_without_a_compiler_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"runtime.compile: torch.compile needs a compiler \(no-such-compiler\)"):
        trained(tmp_path, "dense", replace(PACE, compile=True))
