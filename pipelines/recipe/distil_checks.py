"""What must hold of the section `distil`: a variant with attention experts, and something that costs less than it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from bam_core.config import AttentionExperts, Distillation, Gate
from bam_core.errors import Problem, nearest
from pipelines.recipe.base import maybe
from pipelines.recipe.distil import CheaperAttention, Distil
from pipelines.recipe.document import join
from pipelines.recipe.mixtures import AttentionVariant
from pipelines.recipe.schema import Recipe


def distil_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with `distil` of a recipe that may have holes, but for its phase (`checks.py`)."""
    for name, part in (recipe.distil or {}).items():
        here = join("distil", name)
        if name in (recipe.variants or ()):
            yield Problem(here, name, "is the name of a variant", "choose another: the two would be one name in tables")
        if part is not None:
            yield from (problem.under(here) for problem in _loss(part))
            yield from (problem.under(here) for problem in _source(recipe, part))


def _loss(part: Distil) -> Iterator[Problem]:
    given = {name: value for name in ("kl", "temperature", "gate") if (value := getattr(part, name)) is not None}
    yield from Distillation(**given).problems()


def _source(recipe: Recipe, part: Distil) -> Iterator[Problem]:
    if part.source is None or not recipe.variants:
        return
    if part.source not in recipe.variants:
        yield Problem("from", part.source, "is not a variant", nearest(part.source, recipe.variants))
        return
    variant, target = recipe.variants[part.source], maybe(part.attention)
    if target is None:
        return
    asked = list(_asked(target))
    yield from (problem.under("attention") for problem in asked)
    if variant is None or asked:
        return
    attention = variant.attention
    if target.routing == "soft" and getattr(attention, "routing", None) == "top_k":
        expected = f"would cost more than {part.source}, which routes top_k"
        yield Problem("attention.routing", "soft", expected, "leave it out, or choose a smaller top_k")
    elif attention == "merged":
        expected = "has no attention experts: its attention is merged"
        yield Problem("from", part.source, expected, "distil a variant whose attention is a mixture")
    elif isinstance(attention, AttentionVariant) and (teacher := _teacher(recipe, attention)) is not None:
        for problem in part.sparser().problems(teacher):
            yield _whole(problem, target) if not problem.path else problem.under("attention")


def _asked(target: CheaperAttention) -> Iterator[Problem]:
    """What does not go together in the target itself."""
    if target.routing == "top_k" and target.top_k is None:
        yield Problem("top_k", None, "is missing: routing: top_k says of how many experts", "for example top_k: 1")
    elif target.top_k is not None and target.routing != "top_k":
        yield Problem("top_k", target.top_k, "has no effect without routing: top_k", "say routing: top_k")


def _whole(problem: Problem, target: CheaperAttention) -> Problem:
    given: dict[str, Any] = {name: value for name, value in target.to_dict().items() if value is not None}
    return Problem("attention", given, problem.expected, problem.remedy)


def _teacher(recipe: Recipe, attention: AttentionVariant) -> AttentionExperts | None:
    """The experts of the variant, as far as they are known; None where that is not far enough."""
    slots = attention.experts
    n_experts = len(slots) if isinstance(slots, list) else len(recipe.domains or ())
    top_k = attention.top_k if attention.routing == "top_k" else n_experts
    if not n_experts or top_k is None or not 1 <= top_k <= n_experts or None in (attention.kv, attention.gate):
        return None
    return AttentionExperts(n_experts, top_k, attention.kv, cast(Gate, attention.gate))  # or a plug-in's name
