"""Which keys of a recipe can be searched, and which field of which stage's training each of them sets.

`phases.expert.lr` is the field `lr` of every `expert.<domain>` whose domain does not say its own; `own` of
`phases.expert.data` is the field `shares.<domain>`; `variants.bam.train.lr` is `lr` of `train.bam` alone. Pure
arithmetic on names: no value is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.recipe import data_search
from pipelines.recipe.base import Part
from pipelines.recipe.distil import Distil
from pipelines.recipe.overrides import MATCHING, DenseTrain, VariantTrain
from pipelines.recipe.parts import ExpertOverride
from pipelines.recipe.phases import ExpertPhase, MixturePhase, Phase, SeedPhase
from pipelines.recipe.schema import Recipe
from pipelines.recipe.values import Count, Number

PHASES: dict[str, type[Phase]] = {"seed": SeedPhase, "expert": ExpertPhase, "mixture": MixturePhase}
ONLY_PHASES = "only numbers of phases, of domains.NAME.expert, of variants.NAME.train and of dense can be searched"
FOR_ROUTERS = frozenset(MixturePhase.model_fields) - frozenset(Phase.model_fields) - {"data", *MATCHING}
"""A dense model has no use for them."""
REFUSED = {
    "tokens": "more tokens always look better: `tokens` of the search says what a trial costs",
    "data": "search one share at a time, such as phases.expert.data.own",
}


def trained_stages(recipe: Recipe) -> list[str]:
    """The stages whose training can be tried. The recipe may have holes."""
    experts = [f"expert.{domain}" for domain in recipe.specialists]
    variants = [f"train.{name}" for name in recipe.variants or () if _may_be_trained(recipe, name)]
    seed, dense = (["seed"] if recipe.trains_seed else []), (["dense"] if recipe.has_dense else [])
    return [*seed, *experts, *variants, *dense]


def _may_be_trained(recipe: Recipe, variant: str) -> bool:
    return (recipe.variants or {})[variant] is None or recipe.is_trained(variant)


def phase_of(stage: str) -> str:
    """`seed`, `expert` or `mixture`."""
    kind = stage.partition(".")[0]
    return kind if kind in ("seed", "expert") else "mixture"


def why_not(recipe: Recipe, key: str) -> str | None:
    """Why a key cannot be searched, or None if it can."""
    parts = key.split(".")
    model: type[Part]
    if parts[0] == "phases" and len(parts) >= 3 and parts[1] in PHASES:
        model, name, share = PHASES[parts[1]], parts[2], parts[3:]
        if name == "data" and share:
            names = {*(recipe.domains or ()), *(["own"] if parts[1] == "expert" else [])}
            data = getattr(getattr(recipe.phases, parts[1], None), "data", None)
            return data_search.why_not(data, share, names)
    elif parts[0] == "variants" and len(parts) == 4 and parts[2] == "train":
        model, name, share = VariantTrain, parts[3], []
        if parts[1] not in (recipe.variants or ()):
            return f"{parts[1]!r} is no variant"
    elif parts[0] == "dense" and len(parts) == 2:
        model, name, share = DenseTrain, parts[1], []
        if not recipe.has_dense:
            return "this recipe has no dense baseline"
    elif parts[0] == "domains" and len(parts) == 4 and parts[2] == "expert":
        model, name, share = ExpertOverride, parts[3], []
        if parts[1] not in recipe.specialists:
            return f"{parts[1]!r} is no domain whose expert is trained"
    else:
        return ONLY_PHASES
    if share or name not in model.model_fields:
        return "is not a key of the recipe"
    return REFUSED.get(name) or (None if _is_numeric(model, name) else "is not a number")


def _is_numeric(model: type[Any], name: str) -> bool:
    return model.model_fields[name].annotation in (int, float, Count | None, Number | None)


def field_of(recipe: Recipe, stage: str, key: str, searched: Iterable[str] = ()) -> str | None:
    """The field of the stage's `TrainConfig` that the key sets, or None if it sets none.

    searched: all keys that some search of the recipe sets: one of a single domain comes before one of all.
    """
    _, _, domain = stage.partition(".")
    place, _, last = key.rpartition(".")
    if not key.startswith("phases."):
        return last if place == own_place(stage) else None
    _, middle, name, *share = key.split(".")
    if middle != phase_of(stage) or (stage == "dense" and name in FOR_ROUTERS):
        return None
    if getattr(own_keys(recipe, stage), name, None) is not None or f"{own_place(stage)}.{name}" in searched:
        return None
    return data_search.field_of(data_of(recipe, stage), share, domain) if share else name


def own_place(stage: str) -> str:
    """Where the recipe says what the stage does differently from its phase; the seed does nothing."""
    kind, _, name = stage.partition(".")
    places = {"expert": f"domains.{name}.expert", "train": f"variants.{name}.train", "distil": stage}
    return places.get(kind, kind)


def own_keys(recipe: Recipe, stage: str) -> ExpertOverride | DenseTrain | Distil | None:
    """What it says there. The recipe may have holes."""
    kind, _, name = stage.partition(".")
    if kind == "expert":
        own = getattr((recipe.domains or {}).get(name), "expert", None)
        return own if isinstance(own, ExpertOverride) else None
    return recipe.distil.get(name) if kind == "distil" else recipe.mixture_trainings.get(stage)


def tuned_fields(recipe: Recipe, stage: str, before: str | None = None) -> dict[str, dict[str, str]]:
    """Search -> {key: field} of those whose best values the stage uses.

    before: only of searches that the recipe lists before this one (a search starts from what those before it found).
    """
    names = list(recipe.tune)
    searched = [key for search in recipe.tune.values() for key in search.search]
    found = {}
    for name in names[: names.index(before)] if before else names:
        fields = {key: field_of(recipe, stage, key, searched) for key in recipe.tune[name].search}
        if used := {key: field for key, field in fields.items() if field is not None}:
            found[name] = used
    return found


def without(recipe: Recipe, phase: Mapping[str, Any], stage: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of the stage's phase without what a search says. fields: key -> field.

    What the recipe says of a searched key has no effect, so it is in no key either.
    """
    left = {name: value for name, value in phase.items() if name not in fields.values()}
    place = f"phases.{phase_of(stage)}.data."
    of_data = {key.removeprefix(place): field for key, field in fields.items() if key.startswith(place)}
    return data_search.unsearched(data_of(recipe, stage), left, recipe.domains, stage.partition(".")[2], of_data)


def data_of(recipe: Recipe, stage: str) -> Any:
    """What the recipe says of the stage's `data`. It may have holes."""
    own = getattr(own_keys(recipe, stage), "data", None)
    return own if own is not None else getattr(getattr(recipe.phases, phase_of(stage), None), "data", None)
