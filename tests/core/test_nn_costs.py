"""Formulas against sums over tensors (T17), for any config; and what each kind of expert costs.

The paper's numbers are in `test_paper_tables.py`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.nn.attention import Cache
from bam_core.nn.costs import (
    cache_bytes_per_token,
    decoding_bytes,
    flops_by_operation,
    flops_per_token,
    mixing_bytes,
    params_active,
    params_by_component,
    params_total,
    training_bytes,
    training_flops,
)
from bam_core.nn.lm import LM
from bam_core.nn.paper import LARGE, SMALL, bam, btx
from bam_core.nn.shapes import tensor_shapes

TINY = ModelConfig(vocab_size=50, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=8)
N = 3
NAMES = tuple(f"e{i}" for i in range(N))


def mixture(attention: AttentionExperts | None = None, ffn: FFNExperts | None = None, **dense: Any) -> ModelConfig:
    return replace(TINY, attention=attention, ffn=ffn, experts=NAMES, **dense).checked()


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    n_layers = draw(st.integers(1, 3))
    layers = st.none() | st.lists(st.integers(0, n_layers - 1), min_size=1, unique=True).map(tuple)
    slots = st.just(()) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=5).map(tuple)
    attention = ffn = None
    if draw(st.booleans()):
        chosen = draw(slots)
        n = len(chosen) or N
        attention = AttentionExperts(
            n_experts=n,
            top_k=draw(st.integers(1, n)),
            kv=draw(st.sampled_from(["expert", "shared", "value_only"])),
            slots=chosen,
            layers=draw(layers),
            router_bias=draw(st.booleans()),
        )
    if draw(st.booleans()) or attention is None:
        chosen, split = draw(slots), draw(st.sampled_from([1, 2, 4]))
        n = (len(chosen) or N) * split
        ffn = FFNExperts(
            n_experts=n,
            top_k=draw(st.integers(1, n)),
            slots=chosen,
            layers=draw(layers),
            soft_layers=draw(layers) or (),
            split=split,
            shared_expert=draw(st.booleans()),
            balance=draw(st.sampled_from(["loss", "bias"])),
            router_bias=draw(st.booleans()),
            dense_router_gradient=draw(st.booleans()),
        )
    residual, qk_norm = draw(st.sampled_from(["parallel", "sequential"])), draw(st.booleans())
    tied = draw(st.booleans())
    parallel, no_groups = residual == "parallel", ffn is None or ffn.split == 1
    return mixture(
        attention,
        ffn,
        n_layers=n_layers,
        d_head=draw(st.sampled_from([None, None, 10])),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        norm_bias=draw(st.booleans()),
        ffn_bias=draw(st.booleans()) and no_groups,
        head_bias=draw(st.booleans()) and not tied,
        gated=draw(st.booleans()),
        norms="before" if parallel else draw(st.sampled_from(["before", "after", "around"])),
        parallel_norms=draw(st.sampled_from([1, 2])) if parallel else 1,
        qk_norm_over=draw(st.sampled_from(["head", "all"])) if qk_norm else "head",
        n_kv_heads=draw(st.sampled_from([1, 2, 4])),
        residual=residual,
        tie_embeddings=tied,
        qk_norm=qk_norm,
        shared=draw(st.none() | shared_experts()),
    )


@st.composite
def shared_experts(draw: st.DrawFn) -> SharedExperts:
    embed, norms = draw(st.sampled_from(["soft", "merged"])), draw(st.sampled_from(["soft", "merged"]))
    heads = ["top1", "soft", *(["merged"] if (embed, norms) != ("merged", "merged") else [])]
    return SharedExperts(embed, norms, draw(st.sampled_from(heads)))


def touched(config: ModelConfig, name: str) -> float:
    """The fraction of a tensor that one token uses, told from its name."""
    layer, kind = int(name.split(".")[1]) if name.startswith("blocks") else -1, name.split(".", 2)[-1]
    attention, ffn = config.attention_at(layer), config.ffn_at(layer)
    queries, outputs = ("attn.w_q", "attn.b_q", "attn.q_norm"), ("attn.w_o", "attn.b_o")
    if attention and (kind in outputs or (kind in queries and attention.kv != "value_only")):
        return attention.top_k / attention.n_experts
    if ffn and kind.startswith(("ffn.w_", "ffn.b_")):
        return ffn.top_k / ffn.n_experts
    if name.startswith("head.") and config.shared and config.shared.head == "top1":
        return 1 / N
    return 1.0


@settings(deadline=None, max_examples=300)
@given(configs())
def test_parameters_are_the_sum_over_tensors(config: ModelConfig) -> None:
    shapes = tensor_shapes(config)
    assert params_total(config) == sum(prod(shape) for shape in shapes.values())
    used = sum(prod(shape) * touched(config, name) for name, shape in shapes.items())
    assert params_active(config) == round(used, 6)
    assert all(part["active"] <= part["total"] for part in params_by_component(config).values())


@settings(deadline=None, max_examples=300)
@given(configs(), st.integers(0, 40))
def test_flops_are_twice_the_rows_that_a_token_meets(config: ModelConfig, context: int) -> None:
    """Every matrix that is used is multiplied once by a vector; attention experts all are, whatever the gate."""
    met = config.vocab_size * config.d_model * (N if config.shared and config.shared.head == "soft" else 1)
    if config.shared:  # a router, and one vector mixed of N: at the input, and in each norm
        n_norms = sum(name.endswith(("norm.weight", "norm.bias")) for name in tensor_shapes(config))
        mixed = (config.shared.embed == "soft") + (config.shared.norms == "soft") * n_norms
        met += N * config.vocab_size * (config.head_bias and config.shared.head == "soft")
        met += N * config.d_model * (1 + mixed)
    for name, shape in tensor_shapes(config).items():
        is_mixed_bias = name.endswith("attn.b_o") and len(shape) == 2
        is_bias = name.endswith(("bias", *(f".b_{part}" for part in ("q", "k", "v", "o", "gate", "up", "down"))))
        if name.startswith("blocks") and not name.endswith(("norm", "norm.weight")) and (is_mixed_bias or not is_bias):
            met += prod(shape) * (1 if ".attn." in name else touched(config, name))
    flops = flops_by_operation(config, context)
    fixed = sum(count for name, count in flops.items() if name not in ("scores", "weighted_values"))
    assert fixed == round(2 * met, 6)
    assert flops_per_token(config, context) == sum(flops.values())
    by_layer = [flops_by_operation(config, context, layer=layer) for layer in range(config.n_layers)]
    outside = flops["head"] + flops.get("shared_router", 0) + flops.get("shared_embedding", 0)
    outside += 2 * N * config.d_model * (1 + config.norm_bias) if "shared_norms" in flops else 0  # the last norm
    assert sum(sum(layer.values()) for layer in by_layer) == sum(flops.values()) - outside


@pytest.mark.parametrize(
    ("attention", "scores", "weighted"),
    [
        (None, 1, 1),
        (AttentionExperts(N, N), N, N),
        (AttentionExperts(N, 1), N, N),
        (AttentionExperts(N, N, "shared"), N, N),
        (AttentionExperts(N, N, "value_only"), 1, N),
    ],
)
def test_attention_over_the_context(attention: AttentionExperts | None, scores: int, weighted: int) -> None:
    config = mixture(attention, FFNExperts(N))
    flops = flops_by_operation(config, 7)
    assert flops["scores"] == 3 * 2 * 24 * 7 * scores
    assert flops["weighted_values"] == 3 * 2 * 24 * 7 * weighted
    paper = flops_by_operation(config, 7, paper=True)
    assert paper == {name: count for name, count in flops.items() if name not in ("weighted_values", "head")}


BIASED = {"qkv_bias": True, "o_bias": True, "norm_bias": True, "ffn_bias": True}
CONFIGS = {
    "dense": TINY,
    "untied_qk_norm": replace(TINY, tie_embeddings=False, qk_norm=True, residual="sequential"),
    "bam": mixture(AttentionExperts(N, N), FFNExperts(N)),
    "top_2": mixture(AttentionExperts(N, 2), FFNExperts(N, 2)),
    "shared": mixture(AttentionExperts(N, N, "shared"), FFNExperts(N)),
    "value_only": mixture(AttentionExperts(N, N, "value_only"), FFNExperts(N)),
    "layers": mixture(AttentionExperts(N, N, layers=(1,)), FFNExperts(N, layers=(0, 2), soft_layers=(0,))),
    "split": mixture(None, FFNExperts(2 * N, 3, split=2, shared_expert=True)),
    "shared routed": mixture(AttentionExperts(N, N), FFNExperts(N), shared=SharedExperts()),
    "text routers": mixture(AttentionExperts(N, N), FFNExperts(N), router_input="text"),
    "shared routed, sequential, untied": mixture(
        None, FFNExperts(N), shared=SharedExperts(), residual="sequential", tie_embeddings=False
    ),
    "soft heads": mixture(None, FFNExperts(N), shared=SharedExperts(head="soft")),
    "heads alone": mixture(None, FFNExperts(N), shared=SharedExperts(embed="merged", norms="merged")),
    "neox": replace(TINY, norm="layer", parallel_norms=2, gated=False, **BIASED),
    "neox, bam": mixture(AttentionExperts(N, N), FFNExperts(N, 2), parallel_norms=2, gated=False, **BIASED),
    "phi, soft heads": mixture(
        None, FFNExperts(N), shared=SharedExperts(head="soft"), tie_embeddings=False, head_bias=True, **BIASED
    ),
    "gemma, value_only": mixture(
        AttentionExperts(N, N, "value_only"), FFNExperts(N), residual="sequential", norms="around", d_head=10
    ),
    "embeddings alone": mixture(None, None, shared=SharedExperts(norms="merged", head="merged")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_flops_are_those_of_the_model_that_runs(name: str) -> None:
    """Counted by torch: one token after seven others in a cache, so its context is 8."""
    config = CONFIGS[name]
    model = LM(config).eval()
    assert params_total(config) == sum(parameter.numel() for parameter in model.parameters())
    cache = Cache(config, batch=1, capacity=8, dtype=torch.float32, device=torch.device("cpu"))
    tokens_BT = torch.arange(8)[None]
    with torch.no_grad():
        model(tokens_BT[:, :7], cache)
        with FlopCounterMode(display=False) as counter:
            output = model(tokens_BT[:, 7:], cache)
            model.logits(output.hidden_BTD, output.mix_BTE)
    counts = counter.get_flop_counts()["Global"]
    matmuls = sum(count for operation, count in counts.items() if "attention" not in str(operation))
    expected = flops_by_operation(config, 8)
    attention = expected["scores"] + expected["weighted_values"]  # torch counts them only where it does not fuse them
    assert matmuls in (sum(expected.values()), sum(expected.values()) - attention)


def test_training_is_three_forward_passes_at_the_mean_causal_context() -> None:
    config = bam()
    assert training_flops(config, tokens=10, seq_len=255) == 3 * 10 * flops_per_token(config, 128)
    per_position = [flops_per_token(config, context) for context in range(1, 257)]
    assert training_flops(config, tokens=256, seq_len=256) == 3 * sum(per_position)


def test_a_dense_router_gradient_trains_every_ffn_expert() -> None:
    sparse, soft = FFNExperts(N, 1, layers=(0, 1)), FFNExperts(N, N, layers=(0, 1))
    dense_gradient = replace(sparse, dense_router_gradient=True)
    assert training_flops(mixture(None, dense_gradient), 64, 8) == training_flops(mixture(None, soft), 64, 8)
    assert flops_per_token(mixture(None, dense_gradient), 8) == flops_per_token(mixture(None, sparse), 8)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (SMALL, 6 * (1024 + 1024)),
        (bam(), 6 * 4 * (1024 + 1024)),
        (bam("shared"), 6 * (1024 + 1024)),
        (LARGE, 18 * (768 + 768)),
        (bam(dense=LARGE), 18 * 4 * (768 + 768)),
        (mixture(AttentionExperts(N, N, "value_only")), 3 * (1 + N) * 12),
        (mixture(AttentionExperts(N, N, layers=(2,))), (2 + N) * 2 * 12),
    ],
)
def test_cache_bytes(config: ModelConfig, values: int) -> None:
    assert cache_bytes_per_token(config) == values * 2
    assert cache_bytes_per_token(config, bytes_per_value=4) == values * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_reads_what_one_token_uses_and_the_caches_of_its_experts(name: str) -> None:
    """Per tensor; of an embedding that is not the head too one row; 8 positions of K of the E caches."""
    config, values = CONFIGS[name], 0.0
    for tensor, shape in tensor_shapes(config).items():
        looked_up = tensor == "embed.weight" and "head.weight" in tensor_shapes(config)
        values += prod(shape) / 50 if looked_up else prod(shape) * touched(config, tensor)
    fixed = decoding_bytes(config, 0)
    assert fixed == round(2 * values, 6)
    layers = [config.attention_at(layer) for layer in range(config.n_layers)]
    used = {"expert": lambda k: 2 * k, "shared": lambda _: 2, "value_only": lambda k: 1 + k}
    caches = sum(used[experts.kv](experts.top_k) if experts else 2 for experts in layers)
    assert decoding_bytes(config, 8) - fixed == 2 * 8 * 2 * config.head_dim * caches
    assert decoding_bytes(config, 8, bytes_per_value=1) * 2 == decoding_bytes(config, 8)


def test_training_bytes() -> None:
    """Working weight and gradient, then master weight, master gradient and two moments."""
    per_parameter = {"bf16": 2 * 2 + 4 * 4, "fp32": 2 * 4 + 4 * 4, "fp64": 2 * 8 + 4 * 8}
    for dtype, size in per_parameter.items():
        assert training_bytes(SMALL, dtype) == params_total(SMALL) * size


def test_mixing_bytes() -> None:
    """The embedding is the small model's largest tensor; eight slots of four models are eight slices."""
    embedding, overhead = 4 * 256_000 * 1024, 300_000_000
    assert mixing_bytes(bam()) == embedding * 6 + overhead
    assert mixing_bytes(btx(8)) == embedding * 10 + overhead
    doubled = FFNExperts(8, slots=("a", "b", "c", "d") * 2)
    assert mixing_bytes(replace(SMALL, ffn=doubled, experts=("a", "b", "c", "d"))) == embedding * 10 + overhead
    split = FFNExperts(6, split=2)
    assert mixing_bytes(mixture(None, split, d_ff=100)) == 4 * 100 * 24 * (N + 2) + overhead


def test_planning_needs_no_torch() -> None:
    code = "import sys, bam_core.nn.costs, bam_core.nn.paper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_window_is_read_again_no_further_than_it_reaches() -> None:
    """One layer of three sees all."""
    whole, narrow = (replace(TINY, window=window, global_layers=layers) for window, layers in ((None, ()), (4, (1,))))
    per_position = 2 * 2 * (TINY.n_kv_heads * TINY.head_dim)  # keys and values of one layer in bf16
    assert decoding_bytes(whole, 10) - decoding_bytes(narrow, 10) == 2 * (10 - 4) * per_position
    assert decoding_bytes(whole, 3) == decoding_bytes(narrow, 3)
    assert cache_bytes_per_token(whole) == cache_bytes_per_token(narrow)  # all positions are kept
