"""A mixture of attention, folded into one attention with E times the heads.

    Attn(x) = sum_e g_e(x) MHA_e(x)                                              Source: BAM, section 4.1
            = sum_e g_e (O_e W_o,e) = concat_e(g_e O_e) @ stack_e(W_o,e)

so one projection makes the queries of all experts, one `attend` runs them, the gate scales each expert's
heads, and one stacked output projection sums them. Folding the stacked weights is a view.
Keys and values: one set per expert (Expert-KV), or one set for all (Shared-KV), read as grouped-query
attention with E times more queries per key/value head.
A top-k gate masks here: the heads of all experts are computed for every token.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import AttentionExperts, ModelConfig
from bam_core.nn.attention import LayerCache, Rotary, attend
from bam_core.nn.layers import apply_rotary, empty
from bam_core.nn.routing import GATES, Routing, dense_gate, router_logits


class MixtureOfAttention(nn.Module):
    """E attention experts with a router of their own; w_k and w_v carry a leading E only for Expert-KV."""

    def __init__(self, config: ModelConfig, experts: AttentionExperts) -> None:
        super().__init__()
        n, d = experts.n_experts, config.d_model
        rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        kv_shape = (n, kv_rows, d) if experts.kv == "expert" else (kv_rows, d)
        self.experts = experts
        self.head_dim, self.n_kv_heads = config.head_dim, config.n_kv_heads
        self.w_q = empty(n, rows, d)
        self.w_k = empty(*kv_shape)
        self.w_v = empty(*kv_shape)
        self.w_o = empty(n, rows, d)
        self.router = empty(n, d)

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: LayerCache | None = None) -> tuple[Tensor, Routing]:
        routing = GATES[self.experts.gate](router_logits(x_BTD, self.router), self.experts.top_k)
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHC = apply_rotary(F.linear(x_BTD, self.w_q.flatten(0, 1)).view(heads), *rotary)
        k_BTGC = apply_rotary(F.linear(x_BTD, self.w_k.flatten(0, -2)).view(heads), *rotary)
        v_BTGC = F.linear(x_BTD, self.w_v.flatten(0, -2)).view(heads)
        if cache is not None:
            k_BTGC, v_BTGC = cache.append(k_BTGC, v_BTGC)
        o_BTEX = self._attend(q_BTHC, k_BTGC, v_BTGC)
        gated_BTEX = o_BTEX * dense_gate(routing).to(o_BTEX.dtype).unsqueeze(-1)
        return gated_BTEX.flatten(-2) @ self.w_o.flatten(0, 1), routing

    def _attend(self, q_BTHC: Tensor, k_BSGC: Tensor, v_BSGC: Tensor) -> Tensor:
        """o_BTEX: the outputs of each expert's heads, concatenated. H counts the heads of all experts."""
        batch, time, n_experts = *q_BTHC.shape[:2], self.experts.n_experts
        if self.experts.kv == "expert":
            return attend(q_BTHC, k_BSGC, v_BSGC).reshape(batch, time, n_experts, -1)
        # Queries of the same keys must be neighbours: (expert, group, query) -> (group, expert, query).
        q_BTEGQC = q_BTHC.view(batch, time, n_experts, self.n_kv_heads, -1, self.head_dim)
        o_BTHC = attend(q_BTEGQC.transpose(2, 3).flatten(2, 4), k_BSGC, v_BSGC)
        o_BTGEQC = o_BTHC.reshape(batch, time, self.n_kv_heads, n_experts, -1, self.head_dim)
        return o_BTGEQC.transpose(2, 3).flatten(3)
