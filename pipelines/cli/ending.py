"""How a run ends, in words: what the models reached, what was made and where, and what one would do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged
from bam_core.graph.stage import StageName, kind_of
from bam_core.graph.words import listed
from pipelines.cli import text
from pipelines.cli.app import Session
from pipelines.cli.options import typed
from pipelines.cli.tables import perplexity_text

if TYPE_CHECKING:
    from pipelines.runner import RunResult, StageResult

MODELS = ("train", "distil", "edit", "mix", "dense", "expert", "imported", "seed")
"""Kinds of stages that make models: whoever has several is asked about the first."""
N_NEXT = 3
PIPED = 100
"""Columns where there is no terminal."""


def result_text(session: Session, result: RunResult) -> str:
    """What the models reached, how the run ended, what it has made and where that is."""
    states = [stage.status for stage in result.stages]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    seeds = [stage.stage for stage in result.stages if kind_of(stage.stage) == "evaluate"]
    parts = [f"{text.styled(result.status)} in {text.duration(result.seconds)}: {counts}", *_made(result)]
    if result.report:
        parts.append(f"report: {result.report}")
    perplexity = _perplexity(session, result)
    if not perplexity:
        return "\n".join(parts)
    others = [f"of {seeds[0]}; also made: {', '.join(seeds[1:])}\n"] if len(seeds) > 1 else []
    return "\n".join([f"\n{perplexity_text(perplexity)}\n", *others, *parts])


def _made(result: RunResult) -> list[str]:
    """Of what this run has made the names, and the store that all of it is in."""
    from pipelines.wiring import mask_text

    made = [stage.stage for stage in result.stages if stage.status == "done"]
    places = [stage.artifact.rpartition("/artifacts/")[0] for stage in _there(result) if stage.artifact]
    columns = (text.columns() or PIPED) - len("made: ")
    lines = [f"made: {listed(made, columns)}"] if made else []
    return [*lines, *[f"in: {mask_text(place)}" for place in places[:1] if place]]


def _there(result: RunResult) -> list[StageResult]:
    return [stage for stage in result.stages if stage.status in ("done", "reused")]


def next_text(session: Session, result: RunResult, rest: str | None) -> str:
    """The commands that one would want now, each with what it does. rest: the one that makes what is left, if any."""
    rows = [*([(rest, "all else that the recipe describes")] if rest else []), *_asked(session, result)][:N_NEXT]
    width = max(len(command) for command, _ in rows)
    lines = [f"  {command:<{width}}  # {words}" for command, words in rows]
    if max(map(len, lines)) > (text.columns() or PIPED):
        lines = [f"  {command}" for command, _ in rows]
    return "\n".join(["Next:", *lines])


def _asked(session: Session, result: RunResult) -> list[tuple[str, str]]:
    names = [stage.stage for stage in _there(result)]
    model = _best_model(names, _perplexity(session, result))
    found = []
    if model is not None:
        found = [
            (_command(session, "generate", model, "It was"), "what the model says"),
            (_command(session, "ui", tracking=True), "every run and figure, in MLflow"),
            (_command(session, "export", model, "exported"), "the model for transformers"),
        ]
    elif names:
        found = [(_command(session, "show", names[-1]), "what it is and how it was made")]
    return [*found, (_command(session, "ls"), "all that the store holds"), (_command(session, "runs"), "and every run")]


def _best_model(names: Sequence[str], perplexity: Mapping[str, Any] | None) -> str | None:
    """Of the first kind that is there; among several, the one of the lowest perplexity."""
    plain = [name for name in names if StageName.parse(name).seed is None]
    of_kinds = [[name for name in plain if kind_of(name) == kind] for kind in MODELS]
    first = next((found for found in of_kinds if found), [])
    reached = (perplexity or {}).get("models", {})
    known = {name: reached[name]["average_perplexity"] for name in first if name in reached}
    return min(known, key=lambda name: known[name]) if known else next(iter(first), None)


def _command(session: Session, *words: str, tracking: bool = False) -> str:
    """With the store that was typed."""
    given = session.typed or {}
    wanted = {"--store": given.get("store"), "--tracking-uri": given.get("tracking_uri") if tracking else None}
    places = [word for option, value in wanted.items() if value and "@" not in value for word in (option, value)]
    return typed(["bam", *words, *places])


def failures(result: RunResult) -> list[str]:
    """What failed and why, then what has not started for it."""
    found = [stage.error or f"{stage.stage} failed" for stage in result.stages if stage.status == "failed"]
    waiting = [stage.stage for stage in result.stages if stage.status == "skipped"]
    return [*found, *([f"not started, they need it: {', '.join(waiting)}"] if waiting else [])]


def _perplexity(session: Session, result: RunResult) -> dict[str, Any] | None:
    """Of the first seed; None where it is not there or cannot be read: a courtesy, the run itself has ended well."""
    from pipelines import wiring

    for stage in _there(result):
        if kind_of(stage.stage) == "evaluate":
            store = wiring.open_store(session.settings())
            try:
                record = store.record(stage.stage, stage.key)
                found: dict[str, Any] | None
                found = json.loads((store.localize(record) / "perplexity.json").read_text()) if record else None
            except (ArtifactDamaged, OSError, ValueError):
                return None
            return found
    return None
