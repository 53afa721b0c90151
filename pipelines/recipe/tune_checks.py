"""What must hold of the searches under `tune`: every value that a trial could get must be one that the recipe could."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bam_core.config import TrainConfig
from bam_core.errors import Problem, nearest
from bam_core.train.search import KINDS, WHOLE, Space
from pipelines.recipe import data_search, parts
from pipelines.recipe.data import AdaptiveData
from pipelines.recipe.document import join
from pipelines.recipe.schema import Recipe
from pipelines.recipe.tuning import field_of, own_keys, phase_of, trained_stages, why_not


def tune_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with the searches of a recipe that may have holes."""
    taken: dict[str, str] = {}
    for name, search in (recipe.tune or {}).items():
        if search is not None:
            yield from _search(recipe, search, join("tune", name))
            for key in search.search or ():
                if key in taken:
                    yield Problem(join(f"tune.{name}.search", key), key, f"is searched by tune.{taken[key]} already")
                taken.setdefault(key, name)


def _search(recipe: Recipe, search: parts.Tune, here: str) -> Iterator[Problem]:
    known = trained_stages(recipe)
    stage = search.stage if search.stage in known else None
    if search.stage is not None and stage is None:
        yield Problem(f"{here}.stage", search.stage, "is no stage that trains", nearest(search.stage, known))
    for name, least in (("trials", 1), ("rungs", 1), ("reduction", 2), ("tokens", 1)):
        value = getattr(search, name)
        if value is not None and value < least:
            yield Problem(f"{here}.{name}", value, f"must be at least {least}")
    row = recipe.row_len
    if search.eval_tokens is not None and search.eval_tokens < (row or 1):
        yield Problem(f"{here}.eval_tokens", search.eval_tokens, f"must be at least one row, {row or 1} tokens")
    if search.domains is not None:
        if not search.domains:
            yield Problem(f"{here}.domains", [], "must name at least one domain")
        for domain in search.domains if recipe.domains else ():
            if domain not in recipe.domains:
                yield Problem(f"{here}.domains", domain, "is not a domain", nearest(domain, recipe.domains))
    yield from _rungs(recipe, search, here)
    if search.search is not None and not search.search:
        yield Problem(f"{here}.search", {}, "must name at least one key, such as phases.expert.lr")
    for key, space in (search.search or {}).items():
        yield from _key(recipe, stage, key, space, join(f"{here}.search", key))


