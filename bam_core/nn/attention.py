"""Causal self-attention with rotary embedding and grouped keys and values, and the cache for decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.layers import apply_rotary, empty
from bam_core.nn.short_attention import MAX_ROW, short_attention

Rotary = tuple[Tensor, Tensor]
"""cos_TC and sin_TC of the positions at hand."""


@dataclass
class LayerCache:
    """Keys and values of one layer: room for S positions, `length` filled. G counts all experts' heads."""

    keys_BSGC: Tensor
    values_BSGC: Tensor
    length: int = 0

    def append(self, k_BTGC: Tensor, v_BTGC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; return keys and values of all positions so far."""
        end = self.length + k_BTGC.shape[1]
        assert end <= self.keys_BSGC.shape[1], f"{end} positions in a cache for {self.keys_BSGC.shape[1]}"
        self.keys_BSGC[:, self.length : end] = k_BTGC
        self.values_BSGC[:, self.length : end] = v_BTGC
        self.length = end
        return self.keys_BSGC[:, :end], self.values_BSGC[:, :end]


class Cache:
    """One `LayerCache` per layer: E sets of heads under Expert-KV, one set otherwise."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, capacity, n_cached_heads(config), config.head_dim)
        self.layers = [
            LayerCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.n_layers)
        ]

    @property
    def length(self) -> int:
        """Positions seen so far."""
        return self.layers[0].length


def n_cached_heads(config: ModelConfig) -> int:
    """Key/value heads that a layer caches for each position."""
    attention = config.attention
    copies = attention.n_experts if attention is not None and attention.kv == "expert" else 1
    return copies * config.n_kv_heads


def attend(q_BTHC: Tensor, k_BSGC: Tensor, v_BSGC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v over the past, o_BTHC. Query head h reads key/value head h // (H/G).

    The T queries are the last T of the S positions.
    """
    n_queries, n_keys = q_BTHC.shape[1], k_BSGC.shape[1]
    if q_BTHC.device.type == "cpu" and q_BTHC.dtype == torch.bfloat16 and n_queries == n_keys <= MAX_ROW:
        return short_attention(q_BTHC, k_BSGC, v_BSGC)
    mask = None
    if 1 < n_queries < n_keys:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q_BTHC.device).tril(n_keys - n_queries)
    o_BHTC = F.scaled_dot_product_attention(
        q_BTHC.transpose(1, 2),
        k_BSGC.transpose(1, 2),
        v_BSGC.transpose(1, 2),
        attn_mask=mask,
        is_causal=n_queries == n_keys,
        enable_gqa=q_BTHC.shape[2] != k_BSGC.shape[2],
    )
    return o_BHTC.transpose(1, 2)


class Attention(nn.Module):
    """One dense attention. Source: BAM, Eq. 1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.w_q = empty(rows, config.d_model)
        self.w_k = empty(kv_rows, config.d_model)
        self.w_v = empty(kv_rows, config.d_model)
        self.w_o = empty(rows, config.d_model)

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: LayerCache | None = None) -> tuple[Tensor, None]:
        """The output, and None: a dense attention routes nothing."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHC = apply_rotary(F.linear(x_BTD, self.w_q).view(heads), *rotary)
        k_BTGC = apply_rotary(F.linear(x_BTD, self.w_k).view(heads), *rotary)
        v_BTGC = F.linear(x_BTD, self.w_v).view(heads)
        if cache is not None:
            k_BTGC, v_BTGC = cache.append(k_BTGC, v_BTGC)
        return attend(q_BTHC, k_BTGC, v_BTGC).flatten(-2) @ self.w_o, None
