"""Give a mixture one more expert, or take one out: the tensors of the edited mixture, one at a time.

Invariant of adding: the logits do not change. The new expert's router rows start under a bias (`router_bias`) that
leaves it exp(-30) of a probability, below rounding in float32; training then takes the bias to 0, so it is heard step
by step. (Where equal logits compete for the last place of a top-k, as column groups of one FFN do before training,
torch may choose another of them.) All that is not an expert stays the mixture's. Removing drops the expert's slices and
its rows in the routers, whose softmax renormalises by itself; that does change what the mixture says, so it is measured
(stage `edit`).

Not from a paper: `docs/deviations.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource, tensor_sha256
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.upcycle.compat import config_problems, value_problem

UNHEARD = -30.0
"""The router bias of an expert that was just added: exp(-30) is 1e-13."""

ROUTER_ROWS = ("zeros", "mean")
NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
"""What a recipe allows for a domain, whose name an expert carries."""

Place = tuple[Literal["base", "expert"], int]
"""Where an expert of the target comes from: the mixture and its number there, or the new model and its group."""

Experts = AttentionExperts | FFNExperts


@dataclass(frozen=True)
class Edit:
    """target: what the mixture becomes. places: branch (`attn`, `ffn`) -> of each of its experts, in order."""

    target: ModelConfig
    places: Mapping[str, tuple[Place, ...]]


def adding(mixture: ModelConfig, dense: ModelConfig, name: str) -> Edit:
    """Describe the mixture with one more expert in each branch that has experts.

    Soft routing stays soft, so its top_k grows; any other top_k stays. Raises InvalidInput with all that does not fit.
    """
    problems = [
        *_cannot_edit(mixture),
        *config_problems({"the mixture": mixture.dense(), "the expert": dense}),
    ]
    if not NAME.fullmatch(name):
        problems.append(Problem("name", name, "has 1 to 64 of a-z, 0-9, _ and -, and does not start with -"))
    elif name in mixture.experts:
        problems.append(Problem("name", name, f"is taken: {', '.join(mixture.experts)}", "give another --name"))
    if problems:
        raise InvalidInput("expert to add", problems)
    changed: dict[str, Any] = {"experts": (*mixture.experts, name)}
    places: dict[str, tuple[Place, ...]] = {}
    for branch, part, experts in _branches(mixture):
        slots = (*experts.slots, name) if experts.slots else ()
        new: list[Place] = [("expert", group) for group in range(_split(experts))]
        changed[part] = _resized(experts, slots, experts.n_experts + len(new), router_bias=True)
        places[branch] = (*(("base", index) for index in range(experts.n_experts)), *new)
    return Edit(replace(mixture, **changed).checked("the edited mixture"), places)


def removing(mixture: ModelConfig, name: str) -> Edit:
    """Describe the mixture without an expert, all of its slots. Raises InvalidInput for an unknown or last one."""
    problems = list(_cannot_edit(mixture))
    if not problems and name not in mixture.experts:
        problems.append(Problem("name", name, "is no expert of this mixture", nearest(name, mixture.experts)))
    changed: dict[str, Any] = {"experts": tuple(expert for expert in mixture.experts if expert != name)}
    places: dict[str, tuple[Place, ...]] = {}
    for branch, part, experts in _branches(mixture):
        models = experts.slots or mixture.experts
        width = _split(experts)
        kept = [index for index in range(experts.n_experts) if models[index // width] != name]
        if not kept:
            problems.append(Problem("name", name, f"is the last expert of {part}", "a mixture needs one"))
        slots = tuple(slot for slot in experts.slots if slot != name)
        changed[part] = _resized(experts, slots, len(kept), router_bias=experts.router_bias)
        places[branch] = tuple(("base", index) for index in kept)
    if problems:
        raise InvalidInput("expert to remove", problems)
    return Edit(replace(mixture, **changed).checked("the edited mixture"), places)


def edited(
    edit: Edit,
    base: TensorSource,
    expert: TensorSource | None = None,
    *,
    router_row: str = "zeros",
    factors: Mapping[str, float] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Make the target's tensors, one at a time in reading order.

    expert: the dense model to add. router_row: what its rows start from, `zeros` or the `mean` of the others.
    factors: tensor -> factor that the mixture's experts were scaled by, so that the new one is scaled alike.
    provenance: filled for `edit.json`: tensor -> {op, from: [{input, tensor, sha256}], sha256}; of stacked tensors
    also `slots`, the place that each expert comes from.

    Raises InvalidInput for a tensor that is missing, of another shape or not finite.
    """
    assert router_row in ROUTER_ROWS, router_row
    for name, shape in tensor_shapes(edit.target).items():
        origins: list[dict[str, str]] = []
        entry: dict[str, Any] = {"op": "keep", "from": origins}
        old = _read("base", base, name, origins) if name in base.names() else None
        if old is not None and tuple(old.shape) == shape:
            tensor = old
        else:
            places = edit.places[name.split(".")[2]]
            factor = (factors or {}).get(name, 1.0)
            entry |= {"op": "append" if expert is not None else "drop", "slots": [list(place) for place in places]}
            entry |= {"factor": factor} if factor != 1.0 else {}
            tensor = _stacked(name, shape, places, old, expert, router_row, factor, origins)
        if provenance is not None:
            provenance[name] = entry | {"sha256": tensor_sha256(tensor)}
        yield name, tensor
        del old, tensor  # or they would stay alive while the next one is made


