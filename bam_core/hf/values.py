"""The values of an opened model: whether they are sound, and our model folder of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import MAX_SHARD_BYTES, write_model
from bam_core.errors import InvalidInput, Problem
from bam_core.hf.reading import Imported


def value_problems(imported: Imported) -> Iterator[Problem]:
    """NaN, infinity, and a stored head that is not the embedding though they are tied. Reads every tensor once."""
    yield from _tied_problems(imported)
    for name in imported.tensors.names():
        if problem := _value_problem(imported, name, imported.tensors.get(name)):
            yield problem


def _value_problem(imported: Imported, name: str, tensor: Tensor) -> Problem | None:
    if bool(tensor.sum().isfinite()):  # as it is if all are, unless the sum itself is too large
        return None
    n_nan, n_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    if not n_nan + n_inf:
        return None
    counts = " and ".join(f"{n} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "infinite")) if n)
    remedy = "its training diverged or its dtype was too narrow: take an earlier or a wider checkpoint"
    return Problem(imported.origin(name), f"{counts} of {tensor.numel()} values", "must all be finite", remedy)


def _tied_problems(imported: Imported) -> Iterator[Problem]:
    """transformers leaves such a head aside or not, depending on its version."""
    files = imported.weights.files
    for name in ("lm_head.weight", "embed_out.weight"):
        if imported.config.tie_embeddings and name in files:
            [embedding] = [theirs for link in imported.links if "embed.weight" in link.ours for theirs in link.theirs]
            file, held = files[name]
            if not torch.equal(held.get_tensor(name), files[embedding][1].get_tensor(embedding)):
                words = "must be the embedding, since tie_word_embeddings is true"
                remedy = "set tie_word_embeddings to false in config.json if the head was trained apart"
                yield Problem(f"{file}:{name}", list(held.get_slice(name).get_shape()), words, remedy)


def write_imported(
    imported: Imported,
    out: Path,
    dtype: torch.dtype | None = None,
    *,
    card: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write our model folder, one tensor at a time. dtype: None keeps what is stored.

    Norm scales that were stored less 1 are float64 here, so that the way back is exact. Raises InvalidInput for values
    that are not finite, each named, and then leaves no weights.
    """
    if problems := list(_tied_problems(imported)):
        raise InvalidInput(f"the model in {imported.folder}", problems)
    try:
        write_model(
            out,
            imported.config,
            _checked(imported, dtype),
            tokenizer=imported.tokenizer,
            card=card,
            provenance=provenance,
            max_shard_bytes=max_shard_bytes,
        )
    except InvalidInput:
        for part in out.glob("model-*.part"):
            part.unlink()
        raise


def _checked(imported: Imported, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    wide = {name for link in imported.links if link.is_wide for name in link.ours}
    problems = []
    for name in imported.tensors.names():
        tensor = imported.tensors.get(name)
        if problem := _value_problem(imported, name, tensor):
            problems.append(problem)
        yield name, tensor.to(dtype) if dtype is not None and name not in wide else tensor
    if problems:
        raise InvalidInput(f"the model in {imported.folder}", problems)
