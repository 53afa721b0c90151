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

from bam_core.config import GATES, AttentionExperts, FFNExperts, ModelConfig, RopeScaling, SharedExperts
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.routing import Noise

DENSE = ModelConfig(vocab_size=31, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16)
NAMES = ("general", "code", "law")
N_TIME = 9


def mixture(attention: AttentionExperts | None, ffn: FFNExperts | None, **changes: object) -> ModelConfig:
    return replace(DENSE, attention=attention, ffn=ffn, experts=NAMES, **changes)


SOFT = AttentionExperts(3, 3)
BIASED = {"qkv_bias": True, "o_bias": True, "norm_bias": True, "ffn_bias": True}
SEQUENTIAL = {"residual": "sequential"}
SCORED = {"attention_softcap": 2.0, "attention_scale": 0.5, "window": 4, "global_layers": (1,)}
SCALED = {"embed_scale": 3.0, "logit_scale": 0.5, "logit_softcap": 4.0}
GEMMA = SEQUENTIAL | SCORED | SCALED | {"norms": "around", "d_head": 12, "activation": "gelu_tanh"}
OLMO = SEQUENTIAL | {"norms": "after", "qk_norm": True, "qk_norm_over": "all"}
NEOX = BIASED | {"norm": "layer", "parallel_norms": 2, "activation": "gelu", "gated": False, "rotary_frac": 0.5}
PHI = BIASED | {"norm": "layer", "gated": False, "activation": "gelu_tanh", "head_bias": True, "tie_embeddings": False}
COHERE = {"norm": "layer", "rotary_pairs": "interleaved", "window": 3, "global_layers": (1,), "unrotated_layers": (1,)}
LLAMA3 = SEQUENTIAL | {"rope_theta": 50.0, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "d_head": 16}
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
    "dense-gemma": replace(DENSE, **GEMMA),
    "dense-olmo": replace(DENSE, **OLMO),
    "dense-neox": replace(DENSE, **NEOX),
    "dense-phi": replace(DENSE, **PHI),
    "dense-cohere": replace(DENSE, **COHERE),
    "dense-llama3": replace(DENSE, **LLAMA3),
    "dense-biased-rms-relu": replace(DENSE, **BIASED, activation="relu", rope_scaling=RopeScaling("linear", 2.5)),
    "gemma-bam": mixture(SOFT, FFNExperts(3), **GEMMA),
    "gemma-shared-kv": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(6, 2, split=2), **GEMMA),
    "gemma-value-only": mixture(AttentionExperts(3, 3, "value_only"), FFNExperts(3, 2), **GEMMA),
    "olmo-bam": mixture(SOFT, FFNExperts(3, 2, "topk_softmax"), **OLMO),
    "olmo-shared-kv": mixture(AttentionExperts(3, 2, "shared"), FFNExperts(3, shared_expert=True), **OLMO),
    "olmo-value-only-routed": mixture(
        AttentionExperts(3, 3, "value_only"), FFNExperts(3), **OLMO, shared=SharedExperts()
    ),
    "neox-bam": mixture(SOFT, FFNExperts(3), **NEOX),
    "neox-shared-kv-dense-gradients": mixture(
        AttentionExperts(3, 2, "shared", dense_router_gradient=True),
        FFNExperts(3, dense_router_gradient=True, shared_expert=True),
        **NEOX,
    ),
    "neox-value-only": mixture(AttentionExperts(3, 3, "value_only"), FFNExperts(3, 2, gain=(1.5, 0.5)), **NEOX),
    "phi-bam-routed": mixture(SOFT, FFNExperts(3), **PHI, shared=SharedExperts()),
    "phi-btx-soft-head": mixture(None, FFNExperts(3), **PHI, shared=SharedExperts(head="soft", norms="merged")),
    "cohere-bam": mixture(SOFT, FFNExperts(3), **COHERE),
    "llama3-btx": mixture(None, FFNExperts(3), **LLAMA3),
    "biased-gated-btx": mixture(None, FFNExperts(3, 2, capacity_factor=0.8), **BIASED),
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
    found = replace(
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
    return draw(with_options(found)) if draw(st.booleans()) else found


@st.composite
def with_options(draw: st.DrawFn, config: ModelConfig) -> ModelConfig:
    """What public families have beside the plain block."""
    parallel, window = config.residual == "parallel", draw(st.sampled_from([None, 1, 4, 99]))
    return replace(
        config,
        d_head=draw(st.sampled_from([None, 4, 12])),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        norm_bias=draw(st.booleans()),
        ffn_bias=draw(st.booleans()) and (config.ffn is None or config.ffn.split == 1),
        head_bias=draw(st.booleans()) and not config.tie_embeddings,
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"])),
        gated=draw(st.booleans()),
        norms="before" if parallel else draw(st.sampled_from(["before", "after", "around"])),
        parallel_norms=draw(st.sampled_from([1, 2])) if parallel else 1,
        qk_norm_over=draw(st.sampled_from(["head", "all"])) if config.qk_norm else "head",
        embed_scale=draw(st.sampled_from([1.0, 4.0])),
        logit_scale=draw(st.sampled_from([1.0, 0.25])),
        logit_softcap=draw(st.sampled_from([None, 5.0])),
        attention_softcap=draw(st.sampled_from([None, 3.0])),
        attention_scale=draw(st.sampled_from([None, 0.2])),
        window=window,
        global_layers=draw(st.sampled_from([(), (0,), (0, 1)])) if window else (),
        unrotated_layers=draw(st.sampled_from([(), (1,)])),
        rope_scaling=draw(st.sampled_from([None, RopeScaling("linear", 4.0), LLAMA3["rope_scaling"]])),
    )


@pytest.mark.oracle("naive: 100 drawn combinations")
@settings(
    max_examples=100, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(config=model_configs(), seed=st.integers(0, 99), training=st.booleans())
def test_any_combination_is_the_plain_sum(config: ModelConfig, seed: int, training: bool, agree: Agreement) -> None:
    check(config, agree, seed, training=training)
