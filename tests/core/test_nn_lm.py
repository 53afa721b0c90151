"""The whole model: its tensors, initialisation, dtypes, cache, generation, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import InvalidInput, UsageError
from bam_core.nn.attention import Cache
from bam_core.nn.costs import cache_bytes_per_token
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import next_token_loss
from bam_core.nn.shapes import tensor_shapes

DENSE = ModelConfig(vocab_size=37, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=40, max_seq_len=24)
EXPERTS = ("general", "code", "law")
CONFIGS = {
    "dense": DENSE,
    "dense-sequential-untied": replace(DENSE, residual="sequential", tie_embeddings=False, norm="layer"),
    "btx": replace(DENSE, ffn=FFNExperts(3), experts=EXPERTS),
    "bam": replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3), experts=EXPERTS),
    "bam-shared": replace(DENSE, attention=AttentionExperts(3, 3, kv="shared"), ffn=FFNExperts(3, 2), experts=EXPERTS),
    "attention-top-1": replace(DENSE, attention=AttentionExperts(3, 1), experts=EXPERTS),
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


def test_cast_keeps_routers_in_float32() -> None:
    model = build("bam").cast(torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    routers = {name for name in dtypes if name.endswith("router")}
    assert len(routers) == 2 * 3
    assert {dtypes.pop(name) for name in routers} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}
    assert {p.dtype for p in model.cast(torch.float64).parameters()} == {torch.float64}


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
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_config
def test_routing_is_reported_for_the_branches_that_have_experts(name: str) -> None:
    config, output = CONFIGS[name], build(name)(tokens(2, 5))
    assert len(output.routing) == (config.n_layers if config.is_mixture else 0)
    for layer in output.routing:
        for routing, experts in ((layer.attention, config.attention), (layer.ffn, config.ffn)):
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
    torch.testing.assert_close(torch.cat(parts, 1), model(batch).hidden_BTD, rtol=1e-11, atol=1e-11)
    assert cache.length == 12


@every_config
def test_a_cache_holds_the_bytes_that_costs_say(name: str) -> None:
    cache = Cache(CONFIGS[name], batch=1, capacity=10, dtype=torch.bfloat16)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys_BSGC, layer.values_BSGC)]
    assert sum(tensor.nbytes for tensor in tensors) == 10 * cache_bytes_per_token(CONFIGS[name])


@every_config
def test_greedy_generation_is_the_argmax_of_full_forward_passes(name: str) -> None:
    model = build(name, seed=3)
    prompt = tokens(1, 5, seed=1)[0]
    expected = prompt.tolist()
    for _ in range(8):
        expected.append(int(model.logits(model(torch.tensor([expected])).hidden_BTD)[0, -1].argmax()))
    assert generate(model, prompt, 8) == expected[5:]


def test_generation_stops_before_the_end_of_text() -> None:
    model, prompt = build("bam", seed=3), tokens(1, 5, seed=1)[0]
    whole = generate(model, prompt, 8, temperature=1.0)
    eos_id = whole[4]
    assert generate(model, prompt, 8, temperature=1.0, eos_id=eos_id) == whole[: whole.index(eos_id)]


def test_sampling_repeats_under_its_seed_and_differs_under_another() -> None:
    model, prompt = build("bam"), tokens(1, 5)[0]
    torch.manual_seed(1)
    first = generate(model, prompt, 12, temperature=1.0, seed=4)
    torch.manual_seed(2)
    assert generate(model, prompt, 12, temperature=1.0, seed=4) == first
    assert generate(model, prompt, 12, temperature=1.0, seed=5) != first


def test_generation_refuses_what_does_not_fit() -> None:
    model = build("dense")
    with pytest.raises(UsageError, match=r"20 prompt tokens and 5 new ones are 25; this model reads 24"):
        generate(model, tokens(1, 20)[0], 5)
    with pytest.raises(UsageError, match="empty"):
        generate(model, torch.tensor([], dtype=torch.long), 5)


def test_a_model_is_not_built_from_an_impossible_config() -> None:
    with pytest.raises(InvalidInput, match="n_heads"):
        LM(replace(DENSE, n_heads=5))


def test_rows_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(AssertionError, match="25 positions; max_seq_len is 24"):
        build("dense")(tokens(1, 25))