def _stacked(
    name: str,
    shape: Shape,
    places: tuple[Place, ...],
    old: Tensor | None,
    expert: TensorSource | None,
    router_row: str,
    factor: float,
    origins: list[dict[str, str]],
) -> Tensor:
    """The kept slices of `old`, in order, and the new expert's after them."""
    kept = [index for source, index in places if source == "base"]
    if old is None:
        assert name.endswith(".router_bias"), f"{name} is not in the mixture"
        old = torch.zeros(len(kept), dtype=torch.float32)
    n_new = len(places) - len(kept)
    if not n_new:
        return old[kept]
    kind = name.rpartition(".")[2]
    if kind == "router":
        row_D = old.mean(0, dtype=torch.float64) if router_row == "mean" else torch.zeros(shape[1:])
        new = row_D.expand(n_new, -1)
    elif kind == "router_bias":
        new = torch.full((n_new,), UNHEARD)
    elif kind == "balance_bias":
        new = old.min().expand(n_new)  # chosen after all others, as its probability is the smallest
    else:
        assert expert is not None, f"{name}: {n_new} experts more, from nowhere"
        new = scaled(_read("expert", expert, name, origins), factor).reshape(n_new, *shape[1:])
        return torch.cat((old[kept], new))  # in the wider dtype: nothing is rounded
    return torch.cat((old[kept], new.to(old.dtype)))


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """The tensor times the factor, rounded once, as `upcycle` scales."""
    return tensor if factor == 1 else (tensor.double() * factor).to(tensor.dtype)


def _read(role: str, source: TensorSource, name: str, origins: list[dict[str, str]]) -> Tensor:
    tensor = source.get(name)
    if problem := value_problem(role, name, tensor):
        raise InvalidInput("tensors to edit", [problem])
    origins.append({"input": role, "tensor": name, "sha256": tensor_sha256(tensor)})
    return tensor


def _branches(mixture: ModelConfig) -> Iterator[tuple[str, str, Experts]]:
    """(part of a tensor's name, field of the config, experts) of each branch that has experts."""
    if mixture.attention is not None:
        yield "attn", "attention", mixture.attention
    if mixture.ffn is not None:
        yield "ffn", "ffn", mixture.ffn


def _split(experts: Experts) -> int:
    return experts.split if isinstance(experts, FFNExperts) else 1


def _resized(experts: Experts, slots: tuple[str, ...], n_experts: int, *, router_bias: bool) -> Experts:
    is_soft = experts.top_k == experts.n_experts and (isinstance(experts, AttentionExperts) or experts.n_experts > 1)
    top_k = n_experts if is_soft else min(experts.top_k, n_experts)
    return replace(experts, slots=slots, n_experts=n_experts, top_k=top_k, router_bias=router_bias)


def _cannot_edit(mixture: ModelConfig) -> Iterator[Problem]:
    if not mixture.is_mixture:
        yield Problem("mixture", "a dense model", "must be a mixture", "such as mix.bam or train.bam")
    if mixture.shared is not None:
        reason = (
            "must be merged: its router reads the mean embedding of all experts, which another number of them changes"
        )
        yield Problem(
            "mixture.shared", "routed", reason, "mix the dense models anew, with shared: routed in the variant"
        )
