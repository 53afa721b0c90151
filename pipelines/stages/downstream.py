"""The tasks of `evaluate`: each model on the items of the recipe's task files.

A task is known by its content: the stage's configuration has the digests of the files, `runtime` where they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bam_core.data.tokenize import Tokenizer
from bam_core.evaluate.tasks import TaskScore, score_task
from bam_core.nn.lm import LM
from bam_core.protocols import StageContext
from pipelines.stages.planned_task import planned_task

BY_ITEM = "tasks.parquet"
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("id", pa.string()),
        *((name, pa.float64()) for name in ("correct", "correct_norm", "correct_bytes", "margin", "margin_per_byte")),
        ("nll", pa.float64()),
        ("bytes", pa.int64()),
    ]
)
"""One row per model, task and item. A figure that its kind of task does not have is null. nll, bytes: of the reference
answer, in nats and UTF-8 bytes."""


def score_tasks(context: StageContext, name: str, model: LM, tokenizer_path: Path) -> dict[str, Any]:
    """Task -> what the model makes of it, as `TaskScore.to_json`; its items are added to `tasks.parquet`.

    Empty where the configuration names no tasks. Raises BamError if a file is not the one that was planned with.
    """
    asked = context.config.get("tasks") or []
    if not asked:
        return {}
    tokenizer = Tokenizer.load(tokenizer_path)
    scores = []
    for entry in asked:
        task = planned_task(context, entry["digest"]).first(entry["limit"])
        how = {"execute": entry["execute"], "new_tokens": entry["new_tokens"]}
        scores.append(score_task(model, tokenizer, task, **how))
    scores.sort(key=lambda score: score.task.name)
    _add_items(context.out / BY_ITEM, name, scores)
    return {score.task.name: score.to_json() for score in scores}


def _add_items(path: Path, model: str, scores: Iterable[TaskScore]) -> None:
    rows = [row for score in scores for row in _rows(model, score)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    before = [pq.read_table(path, schema=SCHEMA)] if path.exists() else []
    pq.write_table(pa.concat_tables([*before, table]).combine_chunks(), path)


def _rows(model: str, score: TaskScore) -> Iterable[Mapping[str, Any]]:
    figures = SCHEMA.names[3:-1]
    for item in score.items:
        own = {"model": model, "task": score.task.name, "id": item.id, "bytes": item.n_bytes}
        yield own | {figure: getattr(item, figure) for figure in figures}
