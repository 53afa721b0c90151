"""Scores of tasks against the plain way: one continuation at a time, whole logits, sums in Python."""

from __future__ import annotations

from math import log, sqrt
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bam_core.evaluate import tasks
from bam_core.evaluate.answers import CODE_STOPS, is_number, is_right, last_number, stops_of, until
from bam_core.evaluate.continuations import Likelihood, Pair, encode_pairs, is_cut, score_pairs
from bam_core.evaluate.task_files import Task, read_task
from bam_core.evaluate.tasks import bits_figure, mean_figure, score_task
from bam_core.nn.lm import LM
from tests.task_kit import CONFIGS, choice, lines, program, question, tiny_model, tokenizer

EXACT = 1e-10
"""Of sums of a few dozen log p in float64: batches change their rounding."""


def task_of(*rows: dict) -> Task:
    return read_task(lines(rows), "t")


@torch.no_grad()
def plain_logprob(model: LM, context: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """Token by token, each after the last tokens that the model can read."""
    text, total = [*context, *ids], 0.0
    for place in range(len(context), len(text)):
        before = text[max(0, place - model.config.max_seq_len) : place]
        output = model(torch.tensor([before]))
        total += model.logits(output.hidden_BTD, output.mix_BTE)[0, -1].double().log_softmax(-1)[text[place]].item()
    return total


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 4096])
def test_likelihoods_are_those_of_one_text_at_a_time(config, tokens_per_batch: int):
    model, chance = tiny_model(config), np.random.default_rng(0)
    sizes = [(1, 1), (1, 5), (9, 1), (9, 1), (30, 12), (63, 1), (60, 4)]
    pairs = [
        Pair(tuple(chance.integers(320, size=a).tolist()), tuple(chance.integers(320, size=b).tolist()))
        for a, b in sizes
    ]
    pairs[3] = Pair(pairs[2].context, pairs[3].continuation)  # the same inputs, another target
    found = score_pairs(model, pairs, tokens_per_batch)
    for pair, likelihood in zip(pairs, found, strict=True):
        assert likelihood.logprob == pytest.approx(plain_logprob(model, pair.context, pair.continuation), abs=EXACT)


def test_a_context_that_is_too_long_is_cut_on_the_left():
    model, ids = tiny_model(), tuple(range(40, 300))
    long, cont = Pair(ids[:100], ids[200:210]), Pair(ids[100 - 55 : 100], ids[200:210])
    assert is_cut(long, 64)
    assert not is_cut(cont, 64)
    assert score_pairs(model, [long]) == score_pairs(model, [cont])  # 55 + 10 = what 64 inputs predict
    assert score_pairs(model, [Pair(ids[:54], ids[200:210])])[0] != score_pairs(model, [cont])[0]


def test_a_continuation_that_is_too_long_is_scored_whole():
    """Pieces of half a context: each token has at least that much before it, and none is left out."""
    model, ids = tiny_model(), tuple(range(40, 240))
    [found] = score_pairs(model, [Pair((0,), ids)])
    expected = 0.0
    for start in range(0, len(ids), 32):
        piece = (0, *ids[: start + 32])[-65:]
        n = len(ids[start : start + 32])
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor([piece[:-1]])).hidden_BTD)[0].log_softmax(-1)
        expected += sum(logprobs[-n + k, piece[-n + k]].item() for k in range(n))
    assert found.logprob == pytest.approx(expected, abs=EXACT)


def test_greedy_is_said_of_the_likeliest_continuation_only():
    model = tiny_model()
    with torch.no_grad():
        context = (0, 50, 60)
        best = int(model.logits(model(torch.tensor([context])).hidden_BTD)[0, -1].argmax())
    pairs = [Pair(context, (best,)), Pair(context, ((best + 1) % 320,))]
    assert [found.is_greedy for found in score_pairs(model, pairs)] == [True, False]


@given(st.text(max_size=12), st.text(st.sampled_from("ab 1\né"), max_size=6), st.text(min_size=1, max_size=12))
def test_both_texts_are_cut_where_lm_eval_cuts_them(start: str, middle: str, continuation: str):
    """Its rule, written out: white space moves to the right, both are encoded together and split by length."""
    cut, context = tokenizer(), start + middle
    n_spaces = len(context) - len(context.rstrip())
    left, right = context[: len(context) - n_spaces], context[len(context) - n_spaces :] + continuation
    encoded, whole = cut.encode_batch([left, left + right])
    [pair] = encode_pairs(cut, [(context, continuation)])
    assert pair.context == (cut.eos_id, *encoded)
    if whole[len(encoded) :]:
        assert list(pair.continuation) == whole[len(encoded) :]
        assert not pair.is_apart
    else:
        assert pair.is_apart
        assert list(pair.continuation) == cut.encode_batch([right])[0]


