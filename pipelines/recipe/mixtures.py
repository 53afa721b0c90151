"""The keys under `variants`: how the dense experts become one model.

Types and defaults only, those of `bam_core.upcycle.variants`, which says what they mean and what must hold between
them; a test compares the two. Two defaults differ: routers start from text, and the gates make up for their sum. The
core's are the paper's, and need no text; these were better in every run that we measured (docs/log.md).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from bam_core.config import KeysValues
from pipelines.recipe.base import Named, Part
from pipelines.recipe.overrides import VariantTrain
from pipelines.recipe.plugged import GateName, MergeName
from pipelines.recipe.values import Count, Number, Text


def _word_or(other: str) -> Discriminator:
    """Chooses between a word and a group of keys (or a list), so that an error speaks of the one that was meant."""
    return Discriminator(lambda value: "word" if isinstance(value, str) else other)


Experts = Annotated[
    Annotated[Literal["per-domain", "random"], Tag("word")] | Annotated[list[Text], Tag("names")],
    _word_or("names"),
]


class AttentionVariant(Part):
    """A mixture of attention: `soft` uses every expert, `top_k` the best `top_k`."""

    experts: Experts = "per-domain"
    routing: Literal["soft", "top_k"] = "soft"
    top_k: Count | None = None
    kv: KeysValues = "expert"
    gate: GateName = "softmax_topk"
    layers: list[Count] | None = None
    dense_router_gradient: bool = False


class FFNVariant(Part):
    """FFN experts, of which each token uses `top_k`, or with `soft` all."""

    experts: Experts = "per-domain"
    routing: Literal["top_k", "soft"] = "top_k"
    top_k: Count = 1
    gate: GateName = "softmax_topk"
    scale: Literal["none", "gate", "experts", "weights"] = "gate"
    shared_expert: bool = False
    layers: list[Count] | None = None
    soft_layers: list[Count] = Field(default=[])
    split: Count = 1
    capacity_factor: Number | None = None
    balance: Literal["loss", "bias"] = "loss"
    dense_router_gradient: bool = False


class MergeVariant(Part):
    """How tensors that are no experts become one. weights: with `weighted`, of each domain's model."""

    method: MergeName = "mean"
    weights: Named[Number] = Field(default={})
    density: Number = 0.2
    drop: Number = 0.5


class SharedVariant(Part):
    """What experts share, kept of every dense model and mixed at each position by a router of the text so far."""

    embed: Literal["soft", "merged"] = "soft"
    norms: Literal["soft", "merged"] = "soft"
    head: Literal["top1", "soft", "merged"] = "top1"
    temperature: Number = 1.0
    head_gradient: bool = False


Merged = Annotated[Literal["merged"], Tag("word")]
_train_or_not = Discriminator(lambda value: "word" if isinstance(value, bool) else "keys")


class Variant(Part):
    """How the dense experts become one model; a `merged` part of them becomes one by `merge`.

    train: how its training differs from `phases.mixture`. like: the plug-in's variant that it was read from, if any
    (what is like another variant of the recipe is written out).
    """

    attention: Annotated[Merged | Annotated[AttentionVariant, Tag("experts")], _word_or("experts")]
    ffn: Annotated[Merged | Annotated[FFNVariant, Tag("experts")], _word_or("experts")]
    router_init: Literal["random", "zero", "orthogonal", "centroid", "ridge"] = "centroid"
    router_std: Number = 0.02
    merge: Annotated[Annotated[MergeName, Tag("word")] | Annotated[MergeVariant, Tag("keys")], _word_or("keys")] = (
        "mean"
    )
    shared: Annotated[
        Annotated[Literal["merged", "routed"], Tag("word")] | Annotated[SharedVariant, Tag("keys")], _word_or("keys")
    ] = "merged"
    router_input: Literal["token", "text"] = "token"
    train: Annotated[Annotated[bool, Tag("word")] | Annotated[VariantTrain, Tag("keys")], _train_or_not] | None = None
    like: Text | None = None

    def spec(self) -> dict[str, Any]:
        """As `bam_core.upcycle.variants.Variant.from_json` reads it, without the name."""
        found = self.model_dump(exclude_none=True, exclude={"train", "like"})
        return found | {"merge": {"method": self.merge}} if isinstance(self.merge, str) else found
