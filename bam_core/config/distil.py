"""What a distillation minimises beside the likelihood of the next token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from bam_core.config.fields import identity, is_positive
from bam_core.errors import InvalidInput, Problem


@dataclass(frozen=True)
class Distillation:
    """The loss per token is (1 - kl) nll + kl T^2 KL(teacher || student) + gate KL(teacher's gates || student's).

    The first divergence is of the next token's probabilities, both models' logits divided by the temperature T; the
    factor T^2 keeps its gradient as large as that of T = 1 (Hinton et al. 2015, section 2). The second one is that of
    the attention routers' probabilities, as a mean over the layers that have one; 0 leaves it out.
    """

    kl: float = 0.5
    temperature: float = 1.0
    gate: float = 0.0

    def problems(self) -> Iterator[Problem]:
        if not 0 <= self.kl <= 1:
            yield Problem("kl", self.kl, "must be between 0 and 1: the rest is the likelihood of the text")
        if not is_positive(self.temperature):
            yield Problem(
                "temperature", self.temperature, "must be a positive number", "1 leaves both models as they are"
            )
        if not (isfinite(self.gate) and self.gate >= 0):
            yield Problem("gate", self.gate, "must be 0 or more")

    def identity(self) -> dict[str, Any]:
        """What a key is made of: what is not at its default. `from_json` reads it."""
        return identity(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "distillation") -> Distillation:
        made = cls(**data)
        if problems := list(made.problems()):
            raise InvalidInput(where, problems)
        return made
