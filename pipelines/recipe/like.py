"""`like` of a variant: the keys of another one, and what this one says laid over them. Resolved before any check.

The other one is of the same recipe, or a plug-in's: then `like` stays, to say where the keys came from.

variants:
  bam: {attention: {kv: expert}, ffn: {top_k: 1}}
  bam_cm: {like: bam, train: {match: compute, match_to: btx}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bam_core import plugins
from bam_core.errors import Problem, UsageError, nearest
from bam_core.upcycle.presets import variant_keys
from pipelines.recipe.document import join
from pipelines.recipe.layers import is_under, laid

LIKE = "like"
STAND_INS = {"attention": "merged", "ffn": "merged"}
"""For what a variant lacks because its `like` is wrong: one mistake is named once."""


def resolve_likes(document: dict[str, Any]) -> tuple[list[Problem], dict[str, str]]:
    """Write every `like` of `variants` out, in place. Returns what cannot be meant, and name -> whom it is like."""
    variants = document.get("variants")
    if not isinstance(variants, dict):
        return [], {}
    asked = {name: v[LIKE] for name, v in variants.items() if isinstance(v, Mapping) and LIKE in v}
    problems = [problem for name in asked for problem in _problems(name, asked, variants)]
    wrong = {problem.path for problem in problems}
    bases = {name: base for name, base in asked.items() if join("variants", name) + f".{LIKE}" not in wrong}
    document["variants"] = {name: _written(name, bases, variants) for name in variants}
    return problems, bases


def _problems(name: str, asked: Mapping[str, Any], variants: Mapping[str, Any]) -> Iterable[Problem]:
    here, base = join("variants", name) + f".{LIKE}", asked[name]
    if not isinstance(base, str):
        yield Problem(here, base, "must be the name of another variant")
    elif plugins.is_plugin_name(base):
        try:
            variant_keys(base)
        except UsageError as error:
            yield Problem(here, base, f"cannot be used: {error}")
    elif base not in variants:
        yield Problem(here, base, "is not a variant", nearest(base, [other for other in variants if other != name]))
    else:
        chain = [name]
        while isinstance(base, str) and base in asked and base not in chain:
            chain.append(base)
            base = asked[base]
        if base == name:
            words = f"leads back to itself: {' -> '.join([*chain, name])}"
            yield Problem(here, asked[name], words, "write the keys of one of them out")


def _written(name: str, bases: Mapping[str, str], variants: Mapping[str, Any]) -> Any:
    """bases: those that can be meant, so no chain of them leads back to itself."""
    variant = variants[name]
    if not isinstance(variant, Mapping) or LIKE not in variant:
        return variant
    if name in bases and plugins.is_plugin_name(bases[name]):
        return laid(_as_read(variant_keys(bases[name])), dict(variant))
    own = {key: value for key, value in variant.items() if key != LIKE}
    lower = _written(bases[name], bases, variants) if name in bases else None
    return laid(lower, own) if isinstance(lower, Mapping) else STAND_INS | own


def _as_read(value: Any) -> Any:
    """As a recipe's file would give it."""
    if isinstance(value, Mapping):
        return {key: _as_read(part) for key, part in value.items()}
    return [_as_read(part) for part in value] if isinstance(value, list | tuple) else value


def said_once(problems: Iterable[Problem], bases: Mapping[str, str]) -> list[Problem]:
    """Without those that a variant has only because the one that it is like has them."""
    found = list(problems)

    def is_inherited(problem: Problem) -> bool:
        for name, base in bases.items():
            own = join("variants", name)
            if is_under(problem.path, own):
                return replace(problem, path=join("variants", base) + problem.path[len(own) :]) in found
        return False

    return [problem for problem in found if not is_inherited(problem)]
