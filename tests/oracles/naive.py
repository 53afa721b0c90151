"""The whole model again, as slowly and plainly as it can be written: the reference for the folded one.

No module of `bam_core.nn` is used, and of the config its fields alone. One expert at a time, one head at a time,
softmax over a masked square, every FFN expert on every token; weights by the names of the tensor layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, pi, sqrt

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
    x = embedding(config, weights, tokens_BT, mix) * config.embed_scale
    for layer in range(config.n_layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if config.residual == "parallel":
            one = config.parallel_norms == 1
            h = normed(config, block, "norm" if one else "attn_norm", x, mix)
            g = h if one else normed(config, block, "ffn_norm", x, mix)
            x = x + attention(config, layer, block, h) + ffn(config, layer, block, g, mode, routed)
        else:
            for branch in ("attn", "ffn"):
                h = x if config.norms == "after" else normed(config, block, f"{branch}_norm", x, mix)
                if branch == "attn":
                    y = attention(config, layer, block, h)
                else:
                    y = ffn(config, layer, block, h, mode, routed)
                x = x + (y if config.norms == "before" else normed(config, block, f"{branch}_out_norm", y, mix))
    found = head(config, weights, normed(config, weights, "norm", x, mix), mix) * config.logit_scale
    cap = config.logit_softcap
    return found if cap is None else cap * torch.tanh(found / cap), routed


def normed(config: ModelConfig, weights: Weights, name: str, x: Tensor, mix: Tensor | None) -> Tensor:
    found = norm(config, x, scale(config, weights[f"{name}.weight"], mix))
    return found + scale(config, weights[f"{name}.bias"], mix) if config.norm_bias else found


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
    bias = weights["head.bias"] if config.head_bias else torch.zeros(table.shape[:-1], dtype=h.dtype)
    if mix is None or config.shared is None or config.shared.head == "merged":
        return h @ table.T + bias
    if config.shared.head == "soft":
        each = [h @ table[e].T + bias[e] for e in range(len(config.experts))]
        return sum((mix[..., e, None] * each[e] for e in range(len(config.experts))), torch.zeros(()))
    rows = []
    for h_TD, mix_TE in zip(h, mix, strict=True):
        found = []
        for h_D, mix_E in zip(h_TD, mix_TE, strict=True):
            most = max(range(len(mix_E)), key=mix_E.tolist().__getitem__)
            weight = 1 + mix_E[most] - mix_E[most].detach() if config.shared.head_gradient else 1
            found.append(table[most] @ (weight * h_D) + bias[most])
        rows.append(torch.stack(found))
    return torch.stack(rows)


def norm(config: ModelConfig, x: Tensor, weight: Tensor) -> Tensor:
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_eps)


def has_experts(experts: AttentionExperts | FFNExperts | None, layer: int) -> bool:
    return experts is not None and (experts.layers is None or layer in experts.layers)


def attention(config: ModelConfig, layer: int, block: Weights, x: Tensor) -> Tensor:
    names = ("w_q", "w_k", "w_v", "w_o", "q_norm", "k_norm", "b_q", "b_k", "b_v", "b_o")
    part = {name: block[f"attn.{name}"] for name in names if f"attn.{name}" in block}
    experts = config.attention
    if experts is None or not has_experts(experts, layer):
        return one_attention(config, layer, part, x)
    scores = x @ block["attn.router"].T
    if experts.router_bias:
        scores = scores + block["attn.router_bias"]
    gate = gates(scores, experts.gate, experts.top_k)
    if experts.dense_router_gradient:
        gate = gate.detach() + scores.softmax(-1) - scores.softmax(-1).detach()
    own = {
        "expert": set(names),
        "shared": {"w_q", "w_o", "q_norm", "b_q", "b_o"},
        "value_only": {"w_v", "w_o", "b_v", "b_o"},
    }[experts.kv]
    total = torch.zeros_like(x)
    for e in range(experts.n_experts):
        expert = {name: w[e] if name in own else w for name, w in part.items()}
        total = total + gate[..., e, None] * one_attention(config, layer, expert, x)
    return total


def one_attention(config: ModelConfig, layer: int, part: Weights, x: Tensor) -> Tensor:
    channels, queries_per_key = head_dim(config), config.n_heads // config.n_kv_heads
    q_all, k_all, v_all = (x @ part[f"w_{name}"].T + part.get(f"b_{name}", 0.0) for name in "qkv")
    if config.qk_norm and config.qk_norm_over == "all":
        q_all, k_all = norm(config, q_all, part["q_norm"]), norm(config, k_all, part["k_norm"])
    factor = 1 / sqrt(channels) if config.attention_scale is None else config.attention_scale
    total = torch.zeros_like(x)
    for h in range(config.n_heads):
        rows = slice(h * channels, (h + 1) * channels)
        kv_rows = slice(h // queries_per_key * channels, (h // queries_per_key + 1) * channels)
        q, k, v = q_all[..., rows], k_all[..., kv_rows], v_all[..., kv_rows]
        if config.qk_norm and config.qk_norm_over == "head":
            q, k = norm(config, q, part["q_norm"][rows]), norm(config, k, part["k_norm"][kv_rows])
        if layer not in config.unrotated_layers:
            q, k = rotate(config, q), rotate(config, k)
        scores = q @ k.mT * factor
        if config.attention_softcap is not None:
            scores = config.attention_softcap * torch.tanh(scores / config.attention_softcap)
        total = total + scores.masked_fill(~seen(config, layer, x.shape[1]), -torch.inf).softmax(-1) @ (
            v @ part["w_o"][rows]
        )
    return total + part.get("b_o", 0.0)


def seen(config: ModelConfig, layer: int, n_time: int) -> Tensor:
    """True where query t looks at position s."""
    window = n_time if config.window is None or layer in config.global_layers else config.window
    return torch.tensor([[0 <= t - s < window for s in range(n_time)] for t in range(n_time)])


def head_dim(config: ModelConfig) -> int:
    return config.d_head or config.d_model // config.n_heads


def rotate(config: ModelConfig, x_BTC: Tensor) -> Tensor:
    """Pair j of R channels turned by pos * theta^(-2j/R); angles in float32, as the model's contract says."""
    n_rotary = int(head_dim(config) * config.rotary_frac)
    out = list(x_BTC.unbind(-1))
    for j in range(n_rotary // 2):
        a, b = (j, j + n_rotary // 2) if config.rotary_pairs == "half" else (2 * j, 2 * j + 1)
        frequency = stretched(config, 1.0 / config.rope_theta ** (torch.tensor(2.0 * j) / n_rotary))
        angle = torch.arange(x_BTC.shape[1], dtype=torch.float32) * frequency
        cos, sin = angle.cos().to(x_BTC.dtype), angle.sin().to(x_BTC.dtype)
        x, y = x_BTC[..., a], x_BTC[..., b]
        out[a], out[b] = x * cos - y * sin, y * cos + x * sin
    return torch.stack(out, -1)


def stretched(config: ModelConfig, frequency: Tensor) -> Tensor:
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    turns = scaling.original_max_seq_len / (2 * pi / frequency)
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def ffn(
    config: ModelConfig,
    layer: int,
    block: Weights,
    x: Tensor,
    mode: Mode,
    routed: list[Routed],
) -> Tensor:
    """Appends to `routed` where the layer has experts."""
    part = {name.removeprefix("ffn."): w for name, w in block.items() if name.startswith(("ffn.w_", "ffn.b_"))}
    experts = config.ffn
    if experts is None or not has_experts(experts, layer):
        return one_ffn(config, part, x)
    gate = ffn_gates(experts, layer, block, x, mode, routed)
    total = torch.zeros_like(x)
    for e in range(experts.n_experts):
        total = total + gate[..., e, None] * one_ffn(config, {name: w[e] for name, w in part.items()}, x)
    if experts.shared_expert:
        start = "ffn.shared."
        one = {name.removeprefix(start): w for name, w in block.items() if name.startswith(start)}
        total = total + one_ffn(config, one, x)
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


def one_ffn(config: ModelConfig, part: Weights, x: Tensor) -> Tensor:
    up = x @ part["w_up"].T + part.get("b_up", 0.0)
    gate = x @ part["w_gate"].T + part.get("b_gate", 0.0) if config.gated else up
    if config.activation == "silu":
        hidden = gate * torch.sigmoid(gate)
    elif config.activation == "gelu":
        hidden = gate * 0.5 * (1 + torch.special.erf(gate / sqrt(2)))
    elif config.activation == "gelu_tanh":
        hidden = gate * 0.5 * (1 + torch.tanh(sqrt(2 / pi) * (gate + 0.044715 * gate**3)))
    else:
        hidden = gate * (gate > 0)
    return (hidden * up if config.gated else hidden) @ part["w_down"] + part.get("b_down", 0.0)


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
