"""A model of the store on tasks: task files by our own runner, lm-eval's tasks by its library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import UsageError, install_extra
from pipelines.wiring.looking import reading_folder
from pipelines.wiring.settings import Settings
from pipelines.wiring.task_texts import read_tasks

if TYPE_CHECKING:
    from bam_core.data.tokenize import Tokenizer
    from bam_core.nn.lm import LM


@dataclass(frozen=True)
class TaskResults:
    """model: the artifact, `stage@key12`. tasks: name -> what `TaskScore.to_json` says, or lm-eval's results."""

    model: str
    tasks: dict[str, dict[str, Any]]


def score_files(
    ref: str,
    files: Sequence[str],
    settings: Settings,
    *,
    limit: int | None = None,
    execute: bool = False,
    new_tokens: int | None = None,
    dtype: str | None = None,
) -> TaskResults:
    """Score a model on task files. dtype: fp32, bf16 or fp64; by default as stored, and fp32 at least.

    Raises UsageError if `ref` is no model, InvalidInput with every fault of the files.
    """
    name, folder = reading_folder(ref, settings)
    tasks = read_tasks(files)
    from bam_core.evaluate.tasks import NEW_TOKENS, score_task

    model, tokenizer = _opened(folder, dtype)
    n_new = NEW_TOKENS if new_tokens is None else new_tokens
    scores = [score_task(model, tokenizer, t.first(limit), execute=execute, new_tokens=n_new) for t in tasks]
    return TaskResults(name, {score.task.name: score.to_json() for score in scores})


def lm_eval(
    ref: str,
    tasks: Sequence[str],
    settings: Settings,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    dtype: str | None = None,
) -> TaskResults:
    """The same by lm-eval's own library. folder: of tasks beside its own. Raises UsageError if it is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError(f"lm-eval is not installed; it is an extra: {install_extra('lm-eval')}")
    name, model_files = reading_folder(ref, settings)
    from infra.lm_eval_adapter import evaluate_tasks

    found = evaluate_tasks(*_opened(model_files, dtype), tasks, folder=folder, limit=limit)
    return TaskResults(name, {task: dict(result) for task, result in found["results"].items()})


def _opened(folder: Path, dtype: str | None) -> tuple[LM, Tokenizer]:
    from bam_core.checkpoint import load_model
    from bam_core.data.tokenize import Tokenizer
    from bam_core.train.loop import DTYPES

    model = load_model(folder, dtype=DTYPES[dtype] if dtype is not None else None)
    return model, Tokenizer.load(folder / "tokenizer.json")
