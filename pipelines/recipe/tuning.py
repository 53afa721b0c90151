"""Which keys of a recipe can be searched, and which field of which stage's training each of them sets.

`phases.expert.lr` is the field `lr` of every `expert.<domain>` whose domain does not say its own; `own` of
`phases.expert.data` is the field `shares.<domain>`. Pure arithmetic on names: no value is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.recipe.parts import ExpertOverride, ExpertPhase, MixturePhase, Phase, SeedPhase
from pipelines.recipe.schema import Recipe
from pipelines.recipe.values import Count, Number

PHASES: dict[str, type[Phase]] = {"seed": SeedPhase, "expert": ExpertPhase, "mixture": MixturePhase}
ONLY_PHASES = "only numbers of phases and of domains.NAME.expert can be searched"
FOR_ROUTERS = frozenset(MixturePhase.model_fields) - frozenset(Phase.model_fields) - {"data", "match"}
"""A dense model has no use for them."""
REFUSED = {
    "tokens": "more tokens always look better: `tokens` of the search says what a trial costs",
    "data": "search one share at a time, such as phases.expert.data.own",
}


def trained_stages(recipe: Recipe) -> list[str]:
    """The stages whose training can be tried. The recipe may have holes."""
    experts = [f"expert.{domain}" for domain in _with_trained_expert(recipe)]
    variants = [f"train.{name}" for name in recipe.variants or ()]
    return ["seed", *experts, *variants, *(["dense"] if recipe.dense else [])]


def _with_trained_expert(recipe: Recipe) -> list[str]:
    return [domain for domain in list(recipe.domains or ())[1:] if domain not in recipe.adopted]


def phase_of(stage: str) -> str:
    """`seed`, `expert` or `mixture`."""
    kind = stage.partition(".")[0]
    return kind if kind in ("seed", "expert") else "mixture"


def why_not(recipe: Recipe, key: str) -> str | None:
    """Why a key cannot be searched, or None if it can."""
    parts = key.split(".")
    if parts[0] == "phases" and len(parts) >= 3 and parts[1] in PHASES:
        model, name, share = PHASES[parts[1]], parts[2], parts[3:]
        if name == "data" and len(share) == 1:
            names = {*(recipe.domains or ()), *(["own"] if parts[1] == "expert" else [])}
            return None if share[0] in names else f"{share[0]!r} is not a domain"
    elif parts[0] == "domains" and len(parts) == 4 and parts[2] == "expert":
        model, name, share = ExpertOverride, parts[3], []
        if parts[1] not in _with_trained_expert(recipe):
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
    kind, _, domain = stage.partition(".")
    group, middle, name, *share = key.split(".")
    if group == "domains":
        return share[0] if kind == "expert" and middle == domain else None
    if middle != phase_of(stage) or (stage == "dense" and name in FOR_ROUTERS):
        return None
    if share:
        return f"shares.{domain if share[0] == 'own' else share[0]}"
    if kind == "expert" and name in ExpertOverride.model_fields:
        own = getattr(recipe.domains[domain], "expert", None)
        if getattr(own, name, None) is not None or f"domains.{domain}.expert.{name}" in searched:
            return None
    return name


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
    own: dict[str, float] = {}
    data = getattr(recipe.phases, phase_of(stage)).data
    shares = dict.fromkeys(recipe.domains, 1 / len(recipe.domains)) if isinstance(data, str) else data
    for name, share in shares.items():
        if f"phases.{phase_of(stage)}.data.{name}" not in fields:
            domain = stage.partition(".")[2] if name == "own" else name
            own[domain] = own.get(domain, 0.0) + share
    searched = any(field.startswith("shares.") for field in fields.values())
    return left | {"shares": dict(sorted(own.items()))} if searched else left
