"""The models that `peers` times are the same function on both sides, and it refuses to time others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bam_core.config import ModelConfig
from tests.benchmarks import peer_models

TINY = ModelConfig(64, 32, 2, 4, 2, 48, 16)
TOKENS = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [peer_models.btx, peer_models.bam], ids=["btx", "bam"])
def test_both_sides_are_one_function(kind: Callable[[ModelConfig], ModelConfig]) -> None:
    ours = peer_models.our_model(kind(TINY))
    theirs = peer_models.public_model(ours, ("eager", "sdpa"))
    found = peer_models.require_equal(ours, theirs, TOKENS)
    assert found["float32"] < 1e-5
    assert ours.blocks[0].attn.w_q.dtype == theirs.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [peer_models.btx, peer_models.bam], ids=["btx", "bam"])
def test_another_function_is_refused(kind: Callable[[ModelConfig], ModelConfig]) -> None:
    ours = peer_models.our_model(kind(TINY))
    theirs = peer_models.public_model(ours, ("eager", "sdpa"))
    with torch.no_grad():
        theirs.model.layers[1].mlp.gate.weight.copy_(ours.blocks[1].ffn.router.roll(1, 0))
    with pytest.raises(SystemExit, match="not the same model"):
        peer_models.require_equal(ours, theirs, TOKENS)
