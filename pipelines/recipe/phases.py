"""The phases of training: the seed, the experts, the mixture; what a recipe says of each, with types and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from pipelines.recipe.base import IMPORT, TAG, Named, Part, is_import
from pipelines.recipe.data import Planned, PlannedForExpert
from pipelines.recipe.overrides import Match
from pipelines.recipe.values import Count, Dtype, Number, Text


class Phase(Part):
    """What all phases have: each says which of the first three it needs. `data` is in `data.py`."""

    tokens: Count | None
    batch_tokens: Count | None
    lr: Number | None
    warmup_frac: Number = 0.02
    min_lr_frac: Number = 0.1
    weight_decay: Number = 0.1
    grad_clip: Number = 1.0
    dtype: Dtype = "bf16"
    data: Any


class TrainedPhase(Phase):
    """One phase of training. tokens, batch_tokens: predicted tokens; the batch is the global one."""

    tokens: Count
    batch_tokens: Count
    lr: Number


class SeedPhase(TrainedPhase):
    data: Planned = "uniform"


class ImportedSeed(Phase):
    """A seed that is there: a folder, or an id of the hub. With `tokens` it is trained on from there."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Text = Field(alias=IMPORT)
    revision: Text | None = None
    tokens: Count | None = None
    batch_tokens: Count | None = None
    lr: Number | None = None
    data: Planned = "uniform"


FROM = frozenset({"source", "revision"})
"""Keys of an imported seed that are no fields of its training."""

Seed = Annotated[
    Annotated[ImportedSeed, Tag(f"{TAG}import")] | Annotated[SeedPhase, Tag(f"{TAG}trained")],
    Discriminator(lambda value: f"{TAG}import" if is_import(value, ImportedSeed) else f"{TAG}trained"),
]


class ExpertPhase(TrainedPhase):
    """In `data`, `own` stands for the expert's own domain."""

    data: PlannedForExpert = Field(default={"own": 1.0})


class MixtureKeys(Phase):
    """What a phase says by which mixtures are trained, and one by which most are not."""

    data: Planned = "uniform"
    match: Match = "data"
    match_to: Text | None = None
    seconds_per_token: Named[Number] = Field(default={})
    load_balancing_coef: Number = 0.01
    z_loss_coef: Number = 0.001
    balance_rate: Number = 1e-3
    router_bias_frac: Number = 0.5
    gumbel_rate: Number = 1e-4
    gumbel_min: Number = 0.5
    router_lr_factor: Number = 1.0
    attention_lr_factor: Number = 1.0
    ffn_lr_factor: Number = 1.0
    shared_lr_factor: Number = 1.0
    router_freeze_frac: Number = 0.0
    expert_freeze_frac: Number = 0.0
    shared_freeze_frac: Number = 0.0
    attention_soft_frac: Number = 0.0
    collapse_stop: bool = False
    collapse_min_load: Number = 0.01
    collapse_for_frac: Number = 0.1


class MixturePhase(MixtureKeys):
    """match: train variants on the same `data` (tokens), or on tokens that cost the same compute, or the same seconds.

    match_to: the variant whose compute or seconds it is, the cheapest by default. seconds_per_token: of variants and of
    `dense`, as measured by `bam pace`.

    From `balance_rate` on they are for variants that have such a part: see `bam_core.config.TrainConfig`.
    """

    tokens: Count
    batch_tokens: Count
    lr: Number


class NoMixturePhase(MixtureKeys):
    """`tokens: 0`: mixtures are left as they are mixed, but for variants that say `train: {tokens: ...}`."""

    tokens: Annotated[Count, WithJsonSchema({"const": 0})]
    batch_tokens: Count | None = None
    lr: Number | None = None


def _trains(value: Any) -> bool:
    tokens = value.get("tokens") if isinstance(value, Mapping) else getattr(value, "tokens", None)
    return isinstance(tokens, bool) or tokens not in (0, "0")


Mixture = Annotated[
    Annotated[NoMixturePhase, Tag(f"{TAG}none")] | Annotated[MixturePhase, Tag(f"{TAG}trained")],
    Discriminator(lambda value: f"{TAG}trained" if _trains(value) else f"{TAG}none"),
]


class Phases(Part):
    """seq_len: tokens of a row of text, at most `max_seq_len`. A phase that nothing is trained by may be left out."""

    seed: Seed
    expert: ExpertPhase | None = None
    mixture: Mixture | None = None
    seq_len: Count | None = None
