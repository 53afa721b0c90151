"""The decoder computes what the model does: every kind of expert, in pieces, with pads, in every layout of the weights.

In float64, to rounding, so that a wrong expert, order of channels or position cannot hide; packed weights are for bf16
alone, and are compared there by their distance from float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, RopeScaling, SharedExperts
from bam_core.errors import InvalidInput
from bam_core.nn import products
from bam_core.nn.attention import Cache
from bam_core.nn.decode import Decoder
from bam_core.nn.layers import rotary_tables
from bam_core.nn.lm import LM
from bam_core.nn.moa import MixtureOfAttention
from bam_core.nn.products import LAID_OUT_FROM, Product

EXACT = {"rtol": 1e-10, "atol": 1e-11}
TIME = 9
NAMES = ("general", "code", "law")
DENSE = ModelConfig(vocab_size=37, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=40, max_seq_len=24)
TURNED = replace(DENSE, rotary_pairs="interleaved", rotary_frac=0.5, norm="layer")


BIASED = replace(DENSE, qkv_bias=True, o_bias=True, norm_bias=True, ffn_bias=True)
NEOX = replace(BIASED, norm="layer", parallel_norms=2, gated=False, activation="gelu", rotary_frac=0.5)
GEMMA = replace(
    DENSE,
    residual="sequential",
    norms="around",
    d_head=12,
    activation="gelu_tanh",
    embed_scale=3.0,
    logit_scale=0.5,
    logit_softcap=4.0,
    attention_softcap=2.0,
    attention_scale=0.5,
    window=4,
    global_layers=(1,),
)
COHERE = replace(TURNED, window=3, global_layers=(0,), unrotated_layers=(0,), logit_scale=0.25)
OLMO = replace(
    DENSE,
    residual="sequential",
    norms="after",
    qk_norm=True,
    qk_norm_over="all",
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
)


def mixture(attention: AttentionExperts | None, ffn: FFNExperts | None, dense: ModelConfig = DENSE) -> ModelConfig:
    return replace(dense, attention=attention, ffn=ffn, experts=NAMES)


CONFIGS = {
    "dense": DENSE,
    "sequential, untied, qk-norm": replace(TURNED, residual="sequential", tie_embeddings=False, qk_norm=True),
    "bam": mixture(AttentionExperts(3, 3), FFNExperts(3)),
    "interleaved": mixture(AttentionExperts(3, 3), FFNExperts(3, 2, "topk_softmax"), TURNED),
    "shared": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(3, 3), replace(TURNED, qk_norm=True)),
    "value_only": mixture(AttentionExperts(3, 3, "value_only"), FFNExperts(3, gain=(1.5, 0.5)), TURNED),
    "top-1 attention": mixture(AttentionExperts(3, 1), None, replace(TURNED, qk_norm=True)),
    "top-2 shared": mixture(AttentionExperts(3, 2, "shared", router_bias=True), None),
    "top-2 value_only": mixture(AttentionExperts(3, 2, "value_only"), None),
    "text routers": replace(mixture(AttentionExperts(3, 3), FFNExperts(3, 2)), router_input="text"),
    "text routers, top-1": replace(mixture(AttentionExperts(3, 1), FFNExperts(3)), router_input="text"),
    "text routers, shared routed": replace(
        mixture(AttentionExperts(3, 3, "value_only"), FFNExperts(3), COHERE),
        router_input="text",
        shared=SharedExperts(),
    ),
    "threshold": mixture(AttentionExperts(3, 3, threshold=0.3), None),
    "threshold, shared": mixture(AttentionExperts(3, 3, "shared", threshold=0.3), None, replace(DENSE, qk_norm=True)),
    "one layer": mixture(
        AttentionExperts(3, 3, layers=(1,)), FFNExperts(6, 2, split=2, layers=(0,), shared_expert=True)
    ),
    "biases": mixture(
        None, FFNExperts(3, 2, "softmax_topk_renorm", router_bias=True, balance="bias", soft_layers=(0,))
    ),
    "shared routed": replace(mixture(AttentionExperts(3, 3), FFNExperts(3)), shared=SharedExperts()),
    "neox": NEOX,
    "gemma": GEMMA,
    "olmo": OLMO,
    "head bias, relu": replace(BIASED, head_bias=True, tie_embeddings=False, activation="relu"),
    "neox, bam": mixture(AttentionExperts(3, 3), FFNExperts(3, 2), NEOX),
    "neox, top-2 shared": mixture(AttentionExperts(3, 2, "shared"), FFNExperts(3, shared_expert=True), NEOX),
    "neox, value_only": mixture(AttentionExperts(3, 3, "value_only"), None, NEOX),
    "gemma, threshold": mixture(AttentionExperts(3, 3, threshold=0.3), FFNExperts(3), GEMMA),
    "gemma, shared": mixture(AttentionExperts(3, 3, "shared"), FFNExperts(3), GEMMA),
    "cohere, bam": mixture(AttentionExperts(3, 3), FFNExperts(3), COHERE),
    "cohere, top-1": mixture(AttentionExperts(3, 1), FFNExperts(3), COHERE),
    "olmo, bam": mixture(AttentionExperts(3, 3), FFNExperts(3), OLMO),
    "olmo, top-2": mixture(AttentionExperts(3, 2), None, OLMO),
    "biased, shared routed": replace(
        mixture(AttentionExperts(3, 3), FFNExperts(3), replace(BIASED, head_bias=True, tie_embeddings=False)),
        shared=SharedExperts(),
    ),
    "soft head": replace(mixture(None, FFNExperts(3)), shared=SharedExperts(head="soft"), residual="sequential"),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def build(config: ModelConfig, seed: int = 3) -> LM:
    """In float64, with norms around 1 and routers that are neither even nor sure."""
    model, generator = LM(config).double().eval(), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(value + ("norm" in name))
    return model


def tokens(batch: int = 2, n_time: int = TIME) -> Tensor:
    return torch.randint(37, (batch, n_time), generator=torch.Generator().manual_seed(7))


def expected_logits(model: LM, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(tokens_BT)
        return model.logits(output.hidden_BTD, output.mix_BTE)[:, -1]


@every_config
@pytest.mark.parametrize("pieces", [(9,), (6, 1, 2)], ids=["once", "pieces"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_decoder_has_the_logits_of_the_model(name: str, pieces: tuple[int, ...], batch: int) -> None:
    model, batch_BT = build(CONFIGS[name]), tokens(batch)
    for steps in (1, LAID_OUT_FROM):
        decoder = Decoder(model, rows=batch, steps=steps)
        cache, end = Cache(model.config, batch, TIME, torch.float64), 0
        for piece in batch_BT.split(pieces, 1):
            end += piece.shape[1]
            torch.testing.assert_close(decoder(piece, cache), expected_logits(model, batch_BT[:, :end]), **EXACT)


@every_config
def test_pads_are_nothing_to_the_decoder(name: str) -> None:
    model, batch_BT = build(CONFIGS[name]), tokens()
    cache = Cache(model.config, 2, TIME, torch.float64, pad_B=torch.tensor([0, 4]))
    decoder = Decoder(model, rows=2, steps=LAID_OUT_FROM)
    for start, end in ((0, 6), (6, 7), (7, 9)):
        found = decoder(batch_BT[:, start:end], cache)
        torch.testing.assert_close(found[:1], expected_logits(model, batch_BT[:1, :end]), **EXACT)
        torch.testing.assert_close(found[1:], expected_logits(model, batch_BT[1:, 4:end]), **EXACT)


@pytest.mark.parametrize(("batch", "amx"), [(1, True), (1, False), (5, True)])
@pytest.mark.parametrize("name", ["sequential, untied, qk-norm", "interleaved", "threshold", "one layer", "neox, bam"])
def test_packed_weights_are_as_close_to_float64_as_the_model_in_bf16(
    name: str, batch: int, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routers decide in bf16 as they do in float64 for most tokens: the median token is compared."""
    monkeypatch.setattr(products, "packs_one_row", lambda: not amx)
    model, batch_BT = build(CONFIGS[name]), tokens(batch)
    exact = expected_logits(model, batch_BT)
    model.cast(torch.bfloat16)
    decoder = Decoder(model, rows=batch, steps=LAID_OUT_FROM)
    cache = Cache(model.config, batch, TIME, torch.bfloat16)
    decoder(batch_BT[:, :-1], cache)
    errors = [
        (x.double() - exact).norm(dim=-1) for x in (decoder(batch_BT[:, -1:], cache), expected_logits(model, batch_BT))
    ]
    ours, models = (float((error / exact.norm(dim=-1)).median()) for error in errors)
    assert ours < max(2 * models, 2**-5), (ours, models)


