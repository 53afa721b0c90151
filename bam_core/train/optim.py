"""AdamW on float32 master weights laid out in two flat buffers (decayed, not decayed).

Why flat: clipping is one norm, the update one fused kernel per group, reduction over ranks one message, and a
checkpoint four tensors - whatever the number of parameters. The model itself holds working copies in its own dtype
(bf16 products are several times faster), refreshed from the masters after each step.
Invariant: the masters and moments are the truth; the working copies are their rounding. Parameters that are not trained
(biases of routers) have no master: the model's own are the truth, and are saved and written with the masters.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, pi

import torch
from torch import Tensor, nn

from bam_core.config import TrainConfig


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
    """Whether weight decay pulls at a parameter: at matrices, not at norms, of which an expert each makes a matrix."""
    return param.ndim >= 2 and not name.removesuffix(".weight").endswith("norm")


class FlatGroup:
    """Parameters of one weight-decay setting as one master vector. Views keep the parameters' shapes."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], dtype: torch.dtype) -> None:
        self.names = [name for name, _ in named]
        self.params = [param for _, param in named]
        sizes = [param.numel() for param in self.params]
        device = self.params[0].device
        self.master = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.master)
        self.master_views = [
            view.view_as(p) for view, p in zip(torch.split(self.master, sizes), self.params, strict=True)
        ]
        self.grad_views = [view.view_as(p) for view, p in zip(torch.split(self.grad, sizes), self.params, strict=True)]
        for view, param in zip(self.master_views, self.params, strict=True):
            view.copy_(param.detach())

    def accumulate(self) -> None:
        """Move the parameters' gradients of one micro-batch into the master gradient, in master precision."""
        for view, param in zip(self.grad_views, self.params, strict=True):
            if param.grad is not None:
                view.add_(param.grad)
                param.grad = None

    def refresh(self) -> None:
        """Round the masters into the model's working copies."""
        for view, param in zip(self.master_views, self.params, strict=True):
            param.detach().copy_(view)


class Optimizer:
    """AdamW with global-norm clipping over the master weights of a model (decoupled decay, see `decays`)."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        master_dtype = torch.float64 if config.dtype == "fp64" else torch.float32
        trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        decayed = [(name, param) for name, param in trainable if decays(name, param)]
        plain = [(name, param) for name, param in trainable if not decays(name, param)]
        self.config = config
        self.groups = [FlatGroup(named, master_dtype) for named in (decayed, plain) if named]
        self.untrained = {name: param for name, param in model.named_parameters() if not param.requires_grad}
        self.start_biases = {
            name: param.detach().clone() for name, param in self.untrained.items() if name.endswith("router_bias")
        }
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [group.master],
                    "weight_decay": config.weight_decay if decays(group.names[0], group.params[0]) else 0.0,
                }
                for group in self.groups
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=1e-8,
            fused=True,
        )
        for group in self.groups:
            group.master.grad = group.grad
            self._adamw.state[group.master] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(group.master),
                "exp_avg_sq": torch.zeros_like(group.master),
            }

    def gradients(self) -> list[Tensor]:
        """The flat master gradients, for a reduction over ranks."""
        return [group.grad for group in self.groups]

    def accumulate(self) -> None:
        for group in self.groups:
            group.accumulate()

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clip, update the masters, refresh the model, clear the gradients. Returns the norm before clipping."""
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in self.gradients()]))
        scale = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        for group, options in zip(self.groups, self._adamw.param_groups, strict=True):
            group.grad.mul_(scale)
            options["lr"] = lr
        self._adamw.step()
        for group in self.groups:
            group.refresh()
            group.grad.zero_()
        return float(norm)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, master weight) of every parameter; of one that is not trained, itself."""
        for group in self.groups:
            yield from zip(group.names, group.master_views, strict=True)
        for name, param in self.untrained.items():
            yield name, param.detach()

    def state(self) -> dict[str, Tensor]:
        """Masters, moments and what is not trained as a flat table of tensors; `load` is its inverse."""
        tensors: dict[str, Tensor] = {}
        for index, group in enumerate(self.groups):
            moments = self._adamw.state[group.master]
            tensors[f"{index}.master"] = group.master
            for name in ("step", "exp_avg", "exp_avg_sq"):
                tensors[f"{index}.{name}"] = moments[name]
        tensors |= {f"untrained.{name}": param.detach() for name, param in self.untrained.items()}
        return tensors | {f"start.{name}": start for name, start in self.start_biases.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        own = self.state()
        assert own.keys() == tensors.keys(), (sorted(own), sorted(tensors))
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        for group in self.groups:
            group.refresh()
