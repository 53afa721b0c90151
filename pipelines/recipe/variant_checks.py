"""What must hold between the keys of `variants`: all that `bam_core` says of a variant, each at its key.

The core says it in two steps: of a variant alone (`Variant.problems`), then with the dense models (`mixture_config`).
Each part is asked by itself, so that a mistake in one does not hide one in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from bam_core.config import ModelConfig, SharedExperts
from bam_core.errors import InvalidInput, Problem
from bam_core.upcycle.specs import MergeMethod
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, MergeSpec, mixture_config
from bam_core.upcycle.variants import Variant as CoreVariant
from pipelines.recipe import mixtures
from pipelines.recipe.base import Part, maybe
from pipelines.recipe.document import join
from pipelines.recipe.schema import Recipe

ANY_SIZE = 2**40
"""Stands in for a size that is itself wrong: it is divided by every split of a power of two, and has every layer."""


def variant_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with the variants of a recipe that may have holes."""
    if maybe(recipe.variants) is None:
        return
    if not recipe.variants:
        yield Problem("variants", {}, "must describe at least one mixture")
    models, dense = list(recipe.domains or ()), _dense(recipe)
    for name, part in recipe.variants.items():
        if part is not None:
            found = _problems(_core(name, part), part, models, dense)
            yield from (problem.under(join("variants", name)) for problem in found)


def _problems(
    variant: CoreVariant, part: mixtures.Variant, models: Sequence[str], dense: ModelConfig
) -> Iterator[Problem]:
    yield from variant.problems()
    if not models:
        return
    soup = CoreVariant(variant.name, "merged", "merged")
    sound = {name: _sound(getattr(variant, name), getattr(part, name)) for name in ("attention", "ffn", "merge")}
    if not isinstance(sound["ffn"], str):  # a scale fits any model, and would be worked out for every layer
        sound["ffn"] = replace(sound["ffn"], scale="none")
    routers = {"router_init": variant.router_init, "router_std": variant.router_std}
    for changes in (*({name: value} for name, value in sound.items()), routers):
        asked = replace(soup, **changes)
        if not list(asked.problems()):
            try:
                mixture_config(dense, models, asked)
            except InvalidInput as error:
                yield from error.problems


def _sound(spec: Any, part: Any) -> Any:
    """A part of a variant with what is wrong in it at its default, so that the rest can be asked about."""
    if isinstance(spec, str):
        return spec
    wrong = {problem.path.split(".")[0] for problem in spec.problems()}
    wrong |= {"routing"} if "top_k" in wrong else set()
    wrong |= {"routing", "top_k"} if getattr(part, "experts", "") is None else set()  # how many there are is not known
    default = type(spec)()
    reset = replace(spec, **{name: getattr(default, name) for name in wrong})
    return default if list(reset.problems()) else reset


def _core(name: str, part: mixtures.Variant) -> CoreVariant:
    """The variant with defaults in its holes."""
    return CoreVariant(
        name,
        AttentionSpec(**_known(part.attention, AttentionSpec)) if isinstance(part.attention, Part) else "merged",
        FFNSpec(**_known(part.ffn, FFNSpec)) if isinstance(part.ffn, Part) else "merged",
        merge=MergeSpec(**_known(part.merge, MergeSpec))
        if isinstance(part.merge, Part)
        else MergeSpec(cast(MergeMethod, part.merge or "mean")),  # or a plug-in's name
        shared=_shared(part.shared),
        **{key: value for key in ("router_init", "router_std") if (value := getattr(part, key)) is not None},
    )


def _shared(part: Any) -> Any:
    if isinstance(part, Part):
        return SharedExperts(**_known(part, SharedExperts))
    return SharedExperts() if part == "routed" else "merged"


def _known(part: Part, spec: type) -> Mapping[str, Any]:
    values = {field.name: getattr(part, field.name) for field in fields(spec)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _dense(recipe: Recipe) -> ModelConfig:
    """What a variant needs to know of the dense model, with stand-ins for what is wrong."""

    shape = recipe.imports.seed.config if recipe.imports is not None else recipe.model

    def size(name: str, stand_in: int) -> int:
        value = getattr(shape, name, None)
        return value if value is not None and value >= 1 else stand_in

    width = size("d_model", 2)
    return ModelConfig(
        vocab_size=1,
        d_model=width + width % 2,
        n_layers=size("n_layers", ANY_SIZE),
        n_heads=1,
        n_kv_heads=1,
        d_ff=size("d_ff", ANY_SIZE),
        max_seq_len=1,
    )
