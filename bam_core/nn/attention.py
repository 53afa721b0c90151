"""Causal self-attention with rotary embedding and grouped keys and values, and the cache for decoding.

A cache may hold rows of different lengths: row b starts with pad_B[b] positions that stand for nothing. No other
position attends to them, and the row's positions are counted from after them, so each row is what it is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.layers import apply_rotary, empty, norm_channels
from bam_core.nn.short_attention import MAX_ROW, short_attention

Rotary = tuple[Tensor, Tensor]
"""cos_TR and sin_TR of the positions at hand; with a leading B where rows differ in position."""


class Scores(NamedTuple):
    """How a layer compares queries with keys, where not plainly: the factor of their products, None for 1 / sqrt(C);
    cap * tanh(score / cap); how many positions a query sees, itself the last."""

    scale: float | None = None
    softcap: float | None = None
    window: int | None = None


PLAIN = Scores()

PRODUCTS_AT_ONCE = 2**20
"""Of queries and keys, for one new token a row: 4 MB of float32."""


def scores_of(config: ModelConfig, layer: int) -> Scores:
    return Scores(config.attention_scale, config.attention_softcap, config.window_at(layer))


@dataclass
class LayerCache:
    """Keys and values of one layer: room for S positions, `length` filled. A head's positions lie side by side."""

    keys_BGSC: Tensor
    values_BGSX: Tensor
    pad_B: Tensor | None = None
    length: int = 0

    def append(self, k_BTGC: Tensor, v_BTGX: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store T more positions; return keys, values and mask for `attend` from these to all positions so far."""
        start, end = self.length, self.length + k_BTGC.shape[1]
        assert end <= self.keys_BGSC.shape[2], f"{end} positions in a cache for {self.keys_BGSC.shape[2]}"
        self.keys_BGSC[:, :, start:end] = k_BTGC.transpose(1, 2)
        self.values_BGSX[:, :, start:end] = v_BTGX.transpose(1, 2)
        self.length = end
        keys_BSGC, values_BSGX = (
            self.keys_BGSC[:, :, :end].transpose(1, 2),
            self.values_BGSX[:, :, :end].transpose(1, 2),
        )
        return keys_BSGC, values_BSGX, self._mask(start, end)

    def _mask(self, start: int, end: int) -> Tensor | None:
        """mask_BTS: the past of each query without pads. A pad sees itself, since a softmax needs something."""
        if self.pad_B is None:
            return None
        key_S = torch.arange(end, device=self.pad_B.device)
        query_T1 = key_S[start:, None]
        real_B1S = key_S >= self.pad_B[:, None, None]
        return (real_B1S & (key_S <= query_T1)) | (key_S == query_T1)


class Cache:
    """One `LayerCache` per layer. pad_B: how many positions each row starts with that stand for nothing.

    text_BD: for a shared router, the sum of the embeddings of a row's tokens so far; None for a model without one.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pad_B: Tensor | None = None,
    ) -> None:
        def room(shape_GC: tuple[int, int]) -> Tensor:
            return torch.empty((batch, shape_GC[0], capacity, shape_GC[1]), dtype=dtype, device=device)

        self.pad_B = pad_B.to(device) if pad_B is not None else None
        shapes = [cached_shapes(config, layer) for layer in range(config.n_layers)]
        self.layers = [LayerCache(room(keys), room(values), self.pad_B) for keys, values in shapes]
        self.text_BD: Tensor | None = None
        if config.reads_text:
            wide = torch.promote_types(dtype, torch.float32)
            self.text_BD = torch.zeros((batch, config.d_model), dtype=wide, device=device)

    @property
    def length(self) -> int:
        """Positions seen so far, pads included."""
        return self.layers[0].length

    def positions(self, n_new: int) -> slice | Tensor:
        """The next n_new positions, as an index of `rotary_tables`; position_BT where there are pads."""
        end = self.length + n_new
        if self.pad_B is None:
            return slice(self.length, end)
        return (torch.arange(self.length, end, device=self.pad_B.device) - self.pad_B[:, None]).clamp_(min=0)