def _rungs(recipe: Recipe, search: parts.Tune, here: str) -> Iterator[Problem]:
    """The fewest steps of a trial must have room for the rungs. Skipped where a size is itself wrong."""
    phase = getattr(recipe.phases, phase_of(search.stage or ""), None) if recipe.phases else None
    own = getattr(own_keys(recipe, search.stage or ""), "tokens", None)
    tokens, batch = search.tokens or own or (phase and phase.tokens), phase and phase.batch_tokens
    searched = (search.search or {}).get(f"phases.{phase_of(search.stage or '')}.batch_tokens")
    largest = max([*(searched.choice or ())] if searched else [batch or 0], default=0)
    if not tokens or not largest or min(tokens, largest, search.rungs or 0, (search.reduction or 0) - 1) < 1:
        return
    n_steps = -(-tokens // int(largest))
    if search.rungs > 64 or search.reduction ** (search.rungs - 1) > n_steps:
        expected = f"rungs {search.reduction} times apart do not fit in the {n_steps} steps of a trial"
        yield Problem(f"{here}.rungs", search.rungs, expected, "fewer rungs, or more tokens")


def _key(recipe: Recipe, stage: str | None, key: str, space: parts.Space | None, here: str) -> Iterator[Problem]:
    if (reason := why_not(recipe, key)) is not None:
        yield Problem(here, key, f"cannot be searched: {reason}")
        return
    if stage is not None and recipe.phases is not None and field_of(recipe, stage, key) is None:
        yield Problem(here, key, f"has no effect on {stage}, by whose training it would be judged")
        return
    if space is None:
        return
    given = space.to_json()
    if len(given) != 1:
        yield Problem(here, list(given), f"must have one of {', '.join(KINDS)}")
        return
    wanted = Space.from_json(given)
    wrong = list(wanted.problems())
    yield from (problem.under(here) for problem in wrong)
    if not wrong:
        yield from _values(recipe, key, wanted, f"{here}.{wanted.kind}")


def _values(recipe: Recipe, key: str, space: Space, here: str) -> Iterator[Problem]:
    """The ends of a range, and every choice, as values of the recipe."""
    name = key.split(".")[-1]
    if key.split(".")[2:3] == ["data"]:
        if not _is_share(recipe, key):
            yield from _values_of_data(recipe, key, space, here)
            return
        for value in space.values:
            if value < 0 or (value == 0 and _is_alone(recipe, key)):
                least = "above 0: the other shares may be 0" if value == 0 else "0 or more"
                yield Problem(here, value, f"must be {least}")
        return
    if name in WHOLE and space.kind != "choice":
        yield Problem(here, list(space.values), "would give fractions", "use choice")
        return
    row = recipe.row_len
    for value in space.values:
        if name in WHOLE and value != int(value):
            yield Problem(here, value, "must be a whole number")
            continue
        sound = TrainConfig(tokens=2**40, batch_tokens=row or 1, seq_len=row or 1, lr=1.0, shares={"all": 1.0})
        change: dict[str, Any] = {name: int(value) if name in WHOLE else value}
        tried = replace(sound, **change)
        for problem in tried.problems():
            if problem.path == name:
                yield replace(problem, path=here)
        if name == "batch_tokens" and row and value > 0 and value % row == 0:
            yield from _workers(recipe, key, int(value) // row, here)


def _workers(recipe: Recipe, key: str, rows: int, here: str) -> Iterator[Problem]:
    """A batch must be split evenly by the group that trains on it."""
    phase = key.split(".")[1]
    group = getattr(recipe.runtime, {"mixture": "train"}.get(phase, phase), None) if recipe.runtime else None
    if group is None or group.workers is None:
        return
    fewest, most = group.workers
    if fewest >= 1 and (rows % fewest if fewest == most else most > rows):
        yield Problem(here, rows, f"rows of a batch cannot be split over {most} workers")


def _data(recipe: Recipe, key: str) -> Any:
    phase = getattr(recipe.phases, key.split(".")[1], None) if recipe.phases else None
    return getattr(phase, "data", None)


def _is_share(recipe: Recipe, key: str) -> bool:
    field = data_search.field_of(_data(recipe, key), key.split(".")[3:], "own")
    return bool(data_search.searched_domains([field]))


def _is_alone(recipe: Recipe, key: str) -> bool:
    """Whether no other share of its group is sure to be above 0; of shares that adapt all must be."""
    data, prefix = _data(recipe, key), ".".join(key.split(".")[:3]) + "."
    if isinstance(data, AdaptiveData):
        return True
    searched = {other for search in recipe.tune.values() if search for other in search.search or ()}
    said = list(data_search.shares_said(data, recipe.domains or (), "own"))
    group = data_search.field_of(data, key.split(".")[3:], "own").rpartition(".")[0]
    return not any(share for name, its, _, share in said if its == group and prefix + name not in searched)


def _values_of_data(recipe: Recipe, key: str, space: Space, here: str) -> Iterator[Problem]:
    data, prefix = _data(recipe, key), ".".join(key.split(".")[:3]) + "."
    spaces = {
        name.removeprefix(prefix): Space.from_json(given)
        for search in recipe.tune.values()
        for name, part in ((search and search.search) or {}).items()
        if name.startswith(prefix) and part is not None and len(given := part.to_json()) == 1
    }
    start = data.adaptive.start if isinstance(data, AdaptiveData) and data.adaptive else None
    n_domains = len(start if isinstance(start, Mapping) else recipe.domains or ())
    yield from data_search.value_problems(data, key.split(".")[3:], space, here, spaces, n_domains)
