"""What a mixture's attention becomes where it is made cheaper: fewer experts per token, fewer keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from bam_core.config.experts import AttentionExperts, Gate, KeysValues
from bam_core.config.model import ModelConfig
from bam_core.errors import InvalidInput, Problem

CHEAPER: dict[str, tuple[str, ...]] = {"expert": ("value_only", "shared"), "value_only": ("shared",), "shared": ()}
"""What keys and values can become by merging."""


@dataclass(frozen=True)
class Sparser:
    """What becomes of a mixture's attention experts; None is what they have. Fields as in `AttentionExperts`."""

    top_k: int | None = None
    kv: KeysValues | None = None
    gate: Gate | None = None

    @property
    def changes(self) -> dict[str, Any]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def problems(self, attention: AttentionExperts | None) -> Iterator[Problem]:
        """What cannot be made of these experts, or is what they are already."""
        if attention is None:
            yield Problem("", None, "there are no attention experts", "start from a variant that has some")
            return
        made = replace(attention, **self.changes)
        yield from (problem for problem in made.problems() if problem.path in self.changes)
        if self.top_k is not None and attention.top_k < self.top_k <= attention.n_experts:
            yield Problem("top_k", self.top_k, f"must be at most {attention.top_k}, as many as its teacher uses")
        if made.kv != attention.kv and made.kv in CHEAPER and made.kv not in CHEAPER[attention.kv]:
            known = " or ".join(CHEAPER[attention.kv]) or "left out"
            yield Problem("kv", self.kv, f"cannot be merged from kv: {attention.kv}", f"it must be {known}")
        if (made.top_k, made.kv) == (attention.top_k, attention.kv):
            how = "soft" if made.top_k == made.n_experts else f"top-{made.top_k}"
            expected = f"is {how}, kv: {made.kv}, like its teacher: no token would cost less"
            yield Problem("", None, expected, "say routing: top_k with a smaller top_k, or kv: shared")

    def config(self, model: ModelConfig) -> ModelConfig:
        """The mixture's config with these experts. Raises InvalidInput."""
        if problems := list(self.problems(model.attention)):
            raise InvalidInput("sparser attention", problems)
        assert model.attention is not None, "no attention experts"
        return replace(model, attention=replace(model.attention, **self.changes))

    def to_json(self) -> dict[str, Any]:
        return self.changes

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sparser:
        return cls(**data)
