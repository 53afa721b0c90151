"""What must hold of the trainings of variants and of the baseline: their own keys, and whom they are made equal to."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from bam_core.errors import Problem, nearest
from pipelines.recipe.document import join
from pipelines.recipe.schema import Recipe
from pipelines.recipe.tuning import own_place

PACE = "bam pace RECIPE measures it"
MISSING = "has no figure for"
PACES = "phases.mixture.seconds_per_token"


def matching_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with how long mixtures train, in a recipe that may have holes."""
    if recipe.variants is None or recipe.phases is None or recipe.phases.mixture is None:
        return
    phase, known = recipe.phases.mixture, [recipe.model_name(stage) for stage in recipe.mixture_trainings]
    yield from _paces(recipe, known)
    wrong = list(_others(recipe, known))
    yield from wrong
    is_matched = {stage: recipe.match_of(stage)[0] not in (None, "data") for stage in recipe.mixture_trainings}
    if phase.match_to is not None and not any(is_matched.values()):
        yield _no_effect("phases.mixture.match_to", phase.match_to)
    for stage, own in recipe.mixture_trainings.items():
        here = own_place(stage)
        if own.match_to is not None and not is_matched[stage]:
            yield _no_effect(f"{here}.match_to", own.match_to)
        if own.tokens is not None and is_matched[stage] and recipe.match_of(stage)[1] != stage:
            expected = f"follows from match: {recipe.match_of(stage)[0]}"
            yield Problem(f"{here}.tokens", own.tokens, expected, f"leave it out, or say {here}.match: data")
    if not wrong:
        yield from _circles(recipe)
        yield from _missing_paces(recipe)


def _no_effect(path: str, value: str) -> Problem:
    return Problem(path, value, "has no effect with match: data", "say match: compute or match: seconds")


def _others(recipe: Recipe, known: list[str]) -> Iterator[Problem]:
    places = {"phases.mixture": recipe.mixture_phase.match_to}
    places |= {own_place(stage): own.match_to for stage, own in recipe.mixture_trainings.items()}
    for place, other in places.items():
        if other is not None and recipe.trained_stage(other) is None:
            yield Problem(f"{place}.match_to", other, "is neither a variant nor dense", nearest(other, known))


def _circles(recipe: Recipe) -> Iterator[Problem]:
    """Each model that is made equal to itself by way of others. To itself at once: it has its own tokens."""
    for stage, own in recipe.mixture_trainings.items():
        chain = [stage]
        while (other := _follows(recipe, chain[-1])) is not None and other not in chain:
            chain.append(other)
        if other == stage and len(chain) > 1:
            names = " -> ".join(recipe.model_name(name) for name in [*chain, stage])
            place = f"{own_place(stage)}.match_to" if own.match_to else "phases.mixture.match_to"
            value = own.match_to or recipe.mixture_phase.match_to
            yield Problem(place, value, f"leads back to itself: {names}", "let one of them say match: data")


def _follows(recipe: Recipe, stage: str) -> str | None:
    """The other model of which a training's length follows."""
    kind, other = recipe.match_of(stage)
    return None if kind in (None, "data") or other == stage else other


def _paces(recipe: Recipe, known: list[str]) -> Iterator[Problem]:
    for name, pace in (recipe.mixture_phase.seconds_per_token or {}).items():
        here = join(PACES, name)
        if name not in known:
            yield Problem(here, pace, "is neither a variant nor dense", nearest(name, known))
        elif pace is not None and not (isfinite(pace) and pace > 0):
            yield Problem(here, pace, "must be above 0, in seconds", PACE)


def _missing_paces(recipe: Recipe) -> Iterator[Problem]:
    by_seconds = [stage for stage in recipe.mixture_trainings if recipe.match_of(stage)[0] == "seconds"]
    by_seconds = [stage for stage in by_seconds if recipe.match_of(stage)[1] != stage]
    needed = dict.fromkeys(by_seconds)
    for stage in by_seconds:
        other = recipe.match_of(stage)[1]
        # Of no other in particular: of the fastest variant, so each must be known.
        needed |= dict.fromkeys([other] if other else [name for name in recipe.mixture_trainings if name != "dense"])
    there = recipe.mixture_phase.seconds_per_token or {}
    missing = [recipe.model_name(stage) for stage in needed if recipe.model_name(stage) not in there]
    if missing:
        yield Problem(PACES, dict(there), f"{MISSING} {', '.join(missing)}: match: seconds needs it", PACE)


def is_missing_pace(problem: Problem) -> bool:
    """Whether `bam pace` would bring what is missing."""
    return problem.path == PACES and problem.expected.startswith(MISSING)
