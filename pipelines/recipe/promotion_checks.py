"""What must hold of the section `promote`: figures that `evaluate` writes, of models that it scores."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from bam_core.errors import Problem, nearest
from bam_core.graph.adopted import adopted_name
from pipelines.recipe.base import maybe
from pipelines.recipe.document import join
from pipelines.recipe.promotion import ENSEMBLE, FIGURES, PERPLEXITY, Bound, model_name_fault, model_of
from pipelines.recipe.schema import Recipe

BOUNDS = tuple(Bound.model_fields)


def promotion_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with `promote` of a recipe that may have holes."""
    promote = recipe.promote
    if promote is None:
        return
    if promote.model and (fault := model_name_fault(promote.model)):
        yield Problem("promote.model", promote.model, fault)
    for figure, bound in (promote.require or {}).items():
        here = join("promote.require", figure)
        yield from _figure(recipe, figure, here)
        if bound is not None:
            yield from _bound(recipe, bound, here)


def _figure(recipe: Recipe, figure: str, here: str) -> Iterator[Problem]:
    if figure in FIGURES or (maybe(recipe.domains) is None and figure.startswith(PERPLEXITY)):
        return
    known = [*FIGURES, *(PERPLEXITY + domain for domain in recipe.domains or ())]
    if figure not in known:
        yield Problem(here, figure, "is no figure of an evaluation", nearest(figure, known))


def _bound(recipe: Recipe, bound: Bound, here: str) -> Iterator[Problem]:
    if not bound.model_fields_set:
        yield Problem(here, {}, f"must say one of {', '.join(BOUNDS)}", "for example {below: btx}")
    for name in bound.model_fields_set & set(BOUNDS):
        level, path = getattr(bound, name), f"{here}.{name}"
        if level is None:  # of a wrong type it has been named; this is an empty value
            yield Problem(path, None, "must be a number, or the name of a variant or of a stage")
        elif isinstance(level, str):
            yield from _model(recipe, level, path)
        elif not isfinite(level):
            yield Problem(path, level, "must be a finite number")


def _model(recipe: Recipe, name: str, path: str) -> Iterator[Problem]:
    if maybe(recipe.variants) is None or maybe(recipe.domains) is None:
        return
    scored = scored_models(recipe)
    if model_of(name, scored) is None:
        known = [*recipe.variants, *scored]
        yield Problem(path, name, "is neither a variant nor a model that is evaluated", nearest(name, known))


def scored_models(recipe: Recipe) -> list[str]:
    """The stages whose models `evaluate` scores, and the ensemble where it is asked for."""
    first, *others = recipe.domains or [None]
    own = [name for name in others if name not in recipe.adopted]
    own = [first, *own] if recipe.trains_general else own
    experts = [*(f"expert.{domain}" for domain in own), *map(adopted_name, recipe.adopted.values())]
    sound = [name for name, variant in recipe.variants.items() if variant is not None]
    mixtures = list(dict.fromkeys(m for name in sound for m in (f"mix.{recipe.mix_of(name)}", recipe.model_of(name))))
    dense, ensemble = (["dense"] if recipe.has_dense else []), ([ENSEMBLE] if recipe.ensemble else [])
    distilled = [f"distil.{name}" for name in recipe.distil or ()]
    return ["seed", *experts, *mixtures, *dense, *distilled, *ensemble]
