"""A mixture of attention, folded into one attention with E times the heads.

    Attn(x) = sum_e g_e(x) MHA_e(x)                                              Source: BAM, section 4.1
            = sum_e g_e (O_e W_o,e) = concat_e(g_e O_e) @ stack_e(W_o,e)

so one projection makes the queries of all experts, one `attend` runs them, the gate scales each expert's
heads, and one stacked output projection sums them. Folding the stacked weights is a view.
What each expert has of its own decides how heads are laid out for that one call (`ATTEND`):

    expert      queries, keys, values: E times the heads, an expert's side by side
    shared      queries: E times the queries for each key/value head, as in grouped-query attention
    value_only  values: the values of all experts side by side, E times as wide; probabilities once

A top-k gate masks here: the heads of all experts are computed for every token. So it costs nothing to start soft:
`softness` s, which a training may take from 1 to 0, makes the gates (1 - s) top-k + s soft.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bam_core.config import AttentionExperts, ModelConfig
from bam_core.nn.attention import (
    LayerCache,
    Rotary,
    Scores,
    attend_past,
    project,
    project_rotary,
    rotary_at,
    scores_of,
)
from bam_core.nn.layers import empty
from bam_core.nn.routing import Routing, dense_gate, route, router_logits, router_reads, straight_through


class MixtureOfAttention(nn.Module):
    """E attention experts with a router of their own; what an expert has of its own carries a leading E."""

    router_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, experts: AttentionExperts, layer: int = 0) -> None:
        super().__init__()
        d, rows, kv_rows = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        E = (experts.n_experts,)
        E_q = () if experts.kv == "value_only" else E
        E_k = E if experts.kv == "expert" else ()
        E_v = () if experts.kv == "shared" else E
        self.config, self.experts = config, experts
        self.layer, self.scores = layer, scores_of(config, layer)
        self.w_q = empty(*E_q, rows, d)
        self.w_k = empty(*E_k, kv_rows, d)
        self.w_v = empty(*E_v, kv_rows, d)
        self.w_o = empty(*E, rows, d)
        self.q_norm = empty(*E_q, rows) if config.qk_norm else None
        self.k_norm = empty(*E_k, kv_rows) if config.qk_norm else None
        biased = config.qkv_bias
        self.b_q = empty(*E_q, rows) if biased else None
        self.b_k = empty(*E_k, kv_rows) if biased else None
        self.b_v = empty(*E_v, kv_rows) if biased else None
        self.b_o = empty(*E, d) if config.o_bias else None
        self.router = empty(*E, config.router_width)
        self.softness = 0.0
        self.router_bias = None
        if experts.router_bias:
            self.router_bias = nn.Parameter(torch.empty(E), requires_grad=False)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, cache: LayerCache | None = None, text_BTD: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """The output, and the routing. text_BTD: the text so far, where the router reads it."""
        logits_BTE = router_logits(router_reads(x_BTD, text_BTD), self.router)
        routing = route(logits_BTE, self.experts, bias_E=self.router_bias)
        turn = rotary_at(self.config, self.layer, rotary)
        q_BTHC = project_rotary(x_BTD, self.w_q, self.q_norm, turn, self.config, self.b_q)
        k_BTGC = project_rotary(x_BTD, self.w_k, self.k_norm, turn, self.config, self.b_k)
        v_BTGC = project(x_BTD, self.w_v, self.config.head_dim, self.b_v)
        o_BTEX = ATTEND[self.experts.kv](q_BTHC, k_BTGC, v_BTGC, cache, self.experts.n_experts, self.scores)
        gate_BTE = self.gates(routing).to(o_BTEX.dtype)
        gated_BTEX = o_BTEX * gate_BTE.unsqueeze(-1)
        y_BTD = gated_BTEX.flatten(-2) @ self.w_o.flatten(0, 1)
        return y_BTD if self.b_o is None else y_BTD + gate_BTE @ self.b_o, routing

    def gates(self, routing: Routing) -> Tensor:
        """gate_BTE: the factor of each expert's output."""
        gate_BTE = straight_through(routing) if self.experts.dense_router_gradient else dense_gate(routing)
        if self.softness and self.experts.top_k < self.experts.n_experts:
            gate_BTE = gate_BTE.lerp(routing.probs_NE, self.softness)
        if self.experts.threshold and not self.training:
            gate_BTE = gate_BTE.where(gate_BTE >= self.experts.threshold, 0.0)
        return gate_BTE


def _expert_kv(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, cache: LayerCache | None, n_experts: int, scores: Scores
) -> Tensor:
    o_BTHC = attend_past(q_BTHC, k_BTGC, v_BTGC, cache, scores)
    return o_BTHC.reshape(*o_BTHC.shape[:2], n_experts, -1)


def _shared_kv(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, cache: LayerCache | None, n_experts: int, scores: Scores
) -> Tensor:
    """Queries of the same keys must be neighbours: (expert, group, query) -> (group, expert, query) and back."""
    n_groups, channels = k_BTGC.shape[2:]
    batch, time = q_BTHC.shape[:2]
    q_BTEGQC = q_BTHC.view(batch, time, n_experts, n_groups, -1, channels)
    o_BTHC = attend_past(q_BTEGQC.transpose(2, 3).flatten(2, 4), k_BTGC, v_BTGC, cache, scores)
    o_BTGEQC = o_BTHC.reshape(batch, time, n_groups, n_experts, -1, channels)
    return o_BTGEQC.transpose(2, 3).flatten(3)


def _value_only(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, cache: LayerCache | None, n_experts: int, scores: Scores
) -> Tensor:
    """Values come as (expert, group), are read as one head of E*C channels per group, and go back to (expert, head)."""
    n_groups, channels = k_BTGC.shape[2:]
    v_BTEGC = v_BTGC.view(*v_BTGC.shape[:2], n_experts, n_groups, channels)
    o_BTHX = attend_past(q_BTHC, k_BTGC, v_BTEGC.transpose(2, 3).flatten(3), cache, scores)
    return o_BTHX.reshape(*o_BTHX.shape[:3], n_experts, channels).transpose(2, 3).flatten(3)


ATTEND: dict[str, Callable[[Tensor, Tensor, Tensor, LayerCache | None, int, Scores], Tensor]] = {
    "expert": _expert_kv,
    "shared": _shared_kv,
    "value_only": _value_only,
}
"""o_BTEX by `kv`: the outputs of each expert's heads, concatenated."""
