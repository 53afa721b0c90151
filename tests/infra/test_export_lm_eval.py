"""lm-eval's stock model on an exported folder gives, item by item, what our adapter gives on the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bam_core.checkpoint import load_model
from bam_core.data.tokenize import Tokenizer
from bam_core.hf.export import export_model
from tests.export_kit import BAM, BTX, code_cache, write_random
from tests.task_kit import choice, lines, question

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from infra.lm_eval_adapter import evaluate_tasks

__all__ = ["code_cache"]

IN_FLOAT32 = 5e-4
"""Of log-likelihoods, some -100: a millionth of them, and what several layers of rounding add."""
CHOOSE = """
task: cases
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
"""
ANSWER = r"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: ["\n\n"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - metric: exact_match
"""
LIKELIHOOD = """
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: prompt
metric_list:
  - metric: bits_per_byte
"""
TASKS = ("cases", "sums", "texts")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three tasks: choices, generated answers and likelihood of texts."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = {
        "cases": [choice(number) for number in range(12)] + [choice(12, prompt="the court held " * 20)],
        "sums": [question(number, prompt=f"a sum of {number} and 7 is") for number in range(5)],
        "texts": [question(0, prompt="the court held that"), question(1, prompt="a sum of 12 and 7 " * 20)],
    }
    for name, form in zip(TASKS, (CHOOSE, ANSWER, LIKELIHOOD), strict=True):
        file = folder / f"{name}.jsonl"
        file.write_bytes(lines(rows[name]))
        (folder / f"{name}.yaml").write_text(form.format(file=file))
    return folder


@pytest.fixture(params=["bam", pytest.param("btx", marks=pytest.mark.long)])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(our folder, its export), with code of its own and of a class of transformers."""
    config = replace({"bam": BAM, "btx": BTX}[request.param], vocab_size=320)
    source = write_random(tmp_path / "source", config, dtype=torch.float32)
    export_model(source, tmp_path / "export", to="auto")
    return source, tmp_path / "export"


def test_scores_are_ours(models: tuple[Path, Path], tasks: Path):
    """Of a text's likelihood: lm-eval's model puts a token in front by itself, so the tokenizer must not do it too."""
    source, export = models
    ours = evaluate_tasks(load_model(source), Tokenizer.load(source / "tokenizer.json"), TASKS, folder=tasks)
    theirs = by_stock_model(export, tasks, TASKS[:2])
    rolling = by_stock_model(export, tasks, TASKS[2:], add_bos_token=False)
    for task, found in ((TASKS[0], theirs), (TASKS[1], theirs), (TASKS[2], rolling)):
        figures = {name: value for name, value in ours["results"][task].items() if _is_figure(name, value)}
        assert {name: found["results"][task][name] for name in figures} == pytest.approx(figures, rel=IN_FLOAT32)
        for expected, answer in zip(_answers(ours, task), _answers(found, task), strict=True):
            assert answer == (expected if isinstance(expected, str) else pytest.approx(expected, abs=IN_FLOAT32))
    assert 0 < ours["results"]["cases"]["acc,none"] < 1


def by_stock_model(export: Path, folder: Path, names: Sequence[str], **arguments: Any) -> dict[str, Any]:
    """As `lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True` does it."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(export), "trust_remote_code": True, "device": "cpu", **arguments},
        tasks=list(names),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=4,
        bootstrap_iters=0,
    )
    return found


def _is_figure(name: str, value: Any) -> bool:
    return "," in name and "stderr" not in name and isinstance(value, float)


def _answers(found: dict[str, Any], task: str) -> list[Any]:
    """Texts as they were generated, likelihoods as numbers; in the order of the task."""
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    answers = [answer[0] for sample in samples for answer in sample["resps"]]
    return [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]


@pytest.mark.long
def test_the_stock_command(tasks: Path, tmp_path: Path):
    """As its own documentation has it, in a process of its own."""
    source = write_random(tmp_path / "source", replace(BAM, vocab_size=320))
    export_model(source, tmp_path / "export")
    ours = evaluate_tasks(load_model(source), Tokenizer.load(source / "tokenizer.json"), ["cases"], folder=tasks)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "cases", "--include_path", str(tasks)]
    command += ["--model_args", f"pretrained={tmp_path / 'export'},trust_remote_code=True", "--device", "cpu"]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "scores")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    [file] = (tmp_path / "scores").rglob("results*.json")
    found = json.loads(file.read_text())["results"]["cases"]
    for name in ("acc,none", "acc_norm,none"):
        assert found[name] == pytest.approx(ours["results"]["cases"][name], abs=1e-9)
