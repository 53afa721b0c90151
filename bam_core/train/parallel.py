"""One global batch over several ranks: each takes every n-th row, gradients are summed.

The loss is normalised by the global number of tokens before the sum, so the worker count changes rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

Rows = TypeVar("Rows", NDArray[np.int64], range)


def rows_of_rank(rows: Rows, rank: int, world_size: int) -> Rows:
    """The rows that this rank computes. A rank may get one row fewer than another."""
    return rows[rank::world_size]


def micro_batches_of_rank(rows_per_batch: int, micro_batch_rows: int, world_size: int) -> int:
    """The most micro-batches that a rank needs for its rows. Where layers are gathered, all ranks run as many."""
    return ceil(ceil(rows_per_batch / world_size) / micro_batch_rows)


def same_on_all_ranks(tensor: Tensor, world_size: int) -> None:
    """Give all ranks the bits of rank 0, in place."""
    if world_size > 1:
        dist.broadcast(tensor, 0)


def sum_over_ranks(tensors: Sequence[Tensor], world_size: int) -> None:
    """Sum each tensor over all ranks, in place. Does nothing for a single rank."""
    if world_size == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
