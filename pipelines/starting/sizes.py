"""Models to begin with. Shapes and learning rates are starting points: `tiny` is the quickstart's and is measured
(README), the others scale it as GPT-2 and GPT-3 do (width over depth; a lower rate for a wider model)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """vocab_size, row, tokens: the most; less where there is little text. row: of tokens, and the model's context.

    tokens, lr: of the seed's training; experts and mixtures take half of each.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    row: int
    vocab_size: int
    tokens: int
    batch_tokens: int
    lr: str
    lr_after: str
    micro_batch_rows: int
    words: str


SIZES = {
    "tiny": Size(128, 4, 4, 352, 256, 4096, 2_000_000, 4096, "2e-3", "1e-3", 4, "a first look, on a machine's cores"),
    "small": Size(384, 8, 6, 1024, 512, 16_384, 50_000_000, 16_384, "1e-3", "5e-4", 8, "for a GPU"),
    "medium": Size(768, 12, 12, 2048, 1024, 32_768, 2_000_000_000, 131_072, "6e-4", "3e-4", 8, "for large GPUs"),
}


@dataclass(frozen=True)
class SeedModel:
    """A checkpoint to start from. source: as the recipe names it. context: tokens that it reads at most."""

    source: str
    family: str
    params: int
    context: int


IMPORTED = Size(0, 0, 0, 0, 512, 0, 5_000_000, 16_384, "1e-4", "1e-4", 8, "")
"""How a model that is there is trained on. Its experts and mixtures take all of `tokens`: no seed is trained."""