def test_what_one_token_spans_is_encoded_apart():
    cut = tokenizer()
    [pair] = encode_pairs(cut, [("h", "e")])
    assert len(cut.encode_batch(["he"])[0]) == 1
    assert pair.is_apart
    assert pair.continuation == tuple(cut.encode_batch(["e"])[0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_multiple_choice_is_the_plain_sum(config):
    model, cut, task = tiny_model(config), tokenizer(), task_of(*(choice(number) for number in range(12)))
    score = score_task(model, cut, task)
    for item, found in zip(task.items, score.items, strict=True):
        pairs = encode_pairs(cut, [(item.prompt, text) for text in item.choices])
        logprobs = np.array([plain_logprob(model, pair.context, pair.continuation) for pair in pairs])
        assert found.logprobs == pytest.approx(logprobs, abs=EXACT)
        chars = np.array([len(text) for text in item.choices])
        n_bytes = np.array([len(text.encode()) for text in item.choices])
        assert found.correct == (logprobs.argmax() == item.right)
        assert found.correct_norm == ((logprobs / chars).argmax() == item.right)
        assert found.correct_bytes == ((logprobs / n_bytes).argmax() == item.right)
        others = [place for place in range(4) if place != item.right]
        assert found.margin == pytest.approx(logprobs[item.right] - max(logprobs[others]), abs=EXACT)
        per_byte = logprobs / n_bytes
        assert found.margin_per_byte == pytest.approx(per_byte[item.right] - max(per_byte[others]), abs=EXACT)
        assert found.nll == pytest.approx(-logprobs[item.right], abs=EXACT)
        moved = item.prompt[len(item.prompt.rstrip()) :]
        assert found.n_bytes == len((moved + item.answer).encode())
    report = score.to_json()
    assert (report["kind"], report["domain"], report["items"], report["chance"]) == ("mc", "law", 12, 0.25)
    assert set(report["figures"]) == {"acc", "acc_norm", "acc_bytes", "margin", "margin_per_byte", "bits_per_byte"}
    margins = [item.margin for item in score.items]
    assert report["figures"]["margin"]["value"] == pytest.approx(fmean(margins))
    assert report["figures"]["margin"]["stderr"] == pytest.approx(stdev(margins) / sqrt(12))


def test_of_equal_scores_the_first_choice_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "score_pairs", lambda model, pairs: [Likelihood(-8.0, False)] * len(pairs))
    same = [" ab", " ab", " ab"]
    rows = [choice(number, choices=same, answer=number) for number in range(3)]
    score = score_task(tiny_model(), tokenizer(), task_of(*rows))
    assert [item.correct for item in score.items] == [1, 0, 0]
    assert [item.correct_norm for item in score.items] == [1, 0, 0]
    assert [item.margin for item in score.items] == [0, 0, 0]


def test_lengths_are_characters_in_norm_and_bytes_in_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "score_pairs", lambda model, pairs: [Likelihood(x, False) for x in (-8.0, -9.0, -4.5)])
    row = choice(0, choices=[" aaaa", " éééé", " b"], answer=1)  # 5, 5, 2 characters; 5, 9, 2 bytes
    [found] = score_task(tiny_model(), tokenizer(), task_of(row)).items
    assert (found.correct, found.correct_norm, found.correct_bytes) == (0, 0, 1)
    assert found.margin == -4.5
    assert found.margin_per_byte == pytest.approx(-1 + 8 / 5)


@pytest.mark.parametrize(("make", "name"), [(question, "exact_match"), (program, "pass_at_1")])
def test_the_reference_answer_has_bits_per_byte(make, name: str):
    model, cut, task = tiny_model(), tokenizer(), task_of(*(make(number) for number in range(6)))
    report = score_task(model, cut, task, new_tokens=0).to_json()
    assert name not in report["figures"]
    assert report["chance"] is None
    nats, n_bytes = [], []
    for item in task.items:
        text = item.answer if item.prompt.endswith("\n") else f" {item.answer}"
        [pair] = encode_pairs(cut, [(item.prompt, text)])
        nats.append(-plain_logprob(model, pair.context, pair.continuation))
        n_bytes.append(len((item.prompt[len(item.prompt.rstrip()) :] + text).encode()))
    assert report["figures"]["bits_per_byte"]["value"] == pytest.approx(sum(nats) / log(2) / sum(n_bytes))
    assert ("solution_bits_per_byte" in report["figures"]) == (make is question)


