"""The folded, grouped, fused model against `naive`: logits and the gradient of every tensor, in float64.

Named cases cover every field of the config once; hypothesis draws their combinations, always the same ones.
Mutations, each planted in `test_oracles_can_fail.py`: the other rotary pairing, no QK-norm, values of the wrong
expert, gates on the wrong experts, another gate, capacity off by one, no gain, no shared expert, no bias.
"""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from agreement import Agreement
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bam_core.config import GATES, AttentionExperts, FFNExperts, ModelConfig, SharedExperts
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.routing import Noise

DENSE = ModelConfig(vocab_size=31, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16)
NAMES = ("general", "code", "law")
N_TIME = 9


def mixture(attention: AttentionExperts | None, ffn: FFNExperts | None, **changes: object) -> ModelConfig:
    return replace(DENSE, attention=attention, ffn=ffn, experts=NAMES, **changes)


SOFT = AttentionExperts(3, 3)
CONFIGS = {
    "dense": DENSE,
    "dense-mha": replace(DENSE, n_kv_heads=4),
    "dense-mqa-layer-norm": replace(DENSE, n_kv_heads=1, norm="layer"),
    "dense-sequential-untied": replace(DENSE, residual="sequential", tie_embeddings=False),
    "dense-qk-norm": replace(DENSE, qk_norm=True),
    "dense-rotary-half-interleaved": replace(DENSE, rotary_frac=0.5, rotary_pairs="interleaved"),
    "btx": mixture(None, FFNExperts(3)),
    "btx-top2-topk-softmax": mixture(None, FFNExperts(3, 2, "topk_softmax")),
    "btx-top2-renorm-sequential": mixture(None, FFNExperts(3, 2, "softmax_topk_renorm"), residual="sequential"),
    "btx-ste": mixture(None, FFNExperts(3, 2, "softmax_topk_ste")),
    "btx-sample": mixture(None, FFNExperts(3, 1, "sample_top1", soft_layers=(0,))),
    "ffn-soft": mixture(None, FFNExperts(3, 3)),
    "ffn-split": mixture(None, FFNExperts(6, 2, split=2)),
    "ffn-shared-expert-gain": mixture(None, FFNExperts(3, shared_expert=True, gain=(1.5, 0.5))),
    "ffn-capacity": mixture(None, FFNExperts(3, 1, capacity_factor=0.7)),
    "ffn-capacity-top2": mixture(None, FFNExperts(3, 2, "softmax_topk_renorm", capacity_factor=0.8)),
    "ffn-balance-bias": mixture(None, FFNExperts(3, 2, balance="bias", router_bias=True)),
    "ffn-dense-gradient": mixture(None, FFNExperts(3, 1, dense_router_gradient=True)),
    "ffn-slots": mixture(None, FFNExperts(4, 1, slots=("general", "law", "law", "code"))),
    "bam": mixture(SOFT, FFNExperts(3)),
    "bam-mha": mixture(SOFT, FFNExperts(3), n_kv_heads=4),
    "bam-shared": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(3)),
    "bam-shared-mqa": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(3), n_kv_heads=1),
    "bam-shared-sequential-layer-norm": mixture(
        AttentionExperts(3, 3, "shared"), FFNExperts(3), residual="sequential", norm="layer"
    ),
    "bam-value-only": mixture(AttentionExperts(3, 3, "value_only"), FFNExperts(3)),
    "bam-value-only-mqa-qk-norm": mixture(
        AttentionExperts(3, 3, "value_only"), FFNExperts(3), n_kv_heads=1, qk_norm=True
    ),
    "bam-qk-norm": mixture(SOFT, FFNExperts(3), qk_norm=True),
    "bam-some-layers": mixture(replace(SOFT, layers=(1,)), FFNExperts(3, layers=(0,))),
    "attention-only-top1": mixture(AttentionExperts(3, 1), None),
    "attention-top2-shared": mixture(AttentionExperts(3, 2, "shared", "topk_softmax"), FFNExperts(3, 2)),
    "attention-ste-bias": mixture(AttentionExperts(3, 2, "expert", "softmax_topk_ste", router_bias=True), None),
    "shared-routed-btx": mixture(None, FFNExperts(3), shared=SharedExperts()),
    "shared-routed-bam-sequential-untied": mixture(
        SOFT, FFNExperts(3), shared=SharedExperts(), residual="sequential", tie_embeddings=False, norm="layer"
    ),
    "shared-routed-slots-head-gradient": mixture(
        None,
        FFNExperts(4, 3, slots=("general", "law", "law", "code")),
        shared=SharedExperts(head_gradient=True, temperature=2.5),
    ),
    "shared-soft-head": mixture(SOFT, FFNExperts(3), shared=SharedExperts(head="soft")),
    "shared-soft-head-untied-qk-norm": mixture(
        SOFT, FFNExperts(3), shared=SharedExperts(head="soft"), tie_embeddings=False, qk_norm=True
    ),
    "shared-norms-only": mixture(None, FFNExperts(3), shared=SharedExperts(embed="merged", head="merged")),
    "shared-head-only": mixture(None, FFNExperts(3), shared=SharedExperts(embed="merged", norms="merged")),
    "shared-embedding-only": mixture(SOFT, None, shared=SharedExperts(norms="merged", head="merged")),
    "shared-and-no-experts": mixture(None, None, shared=SharedExperts()),
    "attention-dense-gradient": mixture(AttentionExperts(3, 1, dense_router_gradient=True), None),
}


