"""The key `evaluate.routing`: what to write down of the mixtures' routers, or `false` for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Discriminator, Tag

from bam_core.errors import Problem
from pipelines.recipe.base import TAG, Part
from pipelines.recipe.values import Count


class Routing(Part):
    """tokens: held-out tokens of each domain whose routing is listed and summed up.

    knock_out_tokens: of each domain, to score with each expert masked in turn; 0 leaves that out.
    """

    tokens: Count = 4000
    knock_out_tokens: Count = 4000


MaybeRouting = Annotated[
    Annotated[bool, Tag(f"{TAG}word")] | Annotated[Routing, Tag(f"{TAG}keys")],
    Discriminator(lambda value: f"{TAG}word" if isinstance(value, bool) else f"{TAG}keys"),
]


def routing_asked(value: bool | Routing) -> Routing | None:
    """What is asked for; None for nothing."""
    if isinstance(value, bool):
        return Routing() if value else None
    return value


def routing_problems(value: bool | Routing | None) -> Iterator[Problem]:
    """Everything wrong with the key, which may have holes."""
    if not isinstance(value, Routing):
        return
    if value.tokens is not None and value.tokens < 1:
        yield Problem("evaluate.routing.tokens", value.tokens, "must be at least 1", "or write evaluate.routing: false")
    if value.knock_out_tokens is not None and value.knock_out_tokens < 0:
        yield Problem("evaluate.routing.knock_out_tokens", value.knock_out_tokens, "must be at least 0", "0 for none")
