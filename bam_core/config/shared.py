"""What attention and FFN experts share, kept per dense model and mixed per token by a router of the text so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bam_core.config.fields import booleans, choice, is_positive
from bam_core.errors import Problem

Mixed = Literal["soft", "merged"]
MIXED: tuple[str, ...] = ("soft", "merged")

HeadMixed = Literal["top1", "soft", "merged"]
HEAD_MIXED: tuple[str, ...] = ("top1", "soft", "merged")


@dataclass(frozen=True)
class SharedExperts:
    """Input embedding, norm scales and output head of every dense model, of which each position has its own mix.

    At position t, with p = softmax(router . mean over s <= t of the dense models' mean embedding of token s, at one
    length / temperature), one entry per dense model:

    embed: `soft` reads sum_e p_e E_e[token]. norms: `soft` scales by sum_e p_e w_e, in every norm of the residual
    stream (those of queries and keys are what the attention experts make of them). head: `top1` compares with the
    matrix of the most probable model; `soft` has sum_e p_e times the logits of each, at the cost of all of them.
    `merged`: one tensor for all, as without this.
    head_gradient: with `top1`, the router learns from the chosen head too, by a weight of 1 with the gradient of p_e.
    """

    embed: Mixed = "soft"
    norms: Mixed = "soft"
    head: HeadMixed = "top1"
    temperature: float = 1.0
    head_gradient: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from choice("embed", self.embed, MIXED)
        yield from choice("norms", self.norms, MIXED)
        yield from choice("head", self.head, HEAD_MIXED)
        yield from booleans(self, ("head_gradient",))
        if not is_positive(self.temperature):
            yield Problem("temperature", self.temperature, "must be a positive number", "1 is the router's own")
        if self.embed == self.norms == self.head == "merged":
            yield Problem(
                "embed", self.embed, "leaves nothing to route: norms and head are merged too", "shared: merged"
            )
        if self.head_gradient is True and self.head != "top1":
            yield Problem("head_gradient", True, f"is for head: top1; head: {self.head} has all of the gradient")
