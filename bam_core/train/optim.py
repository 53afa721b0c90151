"""AdamW on float32 master weights, with clipping by the norm of the whole gradient.

The masters of parameters that every rank holds lie in two flat buffers (decayed, not decayed): clipping is one norm,
the update one fused kernel per group, reduction over ranks one message - whatever the number of parameters. The model
itself holds working copies in its own dtype (bf16 products are several times faster), refreshed from the masters after
each step. Parameters that are sharded over ranks (`sharded`) are their own masters; FSDP gathers working copies of
them, and adds up their gradients.
Invariant: the masters and moments are the truth; the working copies are their rounding. Parameters that are not trained
(biases of routers) have no master: the model's own are the truth, and are saved and written with the masters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from bam_core.config import TrainConfig
from bam_core.train.parts import lr_factor, part_of
from bam_core.train.pieces import Piece, is_sharded, piece_of, whole

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOMENTS = ("exp_avg", "exp_avg_sq")
EPS = 1e-8
"""Of AdamW; the paper names none, this is the usual one."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0): linear warm-up from lr/n to lr, then cosine to `min_lr_frac * lr`.

    The paper's shape (BAM, section 5: warm-up, then cosine to 10%); the last step reaches the floor.
    """
    n_warmup = max(1, round(config.warmup_frac * config.n_steps))
    if step < n_warmup:
        return config.lr * (step + 1) / n_warmup
    progress = (step - n_warmup + 1) / max(1, config.n_steps - n_warmup)
    floor = config.min_lr_frac
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + cos(pi * min(1.0, progress))))


def decays(name: str, param: nn.Parameter) -> bool:
    """Whether weight decay pulls at a parameter: at matrices, not at norms and biases, of which an expert each makes a
    matrix."""
    last = name.rpartition(".")[2]
    is_bias = last == "bias" or last.startswith("b_")
    return param.ndim >= 2 and not is_bias and not name.removesuffix(".weight").endswith("norm")


class FlatGroup:
    """Parameters of one weight-decay setting as one master vector. Views keep the parameters' shapes."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], dtype: torch.dtype) -> None:
        self.names = [name for name, _ in named]
        self.params = [param for _, param in named]
        self._sizes = [param.numel() for param in self.params]
        device = self.params[0].device
        self.master = torch.empty(sum(self._sizes), dtype=dtype, device=device)
        self.grad = torch.empty_like(self.master)
        self._is_clear = True
        self.master_views = self._views(self.master)
        self.grad_views = self._views(self.grad)
        for view, param in zip(self.master_views, self.params, strict=True):
            view.copy_(param.detach())
        self.trained = [self.master]

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [view.view_as(p) for view, p in zip(torch.split(flat, self._sizes), self.params, strict=True)]

    def accumulate(self) -> None:
        """Move the parameters' gradients of one micro-batch into the master gradient, in master precision.

        The first micro-batch overwrites: to clear and add would be two more passes over memory.
        """
        for view, param in zip(self.grad_views, self.params, strict=True):
            if param.grad is None:
                if self._is_clear:
                    view.zero_()
            elif self._is_clear:
                view.copy_(param.grad)
            else:
                view.add_(param.grad)
            param.grad = None
        self._is_clear = False

    def take_gradients(self) -> list[Tensor]:
        """Of each of `trained` its gradient."""
        return [self.gradient()]

    def gradient(self) -> Tensor:
        """What has been accumulated: zero on a rank without rows."""
        if self._is_clear:
            self.grad.zero_()
            self._is_clear = False
        return self.grad

    def refresh(self) -> None:
        """Round the masters into the model's working copies, and clear the gradient."""
        for view, param in zip(self.master_views, self.params, strict=True):
            param.detach().copy_(view)
        self._is_clear = True

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        yield from zip(self.names, self.master_views, strict=True)

    def pieces(self, of_trained: Sequence[Tensor]) -> Iterator[tuple[str, Piece]]:
        """Name what lies as `trained` does: the masters themselves, or a moment of each."""
        (flat,) = of_trained
        for name, view in zip(self.names, self._views(flat), strict=True):
            yield name, whole(view)


class ShardGroup:
    """Parameters of one weight-decay setting of which this rank holds a shard each, in master precision."""

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self.names = [name for name, _ in named]
        self.params = [param for _, param in named]
        self._places = [piece_of(_sharded(param.data)) for param in self.params]
        self.trained = [piece.tensor for piece in self._places]

    def accumulate(self) -> None:
        """Nothing to do: the backward pass has added the gradient of all ranks to each shard's, in float32."""

    def take_gradients(self) -> list[Tensor]:
        """Of each of `trained` its gradient, which it also keeps, for the norm."""
        gradients = []
        for shard, param in zip(self.trained, self.params, strict=True):
            shard.grad = torch.zeros_like(shard) if param.grad is None else _sharded(param.grad).to_local()
            gradients.append(shard.grad)
        return gradients

    def refresh(self) -> None:
        """Clear the gradients; FSDP rounds the shards whenever it gathers them."""
        for shard, param in zip(self.trained, self.params, strict=True):
            shard.grad = param.grad = None

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter whole, one at a time: every rank must take all of them."""
        for name, param in zip(self.names, self.params, strict=True):
            yield name, _sharded(param.detach()).full_tensor()

    def pieces(self, of_trained: Sequence[Tensor]) -> Iterator[tuple[str, Piece]]:
        """Name what lies as `trained` does: the masters themselves, or a moment of each."""
        for name, place, tensor in zip(self.names, self._places, of_trained, strict=True):
            yield name, Piece(tensor, place.offset, place.shape)


def _sharded(tensor: Tensor) -> DTensor:
    assert is_sharded(tensor), f"{type(tensor).__name__}, not a DTensor"
    return tensor


@dataclass(frozen=True)
class _State:
    """What AdamW remembers of a tensor. step: how many it has seen; on the tensor's device, for the fused kernel."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _State:
        step = torch.zeros((), dtype=torch.float32, device=tensor.device)
        return cls(step, torch.zeros_like(tensor), torch.zeros_like(tensor))


