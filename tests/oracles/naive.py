"""The whole model again, as slowly and plainly as it can be written: the reference for the folded one.

No module of `bam_core.nn` is used, and of the config its fields alone. One expert at a time, one head at a time,
softmax over a masked square, every FFN expert on every token; weights by the names of the tensor layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt

import torch
from torch import Tensor

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mode:
    """Training or inference; gumbel_BTE of each layer and the temperature, where a gate samples."""

    training: bool = False
    gumbel: Mapping[int, Tensor] = field(default_factory=dict)
    temperature: float = 1.0


@dataclass(frozen=True)
class Routed:
    """What one FFN router said: its logits, and which experts each token chose."""

    logits: Tensor
    chosen: Tensor


def logits(config: ModelConfig, weights: Weights, tokens_BT: Tensor, mode: Mode | None = None) -> Tensor:
    return forward(config, weights, tokens_BT, mode or Mode())[0]


def forward(config: ModelConfig, weights: Weights, tokens_BT: Tensor, mode: Mode) -> tuple[Tensor, list[Routed]]:
    """Logits, and what the FFN routers said, for each layer that has one."""
    routed: list[Routed] = []
    mix = shared_mix(config, weights, tokens_BT)
    x = embedding(config, weights, tokens_BT, mix)
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if config.residual == "parallel":
            h = norm(config, x, scale(config, block["norm.weight"], mix))
            x = x + attention(config, layer, block, h) + ffn(config, layer, block, h, mode, routed)
        else:
            x = x + attention(config, layer, block, norm(config, x, scale(config, block["attn_norm.weight"], mix)))
            h = norm(config, x, scale(config, block["ffn_norm.weight"], mix))
            x = x + ffn(config, layer, block, h, mode, routed)
    return head(config, weights, norm(config, x, scale(config, weights["norm.weight"], mix)), mix), routed


def shared_mix(config: ModelConfig, weights: Weights, tokens_BT: Tensor) -> Tensor | None:
    """The part of each dense model in what experts share, one token after another."""
    if config.shared is None:
        return None
    table, rows = weights["embed.weight"], []
    for tokens in tokens_BT.tolist():
        total, found = torch.zeros(config.d_model, dtype=table.dtype), []
        for n_seen, token in enumerate(tokens, 1):
            each = [w[token] for w in table] if table.ndim == 3 else [table[token]]
            mean = torch.stack(each).sum(0) / len(each)
            total = total + mean / torch.sqrt((mean * mean).mean())
            scores = torch.stack([(total / n_seen * row).sum() for row in weights["shared.router"]])
            found.append((scores / config.shared.temperature).softmax(-1))
        rows.append(torch.stack(found))
    return torch.stack(rows)


def embedding(config: ModelConfig, weights: Weights, tokens_BT: Tensor, mix: Tensor | None) -> Tensor:
    table = weights["embed.weight"]
    if mix is None or config.shared is None or config.shared.embed == "merged":
        return table[tokens_BT]
    total = torch.zeros(*tokens_BT.shape, config.d_model, dtype=table.dtype)
    for e in range(len(config.experts)):
        total = total + mix[..., e, None] * table[e][tokens_BT]
    return total


def scale(config: ModelConfig, weight: Tensor, mix: Tensor | None) -> Tensor:
    """Of a norm: one for all, or one for each position."""
    if mix is None or config.shared is None or config.shared.norms == "merged":
        return weight
    return sum((mix[..., e, None] * weight[e] for e in range(len(config.experts))), torch.zeros(()))


def head(config: ModelConfig, weights: Weights, h: Tensor, mix: Tensor | None) -> Tensor:
    table = weights["head.weight"] if "head.weight" in weights else weights["embed.weight"]
    if mix is None or config.shared is None or config.shared.head == "merged":
        return h @ table.T
    if config.shared.head == "soft":
        return sum((mix[..., e, None] * (h @ table[e].T) for e in range(len(config.experts))), torch.zeros(()))
    rows = []
    for h_TD, mix_TE in zip(h, mix, strict=True):
        found = []
        for h_D, mix_E in zip(h_TD, mix_TE, strict=True):
            most = max(range(len(mix_E)), key=mix_E.tolist().__getitem__)
            weight = 1 + mix_E[most] - mix_E[most].detach() if config.shared.head_gradient else 1
            found.append(table[most] @ (weight * h_D))
        rows.append(torch.stack(found))
    return torch.stack(rows)


def norm(config: ModelConfig, x: Tensor, weight: Tensor) -> Tensor:
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)


def has_experts(experts: AttentionExperts | FFNExperts | None, layer: int) -> bool:
    return experts is not None and (experts.layers is None or layer in experts.layers)


def attention(config: ModelConfig, layer: int, block: Weights, x: Tensor) -> Tensor:
    names = ("w_q", "w_k", "w_v", "w_o", *(("q_norm", "k_norm") if config.qk_norm else ()))
    part = {name: block[f"attn.{name}"] for name in names}
    experts = config.attention
    if experts is None or not has_experts(experts, layer):
        return one_attention(config, part, x)
    scores = x @ block["attn.router"].T
    if experts.router_bias:
        scores = scores + block["attn.router_bias"]
    gate = gates(scores, experts.gate, experts.top_k)
    if experts.dense_router_gradient:
        gate = gate.detach() + scores.softmax(-1) - scores.softmax(-1).detach()
    own = {
        "expert": {"w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm"},
        "shared": {"w_q", "w_o", "q_norm"},
        "value_only": {"w_v", "w_o"},
    }[experts.kv]
    total = torch.zeros_like(x)
    for e in range(experts.n_experts):
        expert = {name: w[e] if name in own else w for name, w in part.items()}
        total = total + gate[..., e, None] * one_attention(config, expert, x)
    return total


def one_attention(config: ModelConfig, part: Weights, x: Tensor) -> Tensor:
    channels, queries_per_key = config.d_model // config.n_heads, config.n_heads // config.n_kv_heads
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    total = torch.zeros_like(x)
    for h in range(config.n_heads):
        rows = slice(h * channels, (h + 1) * channels)
        kv_rows = slice(h // queries_per_key * channels, (h // queries_per_key + 1) * channels)
        q, k, v = x @ part["w_q"][rows].T, x @ part["w_k"][kv_rows].T, x @ part["w_v"][kv_rows].T
        if config.qk_norm:
            q, k = norm(config, q, part["q_norm"][rows]), norm(config, k, part["k_norm"][kv_rows])
        scores = rotate(config, q) @ rotate(config, k).mT / sqrt(channels)
        total = total + scores.masked_fill(~past, -torch.inf).softmax(-1) @ v @ part["w_o"][rows]
    return total


def rotate(config: ModelConfig, x_BTC: Tensor) -> Tensor:
    """Pair j of R channels turned by pos * theta^(-2j/R); angles in float32, as the model's contract says."""
    n_rotary = int(config.d_model // config.n_heads * config.rotary_frac)
    out = list(x_BTC.unbind(-1))
    for j in range(n_rotary // 2):
        a, b = (j, j + n_rotary // 2) if config.rotary_pairs == "half" else (2 * j, 2 * j + 1)
        frequency = 1.0 / config.rope_theta ** (torch.tensor(2.0 * j) / n_rotary)
        angle = torch.arange(x_BTC.shape[1], dtype=torch.float32) * frequency
        cos, sin = angle.cos().to(x_BTC.dtype), angle.sin().to(x_BTC.dtype)
        x, y = x_BTC[..., a], x_BTC[..., b]
        out[a], out[b] = x * cos - y * sin, y * cos + x * sin
    return torch.stack(out, -1)


def ffn(
    config: ModelConfig,
    layer: int,
    block: Weights,
    x: Tensor,
    mode: Mode,
    routed: list[Routed],
) -> Tensor:
    """Appends to `routed` where the layer has experts."""
    w_gate, w_up, w_down = (block[f"ffn.w_{name}"] for name in ("gate", "up", "down"))
    experts = config.ffn
    if experts is None or not has_experts(experts, layer):
        return swiglu(w_gate, w_up, w_down, x)
    gate = ffn_gates(experts, layer, block, x, mode, routed)
    total = torch.zeros_like(x)
    for e in range(experts.n_experts):
        total = total + gate[..., e, None] * swiglu(w_gate[e], w_up[e], w_down[e], x)
    if experts.shared_expert:
        total = total + swiglu(*(block[f"ffn.shared.w_{name}"] for name in ("gate", "up", "down")), x)
    return total


def ffn_gates(
    experts: FFNExperts,
    layer: int,
    block: Weights,
    x: Tensor,
    mode: Mode,
    routed: list[Routed],
) -> Tensor:
    """The weight of every expert: the gate, what capacity drops, the dense gradient, the gain, in this order."""
    scores = x @ block["ffn.router"].T
    if experts.router_bias:
        scores = scores + block["ffn.router_bias"]
    soft = layer in experts.soft_layers
    name, top_k = ("softmax_topk", experts.n_experts) if soft else (experts.gate, experts.top_k)
    balance = block["ffn.balance_bias"] if experts.balance == "bias" else None
    sampling = (mode.gumbel[layer], mode.temperature) if name == "sample_top1" and mode.gumbel else None
    chosen = choice(scores, top_k, balance, sampling)
    routed.append(Routed(scores, chosen))
    gate = gates(scores, name, top_k, balance, sampling)
    if experts.capacity_factor is not None and mode.training:
        limit = ceil(experts.capacity_factor * x.shape[1] * top_k / experts.n_experts)
        gate = gate * within_capacity(chosen, limit)
    if experts.dense_router_gradient and mode.training:
        gate = gate.detach() + scores.softmax(-1) - scores.softmax(-1).detach()
    return gate * (experts.gain[layer] if experts.gain else 1.0)


def within_capacity(chosen_BTE: Tensor, limit: int) -> Tensor:
    """1 where a token is among the first `limit` of its row to choose that expert."""
    kept = torch.zeros(chosen_BTE.shape, dtype=torch.float64)
    for row in range(chosen_BTE.shape[0]):
        for e in range(chosen_BTE.shape[2]):
            asking = [t for t in range(chosen_BTE.shape[1]) if chosen_BTE[row, t, e]]
            kept[row, asking[:limit], e] = 1.0
    return kept


def swiglu(w_gate: Tensor, w_up: Tensor, w_down: Tensor, x: Tensor) -> Tensor:
    a = x @ w_gate.T
    return (a * torch.sigmoid(a) * (x @ w_up.T)) @ w_down


Sampling = tuple[Tensor, float]


def choice(scores: Tensor, top_k: int, balance: Tensor | None = None, sampling: Sampling | None = None) -> Tensor:
    """True for the k experts with the largest probability, after noise and the balancing bias."""
    probs = scores.softmax(-1) if sampling is None else ((scores + sampling[0]) / sampling[1]).softmax(-1)
    if balance is not None:
        probs = probs + balance
    return probs >= probs.sort(-1, descending=True).values[..., top_k - 1, None]


def gates(
    scores: Tensor, gate: str, top_k: int, balance: Tensor | None = None, sampling: Sampling | None = None
) -> Tensor:
    """The weight of every expert, 0 where not among the k chosen; all of them chosen is soft routing."""
    probs = scores.softmax(-1)
    if top_k == scores.shape[-1] and sampling is None:
        return probs
    chosen = choice(scores, top_k, balance, sampling)
    kept = torch.where(chosen, probs, 0.0)
    if gate == "softmax_topk":
        return kept
    if gate == "softmax_topk_renorm":
        return kept / kept.sum(-1, keepdim=True)
    if gate == "softmax_topk_ste":
        return (kept / kept.sum(-1, keepdim=True)).detach() + kept - kept.detach()
    if gate == "sample_top1":
        noisy = chosen.to(probs) if sampling is None else ((scores + sampling[0]) / sampling[1]).softmax(-1)
        return torch.where(chosen, noisy, 0.0)
    return scores.masked_fill(~chosen, -torch.inf).softmax(-1)


def loss(
    config: ModelConfig,
    weights: Weights,
    rows: Tensor,
    phase: TrainConfig,
    frac_LE: Sequence[Sequence[float]] | None = None,
    mode: Mode | None = None,
) -> Tensor:
    """NLL + alpha * mean over layers of E sum_e f_e P_e + beta * mean over layers and tokens of logsumexp^2.

    One global batch at once. f: given, or uniform. BAM, Eq. 2.
    """
    found, routed = forward(config, weights, rows[:, :-1], mode or Mode(training=True))
    total = -found.log_softmax(-1).gather(-1, rows[:, 1:, None]).mean()
    for i, layer in enumerate(routed):
        n_experts = layer.logits.shape[-1]
        for e in range(n_experts):
            f = frac_LE[i][e] if frac_LE else 1 / n_experts
            mean_prob = layer.logits.softmax(-1)[..., e].mean()
            total = total + phase.load_balancing_coef * n_experts * f * mean_prob / len(routed)
        z = layer.logits.exp().sum(-1).log()
        total = total + phase.z_loss_coef * (z * z).mean() / len(routed)
    return total
