"""Tokens one by one are those that come all at once."""

from __future__ import annotations

import pytest
import torch

from bam_core.errors import UsageError
from bam_core.nn.generate import generate
from bam_core.nn.stream import Stream
from tests.task_kit import CONFIGS, tiny_model

PROMPT = torch.tensor([5, 40, 7])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "top_p": 0.8}])
def test_streamed_tokens_are_those_of_generate(name: str, settings: dict[str, float]) -> None:
    model = tiny_model(CONFIGS[name])
    stream = Stream(model)
    wanted = generate(model, PROMPT, 12, seed=3, **settings)
    assert list(stream(PROMPT, 12, seed=3, **settings)) == wanted
    assert list(stream(PROMPT, 12, seed=3, **settings)) == wanted  # nothing is left of the first time
    assert list(stream(PROMPT, 12, seed=3, stop_ids={wanted[4]}, **settings)) == wanted[: wanted.index(wanted[4])]
    assert list(stream(PROMPT, 12, seed=4, temperature=2.0)) != list(stream(PROMPT, 12, seed=5, temperature=2.0))


def test_a_token_is_there_before_the_next_is_made() -> None:
    made = []
    stream = Stream(tiny_model())
    decoder = stream._decoder
    stream._decoder = lambda *of: made.append(1) or decoder(*of)  # type: ignore[assignment]
    tokens = stream(PROMPT, 5)
    assert made == []
    next(tokens)
    assert made == [1]


@pytest.mark.parametrize(
    ("prompt", "n", "settings", "words"),
    [
        ([], 1, {}, "empty"),
        ([1] * 60, 5, {}, "reads 64"),
        ([1], 1, {"temperature": -1}, "temperature"),
        ([1], 1, {"top_p": 0}, "top_p"),
    ],
)
def test_it_refuses_at_once_what_generate_refuses(prompt: list[int], n: int, settings: dict, words: str) -> None:
    model = tiny_model()
    for refuses in (Stream(model), lambda *args, **more: generate(model, *args, **more)):
        with pytest.raises(UsageError, match=words):
            refuses(torch.tensor(prompt, dtype=torch.long), n, **settings)
