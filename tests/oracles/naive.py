"""The whole model again, as slowly and plainly as it can be written: the reference for the folded one.

No module of `bam_core.nn` is used. One expert at a time, one head at a time, softmax over a masked square,
every FFN expert on every token; weights by the names of the tensor layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from bam_core.config import ModelConfig

Weights = Mapping[str, Tensor]


def logits(config: ModelConfig, weights: Weights, tokens_BT: Tensor) -> Tensor:
    x = weights["embed.weight"][tokens_BT]
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if config.residual == "parallel":
            h = norm(config, x, block["norm.weight"])
            x = x + attention(config, block, h) + ffn(config, block, h)
        else:
            x = x + attention(config, block, norm(config, x, block["attn_norm.weight"]))
            x = x + ffn(config, block, norm(config, x, block["ffn_norm.weight"]))
    head = weights["embed.weight"] if config.tie_embeddings else weights["head.weight"]
    return norm(config, x, weights["norm.weight"]) @ head.T


def norm(config: ModelConfig, x: Tensor, weight: Tensor) -> Tensor:
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)


def attention(config: ModelConfig, block: Weights, x: Tensor) -> Tensor:
    w_q, w_k, w_v, w_o = (block[f"attn.w_{name}"] for name in "qkvo")
    if config.attention is None:
        return one_attention(config, w_q, w_k, w_v, w_o, x)
    gate = gates(x @ block["attn.router"].T, config.attention.gate, config.attention.top_k)
    total = torch.zeros_like(x)
    for e in range(config.attention.n_experts):
        k, v = (w_k[e], w_v[e]) if config.attention.kv == "expert" else (w_k, w_v)
        total = total + gate[..., e, None] * one_attention(config, w_q[e], k, v, w_o[e], x)
    return total


def one_attention(config: ModelConfig, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, x: Tensor) -> Tensor:
    channels, queries_per_key = config.head_dim, config.n_heads // config.n_kv_heads
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    total = torch.zeros_like(x)
    for h in range(config.n_heads):
        rows = slice(h * channels, (h + 1) * channels)
        kv_rows = slice(h // queries_per_key * channels, (h // queries_per_key + 1) * channels)
        q, k, v = rotate(config, x @ w_q[rows].T), rotate(config, x @ w_k[kv_rows].T), x @ w_v[kv_rows].T
        scores = (q @ k.mT / sqrt(channels)).masked_fill(~past, -torch.inf)
        total = total + scores.softmax(-1) @ v @ w_o[rows]
    return total


def rotate(config: ModelConfig, x_BTC: Tensor) -> Tensor:
    """Pairs (j, j + C/2) turned by pos * theta^(-2j/C); angles in float32, as the model's contract says."""
    half = config.head_dim // 2
    frequency = 1.0 / config.rope_theta ** (torch.arange(half, dtype=torch.float32) * 2 / config.head_dim)
    angle = torch.arange(x_BTC.shape[1], dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x_BTC.dtype), angle.sin().to(x_BTC.dtype)
    a, b = x_BTC[..., :half], x_BTC[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def ffn(config: ModelConfig, block: Weights, x: Tensor) -> Tensor:
    w_gate, w_up, w_down = (block[f"ffn.w_{name}"] for name in ("gate", "up", "down"))
    if config.ffn is None:
        return swiglu(w_gate, w_up, w_down, x)
    gate = gates(x @ block["ffn.router"].T, config.ffn.gate, config.ffn.top_k)
    outputs = [gate[..., e, None] * swiglu(w_gate[e], w_up[e], w_down[e], x) for e in range(config.ffn.n_experts)]
    return torch.stack(outputs).sum(0)


def swiglu(w_gate: Tensor, w_up: Tensor, w_down: Tensor, x: Tensor) -> Tensor:
    a = x @ w_gate.T
    return (a * torch.sigmoid(a) * (x @ w_up.T)) @ w_down


def gates(logits: Tensor, gate: str, top_k: int) -> Tensor:
    """The weight of every expert, 0 where not among the k largest."""
    chosen = logits >= logits.sort(-1, descending=True).values[..., top_k - 1, None]
    probs = logits.softmax(-1)
    if gate == "softmax_topk":
        return torch.where(chosen, probs, 0.0)
    if gate == "softmax_topk_renorm":
        return torch.where(chosen, probs, 0.0) / torch.where(chosen, probs, 0.0).sum(-1, keepdim=True)
    return logits.masked_fill(~chosen, -torch.inf).softmax(-1)
