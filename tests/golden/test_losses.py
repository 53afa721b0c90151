"""Twenty steps of every variant give the losses of `losses.json`: the same bits where it was written, else to 1e-9."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
import torch

from bam_core.train import loop
from bam_core.train.optim import learning_rate
from tests.golden import runs

ROUNDING = 1e-9
"""float64 through twenty steps of AdamW, in another order of additions."""

REMEDY = (
    "training changed: if that is meant, say so in a line of CHANGELOG.md and run `python -m tests.golden`;"
    " if not, this is a bug"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(runs.FILE.read_text())
    return found


def test_every_run_is_kept_and_no_other(golden: dict[str, Any]) -> None:
    assert sorted(golden["runs"]) == sorted(runs.RUNS), REMEDY


@pytest.mark.parametrize("name", runs.RUNS)
def test_losses_are_those_that_were_kept(name: str, golden: dict[str, Any]) -> None:
    here = golden["fingerprint"] == runs.fingerprint()
    if not here and name.endswith("bf16"):
        pytest.skip(f"bf16 is compared where it was written: {golden['fingerprint']}; this is {runs.fingerprint()}")
    n_threads = torch.get_num_threads()
    try:
        found = runs.figures(name)
    finally:
        torch.set_num_threads(n_threads)
    for figure, expected in golden["runs"][name].items():
        for step, (actual, kept) in enumerate(zip(found[figure], expected, strict=True), 1):
            same = actual == kept if here else actual == pytest.approx(kept, rel=ROUNDING)
            assert same, f"{name}, step {step}: {figure} is {actual!r}, was {kept!r}. {REMEDY}"


def test_variants_train_differently(golden: dict[str, Any]) -> None:
    """A field that did nothing would give two runs one curve. One pair is equal by algebra, and learns the same."""
    twins = {"btx-top-2-topk-softmax", "btx-top-2-renorm"}
    for one, other in combinations(golden["runs"], 2):
        losses = [torch.tensor(golden["runs"][name]["loss"], dtype=torch.float64) for name in (one, other)]
        apart = float((losses[0] - losses[1]).abs().max())
        assert apart < ROUNDING if {one, other} == twins else apart > 1e-3, f"{one} and {other}: {apart:.1e}"


def test_variants_learn(golden: dict[str, Any]) -> None:
    """On random tokens: at least how often each occurs."""
    for name, run in golden["runs"].items():
        assert run["loss"][-1] < run["loss"][0] - 0.1, name


def test_a_small_change_is_noticed(golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that is off by a millionth is far outside what rounding may do."""
    monkeypatch.setattr(loop, "learning_rate", lambda step, config: learning_rate(step, config) * (1 + 1e-6))
    found, kept = runs.figures("bam-expert-kv")["loss"], golden["runs"]["bam-expert-kv"]["loss"]
    assert found != pytest.approx(kept, rel=10 * ROUNDING)