def check(config: ModelConfig, agree: Agreement, seed: int = 1, *, training: bool = True) -> None:
    """Logits and every gradient of one random model on random tokens."""
    model = LM(config)
    init_weights(model, seed)
    model.cast(torch.float64).train(training)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():  # norms away from 1, biases from 0, routers with clear choices
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tokens_BT = torch.randint(config.vocab_size, (2, N_TIME), generator=generator)
    weights = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    noise, mode = draws(config, training)

    output = model(tokens_BT, noise=noise)
    actual = model.logits(output.hidden_BTD, output.mix_BTE)
    expected = naive.logits(config, weights, tokens_BT, mode)
    agree(actual, expected, what="logits")

    direction = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    for tensor, parameter in model.named_parameters():
        # None: an expert that no token chose, or a router whose weights are constant.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, weights[tensor])]
        agree(*grads, what=f"d {tensor}")


def draws(config: ModelConfig, training: bool) -> tuple[Noise | None, naive.Mode]:
    """The same random numbers for both, where a gate samples."""
    if config.ffn is None or config.ffn.gate != "sample_top1" or not training:
        return None, naive.Mode(training)
    noise = Noise((11, 12), 0.8)
    n_experts, cpu = config.ffn.n_experts, torch.device("cpu")
    gumbel = {layer: noise.gumbel(layer, N_TIME, n_experts, cpu).double() for layer in range(config.n_layers)}
    return noise, naive.Mode(training, gumbel, noise.temperature)


@pytest.mark.oracle("naive: every field of the config", each=False)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_every_gradient_are_those_of_the_plain_sum(name: str, training: bool, agree: Agreement) -> None:
    check(CONFIGS[name], agree, training=training)


def layers() -> st.SearchStrategy[tuple[int, ...] | None]:
    return st.sampled_from([None, None, (0,), (1,), (0, 1)])


@st.composite
def attention_experts(draw: st.DrawFn) -> AttentionExperts:
    slots = draw(st.sampled_from([(), ("general", "law", "law", "code")]))
    n = len(slots) or 3
    return AttentionExperts(
        n_experts=n,
        top_k=draw(st.integers(1, n)),
        kv=draw(st.sampled_from(["expert", "shared", "value_only"])),
        gate=draw(st.sampled_from([gate for gate in GATES if gate != "sample_top1"])),
        slots=slots,
        layers=draw(layers()),
        router_bias=draw(st.booleans()),
        dense_router_gradient=draw(st.booleans()),
    )


@st.composite
def ffn_experts(draw: st.DrawFn) -> FFNExperts:
    slots = draw(st.sampled_from([(), ("code", "general", "law", "code")]))
    split = draw(st.sampled_from([1, 1, 2, 3]))
    n = (len(slots) or 3) * split
    gate = draw(st.sampled_from(GATES))
    return FFNExperts(
        n_experts=n,
        top_k=1 if gate == "sample_top1" else draw(st.integers(1, n)),
        gate=gate,
        slots=slots,
        layers=draw(layers()),
        soft_layers=draw(st.sampled_from([(), (), (0,), (1,)])),
        split=split,
        shared_expert=draw(st.booleans()),
        capacity_factor=draw(st.sampled_from([None, None, 0.5, 1.25])),
        gain=draw(st.sampled_from([(), (1.5, 0.7)])),
        balance=draw(st.sampled_from(["loss", "bias"])),
        router_bias=draw(st.booleans()),
        dense_router_gradient=draw(st.booleans()),
    )


@st.composite
def shared_experts(draw: st.DrawFn) -> SharedExperts:
    head = draw(st.sampled_from(["top1", "soft", "merged"]))
    return SharedExperts(
        embed=draw(st.sampled_from(["soft", "merged"])),
        norms="soft" if head == "merged" else draw(st.sampled_from(["soft", "merged"])),
        head=head,
        temperature=draw(st.sampled_from([1.0, 0.3, 3.0])),
        head_gradient=head == "top1" and draw(st.booleans()),
    )


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    attention, ffn = draw(st.none() | attention_experts()), draw(st.none() | ffn_experts())
    shared = draw(st.none() | shared_experts())
    return replace(
        DENSE,
        n_kv_heads=draw(st.sampled_from([1, 2, 4])),
        residual=draw(st.sampled_from(["parallel", "sequential"])),
        norm=draw(st.sampled_from(["rms", "layer"])),
        tie_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        rotary_frac=draw(st.sampled_from([1.0, 0.5])),
        rotary_pairs=draw(st.sampled_from(["half", "interleaved"])),
        attention=attention,
        ffn=ffn,
        experts=NAMES if attention or ffn or shared else (),
        shared=shared,
    )


@pytest.mark.oracle("naive: 100 drawn combinations")
@settings(
    max_examples=100, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(config=model_configs(), seed=st.integers(0, 99), training=st.booleans())
def test_any_combination_is_the_plain_sum(config: ModelConfig, seed: int, training: bool, agree: Agreement) -> None:
    check(config, agree, seed, training=training)
