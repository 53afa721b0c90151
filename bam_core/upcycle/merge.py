"""How one shared tensor is made from the experts' tensors of its name: a table; SLERP or TIES would be a row.

A merge takes the tensors in stacking order, the seed's first, as an iterator that reads one at a time: a
merge that needs only a running total never holds more than that and one tensor. It returns float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def mean(tensors: Iterator[Tensor]) -> Tensor:
    """Average uniformly (BAM, section 4; BTX, section 3.2).

    The total is float64, so each element is the exact mean rounded once: bf16 sources lose nothing, and the
    mean of equal tensors is that tensor, whatever their number.
    """
    total = next(tensors).to(torch.float64, copy=True)
    count = 1
    for tensor in tensors:
        total += tensor
        count += 1
        del tensor  # or it would stay alive while the iterator reads the next one
    return total.div_(count).to(torch.float32)


MERGES: dict[str, Callable[[Iterator[Tensor]], Tensor]] = {"mean": mean}
