"""Whether dense models can be mixed: one config, and tensors that are all there and finite.

Each difference is named with the field, both values and what to do. Nothing is read that a name or a shape already
rules out; values are read one tensor at a time. Imports no torch: planning checks configs too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from bam_core.config import ModelConfig
from bam_core.errors import Problem, nearest
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.pieces import pieces

if TYPE_CHECKING:
    from torch import Tensor

    from bam_core.checkpoint import TensorSource

REMEDIES = {
    "vocab_size": "train all from one seed with one tokenizer",
    "max_seq_len": "train all with one context length",
    "layout_version": "write both with one version of bam",
}
RETRAIN = "train it again from the seed, or leave it out"
"""Positions, norms and wiring are learned around: no conversion of the weights undoes another setting."""


PARTS_OF_MIXTURES = ("attention", "ffn", "experts", "shared")


def config_problems(configs: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Fields in which an expert differs from the first, and mixtures given as experts."""
    first, *others = configs
    seed = configs[first]
    for expert, config in configs.items():
        if config.is_mixture:
            made_of = ", ".join(config.experts)
            remedy = "give the models it was made from, or extract one: bam expert extract"
            yield Problem(expert, f"a mixture of {made_of}", "must be a dense model", remedy)
    dense = [field.name for field in fields(ModelConfig) if field.name not in PARTS_OF_MIXTURES]
    for expert in others:
        for name in dense:
            value, wanted = getattr(configs[expert], name), getattr(seed, name)
            if value != wanted:
                yield Problem(
                    f"{expert}.{name}", value, f"must be as in {first}, {wanted!r}", REMEDIES.get(name, RETRAIN)
                )


def expert_problems(configs: Mapping[str, ModelConfig], sources: Mapping[str, TensorSource]) -> Iterator[Problem]:
    """Everything that keeps these dense models from being mixed. configs, sources: expert -> its own, seed first.

    Reads every tensor once, one at a time, and only of models whose names and shapes are right.
    """
    yield from config_problems(configs)
    for expert, source in sources.items():
        wrong = [problem.under(expert) for problem in _layout_problems(configs[expert], source)]
        yield from wrong
        if not wrong:
            for name in source.names():
                if problem := value_problem(expert, name, source.get(name)):
                    yield problem


def _layout_problems(config: ModelConfig, source: TensorSource) -> Iterator[Problem]:
    wanted = tensor_shapes(config)
    held = source.names()
    for name, count in Counter(held).items():
        if count > 1:
            yield Problem(name, f"{count} times", "must be there once", "write the checkpoint again")
        if name not in wanted:
            remedy = f"remove it, or merge an adapter into the weights first; {nearest(name, wanted)}"
            yield Problem(name, list(source.shape(name)), "is no tensor of this config; it would be lost", remedy)
        elif source.shape(name) != wanted[name]:
            remedy = "write the checkpoint again, or correct its config.json"
            yield Problem(name, list(source.shape(name)), f"must be {list(wanted[name])}", remedy)
    for name in wanted:
        if name not in held:
            yield Problem(name, None, f"is missing; must be {list(wanted[name])}", "write the checkpoint again")


def value_problem(expert: str, name: str, tensor: Tensor) -> Problem | None:
    """NaN and infinity in a tensor, or None."""
    n_nan = n_inf = 0
    for part in pieces(tensor):
        if not part.sum().isfinite():  # which it is if all are, unless the sum itself is too large
            n_nan += int(part.isnan().sum())
            n_inf += int(part.isinf().sum())
    if not n_nan + n_inf:
        return None
    counts = " and ".join(f"{n} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "infinite")) if n)
    remedy = "its training diverged: take an earlier checkpoint, or train it again with a lower learning rate"
    return Problem(f"{expert}.{name}", f"{counts} of {tensor.numel()} values", "must all be finite", remedy)
