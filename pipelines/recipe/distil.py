"""The section `distil`: a trained variant with cheaper attention, which learns from itself as it was.

    distil:
      bam_top1: {from: bam, attention: {routing: top_k, top_k: 1}, tokens: 200k}
      bam_shared: {from: bam, attention: {kv: shared}, tokens: 200k, kl: 0.9, temperature: 2}

Types and defaults; what must hold is in `distil_checks.py`, what it means in `bam_core.config`:
`Distillation` and `Sparser`.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import ConfigDict, Field

from bam_core.config import Distillation, Gate, KeysValues, Sparser
from pipelines.recipe.base import Part
from pipelines.recipe.data import Planned
from pipelines.recipe.plugged import GateName
from pipelines.recipe.values import Count, Number, Text


class CheaperAttention(Part):
    """What the attention becomes; a key that is not given is what the variant has."""

    routing: Literal["soft", "top_k"] | None = None
    top_k: Count | None = None
    kv: KeysValues | None = None
    gate: GateName | None = None


class Distil(Part):
    """from: the variant that is teacher and start. tokens: of this training; the batch is that of `phases.mixture`.

    kl, temperature, gate: the loss, as in `bam_core.config.Distillation`. attention_soft_frac: fraction of the steps
    over which a top-k gate goes from soft to itself. Any other key that is not given is that of `phases.mixture`.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    source: Text = Field(alias="from")
    attention: CheaperAttention
    tokens: Count
    lr: Number | None = None
    warmup_frac: Number | None = None
    min_lr_frac: Number | None = None
    weight_decay: Number | None = None
    grad_clip: Number | None = None
    data: Planned | None = None
    load_balancing_coef: Number | None = None
    attention_soft_frac: Number = 0.0
    kl: Number = 0.5
    temperature: Number = 1.0
    gate: Number = 0.0

    def changes(self) -> dict[str, Any]:
        """The keys that are given in place of those of `phases.mixture`."""
        values = {name: value for name, value in self.to_dict().items() if name not in OF_THE_LOSS}
        return {name: value for name, value in values.items() if value is not None}

    def loss(self) -> Distillation:
        return Distillation(self.kl, self.temperature, self.gate)

    def sparser(self) -> Sparser:
        """What the attention becomes. `routing: soft` is the top_k of every token that the variant has."""
        spec = self.attention
        gate = cast(Gate | None, spec.gate)  # or a plug-in's name
        return Sparser(spec.top_k if spec.routing != "soft" else None, spec.kv, gate)


OF_THE_LOSS = frozenset({"source", "attention", "kl", "temperature", "gate"})
"""Keys that are no fields of a phase."""
