"""The tables of two runs: what they are, what differs in their recipes, what their models are worth, what they took."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from bam_core.graph.key import Change
from pipelines.report import formats
from pipelines.report.formats import clean, is_number
from pipelines.report.pair.chances import Chances
from pipelines.report.pair.runs import Pair, RunLeft, difference
from pipelines.report.pair.words import status
from pipelines.report.tables import Column, Table

LONGEST = 400
"""Characters of a value of a recipe."""
SAME = "the same artifact"


def runs_table(pair: Pair) -> Table:
    """A row for each fact; what neither run has is left out."""
    facts: dict[str, Callable[[RunLeft], Any]] = {
        "run": lambda run: run.name,
        "recipe": lambda run: run.pipeline,
        "status": status,
        "started": lambda run: f"{datetime.fromtimestamp(run.started, UTC):%Y-%m-%d %H:%M} UTC",
        "took": lambda run: None if run.seconds is None else formats.duration(run.seconds),
        "stages": lambda run: f"{len(run.planned) - len(run.missing)} of {len(run.planned)}",
        "time of all stages": lambda run: _total(run, "seconds", formats.duration),
        "training tokens": lambda run: _total(run, "tokens", formats.count),
        "training FLOPs": lambda run: _total(run, "flops", formats.flops),
        "code": lambda run: run.made_by.get("commit"),
        "packages": lambda run: run.made_by.get("packages"),
        "device": lambda run: run.made_by.get("device"),
    }
    rows = [{"fact": fact, "a": of(pair.a), "b": of(pair.b)} for fact, of in facts.items()]
    columns = (Column("fact", "", prose=True), Column("a", "A", prose=True), Column("b", "B", prose=True))
    return Table("runs", columns, tuple(row for row in rows if row["a"] or row["b"]))


def recipe_table(pair: Pair) -> Table:
    columns = (Column("key", "key"), Column("a", "A", prose=True), Column("b", "B", prose=True))
    rows = [{"key": key_of(c), "a": _value(c.old), "b": _value(c.new)} for c in pair.changes]
    return Table("recipe", columns, tuple(rows))


def key_of(change: Change) -> str:
    return ".".join(change.path)


def average_table(pair: Pair, chance: Chances) -> Table:
    """A row for each model of both; intervals only where there are some."""
    rows = []
    for model in pair.evaluated:
        a, b = pair.average(pair.a, model), pair.average(pair.b, model)
        row = {"model": model, "a": a, "b": b, "difference": difference(a, b)}
        if one := chance.found.get(model):
            row |= {"low": one.corrected_low, "high": one.corrected_high, "word": one.word}
        rows.append(row | ({"word": SAME} if pair.is_one_model(model) else {}))
    columns = (
        Column("model", "model"),
        Column("a", "A", formats.perplexity, best=True),
        Column("b", "B", formats.perplexity, best=True),
        Column("difference", "change", formats.gain),
        Column("word", "B is"),
        Column("low", "from", formats.gain),
        Column("high", "to", formats.gain),
    )
    return Table("average", _found(columns, rows), tuple(rows))


def domains_table(pair: Pair) -> Table:
    """A row for each model and domain; bits per byte where tokenizers differ."""
    figures = {"perplexity": formats.perplexity}
    if not pair.has_one_tokenizer:
        figures["bits_per_byte"] = formats.bits
    rows = []
    for model in pair.evaluated:
        for domain in pair.domains:
            row: dict[str, Any] = {"model": model, "domain": domain}
            for figure in figures:
                a, b = (pair.score(side, model, domain, figure) for side in (pair.a, pair.b))
                row |= {f"a.{figure}": a, f"b.{figure}": b, f"difference.{figure}": difference(a, b)}
            rows.append(row)
    columns = [Column("model", "model"), Column("domain", "domain")]
    for figure, show in figures.items():
        name = "" if figure == "perplexity" else ", bits per byte"
        columns += [Column(f"a.{figure}", f"A{name}", show), Column(f"b.{figure}", f"B{name}", show)]
        columns.append(Column(f"difference.{figure}", "change", formats.gain))
    return Table("domains", tuple(columns), tuple(rows))


def stages_table(pair: Pair) -> Table:
    """A row for each stage that one of them has, in A's order and then B's."""
    rows = []
    for stage in dict.fromkeys((*pair.a.made, *pair.b.made)):
        row: dict[str, Any] = {"stage": stage, "who": SAME if pair.is_same(stage) else None}
        for side, run in (("a", pair.a), ("b", pair.b)):
            if made := run.made.get(stage):
                rate = made.tokens / made.seconds if made.tokens and made.seconds else None
                row |= {f"{side}.seconds": made.seconds, f"{side}.tokens": made.tokens, f"{side}.rate": rate}
        rows.append(row | {"difference": difference(row.get("a.seconds"), row.get("b.seconds"))})
    columns = (
        Column("stage", "stage"),
        Column("a.seconds", "A time", formats.duration),
        Column("b.seconds", "B time", formats.duration),
        Column("difference", "change", formats.gain),
        Column("a.tokens", "A tokens", formats.count),
        Column("b.tokens", "B tokens", formats.count),
        Column("a.rate", "A tokens/s", formats.count),
        Column("b.rate", "B tokens/s", formats.count),
        Column("who", "in both"),
    )
    return Table("stages", _found(columns, rows), tuple(rows))


def _found(columns: tuple[Column, ...], rows: list[dict[str, Any]]) -> tuple[Column, ...]:
    """Without columns that have no value in any row."""
    return tuple(column for column in columns if any(row.get(column.key) is not None for row in rows))


def _value(value: Any) -> str | None:
    """As JSON, a text without its quotes; a group that only one recipe has, by its size; None where it is absent."""
    if value is Change.ABSENT:
        return None
    if isinstance(value, Mapping):
        n = _n_keys(value)
        return f"a group of {n} key{'' if n == 1 else 's'}"
    text = clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _n_keys(group: Mapping[str, Any]) -> int:
    return sum(_n_keys(value) if isinstance(value, Mapping) else 1 for value in group.values())


def _total(run: RunLeft, figure: str, show: Callable[[Any], str]) -> str | None:
    found = [value for made in run.made.values() if is_number(value := getattr(made, figure))]
    return show(sum(found)) if found else None
