"""How the layers of a model are run in training: computed again in the backward pass, compiled. Values stay."""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from bam_core.errors import UsageError
from bam_core.nn.lm import LM


def recompute_activations(model: LM) -> None:
    """Keep each layer's input alone, and compute the rest again in the backward pass: memory for a third more time.

    No layer consumes random numbers, so what is computed again is the same, bit for bit.
    """
    for block in model.blocks:
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = again


def compile_layers(model: LM, device: str) -> None:
    """Let torch.compile fuse each layer, once for all layers of one form. Rounding changes: fused products round less.

    Inside the hooks that gather a layer's shards, so it composes with `sharded`.
    Raises UsageError if the compiler that torch calls is not there.
    """
    names = [os.environ.get("CXX", "g++")] if device == "cpu" else [os.environ.get("CC", ""), "gcc", "clang"]
    if not any(shutil.which(name) for name in names if name):
        raise UsageError(
            f"runtime.compile: torch.compile needs a compiler ({', '.join(filter(None, names))}) where the training "
            "runs; install one there, or leave compile out"
        )
    for block in model.blocks:
        block.forward = torch.compile(block.forward)