def test_a_generated_answer_is_judged_where_it_ends(monkeypatch: pytest.MonkeyPatch):
    texts = [" 3 + 8 is\n 11. So 1,011\n\nQuestion: 5", " 1 and 2.0", " 2 or so", "  the Court.\nNo"]
    cut = tokenizer()

    def said(model, prompts, new_tokens, eos_id):
        said.asked = [(len(prompt), new_tokens) for prompt in prompts]
        return cut.encode_batch(texts)

    monkeypatch.setattr(tasks, "generate", said)
    answers = ["1011", "$2", "-2", "the court"]
    rows = [question(0, id=str(number), answer=answer) for number, answer in enumerate(answers)]
    score = score_task(tiny_model(), cut, task_of(*rows))
    assert [item.correct for item in score.items] == [1, 1, 0, 1]
    assert said.asked[0][1] == 32  # half of 64, though 128 were asked for
    assert score.to_json()["figures"]["exact_match"] == mean_figure([1, 1, 0, 1])


def test_generation_is_greedy_and_cuts_long_prompts_on_the_left():
    model, cut = tiny_model(), tokenizer()
    long = question(1, prompt="the court held that " * 30)
    score = score_task(model, cut, task_of(question(0), long), new_tokens=10)
    for row, item in zip((question(0), long), score.items, strict=True):
        text = [cut.eos_id, *cut.encode_batch([row["prompt"]])[0]][-54:]
        start = len(text)
        for _ in range(10):
            with torch.no_grad():
                text.append(int(model.logits(model(torch.tensor([text])).hidden_BTD)[0, -1].argmax()))
        new = text[start:]
        new = new[: new.index(cut.eos_id)] if cut.eos_id in new else new
        assert item.text == until(cut.decode(new), stops_of(row["answer"]))
    assert [item.is_cut for item in score.items] == [False, True]
    assert score.to_json()["prompts_cut"] == 1


def test_code_is_run_only_if_asked_for(monkeypatch: pytest.MonkeyPatch):
    ran = []
    monkeypatch.setattr(
        tasks, "run_program", lambda text: ran.append(text) or ("passed" if "+ 1\n" in text else "failed")
    )
    cut = tokenizer()
    body = "    return x + 1\n\ndef g(): pass"
    monkeypatch.setattr(tasks, "generate", lambda model, prompts, n, eos_id: cut.encode_batch([body] * len(prompts)))
    task = task_of(program(1), program(2))
    assert [item.correct for item in score_task(tiny_model(), cut, task).items] == [None, None]
    assert ran == []
    score = score_task(tiny_model(), cut, task, execute=True)
    assert ran == [f"{item.prompt}    return x + 1\n\n{item.test}" for item in task.items]
    assert score.to_json()["figures"]["pass_at_1"]["value"] == 1.0


def test_standard_errors():
    assert mean_figure([1.0]) == {"value": 1.0, "stderr": None, "items": 1}
    figure = mean_figure([0.0, 1.0, 1.0, 0.0, 1.0])
    assert figure["stderr"] == pytest.approx(sqrt(0.6 * 0.4 / 4))  # as lm-eval's: n - 1 twice
    rng = np.random.default_rng(0)
    n_bytes = rng.integers(5, 60, size=(2000, 200))
    nats = n_bytes * 0.9 + rng.normal(0, 3, size=n_bytes.shape)
    figures = [bits_figure(list(zip(x, b, strict=True))) for x, b in zip(nats.tolist(), n_bytes.tolist(), strict=True)]
    spread = np.std([figure["value"] for figure in figures])
    assert np.mean([figure["stderr"] for figure in figures]) == pytest.approx(spread, rel=0.05)
    assert bits_figure([(log(2) * 12, 4)]) == {"value": pytest.approx(3.0), "stderr": None, "items": 1}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("so 5 - 3 = 2", "2", True),
        ("5-3", "3", True),
        ("it is -3", "-3", True),
        ("1,234.50 dollars", "$1,234.5", True),
        ("12%.", "12", True),
        ("#### 1020", "1020", True),
        ("1,23", "23", True),  # no group of three: two numbers
        ("none", "0", False),
        ("", "7", False),
        ("Yes.", "yes", True),
        (" a   B", "A b", True),
        ("yes and no", "yes", False),
    ],
)
def test_what_is_the_right_answer(text: str, answer: str, right: bool):
    assert is_right(text, answer) is right


def test_numbers_and_stops():
    assert [is_number(text) for text in ("5", "-5.5", "$1,000", "12 %", "5 apples", "1,00", "", "x")] == [
        *[True] * 4,
        *[False] * 4,
    ]
    assert last_number("no") is None
    assert until("a\nb\nc", ("\nc", "\nb")) == "a"
    assert until("abc", ()) == "abc"
    assert until("    return 1\n# next", CODE_STOPS) == "    return 1"
