"""Distillation: a model that costs less per token learns from one that it was made of (Hinton et al. 2015).

    L = (1 - kl) L_NLL + kl T^2 KL(p || q) + gate mean_l KL(g_l || h_l)      (and the router losses, as ever)

p, q: next-token probabilities of teacher and student under logits / T. g_l, h_l: what their attention routers of layer
l say of a token. The teacher runs beside the student on the same tokens, is never changed and has no state, so a
resumed run is the undisturbed one. On several ranks each holds a whole teacher, also where the student is sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bam_core.config import Distillation
from bam_core.nn.lm import LM, LayerRouting, Output
from bam_core.nn.losses import IGNORED


class _Divergence(torch.autograd.Function):
    """Sum over rows of T^2 KL(softmax(teacher / T) || softmax(student / T)), a few rows at a time.

    Its gradient by the student's logits, T (q - p), falls out of the same pass and is kept in their dtype.
    """

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, counts_N: Tensor, temperature: float) -> Tensor:
        wide = torch.promote_types(student_NV.dtype, torch.float32)
        values_per_chunk = 2**18 if student_NV.device.type == "cpu" else 2**26
        rows = max(1, values_per_chunk // student_NV.shape[1])
        grad_NV = torch.empty_like(student_NV) if ctx.needs_input_grad[0] else None
        total = student_NV.new_zeros((), dtype=wide)
        for start in range(0, len(student_NV), rows):
            part = slice(start, start + rows)
            counts_N1 = counts_N[part, None]
            log_q_NV = (student_NV[part].to(wide) / temperature).log_softmax(-1)
            log_p_NV = (teacher_NV[part].to(wide) / temperature).log_softmax(-1)
            p_NV = log_p_NV.exp()
            total += (p_NV * (log_p_NV - log_q_NV) * counts_N1).sum()
            if grad_NV is not None:
                torch.mul(log_q_NV.exp_().sub_(p_NV), temperature * counts_N1, out=grad_NV[part])
        ctx.save_for_backward(grad_NV)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grad_output.to(grad_NV.dtype), None, None, None


def divergence(student_BTV: Tensor, teacher_BTV: Tensor, counts_BT: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) under logits / T, summed over the tokens that count, in nats."""
    found: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        student_BTV.flatten(0, -2), teacher_BTV.flatten(0, -2), counts_BT.flatten(), temperature
    )
    return found


def gate_divergence(student: Sequence[LayerRouting], teacher: Sequence[LayerRouting], counts_BT: Tensor) -> Tensor:
    """KL(teacher's attention gates || student's), summed over the tokens that count, a mean over routed layers."""
    layers = []
    for mine, its in zip(student, teacher, strict=True):
        if mine.attention is not None and its.attention is not None:
            log_h_BTE = mine.attention.logits_NE.log_softmax(-1)
            log_g_BTE = its.attention.logits_NE.log_softmax(-1)
            layers.append(((log_g_BTE.exp() * (log_g_BTE - log_h_BTE)).sum(-1) * counts_BT).sum())
    assert layers, "needs attention routers in both models"
    return torch.stack(layers).mean()


class Teacher:
    """An `ExtraLoss` of `train.step`: what the student is told beside the text. model: where and as it is to run."""

    def __init__(self, model: LM, spec: Distillation) -> None:
        self._model, self._spec = model.eval().requires_grad_(False), spec
        self.nll_share = 1.0 - spec.kl
        self.names: tuple[str, ...] = ("kl", "gate_kl") if spec.gate else ("kl",)

    def __call__(
        self, inputs_BT: Tensor, targets_BT: Tensor, output: Output, logits_BTV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the tokens whose target counts: what is added to the loss, and the sums of `names`."""
        with torch.no_grad():
            said = self._model(inputs_BT)
            teacher_BTV = self._model.logits(said.hidden_BTD, said.mix_BTE)
        counts_BT = targets_BT != IGNORED
        kl = divergence(logits_BTV, teacher_BTV, counts_BT, self._spec.temperature)
        loss, sums = self._spec.kl * kl, [kl.detach()]
        if self._spec.gate:
            gate_kl = gate_divergence(output.routing, said.routing, counts_BT)
            loss = loss + self._spec.gate * gate_kl
            sums.append(gate_kl.detach().to(kl.dtype))
        return loss, torch.stack(sums).double()
