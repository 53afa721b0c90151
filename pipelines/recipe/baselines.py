"""The key `evaluate.baselines`: whom the report compares every trained mixture with."""

from __future__ import annotations

from collections.abc import Iterator

from bam_core.errors import Problem, nearest
from pipelines.recipe.promotion import model_of
from pipelines.recipe.promotion_checks import scored_models
from pipelines.recipe.schema import Recipe


def baselines(recipe: Recipe) -> list[str]:
    """Stage names of the models. By default the variants that have experts in the FFN alone (BTX), or the first."""
    if recipe.evaluate.baselines is not None:
        scored = scored_models(recipe)
        return list(dict.fromkeys(str(model_of(name, scored)) for name in recipe.evaluate.baselines))
    variants = recipe.variants.items()
    btx = [name for name, part in variants if part.attention == "merged" and part.ffn != "merged"]
    return [recipe.model_of(name) for name in btx or list(recipe.variants)[:1]]


def baseline_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with the key of a recipe that may have holes."""
    given = recipe.evaluate.baselines if recipe.evaluate else None
    if not given or recipe.variants is None or recipe.domains is None:
        return
    scored = scored_models(recipe)
    for name in dict.fromkeys(given):
        if name is not None and model_of(name, scored) is None:
            known = [*recipe.variants, *scored]
            expected = "is neither a variant nor a model that is evaluated"
            yield Problem("evaluate.baselines", name, expected, nearest(name, known))
