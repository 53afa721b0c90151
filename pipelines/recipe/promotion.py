"""What a recipe asks of a model before it is promoted, and whether an evaluation says that it holds.

    promote: {require: {average_perplexity: {below: btx}, params_active: {at_most: 500M}}}

A figure of `perplexity.json` is held against a number, or against the same figure of another model that the same
evaluation scored on the same documents. None of it enters a key: it says nothing of how a model is made.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from pipelines.recipe.base import Named, Part
from pipelines.recipe.values import Text, parse_count, parse_number

AVERAGES = ("average_perplexity", "token_average_perplexity", "forgetting")
FIGURES = (*AVERAGES, "params_total", "params_active", "flops_per_token")
PERPLEXITY = "perplexity."
"""With a domain's name after it: the model's perplexity on that domain."""
ENSEMBLE = "ensemble"
"""Scored by `evaluate` though no stage makes it."""
MAX_MODEL_NAME = 256
_HOLDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "below": (operator.lt, "below"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "at_least": (operator.ge, "at least"),
}


def parse_level(value: Any) -> str | float:
    """A number, also with its unit (`500M`); any other text stands for a model. Raises ValueError."""
    if isinstance(value, str) and value:
        if value[0].isdigit() and value[-1] in "kMBT":
            with suppress(ValueError):
                return float(parse_count(value))
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, or the name of a variant or of a stage")
    return parse_number(value)


Level = Annotated[
    str | float,
    BeforeValidator(parse_level),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "minLength": 1}]}),
]


class Bound(Part):
    """What a figure must be, against a number or the name of a variant or stage whose figure it is compared with."""

    below: Level | None = None
    above: Level | None = None
    at_most: Level | None = None
    at_least: Level | None = None

    def asked(self) -> dict[str, str | float]:
        return {name: level for name, level in self.to_dict().items() if level is not None}


class Promote(Part):
    """require: figure of `evaluate` -> what it must be. model: the name in MLflow's registry of what is promoted."""

    model: Text | None = None
    require: Named[Bound] = Field(default={})


@dataclass(frozen=True)
class Verdict:
    """One bound. words: the figure, what it was held against, and the outcome."""

    holds: bool
    words: str


class NotJudged(Exception):
    """Why a rule cannot be held against an evaluation."""


def rule_of_run(content: Any) -> Promote:
    """The section `promote` as a run has it on record. Raises NotJudged for what this version does not understand."""
    try:
        rule = Promote.model_validate(content)
    except ValidationError as error:
        raise NotJudged(f"its rule is none that this version of bam knows: {content!r}") from error
    unknown = [*(rule.model_extra or {})]
    unknown += [name for bound in rule.require.values() for name in (bound.model_extra or {})]
    if unknown or not all(bound.asked() for bound in rule.require.values()):
        raise NotJudged(f"its rule is none that this version of bam knows: {content!r}")
    return rule


def judge(require: Mapping[str, Bound], models: Mapping[str, Any], role: str) -> list[Verdict]:
    """Every bound, held against what an evaluation says.

    models: of its perplexity.json. role: the model's name there. A figure that is not there, or no finite number,
    does not hold.
    """
    return [
        _verdict(figure, name, level, models, role)
        for figure, bound in require.items()
        for name, level in bound.asked().items()
    ]


def model_of(name: str, known: Collection[str]) -> str | None:
    """The stage that a name stands for: a stage's own, or a variant's trained mixture, or one distilled from it; of a
    variant that is not trained, the mixture as it is mixed."""
    stages = (name, f"train.{name}", f"distil.{name}", f"mix.{name}")
    return next((stage for stage in stages if stage in known), None)


def model_name_fault(name: str) -> str | None:
    """Why MLflow's registry cannot hold a model of this name, or None if it can."""
    if not 1 <= len(name) <= MAX_MODEL_NAME:
        return f"must have 1 to {MAX_MODEL_NAME} characters"
    if "/" in name or ":" in name:
        return "must have no '/' and no ':' (MLflow's registry refuses them)"
    if not name.isprintable() or name != name.strip():
        return "must have no line break or control character, and no blank at either end"
    if name == "." or name.startswith(".."):
        return "must not be a dot, or start with two"
    return None


def default_model_name(pipeline: str | None, stage: str) -> str:
    """`tiny-bam` of `train.bam` of the recipe `tiny`; `tiny-expert-law` of `expert.law`."""
    own = stage.removeprefix("train.").replace(".", "-")
    return f"{pipeline}-{own}" if pipeline else own


def _verdict(figure: str, name: str, level: str | float, models: Mapping[str, Any], role: str) -> Verdict:
    holds, words = _HOLDS[name]
    try:
        own = _figure(models, role, figure)
        limit, whose = _limit(models, role, figure, level)
    except NotJudged as error:
        return Verdict(False, f"{figure} cannot be judged: {error}")
    shown_own, shown_limit = _shown(own, limit)
    is_held = holds(own, limit)
    return Verdict(is_held, f"{figure} {shown_own} is {'' if is_held else 'not '}{words} {whose}{shown_limit}")


def _limit(models: Mapping[str, Any], role: str, figure: str, level: str | float) -> tuple[float, str]:
    """The number to be held against, and whose it is. Raises NotJudged."""
    if not isinstance(level, str):
        return level, ""
    other = model_of(level, models.keys())
    if other is None:
        scored = ", ".join(sorted(models))
        raise NotJudged(f"the evaluation did not score {level!r}; it scored {scored}")
    return _figure(models, other, figure), "its own " if other == role else f"{other}'s "


def _figure(models: Mapping[str, Any], role: str, figure: str) -> float:
    """Raises NotJudged."""
    found = models.get(role)
    domain = figure.removeprefix(PERPLEXITY)
    for step in [figure] if domain == figure else ["domains", domain, "perplexity"]:
        found = found.get(step) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise NotJudged(f"the evaluation has no such figure of {role}")
    if not isfinite(found):
        raise NotJudged(f"that of {role} is {found}")
    return float(found)


def _shown(own: float, limit: float) -> tuple[str, str]:
    """Six digits each, or all of them where two different numbers would look the same."""
    short = tuple(f"{number:,.6g}" if abs(number) < 1e6 else f"{number:,.0f}" for number in (own, limit))
    return (repr(own), repr(limit)) if short[0] == short[1] and own != limit else (short[0], short[1])
