"""The whole model: its tensors, initialisation, dtypes, cache, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, KeysValues, ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.attention import Cache
from bam_core.nn.costs import cache_bytes_per_token
from bam_core.nn.layers import rotary_tables
from bam_core.nn.lm import LM, init_tensor, init_weights
from bam_core.nn.losses import next_token_loss
from bam_core.nn.routing import Noise
from bam_core.nn.shapes import tensor_shapes

DENSE = ModelConfig(vocab_size=37, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=40, max_seq_len=24)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
EXPERTS = ("general", "code", "law")
CONFIGS = {
    "dense": DENSE,
    "dense-sequential-untied": replace(DENSE, residual="sequential", tie_embeddings=False, norm="layer"),
    "btx": replace(DENSE, ffn=FFNExperts(3), experts=EXPERTS),
    "bam": replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3), experts=EXPERTS),
    "bam-shared": replace(DENSE, attention=AttentionExperts(3, 3, kv="shared"), ffn=FFNExperts(3, 2), experts=EXPERTS),
    "attention-top-1": replace(DENSE, attention=AttentionExperts(3, 1), experts=EXPERTS),
    "dense-qk-norm": replace(DENSE, qk_norm=True, rotary_frac=0.5, rotary_pairs="interleaved"),
    "bam-qk-norm": replace(
        DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3), experts=EXPERTS, qk_norm=True, rotary_frac=0.5
    ),
    "bam-shared-qk-norm": replace(
        DENSE, attention=AttentionExperts(3, 2, kv="shared"), experts=EXPERTS, qk_norm=True, norm="layer"
    ),
    "value-only": replace(
        DENSE, attention=AttentionExperts(3, 3, kv="value_only"), experts=EXPERTS, rotary_pairs="interleaved"
    ),
    "value-only-qk-norm": replace(
        DENSE,
        attention=AttentionExperts(3, 1, kv="value_only", dense_router_gradient=True),
        ffn=FFNExperts(3, layers=(1, 2)),
        experts=EXPERTS,
        qk_norm=True,
    ),
    "some-layers": replace(
        DENSE,
        attention=AttentionExperts(3, 3, layers=(1,), router_bias=True),
        ffn=FFNExperts(3, layers=(0, 2)),
        experts=EXPERTS,
    ),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, seed: int = 0) -> LM:
    model = LM(CONFIGS[name])
    init_weights(model, seed)
    return model


def tokens(batch: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(37, (batch, time), generator=torch.Generator().manual_seed(seed))


@every_config
def test_tensors_have_the_names_and_shapes_of_the_layout(name: str) -> None:
    state = {tensor: tuple(value.shape) for tensor, value in LM(CONFIGS[name]).state_dict().items()}
    assert state == tensor_shapes(CONFIGS[name])


def test_initial_weights_depend_on_seed_and_name_only() -> None:
    torch.manual_seed(1)
    first = build("bam", seed=5).state_dict()
    torch.manual_seed(2)
    again = LM(CONFIGS["bam"]).double()
    before = torch.random.get_rng_state()
    init_weights(again, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name].double(), value) for name, value in again.state_dict().items())
    other = build("bam", seed=6).state_dict()
    drawn = [name for name in first if not name.endswith("norm.weight")]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    first_draws = {round(first[name].flatten()[0].item() / first[name].std().item(), 2) for name in drawn}
    assert len(first_draws) > len(drawn) / 2  # each tensor from a stream of its own
    shared = build("dense", seed=5).state_dict()  # adding experts leaves the other tensors as they were
    assert all(torch.equal(first[n], shared[n]) for n in ("embed.weight", "norm.weight", "blocks.1.norm.weight"))


def test_initial_scales() -> None:
    config = replace(CONFIGS["bam"], d_model=128, d_ff=256, n_layers=2)
    model = LM(config)
    init_weights(model, seed=0)
    block = model.blocks[1]
    expected = {
        block.attn.w_q: 128**-0.5,
        block.attn.w_k: 128**-0.5,
        block.ffn.w_up: 128**-0.5,
        block.attn.w_o: (4 * 128) ** -0.5,
        block.ffn.w_down: (4 * 256) ** -0.5,
        model.embed.weight: 0.02,
        block.ffn.router: 0.02,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=4 / parameter.numel() ** 0.5)
    assert torch.equal(block.norm.weight, torch.ones(128))
    hidden_BTD = model(tokens(4, 24)).hidden_BTD
    assert model.logits(hidden_BTD).std() < 1  # a fresh model is nearly uniform over the vocabulary


@every_config
def test_init_tensor_is_what_init_weights_fills_in(name: str) -> None:
    state = build(name, seed=5).state_dict()
    for tensor, value in state.items():
        assert torch.equal(init_tensor(tensor, value.shape, 3, seed=5), value)
        if tensor.endswith(("norm", "norm.weight")):
            assert (value == 1).all()
        if tensor.endswith("_bias"):
            assert (value == 0).all()


def test_cast_keeps_routers_in_float32() -> None:
    model = build("bam").cast(torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    routers = {name for name in dtypes if name.endswith("router")}
    assert len(routers) == 2 * 3
    assert {dtypes.pop(name) for name in routers} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}
    assert {p.dtype for p in model.cast(torch.float64).parameters()} == {torch.float64}
    biased = replace(CONFIGS["btx"], ffn=FFNExperts(3, balance="bias", router_bias=True), qk_norm=True)
    named = dict(LM(biased).cast(torch.bfloat16).named_parameters())
    assert {named[f"blocks.0.ffn.{name}"].dtype for name in ("balance_bias", "router_bias")} == {torch.float32}
    assert named["blocks.0.attn.q_norm"].dtype == torch.bfloat16


@every_config
def test_bf16_is_float32_but_for_rounding(name: str) -> None:
    model, batch = build(name), tokens(2, 24)
    wide = next_token_loss(model.logits(model(batch).hidden_BTD), batch) / batch.numel()
    output = model.cast(torch.bfloat16)(batch)
    assert output.hidden_BTD.dtype == torch.bfloat16
    for layer in output.routing:
        for routing in filter(None, (layer.attention, layer.ffn)):
            assert routing.probs_NE.dtype == routing.logits_NE.dtype == torch.float32
    narrow = next_token_loss(model.logits(output.hidden_BTD), batch) / batch.numel()
    assert narrow.item() == pytest.approx(wide.item(), abs=0.02)
    narrow.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@every_config
def test_routing_is_reported_for_the_branches_that_have_experts(name: str) -> None:
    config, output = CONFIGS[name], build(name)(tokens(2, 5))
    assert len(output.routing) == (config.n_layers if config.is_mixture else 0)
    for i, layer in enumerate(output.routing):
        for routing, experts in ((layer.attention, config.attention_at(i)), (layer.ffn, config.ffn_at(i))):
            assert (routing is None) == (experts is None)
            if routing is not None:
                assert routing.weights_NK.shape == (2, 5, experts.top_k)
                assert routing.probs_NE.shape == (2, 5, 3)


@every_config
def test_the_future_does_not_reach_the_past(name: str) -> None:
    model, batch = build(name).double(), tokens(2, 12)
    changed = batch.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 37
    before, after = model(batch).hidden_BTD, model(changed).hidden_BTD
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-12, atol=1e-12)
    assert (before[:, 7:] - after[:, 7:]).abs().min(-1).values.max() > 1e-6


@every_config
@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 4, 2)])
def test_decoding_with_a_cache_is_the_whole_forward_pass(name: str, pieces: tuple[int, ...]) -> None:
    model, batch = build(name).double(), tokens(3, 12)
    cache = Cache(model.config, batch=3, capacity=12, dtype=torch.float64)
    parts = [model(part, cache).hidden_BTD for part in batch.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(batch).hidden_BTD, **EXACT)
    assert cache.length == 12


@every_config
@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (8, 1, 1, 2)])
def test_each_row_of_a_padded_batch_is_what_it_is_alone(name: str, pieces: tuple[int, ...]) -> None:
    """Whatever stands in the place of pads, and whether or not the first piece ends among them."""
    model, batch, pads = build(name).double(), tokens(3, 12), (0, 5, 11)
    cache = Cache(model.config, 3, 12, torch.float64, pad_B=torch.tensor(pads))
    together = torch.cat([model(part, cache).hidden_BTD for part in batch.split(pieces, dim=1)], 1)
    assert together.isfinite().all()
    for row, pad in enumerate(pads):
        alone = model(batch[row : row + 1, pad:]).hidden_BTD[0]
        torch.testing.assert_close(together[row, pad:], alone, **EXACT)


@pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rotary_frac", [0.5, 1.0])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_a_cache_is_exact_for_every_kind_of_attention(
    kv: KeysValues, qk_norm: bool, rotary_frac: float, n_kv_heads: int
) -> None:
    config = replace(
        CONFIGS["bam"],
        attention=AttentionExperts(3, 3, kv),
        n_kv_heads=n_kv_heads,
        qk_norm=qk_norm,
        rotary_frac=rotary_frac,
    )
    model, batch, pads = LM(config), tokens(2, 9), (0, 4)
    init_weights(model, seed=1)
    model.double()
    cache = Cache(config, 2, 9, torch.float64, pad_B=torch.tensor(pads))
    together = torch.cat([model(part, cache).hidden_BTD for part in batch.split([6, 1, 1, 1], dim=1)], 1)
    for row, pad in enumerate(pads):
        alone = model(batch[row : row + 1, pad:]).hidden_BTD[0]
        torch.testing.assert_close(together[row, pad:], alone, **EXACT)


@every_config
def test_the_model_is_its_blocks_in_turn_under_the_tables_of_its_config(name: str) -> None:
    config, model, batch = CONFIGS[name], build(name).double(), tokens(2, 12)
    channels = int(config.rotary_frac * config.d_model / config.n_heads)
    cos, sin = rotary_tables(12, channels, config.rope_theta, torch.float64, torch.device("cpu"))
    x_BTD = model.embed.weight[batch]
    for block in model.blocks:
        x_BTD, _ = block(x_BTD, (cos, sin), None)
    assert torch.equal(model(batch).hidden_BTD, model.norm(x_BTD))


def test_noise_reaches_the_experts_that_sample() -> None:
    config = replace(DENSE, ffn=FFNExperts(3, gate="sample_top1", layers=(1, 2)), experts=EXPERTS)
    model, batch = LM(config), tokens(2, 24)
    init_weights(model, seed=0)
    calm = model(batch).routing
    first, again, other = (model(batch, noise=Noise(seeds, 1.0)).routing for seeds in ((1, 2), (1, 2), (3, 4)))
    for layer in (1, 2):
        picks = [routing[layer].ffn.experts_NK for routing in (calm, first, again, other)]
        assert torch.equal(picks[1], picks[2])
        assert not torch.equal(picks[0], picks[1])
        assert not torch.equal(picks[1], picks[3])


@every_config
def test_a_cache_holds_the_bytes_that_costs_say(name: str) -> None:
    cache = Cache(CONFIGS[name], batch=1, capacity=10, dtype=torch.bfloat16)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys_BGSC, layer.values_BGSX)]
    assert sum(tensor.nbytes for tensor in tensors) == 10 * cache_bytes_per_token(CONFIGS[name])


def test_a_model_is_not_built_from_an_impossible_config() -> None:
    with pytest.raises(InvalidInput, match="n_heads"):
        LM(replace(DENSE, n_heads=5))


def test_rows_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(AssertionError, match="25 positions; max_seq_len is 24"):
        build("dense")(tokens(1, 25))
