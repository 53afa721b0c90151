"""lm-eval's own library on our live model and local tasks gives, item by item, what the native runner gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bam_core.errors import UsageError
from bam_core.evaluate.task_files import Task, read_task
from bam_core.evaluate.tasks import score_task
from tests.task_kit import DENSE, MIXTURE, choice, lines, question, tiny_model, tokenizer

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from infra.lm_eval_adapter import LiveModel, evaluate_tasks

EXACT = 1e-9
"""Of log-likelihoods in float64."""
CHOOSE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""
ANSWER = r"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: ["\n\n", "\nQuestion:"], max_gen_toks: 24, do_sample: false}}
filter_list:
  - name: last-number
    filter:
      - function: regex
        regex_pattern: '(?<![\d.])(-?\d+)'
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
"""
LIKELIHOOD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: prompt
metric_list:
  - metric: bits_per_byte
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path


def written(folder: Path, name: str, form: str, rows: list[dict[str, Any]]) -> Task:
    file = folder / f"{name}.jsonl"
    file.write_bytes(lines(rows))
    (folder / f"{name}.yaml").write_text(form.format(name=name, file=file))
    return read_task(file.read_bytes(), file.name)


def by_lm_eval(model, folder: Path, name: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(results, samples in the file's order)."""
    found = evaluate_tasks(model, tokenizer(), [name], folder=folder, shipped=False, **options)
    return found["results"][name], sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def logprobs_of(sample: dict[str, Any]) -> list[float]:
    return [answer[0][0] for answer in sample["resps"]]


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_multiple_choice_item_by_item(config, folder: Path):
    """White space before choices, prompts that are cut, text beyond ASCII, choices of one token, a tie."""
    rows = [choice(number) for number in range(30)]
    rows += [choice(number, prompt="the court held " * 20 + str(number)) for number in range(30, 36)]
    rows += [choice(36, choices=[" 12", " 12", " 19"], answer=1), choice(37, prompt="", choices=["the", "a"], answer=0)]
    task, model = written(folder, "cases", CHOOSE, rows), tiny_model(config)
    score = score_task(model, tokenizer(), task)
    results, samples = by_lm_eval(model, folder, "cases")
    assert len(samples) == len(rows)
    assert sum(item.is_cut for item in score.items) == 6
    for item, sample in zip(score.items, samples, strict=True):
        assert item.id == sample["doc"]["id"]
        assert logprobs_of(sample) == pytest.approx(item.logprobs, abs=EXACT)
        assert sample["acc"] == item.correct
        assert sample["acc_norm"] == item.correct_norm
        assert sample["acc_bytes"] == item.correct_bytes
    figures = score.to_json()["figures"]
    assert 0 < figures["acc"]["value"] < 1
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert results[f"{name},none"] == pytest.approx(figures[name]["value"], abs=EXACT)
        assert results[f"{name}_stderr,none"] == pytest.approx(figures[name]["stderr"], abs=EXACT)


def test_generated_answers_item_by_item(folder: Path):
    """Half of the answers are what the model says, so that both have right ones and wrong ones to tell apart."""
    model, cut = tiny_model(seed=8), tokenizer()
    digits = {token for digit in range(10) for token in cut.encode_batch([f"{digit}"])[0]}
    model.embed.weight.data[sorted(digits)] *= 2  # so that it writes some
    rows = [question(n, prompt=f"a sum of {n} and {n + 7} is" + " 1 and" * (n % 3)) for n in range(16)]
    rows += [question(16, prompt="Question: how many are 5 and 8? " * 9)]
    texts = [item.text or "" for item in score_task(model, cut, read_task(lines(rows), "t"), new_tokens=24).items]
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if number % 2 and (found := re.findall(r"\d+", text)):
            row["answer"] = found[-1]
    native = score_task(model, cut, written(folder, "sums", ANSWER, rows), new_tokens=24).items
    results, samples = by_lm_eval(model, folder, "sums")
    assert [sample["resps"][0][0] for sample in samples] == [item.text for item in native]
    assert [sample["exact_match"] for sample in samples] == [item.correct for item in native]
    assert 0 < results["exact_match,last-number"] < 1


def test_rolling_likelihood_counts_every_token_once(folder: Path):
    model, cut = tiny_model(), tokenizer()
    rows = [question(0), question(1, prompt="the court held that " * 40)]
    written(folder, "texts", LIKELIHOOD, rows)
    results, samples = by_lm_eval(model, folder, "texts")
    for row, sample in zip(rows, samples, strict=True):
        ids = cut.encode_batch([row["prompt"]])[0]
        expected, done = 0.0, 0
        while done < len(ids):  # the first window predicts 64 tokens, the others so many after all that fits
            new = ids[done : done + 64]
            pair = ([cut.eos_id, *ids][: done + 1], new)
            text = (pair[0] + new)[-65:]
            expected += _logprobs(model, text)[-len(new) :].sum()
            done += 64
        assert sample["resps"][0][0] == pytest.approx(expected, abs=EXACT)
    assert results["bits_per_byte,none"] > 0


def _logprobs(model, text: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = model.logits(model(torch.tensor([text[:-1]])).hidden_BTD)[0].log_softmax(-1)
    return logits[torch.arange(len(text) - 1), torch.tensor(text[1:])].numpy()


def test_what_one_token_spans_does_not_stop_it():
    """lm-eval's own models stop here: nothing is left of the continuation."""
    live, request = LiveModel(tiny_model(), tokenizer()), type("Request", (), {"args": ("h", "e")})
    [(logprob, _)] = live.loglikelihood([request], disable_tqdm=True)  # type: ignore[list-item]
    row = choice(0, prompt="h", choices=["e", " a"], answer=0)
    [item] = score_task(tiny_model(), tokenizer(), read_task(lines([row]), "t")).items
    assert item.is_apart
    assert logprob == pytest.approx(item.logprobs[0], abs=EXACT)


def test_limit_takes_the_first(folder: Path):
    written(folder, "cases", CHOOSE, [choice(number) for number in range(8)])
    _, samples = by_lm_eval(tiny_model(), folder, "cases", limit=3)
    assert [sample["doc"]["id"] for sample in samples] == ["c0", "c1", "c2"]


def test_wrong_requests_in_words(folder: Path):
    written(folder, "cases", CHOOSE, [choice(0)])
    with pytest.raises(UsageError, match="did you mean 'cases'"):
        by_lm_eval(tiny_model(), folder, "casse")
    with pytest.raises(UsageError, match="is no folder"):
        evaluate_tasks(tiny_model(), tokenizer(), ["cases"], folder=folder / "nowhere", shipped=False)
    live = LiveModel(tiny_model(), tokenizer())
    with pytest.raises(UsageError, match="num_beams"):
        live._generated("the court", {"num_beams": 4})
