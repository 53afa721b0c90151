"""Mixtures of blocks as public families have them train, every tensor of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upcycle_models import FAMILIES

from bam_core.config import ModelConfig
from bam_core.train.loop import Pace, train
from bam_core.train.step import _text_loss
from tests.golden import runs

N_STEPS = 8
PHASE = replace(runs.PHASE, tokens=N_STEPS * runs.PHASE.batch_tokens)


def model(family: str) -> ModelConfig:
    return replace(runs.bam(), **FAMILIES[family]).checked()


def trained(folder: Path, family: str, dtype: str, **pace: Any) -> tuple[list[float], dict[str, Tensor]]:
    phase = replace(PHASE, dtype=dtype)
    pacing = Pace(micro_batch_rows=3, **pace)
    optimizer, progress = train(runs.initial(model(family)), runs.Tokens(), phase, runs.Worker(folder), pacing)
    return [step["loss"] for step in progress.history], dict(optimizer.masters())


@pytest.mark.parametrize(("family", "dtype"), [*((family, "fp64") for family in FAMILIES), ("neox", "bf16")])
def test_every_tensor_learns_and_layers_may_be_computed_again(tmp_path: Path, family: str, dtype: str) -> None:
    losses, masters = trained(tmp_path, family, dtype)
    assert losses[-1] < losses[0]
    start = dict(runs.initial(model(family)).named_parameters())
    assert not {name for name, master in masters.items() if torch.equal(master.double(), start[name].double())}
    again, same = trained(tmp_path, family, dtype, activation_checkpointing=True)
    assert again == losses
    assert all(torch.equal(same[name], master) for name, master in masters.items())


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.25}, {"logit_softcap": 3.0}, {"head_bias": True}])
def test_a_loss_without_logits_is_that_of_the_logits(options: dict[str, Any]) -> None:
    """What a GPU does with a head that is one matrix; a tensor that says it is on one, since here there is none."""

    class OnGpu(Tensor):
        is_cuda = True

    config = replace(runs.DENSE, tie_embeddings=False, **options)
    lm, tokens_BT = runs.initial(config), torch.from_numpy(runs.Tokens().batch(0, 4))
    output = lm.requires_grad_(False)(tokens_BT[:, :-1])
    wanted, logits_BTV = _text_loss(lm, output, tokens_BT[:, 1:], wants_logits=False)
    assert logits_BTV is not None
    there = replace(output, hidden_BTD=output.hidden_BTD.as_subclass(OnGpu))
    found, kept = _text_loss(lm, there, tokens_BT[:, 1:], wants_logits=False)
    assert (kept is None) == (set(options) <= {"logit_scale"})
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
