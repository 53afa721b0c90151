"""A model whose parameters are sharded over ranks: FSDP2, layer by layer.

Each rank holds a shard of every large tensor, in master precision; before a layer runs, its tensors are gathered in
the dtype that the run computes in, and after its backward pass the gradients are summed over ranks in float32 and
sharded again. So a rank's memory for masters, moments and gradients is that of its shard, and gathered tensors are
those of one layer (and of the vocabulary).
Routers stay whole on every rank: they are never narrower than float32, and small.
Up to the order of additions a step is the one that a single rank computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from bam_core.nn.lm import FLOAT32, LM
from bam_core.train.pieces import piece_of, whole

Weights = Callable[[str], Tensor]
"""The initial values of a parameter by its name, whole."""


def shard(
    model: LM, world_size: int, device: str, compute: torch.dtype, master: torch.dtype, weights: Weights | None
) -> None:
    """Shard a model in place; the process group must be there.

    weights: of a model on the meta device, read one at a time, so no rank ever holds the whole model; None for a model
    that has its weights. As on one rank, masters start with every digit of them.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(master)
    small = {parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] in FLOAT32}
    apply = partial(
        fully_shard,
        mesh=init_device_mesh(torch.device(device).type, (world_size,)),
        mp_policy=MixedPrecisionPolicy(compute, master, cast_forward_inputs=False),
        shard_placement_fn=partial(placement, world_size=world_size),
        ignored_params=small,
    )
    for block in model.blocks:
        apply(block)
    apply(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is over the global batch: gradients are summed
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            module.set_reduce_scatter_unused_params(True, recurse=False)
    if weights is not None:
        model.to_empty(device=device)
        _fill(model, weights)
    else:
        model.to(device)


def placement(parameter: nn.Parameter, world_size: int) -> Shard:
    """Along experts where they divide evenly, so that a gather needs no copy; else along what does.

    Without it two experts on eight ranks would leave six ranks without a share. A matrix is split along its rows, as
    evenly as they go.
    """
    if parameter.ndim < 3:
        return Shard(0)
    return Shard(next((dim for dim, size in enumerate(parameter.shape) if size % world_size == 0), 0))


@torch.no_grad()
def _fill(model: LM, weights: Weights) -> None:
    for name, parameter in model.named_parameters():
        piece = piece_of(parameter.data) if isinstance(parameter.data, DTensor) else whole(parameter.data)
        own = tuple(slice(a, a + n) for a, n in zip(piece.offset, piece.tensor.shape, strict=True))
        piece.tensor.copy_(weights(name)[own])
