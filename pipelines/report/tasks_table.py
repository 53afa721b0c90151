"""Downstream tasks in the report: a table for each kind of figure, models by tasks, with standard errors and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.report import formats
from pipelines.report.formats import clean, is_number
from pipelines.report.inputs import Json, ReportInputs, in_order
from pipelines.report.tables import Column, Table

CHANCE = "a guess"
LONG = ("model", "task", "domain", "kind", "figure", "value", "stderr", "items", "chance")


def _percent(value: Any) -> str:
    return formats.number(value, lambda x: f"{100 * x:.1f}%")


@dataclass(frozen=True)
class _Shown:
    """A table of the page. figures: of a task, the first that it has is shown. show: value -> text."""

    name: str
    title: str
    figures: tuple[str, ...]
    show: Callable[[Any], str]
    has_chance: bool = False


SHOWN = (
    _Shown("tasks_accuracy", "Accuracy", ("acc",), _percent, has_chance=True),
    _Shown(
        "tasks_accuracy_norm",
        "Accuracy, likelihood per character",
        ("acc_norm",),
        _percent,
        has_chance=True,
    ),
    _Shown("tasks_margin", "Likelihood margin, nats per byte", ("margin_per_byte",), formats.bits),
    _Shown("tasks_generated", "Right answers generated", ("exact_match", "pass_at_1"), _percent),
    _Shown("tasks_bits", "Bits per byte of the answer", ("solution_bits_per_byte", "bits_per_byte"), formats.bits),
)


def task_tables(inputs: ReportInputs) -> list[tuple[str, Table]]:
    """(heading, table) of each kind of figure that some task has. Their numbers are in `tasks.csv`."""
    models = _models(inputs)
    tables = [(shown.title, _table(shown, models)) for shown in SHOWN]
    return [(title, table) for title, table in tables if table.rows]


def long_table(inputs: ReportInputs) -> Table:
    """Every figure of every model and task, for `tasks.csv`."""
    return Table("tasks", tuple(Column(key, key) for key in LONG), tuple(_figures(_models(inputs))))


def tasks_words(inputs: ReportInputs) -> list[str]:
    """How many items stand behind each task's figures, and how many of their prompts were cut."""
    lines = []
    for task, score in _tasks(_models(inputs)).items():
        cut = score.get("prompts_cut") or 0
        tail = f"; {cut} longer than the model reads, and cut on the left" if cut else ""
        lines.append(f"{clean(task)} ({clean(score.get('domain'))}): {score.get('items')} items{tail}.")
    return lines


def _models(inputs: ReportInputs) -> dict[str, Json]:
    models: Mapping[str, Json] = (inputs.tasks or {}).get("models", {})
    return {name: models[name] for name in in_order(models, inputs.domain_names)}


def _tasks(models: Mapping[str, Json]) -> dict[str, Json]:
    """Task -> the score of the first model that has it: what the task itself is, all have alike."""
    found: dict[str, Json] = {}
    for tasks in models.values():
        for task, score in tasks.items():
            found.setdefault(task, score)
    return dict(sorted(found.items(), key=lambda item: (str(item[1].get("domain")), item[0])))


def _table(shown: _Shown, models: Mapping[str, Json]) -> Table:
    tasks = {task: score for task, score in _tasks(models).items() if _figure(shown, score)}
    columns = (Column("model", "model"), *(Column(task, task) for task in tasks))
    rows: list[dict[str, Any]] = []
    for model, scores in models.items():
        cells = {task: _words(shown, scores[task]) for task in tasks if task in scores}
        rows += [{"model": model} | cells] if cells else []
    if shown.has_chance and rows:
        rows.append({"model": CHANCE} | {task: _percent(score.get("chance")) for task, score in tasks.items()})
    return Table(shown.name, columns, tuple(rows))


def _figure(shown: _Shown, score: Json) -> Json | None:
    figures: Mapping[str, Json] = score.get("figures", {})
    return next((figures[name] for name in shown.figures if name in figures), None)


def _words(shown: _Shown, score: Json) -> str:
    """`42.1% ± 2.2%`: a figure and its standard error."""
    figure = _figure(shown, score) or {}
    stderr = figure.get("stderr")
    return shown.show(figure.get("value")) + (f" ± {shown.show(stderr)}" if is_number(stderr) else "")


def _figures(models: Mapping[str, Json]) -> Iterator[Json]:
    for model, tasks in models.items():
        for task, score in sorted(tasks.items()):
            own = {"model": model, "task": task} | {key: score.get(key) for key in ("domain", "kind")}
            for name, figure in _in_figures(score):
                chance = score.get("chance") if name.startswith("acc") else None
                yield own | {"figure": name, "chance": chance} | dict(figure)


def _in_figures(score: Json) -> Iterable[tuple[str, Json]]:
    figures: Mapping[str, Json] = score.get("figures", {})
    return sorted(figures.items())
