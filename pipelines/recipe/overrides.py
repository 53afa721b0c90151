"""What one trained model does differently from `phases.mixture`: the keys of `variants.NAME.train` and of `dense`.

Types only; a key that is not given is that of `phases.mixture`. The batch is everybody's, so that all see the same rows
in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from pipelines.recipe.base import Part
from pipelines.recipe.data import Planned
from pipelines.recipe.values import Count, Number, Text

Match = Literal["data", "compute", "seconds"]
"""What variants get alike: tokens, training FLOPs, or seconds by measured paces."""
MATCHING = frozenset({"match", "match_to", "seconds_per_token"})
"""Keys of which the number of tokens follows, and no other field of a training."""


class DenseTrain(Part):
    """match, match_to: with whom it is made equal, and in what."""

    tokens: Count | None = None
    lr: Number | None = None
    warmup_frac: Number | None = None
    min_lr_frac: Number | None = None
    weight_decay: Number | None = None
    grad_clip: Number | None = None
    data: Planned | None = None
    match: Match | None = None
    match_to: Text | None = None

    def changes(self) -> dict[str, Any]:
        """The keys that are given, but for those of `MATCHING`."""
        given = {name: value for name, value in self.to_dict().items() if value is not None}
        return {name: value for name, value in given.items() if name not in MATCHING}


Dense = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[DenseTrain, Tag("train")],
    Discriminator(lambda value: "train" if isinstance(value, Mapping | DenseTrain) else "switch"),
]
"""Whether the baseline is trained, or how its training differs from `phases.mixture`."""


class VariantTrain(DenseTrain):
    """The same, and what only a model with experts has a use for."""

    load_balancing_coef: Number | None = None
    z_loss_coef: Number | None = None
    balance_rate: Number | None = None
    router_bias_frac: Number | None = None
    gumbel_rate: Number | None = None
    gumbel_min: Number | None = None
    router_lr_factor: Number | None = None
    attention_lr_factor: Number | None = None
    ffn_lr_factor: Number | None = None
    shared_lr_factor: Number | None = None
    router_freeze_frac: Number | None = None
    expert_freeze_frac: Number | None = None
    shared_freeze_frac: Number | None = None
    attention_soft_frac: Number | None = None
    collapse_stop: bool | None = None
    collapse_min_load: Number | None = None
    collapse_for_frac: Number | None = None