@pytest.mark.parametrize("amx", [True, False])
def test_weights_are_packed_where_that_pays(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For many steps: of several rows, and without AMX of one."""
    packed: list[Tensor] = []
    monkeypatch.setattr(products, "_packed", lambda w: packed.append(w) or w)
    monkeypatch.setattr(products, "packs_one_row", lambda: not amx)
    model = build(CONFIGS["bam"]).cast(torch.bfloat16)
    for rows, steps in ((1, 99 if amx else LAID_OUT_FROM - 1), (2, LAID_OUT_FROM - 1)):
        Decoder(model, rows=rows, steps=steps)(tokens(rows), Cache(model.config, rows, TIME, torch.bfloat16))
    assert not packed
    decoder = Decoder(model, rows=2, steps=LAID_OUT_FROM)
    assert not packed  # not before the first use
    for _ in range(2):
        decoder(tokens(), Cache(model.config, 2, TIME, torch.bfloat16))
    assert len(packed) <= 2 * (1 + 1 + 3 * 3) + 1  # and once; an expert that nobody chose, not at all
    packed.clear()
    Decoder(model, rows=1, steps=LAID_OUT_FROM)(tokens(1), Cache(model.config, 1, TIME, torch.bfloat16))
    assert bool(packed) == (not amx)


def gated(threshold: float, logits: tuple[float, float, float], **experts: Any) -> MixtureOfAttention:
    """Attention whose gates are softmax(logits) for every token: channel 0 of what it reads is 1."""
    parts = AttentionExperts(3, 3, threshold=threshold, **experts)
    module = MixtureOfAttention(mixture(parts, None), parts).double().eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    module.router.data.zero_()
    module.router.data[:, 0] = torch.tensor(logits, dtype=torch.float64)
    return module


def run(module: MixtureOfAttention) -> Tensor:
    x_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x_BTD[..., 0] = 1
    return module(x_BTD, rotary_tables(5, 8, 10_000.0, torch.float64, torch.device("cpu")))[0]


PROBS = (0.62, 0.26, 0.12)


@pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])
@pytest.mark.parametrize(("threshold", "left_out"), [(0.0, ()), (0.1, ()), (0.2, (2,)), (0.3, (1, 2))])
def test_experts_below_the_threshold_are_left_out_and_the_error_is_bounded(
    kv: Any, threshold: float, left_out: tuple[int, ...]
) -> None:
    """Exactly the sum over the others with their gates as they were; within the stated bound of the whole."""
    logits = tuple(torch.tensor(PROBS, dtype=torch.float64).log().tolist())
    whole, found = run(gated(0.0, logits, kv=kv)), run(gated(threshold, logits, kv=kv))
    alone = []  # the output of each expert
    for e in range(3):
        alone.append(run(gated(0.0, tuple(0.0 if i == e else -1e4 for i in range(3)), kv=kv)))
    expected = sum(PROBS[e] * alone[e] for e in range(3) if e not in left_out)
    torch.testing.assert_close(found, expected, **EXACT)
    largest = torch.stack([output.norm(dim=-1) for output in alone]).amax(0)
    bound = sum(PROBS[e] for e in left_out) * largest
    assert ((found - whole).norm(dim=-1) <= bound + 1e-12).all()


def test_training_knows_no_threshold() -> None:
    logits = (1.0, 0.0, -1.0)
    assert torch.equal(run(gated(0.3, logits).train()), run(gated(0.0, logits).train()))
    assert not torch.equal(run(gated(0.3, logits)), run(gated(0.0, logits)))


@pytest.mark.parametrize("threshold", [-0.1, 0.34, float("nan"), True, "0.1"])
def test_a_threshold_that_could_leave_out_every_expert_is_refused(threshold: Any) -> None:
    with pytest.raises(InvalidInput, match=r"attention\.threshold: .*must be at least 0 and at most 0\.333"):
        mixture(AttentionExperts(3, 3, threshold=threshold), None).checked()
    assert mixture(AttentionExperts(3, 3, threshold=1 / 3), None).checked().attention.threshold == 1 / 3


def test_a_threshold_is_part_of_what_a_model_is_and_none_is_not() -> None:
    plain, limited = (mixture(AttentionExperts(3, 3, threshold=t), None) for t in (0.0, 0.2))
    assert "threshold" not in plain.identity()["attention"]
    assert limited.identity()["attention"]["threshold"] == 0.2
    assert ModelConfig.from_json(limited.to_json()) == limited


@pytest.mark.parametrize("kv", ["expert", "shared"])
def test_an_expert_that_no_row_has_a_gate_for_costs_no_queries_no_scores_and_no_outputs(
    kv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 0 has gates for expert 0, row 1 for 0 and 2, so two of three are asked; keys and values are those of all."""
    model = build(mixture(AttentionExperts(3, 3, kv, threshold=0.2), None, replace(DENSE, n_layers=1)))
    gates = torch.tensor([[[0.7, 0.0, 0.0]], [[0.5, 0.0, 0.4]]], dtype=torch.float64)
    monkeypatch.setattr(model.blocks[0].attn, "gates", lambda _: gates)
    read: list[Tensor] = []
    real = Product.__call__
    monkeypatch.setattr(Product, "__call__", lambda self, x: read.append(self.weight) or real(self, x))
    caches = [Cache(model.config, 2, 1, torch.float64) for _ in range(2)]
    found = Decoder(model, rows=2, steps=1)(tokens(2, 1), caches[0])
    attention = model.blocks[0].attn
    n_read = sum(weight.numel() for weight in read) - 37 * 32 - 3 * 40 * 32  # without the head and the FFN
    assert n_read == attention.w_k.numel() + attention.w_v.numel() + (2 / 3) * 2 * attention.w_q.numel()
    with torch.no_grad():
        output = model(tokens(2, 1), caches[1])
    torch.testing.assert_close(found, model.logits(output.hidden_BTD)[:, -1].detach(), **EXACT)
    torch.testing.assert_close(caches[0].layers[0].keys_BGSC, caches[1].layers[0].keys_BGSC, **EXACT)


@pytest.mark.parametrize("name", ["gemma", "cohere, bam", "gemma, shared"])
def test_a_model_reads_its_cache_as_it_reads_the_whole_text(name: str) -> None:
    """`LM` itself, with windows shorter than the text, by pieces and with pads."""
    model, batch_BT = build(CONFIGS[name]), tokens()
    cache = Cache(model.config, 2, TIME, torch.float64, pad_B=torch.tensor([0, 4]))
    with torch.no_grad():
        whole_BTD, alone_BTD = model(batch_BT).hidden_BTD, model(batch_BT[1:, 4:]).hidden_BTD
        pieces = torch.cat([model(batch_BT[:, a:b], cache).hidden_BTD for a, b in ((0, 6), (6, 7), (7, 9))], 1)
    torch.testing.assert_close(pieces[0], whole_BTD[0], **EXACT)
    torch.testing.assert_close(pieces[1, 4:], alone_BTD[0], **EXACT)


def test_a_window_forgets_what_is_before_it() -> None:
    model = build(replace(DENSE, window=3, n_layers=1))
    one, other = tokens(), tokens()
    other[:, :5] = (other[:, :5] + 1) % 37
    apart_BT = (model(one).hidden_BTD - model(other).hidden_BTD).abs().amax(-1)
    assert (apart_BT[:, 7:] == 0).all()
    assert (apart_BT[:, :7] > 0).all()