class Optimizer:
    """AdamW with global-norm clipping over the master weights of a model (decoupled decay, see `decays`)."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        held: list[tuple[str, nn.Parameter]] = []
        sharded: list[tuple[str, nn.Parameter]] = []
        for name, param in model.named_parameters():
            if param.requires_grad:
                (sharded if is_sharded(param) else held).append((name, param))
        self.config = config
        self.flat = [FlatGroup(named, master_dtype(config)) for named in _groups(held, config)]
        self.sharded = [ShardGroup(named) for named in _groups(sharded, config)]
        self.groups: list[FlatGroup | ShardGroup] = [*self.flat, *self.sharded]
        self.untrained = {name: param for name, param in model.named_parameters() if not param.requires_grad}
        self.start_biases = {
            name: param.detach().clone() for name, param in self.untrained.items() if name.endswith("router_bias")
        }
        self._decay = [config.weight_decay if decays(group.names[0], group.params[0]) else 0.0 for group in self.groups]
        self._parts = [part_of(group.names[0], group.params[0]) for group in self.groups]
        self._states = [[_State.of(tensor) for tensor in group.trained] for group in self.groups]

    def gradients(self) -> list[Tensor]:
        """The flat master gradients, for a reduction over ranks; those of shards are reduced already."""
        return [group.gradient() for group in self.flat]

    def accumulate(self) -> None:
        for group in self.groups:
            group.accumulate()

    @torch.no_grad()
    def step(self, lr: float, number: int = 0) -> float:
        """Clip, update the masters, refresh the model, clear the gradients. Returns the norm before clipping.

        number: of the step, from 0, which says what each part of a mixture makes of the rate.
        """
        gradients = [group.take_gradients() for group in self.groups]
        norm = self._norm()
        factor = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        if factor.is_cuda or factor != 1:  # to ask a GPU would be to wait for it
            torch._foreach_mul_([grad for of_group in gradients for grad in of_group], factor)
        for i, part in enumerate(self._parts):
            self._update(i, gradients[i], lr * lr_factor(part, number, self.config))
        for group in self.groups:
            group.refresh()
        return float(norm)

    def _update(self, group: int, gradients: list[Tensor], lr: float) -> None:
        """By torch's function: its class, which does the same, imports the compiler, two seconds for each process."""
        states = self._states[group]
        adamw(
            self.groups[group].trained,
            gradients,
            [state.exp_avg for state in states],
            [state.exp_avg_sq for state in states],
            [],
            [state.step for state in states],
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=lr,
            weight_decay=self._decay[group],
            eps=EPS,
            maximize=False,
        )

    def _norm(self) -> Tensor:
        """Of the whole gradient, the same on every rank: shards add up, what every rank holds counts once."""
        norms: list[Tensor] = [torch.linalg.vector_norm(group.grad) for group in self.flat]
        if self.sharded:
            shards = [torch.linalg.vector_norm(shard.grad) for group in self.sharded for shard in group.trained]
            squares = torch.stack(shards).double().square().sum()
            dist.all_reduce(squares)
            norms.append(squares.sqrt().to(shards[0].dtype))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, master weight) of every parameter; of one that is not trained, itself.

        With shards, every rank must take all of them: each is gathered, whole on every rank, when it is asked for.
        """
        for group in self.groups:
            yield from group.masters()
        for name, param in self.untrained.items():
            yield name, param.detach()

    def pieces(self) -> dict[str, Piece]:
        """What this rank holds of masters, moments and what is not trained."""
        found: dict[str, Piece] = {}
        for group, states in zip(self.groups, self._states, strict=True):
            found |= {f"master.{name}": piece for name, piece in group.pieces(group.trained)}
            for moment in MOMENTS:
                held = [getattr(state, moment) for state in states]
                found |= {f"{moment}.{name}": piece for name, piece in group.pieces(held)}
        found |= {f"untrained.{name}": whole(param.detach()) for name, param in self.untrained.items()}
        return found | {f"start.{name}": whole(start) for name, start in self.start_biases.items()}

    @torch.no_grad()
    def loaded(self, step: int) -> None:
        """Go on after `step` steps from what was written into `pieces`."""
        for group, states in zip(self.groups, self._states, strict=True):
            for state in states:
                state.step.fill_(step)
            group.refresh()


def master_dtype(config: TrainConfig) -> torch.dtype:
    return torch.float64 if config.dtype == "fp64" else torch.float32


def _groups(named: list[tuple[str, nn.Parameter]], config: TrainConfig) -> list[list[tuple[str, nn.Parameter]]]:
    """Those that decay, then those that do not; each by part of the mixture, where the parts' rates differ."""
    groups: dict[tuple[bool, str], list[tuple[str, nn.Parameter]]] = {}
    for name, param in named:
        part = part_of(name, param) if config.has_rates_by_part else ""
        groups.setdefault((not decays(name, param), part), []).append((name, param))
    return [groups[place] for place in sorted(groups)]
