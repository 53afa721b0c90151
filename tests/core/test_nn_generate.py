"""Generation: greedy and sampled, alone and in padded batches, and what it refuses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import UsageError
from bam_core.nn.decode import Decoder
from bam_core.nn.generate import generate, pick_token
from bam_core.nn.lm import LM, init_weights
from bam_core.seeds import child_seed

DENSE = ModelConfig(vocab_size=37, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=40, max_seq_len=24)
BAM = replace(DENSE, attention=AttentionExperts(3, 3), ffn=FFNExperts(3), experts=("general", "code", "law"))
CONFIGS = {
    "dense": replace(DENSE, residual="sequential", qk_norm=True),
    "bam": BAM,
    "bam-shared": replace(BAM, attention=AttentionExperts(3, 2, kv="shared"), rotary_pairs="interleaved"),
    "value-only": replace(BAM, attention=AttentionExperts(3, 3, kv="value_only"), rotary_frac=0.5),
    "capacity": replace(BAM, ffn=FFNExperts(3, capacity_factor=0.5)),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def build(name: str = "bam", seed: int = 3) -> LM:
    """In float64, so that a batch and its rows alone round alike; with logits that differ enough to sample."""
    model = LM(CONFIGS[name])
    init_weights(model, seed)
    return model.double().eval()


def tokens(n_time: int, seed: int = 1) -> Tensor:
    return torch.randint(37, (n_time,), generator=torch.Generator().manual_seed(seed))


@every_config
def test_greedy_generation_is_the_argmax_of_full_forward_passes(name: str) -> None:
    model, prompt = build(name), tokens(5)
    expected = prompt.tolist()
    for _ in range(8):
        expected.append(int(model.logits(model(torch.tensor([expected])).hidden_BTD)[0, -1].argmax()))
    assert generate(model, prompt, 8) == expected[5:]


@every_config
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.5, "top_p": 0.6}])
def test_a_row_does_not_depend_on_its_neighbours(name: str, settings: dict[str, float]) -> None:
    model, prompts = build(name), [tokens(n, seed=n) for n in (5, 1, 12, 5)]
    together = generate(model, prompts, 10, seed=9, **settings)
    alone = [generate(model, p, 10, seed=child_seed(9, str(i)), **settings) for i, p in enumerate(prompts)]
    assert together == alone
    assert generate(model, prompts[:2], 10, seed=9, **settings) == alone[:2]
    assert all(len(text) == 10 for text in together)


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_that_is_kept_goes_on_where_a_new_one_would(training: bool) -> None:
    model = build().train(training)
    kept = Decoder(model, rows=3, steps=1000)
    for prompts in ([tokens(5)], [tokens(n, seed=n) for n in (5, 1, 12)], [tokens(3), tokens(7)]):
        assert generate(kept, prompts, 10, temperature=1.0) == generate(model, prompts, 10, temperature=1.0)
        assert model.training == training
    with pytest.raises(UsageError, match="this model reads"):
        generate(kept, tokens(5), 10_000)


def test_equal_prompts_of_a_batch_are_drawn_apart() -> None:
    first, second = generate(build(), [tokens(5)] * 2, 12, temperature=1.0)
    assert first != second


def test_a_row_stops_before_its_end_of_text_and_the_others_go_on() -> None:
    model, prompts = build(), [tokens(n, seed=n) for n in (5, 1, 12)]
    whole = generate(model, prompts, 10, temperature=1.0)
    lengths = set()
    for eos_id in (text[3] for text in whole):
        expected = [text[: text.index(eos_id)] if eos_id in text else text for text in whole]
        assert generate(model, prompts, 10, temperature=1.0, eos_id=eos_id) == expected
        lengths.add(tuple(map(len, expected)))
    assert len(lengths) == 3  # else the rows end together, and this says little


def test_a_prompt_alone_stops_before_the_end_of_text() -> None:
    model, prompt = build(), tokens(5)
    whole = generate(model, prompt, 8, temperature=1.0)
    eos_id = whole[4]
    assert generate(model, prompt, 8, temperature=1.0, eos_id=eos_id) == whole[: whole.index(eos_id)]


def test_sampling_repeats_under_its_seed_and_differs_under_another() -> None:
    model, prompt = build(), tokens(5)
    torch.manual_seed(1)
    first = generate(model, prompt, 12, temperature=1.0, seed=4)
    torch.manual_seed(2)
    assert generate(model, prompt, 12, temperature=1.0, seed=4) == first
    assert generate(model, prompt, 12, temperature=1.0, seed=5) != first


def test_rules_of_training_are_off_and_the_mode_is_left_as_it_was() -> None:
    model, prompt = build("capacity"), tokens(12)
    expected = generate(model, prompt, 8)
    model.train()
    assert generate(model, prompt, 8) == expected
    assert model.training


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.1, {2}),
        (0.5, {2}),
        (0.51, {2, 0}),
        (0.75, {2, 0}),
        (0.8, {2, 0, 3}),
        (0.9, {2, 0, 3, 1}),
        (1.0, {2, 0, 3, 1, 4}),
    ],
)
def test_top_p_draws_from_the_fewest_tokens_whose_probability_reaches_it(top_p: float, kept: set[int]) -> None:
    probs = torch.tensor([0.25, 0.0625, 0.5, 0.125, 0.0625], dtype=torch.float64)  # sums are exact
    generator = torch.Generator().manual_seed(0)
    counts = Counter(pick_token(probs.log(), 1.0, top_p, generator) for _ in range(4000))
    assert counts.keys() == kept
    total = sum(probs[token].item() for token in kept)
    for token in kept:  # in proportion: within 5 standard deviations
        share = probs[token].item() / total
        assert abs(counts[token] / 4000 - share) <= 5 * (share * (1 - share) / 4000) ** 0.5


def test_temperature_comes_before_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    generator = torch.Generator().manual_seed(0)
    assert {pick_token(logits, 0.1, 0.9, generator) for _ in range(200)} == {0}  # 0.5^10 is 0.99 of the whole
    assert {pick_token(logits, 1.0, 0.9, generator) for _ in range(200)} == {0, 1, 2}


def test_nothing_to_do_is_no_error() -> None:
    assert generate(build(), tokens(5), 0) == []
    assert generate(build(), [], 5) == []


def test_generation_refuses_what_does_not_fit() -> None:
    model = build()
    with pytest.raises(UsageError, match=r"20 prompt tokens and 5 new ones are 25; this model reads 24"):
        generate(model, [tokens(3), tokens(20)], 5)
    for empty in (tokens(0), [tokens(3), tokens(0)]):
        with pytest.raises(UsageError, match="empty"):
            generate(model, empty, 5)


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"temperature": -1.0}, {"temperature": float("inf")}],
)
def test_generation_refuses_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))} .* must be"):
        generate(build(), tokens(3), 5, **settings)
