"""Sizes of the paper's small model (Tables 7 to 10), and formulas against the tensors that exist."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.costs import (
    cache_bytes_per_token,
    flops_per_token,
    params_active,
    params_total,
    training_bytes,
    training_flops,
)
from bam_core.nn.lm import LM

SMALL = ModelConfig(  # Table 8, small; its d_ff of 4096 is the fused width
    vocab_size=256_000,
    d_model=1024,
    n_layers=6,
    n_heads=8,
    n_kv_heads=8,
    d_ff=2048,
    max_seq_len=256,
    tie_embeddings=False,
)
LARGE = ModelConfig(  # Table 8, large
    vocab_size=256_000, d_model=2304, n_layers=18, n_heads=18, n_kv_heads=6, d_ff=9216, max_seq_len=256
)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"e{i}" for i in range(n))


def bam(kv: str, dense: ModelConfig = SMALL) -> ModelConfig:
    return replace(dense, attention=AttentionExperts(4, 4, kv), ffn=FFNExperts(4), experts=names(4))


def btx(n: int, top_k: int = 1) -> ModelConfig:
    return replace(SMALL, ffn=FFNExperts(n, top_k), experts=names(n))


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (SMALL, 587_209_728, 587_209_728),
        (bam("expert"), 776_002_560, 662_756_352),  # the paper's active has one router per layer: 662,731,776
        (bam("shared"), 738_253_824, 625_007_616),  # the paper's active leaves K and V out: 612,400,128
        (btx(4), 700_480_512, 587_234_304),
        (btx(5), 738_235_392, 587_240_448),
        (btx(6), 775_990_272, 587_246_592),
        (btx(7), 813_745_152, 587_252_736),
        (btx(8), 851_500_032, 587_258_880),
        (btx(6, top_k=3), 775_990_272, 662_744_064),  # the paper counts 4 router rows: 662,731,776
    ],
)
def test_table_9(config: ModelConfig, total: int, active: int) -> None:
    assert params_total(config) == total
    assert params_active(config) == active


def test_the_papers_active_counts_follow_from_ours() -> None:
    router = 6 * 4 * 1024
    assert params_active(bam("expert")) - router == 662_731_776
    assert params_active(bam("shared")) - router - 6 * 2 * 1024**2 == 612_400_128
    assert params_active(btx(6, top_k=3)) - 6 * 2 * 1024 == 662_731_776


def test_the_large_model_is_the_papers_2_billion() -> None:
    assert round(params_total(LARGE) / 1e9, 2) == 1.99
    assert round(params_total(bam("expert", LARGE)) / 1e9, 2) == 6.20
    assert round(params_total(bam("shared", LARGE)) / 1e9, 2) == 6.00


@pytest.mark.parametrize(
    ("config", "attention", "ffn", "routers"),
    [
        (bam("expert"), 35_651_584, 12_582_912, 2 * 8192),
        (bam("shared"), 23_068_672, 12_582_912, 2 * 8192),
        (btx(4), 8_912_896, 12_582_912, 8192),
        (btx(6, top_k=3), 8_912_896, 3 * 12_582_912, 12_288),
    ],
)
def test_table_7(config: ModelConfig, attention: int, ffn: int, routers: int) -> None:
    """Per layer at context 256. The paper leaves out the weighted sum of values, as many FLOPs as the scores.

    Its FFN figure of 12,589,056 has 4098 for 4096.
    """
    attention_experts = config.attention.n_experts if config.attention else 1
    values = 2 * 256 * 1024 * attention_experts
    head = 2 * 256_000 * 1024
    assert flops_per_token(config, 256) == 6 * (attention + values + ffn + routers) + head


def test_training_is_three_forward_passes_at_the_mean_causal_context() -> None:
    config = bam("expert")
    assert training_flops(config, tokens=10, seq_len=255) == 3 * 10 * flops_per_token(config, 128)
    per_position = [flops_per_token(config, context) for context in range(1, 257)]
    assert training_flops(config, tokens=256, seq_len=256) == 3 * sum(per_position)


@pytest.mark.parametrize(
    ("config", "values"),
    [(SMALL, 1024), (bam("expert"), 4096), (bam("shared"), 1024), (LARGE, 768), (bam("expert", LARGE), 3072)],
)
def test_cache_bytes(config: ModelConfig, values: int) -> None:
    assert cache_bytes_per_token(config) == config.n_layers * 2 * values * 2
    assert cache_bytes_per_token(config, bytes_per_value=4) == config.n_layers * 2 * values * 4


def test_training_bytes() -> None:
    """Working weight and gradient, then master weight, master gradient and two moments."""
    per_parameter = {"bf16": 2 * 2 + 4 * 4, "fp32": 2 * 4 + 4 * 4, "fp64": 2 * 8 + 4 * 8}
    for dtype, size in per_parameter.items():
        assert training_bytes(SMALL, dtype) == params_total(SMALL) * size


TINY = ModelConfig(vocab_size=50, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=8)


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", [None, AttentionExperts(3, 3), AttentionExperts(3, 2, "shared")])
@pytest.mark.parametrize("ffn", [None, FFNExperts(3, 2)])
def test_params_total_counts_the_tensors_of_the_model(
    residual: str, tied: bool, attention: AttentionExperts | None, ffn: FFNExperts | None
) -> None:
    experts = names(3) if attention or ffn else ()
    config = replace(TINY, residual=residual, tie_embeddings=tied, attention=attention, ffn=ffn, experts=experts)
    with torch.device("meta"):
        model = LM(config)
    assert params_total(config) == sum(parameter.numel() for parameter in model.parameters())


def test_planning_needs_no_torch() -> None:
    code = "import sys, bam_core.nn.costs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