def cached_shapes(config: ModelConfig, layer: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and channels of the keys and of the values that a layer keeps for each position.

    Expert-KV keeps E times the heads; value-only experts keep values E times as wide.
    """
    experts = config.attention_at(layer)
    n, kv = (experts.n_experts, experts.kv) if experts is not None else (1, "shared")
    groups = config.n_kv_heads * (n if kv == "expert" else 1)
    return (groups, config.head_dim), (groups, config.head_dim * (n if kv == "value_only" else 1))


def attend(
    q_BTHC: Tensor, k_BSGC: Tensor, v_BSGX: Tensor, mask_BTS: Tensor | None = None, scores: Scores = PLAIN
) -> Tensor:
    """softmax(q k^T / sqrt(C)) v over the past, o_BTHX. Query head h reads key/value head h // (H/G).

    The T queries are the last T of the S positions. Values may be wider than keys. A mask takes the place of
    the past: true where a query may look; a window narrows either.
    """
    if scores.window is not None and scores.window < k_BSGC.shape[1]:
        k_BSGC, v_BSGX, mask_BTS = _in_window(scores.window, q_BTHC.shape[1], k_BSGC, v_BSGX, mask_BTS)
    if scores.softcap is not None:
        return _attend_capped(q_BTHC, k_BSGC, v_BSGX, mask_BTS, scores)
    n_queries, n_keys = q_BTHC.shape[1], k_BSGC.shape[1]
    if n_queries == 1:
        return _attend_last(q_BTHC, k_BSGC, v_BSGX, mask_BTS, scores.scale)
    causal = mask_BTS is None and n_queries == n_keys
    short = causal and _in_bf16_on_cpu(q_BTHC) and n_keys <= MAX_ROW and scores.scale is None
    if short and torch.is_grad_enabled():  # it keeps probabilities for the gradient; without one, torch's is faster
        return short_attention(q_BTHC, k_BSGC, v_BSGX)
    mask = mask_BTS.unsqueeze(1) if mask_BTS is not None else None
    if mask is None and 1 < n_queries < n_keys:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q_BTHC.device).tril(n_keys - n_queries)
    o_BHTX = F.scaled_dot_product_attention(
        q_BTHC.transpose(1, 2),
        k_BSGC.transpose(1, 2),
        v_BSGX.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scores.scale,
        enable_gqa=q_BTHC.shape[2] != k_BSGC.shape[2],
    )
    return o_BHTX.transpose(1, 2)


def _in_bf16_on_cpu(x: Tensor) -> bool:
    """Where torch's kernel is the slower one for some shapes."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _in_window(
    window: int, n_queries: int, k_BSGC: Tensor, v_BSGX: Tensor, mask_BTS: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys and values that some query sees, and the mask of them."""
    first = max(0, k_BSGC.shape[1] - n_queries + 1 - window)
    k_BSGC, v_BSGX = k_BSGC[:, first:], v_BSGX[:, first:]
    n_keys = k_BSGC.shape[1]
    if n_queries == 1:
        return k_BSGC, v_BSGX, mask_BTS[..., first:] if mask_BTS is not None else None
    back_TS = past(n_queries, n_keys, k_BSGC.device) & ~past(n_queries, n_keys, k_BSGC.device, -window)
    return k_BSGC, v_BSGX, back_TS.unsqueeze(0) if mask_BTS is None else mask_BTS[..., first:] & back_TS


def past(n_queries: int, n_keys: int, device: torch.device, shift: int = 0) -> Tensor:
    """past_TS: true up to each query's own position, plus `shift`; queries are the last of the positions."""
    every_TS = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return every_TS.tril(n_keys - n_queries + shift)


def _attend_capped(q_BTHC: Tensor, k_BSGC: Tensor, v_BSGX: Tensor, mask_BTS: Tensor | None, scores: Scores) -> Tensor:
    """`attend` as its definition reads, in float32 or wider: no kernel has the cap."""
    assert scores.softcap is not None, "nothing to cap"
    wide = torch.promote_types(q_BTHC.dtype, torch.float32)
    scale = q_BTHC.shape[3] ** -0.5 if scores.scale is None else scores.scale
    n_groups, (batch, n_queries, _, channels) = k_BSGC.shape[2], q_BTHC.shape
    q_BGQTC = q_BTHC.to(wide).transpose(1, 2).reshape(batch, n_groups, -1, n_queries, channels)
    k_BG1CS = k_BSGC.to(wide).permute(0, 2, 3, 1).unsqueeze(2)
    s_BGQTS = ((q_BGQTC @ k_BG1CS) * (scale / scores.softcap)).tanh() * scores.softcap
    if mask_BTS is None:
        mask_BTS = past(n_queries, k_BSGC.shape[1], q_BTHC.device).unsqueeze(0)
    p_BGQTS: Tensor = s_BGQTS.masked_fill(~mask_BTS[:, None, None], -torch.inf).softmax(-1).to(v_BSGX.dtype)
    o_BGQTX: Tensor = p_BGQTS @ v_BSGX.transpose(1, 2).unsqueeze(2)
    return o_BGQTX.flatten(1, 2).transpose(1, 2)


def _attend_last(
    q_B1HC: Tensor, k_BSGC: Tensor, v_BSGX: Tensor, mask_B1S: Tensor | None, scale: float | None
) -> Tensor:
    """`attend` for one query per row. Heads that read the same keys are the queries of one: keys are read once."""
    q_BGQC = q_B1HC.reshape(len(q_B1HC), k_BSGC.shape[2], -1, q_B1HC.shape[3])
    mask = mask_B1S.unsqueeze(1) if mask_B1S is not None else None
    keys_BGSC, values_BGSX = k_BSGC.transpose(1, 2), v_BSGX.transpose(1, 2)
    if _in_bf16_on_cpu(q_BGQC) and q_BGQC.shape[2] == 1 and not torch.is_grad_enabled():
        return _attend_one(q_BGQC, keys_BGSC, values_BGSX, mask_B1S, scale).unsqueeze(1)
    o_BGQX = F.scaled_dot_product_attention(q_BGQC, keys_BGSC, values_BGSX, attn_mask=mask, scale=scale)
    return o_BGQX.flatten(1, 2).unsqueeze(1)


def _attend_one(q_BG1C: Tensor, k_BGSC: Tensor, v_BGSX: Tensor, mask_B1S: Tensor | None, scale: float | None) -> Tensor:
    """o_BGX of one query for each key head: torch's kernel takes two to three times as long but at both
    ends of what was measured (docs/log.md).

    Scores are in float32 or wider, as there, of some heads at a time: products of all would be more than a cache holds.
    """
    n_rows, (n_keys, channels) = len(k_BGSC), k_BGSC.shape[2:]
    k_NSC, q_N1C = k_BGSC.flatten(0, 1), q_BG1C.flatten(0, 1)
    q_N1C = q_N1C.to(torch.promote_types(q_N1C.dtype, torch.float32))
    at_once = max(1, PRODUCTS_AT_ONCE // (n_keys * channels))
    parts = zip(torch.split(k_NSC, at_once), torch.split(q_N1C, at_once), strict=True)
    s_NS = torch.cat([(keys * query).sum(-1) for keys, query in parts])
    s_NS.mul_(channels**-0.5 if scale is None else scale)
    if mask_B1S is not None:
        s_NS.view(n_rows, -1, n_keys).masked_fill_(~mask_B1S, -torch.inf)
    p_N1S = s_NS.softmax(-1).to(v_BGSX.dtype).unsqueeze(1)
    return torch.bmm(p_N1S, v_BGSX.flatten(0, 1)).view(n_rows, -1, v_BGSX.shape[3])


def attend_past(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGX: Tensor, cache: LayerCache | None, scores: Scores = PLAIN
) -> Tensor:
    """`attend` from T new positions to all that `cache` holds and to themselves; the cache takes them in.

    Where there are fewer queries than new positions, they are the last of them.
    """
    if cache is None:
        return attend(q_BTHC, k_BTGC, v_BTGX, None, scores)
    keys_BSGC, values_BSGX, mask_BTS = cache.append(k_BTGC, v_BTGX)
    if mask_BTS is not None:
        mask_BTS = mask_BTS[:, -q_BTHC.shape[1] :]
    return attend(q_BTHC, keys_BSGC, values_BSGX, mask_BTS, scores)


def project(x_BTD: Tensor, w_RD: Tensor, head_dim: int, bias_R: Tensor | None = None) -> Tensor:
    """x w^T + b in heads, x_BTHC; a leading E of w and b folds into them, expert by expert."""
    bias = bias_R.flatten() if bias_R is not None else None
    return F.linear(x_BTD, w_RD.flatten(0, -2), bias).view(*x_BTD.shape[:-1], -1, head_dim)


def project_rotary(
    x_BTD: Tensor,
    w_RD: Tensor,
    scale_R: Tensor | None,
    rotary: Rotary | None,
    config: ModelConfig,
    bias_R: Tensor | None = None,
) -> Tensor:
    """Queries or keys in heads: `project`, QK-norm with `scale_R` if there is one, then rotary embedding.

    Channels come in the order of `half_pairs`.
    """
    if bias_R is not None:
        bias_R = half_pairs(bias_R.unsqueeze(-1), config).squeeze(-1)
    x_BTHC = project(x_BTD, half_pairs(w_RD, config), config.head_dim, bias_R)
    if scale_R is not None:
        x_BTHC = qk_normed(x_BTHC, half_pairs(scale_R.unsqueeze(-1), config).squeeze(-1), config)
    return x_BTHC if rotary is None else apply_rotary(x_BTHC, *rotary)


def qk_normed(x_BTHC: Tensor, scale_R: Tensor, config: ModelConfig) -> Tensor:
    """Queries or keys normed over each head, or over all heads of an expert together; scale_R: with a leading E, or
    all experts' in a row for the norm over a head."""
    if config.qk_norm_over == "head":
        return norm_channels(x_BTHC, scale_R.view(-1, config.head_dim), config.norm_eps, config.norm)
    scale_ER = scale_R if scale_R.ndim == 2 else scale_R.unsqueeze(0)
    x_BTER = x_BTHC.reshape(*x_BTHC.shape[:2], *scale_ER.shape)
    return norm_channels(x_BTER, scale_ER, config.norm_eps, config.norm).view_as(x_BTHC)


def rotary_at(config: ModelConfig, layer: int, rotary: Rotary) -> Rotary | None:
    """The tables for one layer; None where it does without."""
    return None if layer in config.unrotated_layers else rotary


def half_pairs(w_RD: Tensor, config: ModelConfig) -> Tensor:
    """Rows so ordered that the rotary pairs of each head are (j, j + R/2): of queries and keys alike, so scores stay.

    A matrix is reordered in far less time than the queries and keys that it makes.
    """
    if config.rotary_pairs == "half":
        return w_RD
    w_HCD = w_RD.view(*w_RD.shape[:-2], -1, config.head_dim, w_RD.shape[-1])
    pairs_HR2D = w_HCD[..., : config.rotary_dim, :].reshape(*w_HCD.shape[:-2], -1, 2, w_RD.shape[-1])
    turning_HCD = pairs_HR2D.transpose(-3, -2).flatten(-3, -2)
    if config.rotary_dim < config.head_dim:
        turning_HCD = torch.cat((turning_HCD, w_HCD[..., config.rotary_dim :, :]), -2)
    return turning_HCD.flatten(-3, -2)


class Attention(nn.Module):
    """One dense attention. Source: BAM, Eq. 1."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.config, self.layer, self.scores = config, layer, scores_of(config, layer)
        self.w_q = empty(rows, config.d_model)
        self.w_k = empty(kv_rows, config.d_model)
        self.w_v = empty(kv_rows, config.d_model)
        self.w_o = empty(rows, config.d_model)
        self.q_norm = empty(rows) if config.qk_norm else None
        self.k_norm = empty(kv_rows) if config.qk_norm else None
        self.b_q, self.b_k, self.b_v = (empty(n) if config.qkv_bias else None for n in (rows, kv_rows, kv_rows))
        self.b_o = empty(config.d_model) if config.o_bias else None

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: LayerCache | None = None) -> tuple[Tensor, None]:
        """The output, and None: a dense attention routes nothing."""
        turn = rotary_at(self.config, self.layer, rotary)
        q_BTHC = project_rotary(x_BTD, self.w_q, self.q_norm, turn, self.config, self.b_q)
        k_BTGC = project_rotary(x_BTD, self.w_k, self.k_norm, turn, self.config, self.b_k)
        v_BTGC = project(x_BTD, self.w_v, self.config.head_dim, self.b_v)
        y_BTD = attend_past(q_BTHC, k_BTGC, v_BTGC, cache, self.scores).flatten(-2) @ self.w_o
        return y_BTD if self.b_o is None else y_BTD + self.b_o, None
