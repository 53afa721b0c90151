"""A BAM model in transformers: a dense transformer, or a mixture whose attention and FFN experts come from several.

What it computes, beside what configuration_bam.py says:

    mixture of attention   Attn(x) = sum_e g_e(x) MHA_e(x), run as one attention with the heads of all experts
    FFN experts            FFN(x) = sum over the top k of g_e(x) FFN_e(x), no token dropped
    router losses          E sum_e f_e P_e, which is 1 when balanced, and mean logsumexp(logits)^2; mean over layers

Router weights stay in float32, whatever the model is loaded in: a choice of experts hangs on their last digits.
Stacked tensors have a leading E, one slice for each expert. Suffixes of names are shapes: B batch, T queries, S keys,
D d_model, E experts, K chosen experts, H query heads, G key/value heads, C channels, F hidden width, N tokens.
"""

# mypy: ignore-errors

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_bam import BamConfig

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
LEAST_SQUARE = 1e-24
"""Added to the mean square of a token's vector: far below that of any embedding."""


def wide(dtype):
    """float32, or the dtype itself where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def softcap(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


# ---------------------------------------------------------------------------------------------------- norms, positions


class BamNorm(nn.Module):
    """RMS or layer norm in float32 or wider. n_models: that many scales, of which each position has its own mix."""

    def __init__(self, config, n_models=0):
        super().__init__()
        shape = (n_models, config.d_model) if n_models else (config.d_model,)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if config.norm_bias else None
        self.kind, self.eps = config.norm, config.norm_eps

    def forward(self, x_BTD, mix_BTE=None):
        to = wide(x_BTD.dtype)
        scale, bias = self.weight.to(to), self.bias.to(to) if self.bias is not None else None
        if scale.ndim == 2:
            scale, bias = mix_BTE.to(to) @ scale, mix_BTE.to(to) @ bias if bias is not None else None
        y = normed(x_BTD.to(to), self.kind, self.eps) * scale
        return (y if bias is None else y + bias).to(x_BTD.dtype)


def normed(x, kind, eps):
    """Over the last dimension, without a scale."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) if kind == "layer" else F.rms_norm(x, x.shape[-1:], eps=eps)


def stream_norm(config):
    """A norm of the residual stream."""
    return BamNorm(config, len(config.experts) if config.is_routed("norms") else 0)


def rotary(config, position_BT, dtype):
    """cos and sin, [B, 1, T, R], for pairs (j, j + R/2); the first half of sin is negated. Angles are in float32."""
    dim = int(config.head_dim * config.rotary_frac)
    channel = torch.arange(0, dim, 2, dtype=torch.float32, device=position_BT.device)
    frequency = 1.0 / (config.rope_theta ** (channel / dim))
    if config.rotary_scaling is not None:
        frequency = scaled(frequency, **config.rotary_scaling)
    angle = position_BT[:, None, :, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def scaled(frequency, kind, factor, low_freq_factor=None, high_freq_factor=None, original_max_seq_len=None):
    """Frequencies for a longer context: all divided (`linear`), or the more the longer their waves (`llama3`)."""
    if kind == "linear":
        return frequency / factor
    wavelength = 2 * math.pi / frequency
    kept = (original_max_seq_len / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smooth = (1 - kept) * frequency / factor + kept * frequency
    found = torch.where(wavelength > original_max_seq_len / low_freq_factor, frequency / factor, smooth)
    return torch.where(wavelength < original_max_seq_len / high_freq_factor, frequency, found)


def rotate(x_BHTC, cos, sin):
    dim = cos.shape[-1]
    x, rest = x_BHTC[..., :dim], x_BHTC[..., dim:]
    turned = torch.addcmul(x * cos, x.roll(dim // 2, -1), sin)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


# ------------------------------------------------------------------------------------------------------------- routing


@dataclass
class Routing:
    """weights_NK of the chosen experts_NK; probabilities and logits of all, both in float32 or wider."""

    weights_NK: torch.Tensor
    experts_NK: torch.Tensor
    probs_NE: torch.Tensor
    logits_NE: torch.Tensor

    def gate(self):
        """gate_NE: each expert's weight, 0 where it was not chosen."""
        return torch.zeros_like(self.probs_NE).scatter(-1, self.experts_NK, self.weights_NK)

    def straight_through(self):
        """The value of `gate` with the gradient of all probabilities."""
        return self.gate().detach() + (self.probs_NE - self.probs_NE.detach())


class BamRouter(nn.Module):
    """Logits of all experts, and a choice of top k by the gate of the config."""

    def __init__(self, config, experts):
        super().__init__()
        n = experts["n_experts"]
        self.top_k, self.rule, self.temperature = experts["top_k"], experts["gate"], config.gumbel_temperature
        self.weight = nn.Parameter(torch.zeros(n, config.d_model * (2 if config.router_input == "text" else 1)))
        self.register_buffer("bias", torch.zeros(n) if experts.get("router_bias") else None)
        self.register_buffer("balance", torch.zeros(n) if experts.get("balance") == "bias" else None)

    def forward(self, x_BTD, text_BTD=None):
        """text_BTD: the text so far, for a router that reads it."""
        if text_BTD is not None:
            x_BTD = torch.cat((x_BTD.to(text_BTD.dtype), text_BTD), -1)
        to = wide(torch.promote_types(x_BTD.dtype, self.weight.dtype))
        logits = F.linear(x_BTD.to(to), self.weight.to(to))
        logits = logits if self.bias is None else logits + self.bias.to(to)
        probs = logits.softmax(-1)
        if self.top_k == logits.shape[-1]:
            everyone = torch.arange(self.top_k, device=logits.device).expand_as(logits)
            return Routing(probs, everyone, probs, logits)
        scores = probs
        if self.rule == "sample_top1" and self.training:
            noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
            scores = ((logits + noise) / self.temperature).softmax(-1)
        experts = (scores if self.balance is None else scores + self.balance.to(to)).topk(self.top_k, -1).indices
        return Routing(self._weights(scores, logits, experts), experts, probs, logits)

    def _weights(self, scores, logits, experts):
        if self.rule == "topk_softmax":
            return logits.gather(-1, experts).softmax(-1)
        chosen = scores.gather(-1, experts)
        if self.rule == "sample_top1":
            return chosen if self.training else torch.ones_like(chosen)
        if self.rule == "softmax_topk":
            return chosen
        renormed = chosen / chosen.sum(-1, keepdim=True)
        if self.rule == "softmax_topk_ste":
            return renormed.detach() + (chosen - chosen.detach())
        return renormed


def router_losses(routings, mask_BT=None):
    """(load balancing, z): means over layers of E sum_e f_e P_e and logsumexp(logits)^2, over the tokens in the mask.

    routings: logits_BTE and experts_BTK of each layer.
    """
    balance, z = [], []
    for logits, experts in routings:
        logits, experts = logits.flatten(0, -2), experts.flatten(0, -2)
        if mask_BT is not None:
            kept = mask_BT.flatten().bool().to(logits.device)
            logits, experts = logits[kept], experts[kept]
        probs, n = logits.softmax(-1), max(1, len(logits))
        counts = F.one_hot(experts.flatten(), probs.shape[-1]).sum(0).to(probs.dtype)
        balance.append(probs.shape[-1] * (counts / counts.sum().clamp(min=1) * probs.sum(0) / n).sum())
        z.append(logits.logsumexp(-1).square().sum() / n)
    together = balance[0].device
    return torch.stack([x.to(together) for x in balance]).mean(), torch.stack([x.to(together) for x in z]).mean()


# ----------------------------------------------------------------------------------------------------------- attention


def eager_attention(module, query, key, value, attention_mask, scaling, softcap_at=None, **kwargs):
    """Scores in float32 or wider. attention_mask: additive, true where a query may look, or None for the past."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    if attention_mask is None and n_queries > 1:
        past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device)
        attention_mask = past.tril(n_keys - n_queries)
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = softcap((query @ key.mT) * scaling, softcap_at)
    if attention_mask is not None:
        attention_mask = attention_mask[..., :n_keys]
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    probs = scores.softmax(-1, dtype=wide(scores.dtype)).to(query.dtype)
    return (probs @ value).transpose(1, 2), probs


class BamAttention(nn.Module):
    """Dense attention, or the attention of all experts at once, whose heads a router's gate scales."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.experts = experts = config.attention_at(layer)
        n, self.kv = (experts["n_experts"], experts["kv"]) if experts else (1, "expert")
        self.n_experts = n
        D, C, H, G = config.d_model, config.head_dim, config.n_heads, config.n_kv_heads
        n_q, n_k, n_v = (n if own else 1 for own in (self.kv != "value_only", self.kv == "expert", self.kv != "shared"))
        self.q_proj = nn.Linear(D, n_q * H * C, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, n_k * G * C, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, n_v * G * C, bias=config.qkv_bias)
        self.o_proj = nn.Linear(n * H * C, D, bias=config.o_bias and not experts)
        self.o_bias = nn.Parameter(torch.zeros(n, D)) if config.o_bias and experts else None
        self.q_norm = nn.Parameter(torch.ones(n_q * H * C)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(n_k * G * C)) if config.qk_norm else None
        self.router = BamRouter(config, experts) if experts else None
        self.rotates = layer not in (config.unrotated_layers or ())
        self.scaling = config.attention_scale if config.attention_scale is not None else C**-0.5
        self.sliding_window = config.window if config.layer_types[layer] == "sliding_attention" else None
        self.num_key_value_groups = H // G * (n if self.kv == "shared" else 1)

    def forward(self, x_BTD, cos_sin, attention_mask=None, past_key_values=None, text_BTD=None):
        """The output, and attention probabilities where the implementation gives them."""
        heads = (*x_BTD.shape[:2], -1, self.config.head_dim)
        q = self._normed(self.q_proj(x_BTD), self.q_norm, self.config.n_heads).view(heads).transpose(1, 2)
        k = self._normed(self.k_proj(x_BTD), self.k_norm, self.config.n_kv_heads).view(heads).transpose(1, 2)
        v = self.v_proj(x_BTD).view(heads).transpose(1, 2)
        if self.rotates:
            q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        n, G = self.n_experts, self.config.n_kv_heads
        if self.kv == "value_only":  # the values of all experts side by side
            v = v.unflatten(1, (n, G)).permute(0, 2, 3, 1, 4).flatten(3)
        elif self.kv == "shared":  # queries of the same keys must be neighbours
            q = q.unflatten(1, (n, G, -1)).transpose(1, 2).flatten(1, 3)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        o_BTHX, probs = self._attend(q, k, v, attention_mask)
        if self.router is None:
            return self.o_proj(o_BTHX.flatten(2)), probs
        if self.kv == "value_only":
            o_BTHX = o_BTHX.unflatten(3, (n, -1)).transpose(2, 3)
        elif self.kv == "shared":
            o_BTHX = o_BTHX.unflatten(2, (G, n, -1)).transpose(2, 3)
        o_BTEX = o_BTHX.flatten(2).unflatten(2, (n, -1))
        gate_BTE = self._gates(self.router(x_BTD, text_BTD)).to(o_BTEX.dtype)
        y_BTD = self.o_proj((o_BTEX * gate_BTE.unsqueeze(-1)).flatten(2))
        return (y_BTD if self.o_bias is None else y_BTD + gate_BTE @ self.o_bias), probs

    def _normed(self, x, scale, n_heads):
        """x of all experts' heads, each head of its own, or each expert's heads together."""
        if scale is None:
            return x
        channels = self.config.head_dim * (n_heads if self.config.qk_norm == "all" else 1)
        apart = x.to(wide(x.dtype)).unflatten(-1, (-1, channels))
        return (normed(apart, self.config.norm, self.config.norm_eps).flatten(-2) * scale.to(apart.dtype)).to(x.dtype)

    def _attend(self, q, k, v, mask):
        chosen, cap = self.config._attn_implementation, self.config.attention_softcap
        if chosen in (None, "eager") or cap is not None:
            return eager_attention(self, q, k, v, mask, self.scaling, cap)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, eager_attention)
        return attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling, sliding_window=self.sliding_window)

    def _gates(self, routing):
        gate = routing.straight_through() if self.experts.get("dense_router_gradient") else routing.gate()
        threshold = self.experts.get("threshold")
        return gate.where(gate >= threshold, 0.0) if threshold and not self.training else gate


# ----------------------------------------------------------------------------------------------------------------- FFN


class BamMLP(nn.Module):
    """One FFN, of width d_ff."""

    def __init__(self, config):
        super().__init__()
        D, width, bias = config.d_model, config.d_ff, config.ffn_bias
        self.gate_proj = nn.Linear(D, width, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(D, width, bias=bias)
        self.down_proj = nn.Linear(width, D, bias=bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x):
        up = self.up_proj(x)
        return self.down_proj(self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up)


class BamExperts(nn.Module):
    """E FFNs side by side: [E, F, D] reads, [E, D, F] writes."""

    def __init__(self, config, experts):
        super().__init__()
        E, width, D = experts["n_experts"], config.d_ff // experts.get("split", 1), config.d_model
        for name, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
            there = config.gated or name != "gate"
            self.register_parameter(f"{name}_proj", nn.Parameter(torch.zeros(E, *shape)) if there else None)
            bias = nn.Parameter(torch.zeros(E, shape[0])) if there and config.ffn_bias else None
            self.register_parameter(f"{name}_bias", bias)
        self.act = ACTIVATIONS[config.activation]

    def one(self, x, e):
        """Expert e of rows x."""

        def linear(name, x):
            weight, bias = getattr(self, f"{name}_proj"), getattr(self, f"{name}_bias")
            return F.linear(x, weight[e], bias[e] if bias is not None else None)

        up = linear("up", x)
        return linear("down", self.act(up) if self.gate_proj is None else self.act(linear("gate", x)) * up)

    def forward(self, x_ND, weights_NK, experts_NK):
        """Rows sorted by expert, a product for each, and back."""
        order = experts_NK.flatten().argsort(stable=True)
        counts = experts_NK.flatten().bincount(minlength=len(self.up_proj)).tolist()
        parts = x_ND[order // experts_NK.shape[1]].split(counts)
        y = torch.cat([self.one(part, e) for e, part in enumerate(parts)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return (y[back].view(*experts_NK.shape, -1) * weights_NK.to(y.dtype).unsqueeze(-1)).sum(1)


class BamSparseMLP(nn.Module):
    """FFN experts behind a router; with `shared_expert`, one more that every token uses."""

    def __init__(self, config, experts, layer):
        super().__init__()
        self.spec = experts
        self.gain = experts["gain"][layer] if experts.get("gain") else 1.0
        self.router = BamRouter(config, experts)
        self.experts = BamExperts(config, experts)
        self.shared_expert = BamMLP(config) if experts.get("shared_expert") else None

    def forward(self, x_BTD, mask_BT=None, text_BTD=None):
        routing = self.router(x_BTD, text_BTD)
        weights, chosen = self.gain * routing.weights_NK, routing.experts_NK
        if self.spec.get("capacity_factor") is not None and self.training:
            weights = self._within_capacity(weights, routing, mask_BT)
        if self.spec.get("dense_router_gradient") and self.training:
            weights = self.gain * routing.straight_through()
            chosen = torch.arange(weights.shape[-1], device=weights.device).expand_as(weights)
        y = self.experts(x_BTD.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)).view_as(x_BTD)
        return (y if self.shared_expert is None else y + self.shared_expert(x_BTD)), routing

    def _within_capacity(self, weights_BTK, routing, mask_BT):
        """0 where an expert has ceil(factor T K / E) earlier tokens of the row; padding takes no room."""
        n_time, top_k = routing.experts_NK.shape[1:]
        capacity = math.ceil(self.spec["capacity_factor"] * n_time * top_k / routing.probs_NE.shape[-1])
        chosen_BTE = torch.zeros_like(routing.probs_NE, dtype=torch.int64).scatter_(-1, routing.experts_NK, 1)
        if mask_BT is not None:
            chosen_BTE = chosen_BTE * mask_BT.to(chosen_BTE.device, torch.int64).unsqueeze(-1)
        return weights_BTK * (chosen_BTE.cumsum(1) <= capacity).gather(-1, routing.experts_NK)


# ------------------------------------------------------------------------------------------ what is shared, and routed


class BamEmbeddings(nn.Module):
    """One matrix for each dense model, [E, V, D]: of every token the vectors of all, [B, T, E, D]."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(config.experts), config.vocab_size, config.d_model))

    def forward(self, tokens_BT):
        first_E = torch.arange(len(self.weight), device=tokens_BT.device) * self.weight.shape[1]
        return F.embedding(tokens_BT.unsqueeze(-1) + first_E, self.weight.flatten(0, 1))


class BamHeads(nn.Module):
    """One output head for each dense model, [E, V, D]: the most probable one's logits, or all in their parts."""

    def __init__(self, config):
        super().__init__()
        E, V = len(config.experts), config.vocab_size
        self.weight = nn.Parameter(torch.zeros(E, V, config.d_model))
        self.bias = nn.Parameter(torch.zeros(E, V)) if config.head_bias else None
        self.spec = config.shared

    def forward(self, hidden_BTD, mix_BTE):
        if self.spec["head"] == "soft":
            parts = mix_BTE.to(hidden_BTD.dtype)
        else:
            most, chosen = mix_BTE.max(-1, keepdim=True)
            parts = torch.zeros_like(mix_BTE).scatter(-1, chosen, 1.0).to(hidden_BTD.dtype)
            if self.spec["head_gradient"]:
                hidden_BTD = hidden_BTD * (1 + (most - most.detach())).to(hidden_BTD.dtype)
        logits = 0
        for e, weight in enumerate(self.weight):
            logits = logits + F.linear(hidden_BTD * parts[..., e : e + 1], weight)
        return logits if self.bias is None else logits + parts @ self.bias


class BamSharedRouter(nn.Module):
    """mix_BTE, the part of each dense model in what they share, from `text_so_far`."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(config.experts), config.d_model))
        self.temperature = config.shared["temperature"]

    def forward(self, text_BTD):
        return (F.linear(text_BTD, self.weight.to(text_BTD.dtype)) / self.temperature).softmax(-1)


def text_so_far(e_BTED, mask_BT=None, cache=None, place=0):
    """m_BTD in float32 or wider: the mean of the vectors, at one length, of a row's tokens up to each.

    place: of the layer of the cache, behind the blocks' keys and values, where the sums so far lie.
    """
    to = wide(e_BTED.dtype)
    token = e_BTED.to(to).mean(2)
    token = F.rms_norm(token, token.shape[-1:], eps=LEAST_SQUARE)
    real = torch.ones_like(token[..., :1]) if mask_BT is None else mask_BT.to(token.device, to).unsqueeze(-1)
    total, count = (token * real).cumsum(1), real.cumsum(1)
    if cache is not None:
        while len(cache.layers) <= place:
            cache.layers.append(DynamicLayer())
        layer = cache.layers[place]
        if layer.get_seq_length():
            total, count = total + layer.keys[:, 0, -1:].to(to), count + layer.values[:, 0, -1:].to(to)
        layer.update(total.unsqueeze(1), count.unsqueeze(1))
    return total / count.clamp(min=1)


# --------------------------------------------------------------------------------------------------------- whole model


class BamBlock(GradientCheckpointingLayer):
    """One layer around the residual stream."""

    def __init__(self, config, layer):
        super().__init__()
        ffn = config.ffn_at(layer)
        self.self_attn = BamAttention(config, layer)
        self.mlp = BamSparseMLP(config, ffn, layer) if ffn else BamMLP(config)
        self.parallel = config.residual == "parallel"
        two = not self.parallel or config.parallel_norms == 2
        before, after = config.norms != "after", config.norms != "before"
        self.input_norm = stream_norm(config) if before else None
        self.mlp_norm = stream_norm(config) if before and two else None
        self.post_attention_norm = stream_norm(config) if after else None
        self.post_mlp_norm = stream_norm(config) if after else None

    def forward(
        self, x_BTD, cos_sin, attention_mask=None, past_key_values=None, mix_BTE=None, mask_BT=None, text_BTD=None
    ):
        """The stream, attention probabilities, and of FFN experts the router's logits and who was chosen.

        All of it tensors, so that a checkpointed layer passes their gradients on.
        """

        def norm(which, x):
            return x if which is None else which(x, mix_BTE)

        h = norm(self.input_norm, x_BTD)
        attention, probs = self.self_attn(h, cos_sin, attention_mask, past_key_values, text_BTD)
        if self.parallel:
            ffn, *routing = self._ffn(h if self.mlp_norm is None else norm(self.mlp_norm, x_BTD), mask_BT, text_BTD)
            return x_BTD + attention + ffn, probs, *routing
        x_BTD = x_BTD + norm(self.post_attention_norm, attention)
        ffn, *routing = self._ffn(norm(self.mlp_norm, x_BTD), mask_BT, text_BTD)
        return x_BTD + norm(self.post_mlp_norm, ffn), probs, *routing

    def _ffn(self, h, mask_BT, text_BTD):
        if not isinstance(self.mlp, BamSparseMLP):
            return self.mlp(h), None, None
        y, routing = self.mlp(h, mask_BT, text_BTD)
        return y, routing.logits_NE, routing.experts_NK


class BamPreTrainedModel(PreTrainedModel):
    config_class = BamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["BamBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _keep_in_fp32_modules_strict: ClassVar = ["router"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    @torch.no_grad()
    def _init_weights(self, module):
        if not isinstance(module, STACKED):
            super()._init_weights(module)
            return
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if "norm" in name or (isinstance(module, BamNorm) and name == "weight"):
                init.ones_(tensor)
            elif "bias" in name or name == "balance":
                init.zeros_(tensor)
            else:
                init.normal_(tensor, mean=0.0, std=self.config.initializer_range)


STACKED = (BamNorm, BamRouter, BamAttention, BamExperts, BamEmbeddings, BamHeads, BamSharedRouter)
"""Modules with parameters of their own."""


@dataclass
class BamModelOutput(MoeModelOutputWithPast):
    """routing: logits and chosen experts of each layer with FFN experts. mix: of what is shared, if that is routed."""

    routing: tuple | None = None
    mix: torch.FloatTensor | None = None


class BamModel(BamPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        routed = config.is_routed("embed")
        self.embed_tokens = BamEmbeddings(config) if routed else nn.Embedding(config.vocab_size, config.d_model)
        self.shared_router = BamSharedRouter(config) if config.shared is not None else None
        self.layers = nn.ModuleList(BamBlock(config, layer) for layer in range(config.n_layers))
        self.norm = stream_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        output_router_logits=None,
        **kwargs,
    ):
        config = self.config
        output_router_logits = config.output_router_logits if output_router_logits is None else output_router_logits
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = config.use_cache if use_cache is None else use_cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is not None and config.is_routed("embed"):
            raise ValueError("this model mixes the embeddings of several models: it needs input_ids")
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

        seen, n_time = past_key_values.get_seq_length() if past_key_values is not None else 0, x.shape[1]
        mask_BT = None
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            mask_BT = attention_mask[:, -n_time:]
        if position_ids is None:
            position_ids = self._positions(attention_mask if mask_BT is not None else None, seen, n_time, x.device)

        mix = text = None
        if self.shared_router is not None or config.router_input == "text":
            text = text_so_far(x if x.ndim == 4 else x.unsqueeze(2), mask_BT, past_key_values, config.n_layers)
        if self.shared_router is not None:
            mix = self.shared_router(text)
            if x.ndim == 4:
                x = (mix.unsqueeze(-2) @ x.to(mix.dtype)).squeeze(-2).to(x.dtype)
        x = x * config.embed_scale if config.embed_scale != 1 else x

        masks = self._masks(x, attention_mask, past_key_values, position_ids)
        cos_sin = rotary(config, position_ids, x.dtype)
        states, probs, routing = [x], [], []
        for layer, block in enumerate(self.layers):
            x, attention, logits, chosen = block(
                x,
                cos_sin,
                attention_mask=masks[config.layer_types[layer]],
                past_key_values=past_key_values,
                mix_BTE=mix,
                mask_BT=mask_BT,
                text_BTD=text if config.router_input == "text" else None,
            )
            states.append(x)
            probs.append(attention)
            routing += [(logits, chosen)] if logits is not None else []
        x = self.norm(x, mix)
        return BamModelOutput(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=tuple(probs) if output_attentions else None,
            router_logits=tuple(logits.flatten(0, -2) for logits, _ in routing) if output_router_logits else None,
            routing=tuple(routing),
            mix=mix,
        )

    def _positions(self, mask_BS, seen, n_time, device):
        """Counted from a row's first real token, so that a row is what it is alone."""
        if mask_BS is None:
            return torch.arange(seen, seen + n_time, device=device).unsqueeze(0)
        return (mask_BS.long().cumsum(-1) - 1).clamp(min=0)[:, -n_time:].to(device)

    def _masks(self, x, attention_mask, past_key_values, position_ids):
        if isinstance(attention_mask, dict):
            return attention_mask
        given = {
            "config": self.config,
            "inputs_embeds": x,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        make = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {kind: make[kind](**given) for kind in set(self.config.layer_types)}


class BamForCausalLM(BamPreTrainedModel, GenerationMixin):
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = BamModel(config)
        if config.is_routed("head"):
            self.lm_head = BamHeads(config)
        else:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        output_router_logits=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """labels: as input_ids, -100 where nothing is to be learned. logits_to_keep: of the last so many positions."""
        found = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            output_router_logits,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(found.last_hidden_state[:, keep], found.mix[:, keep] if found.mix is not None else None)
        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if found.routing and self.training:
            mask_BT = attention_mask if getattr(attention_mask, "ndim", 0) == 2 else None
            balance, z = router_losses(found.routing, mask_BT)
            aux_loss = self.config.load_balancing_coef * balance + self.config.z_loss_coef * z
            if loss is not None:
                part = self._part_of_batch(labels, kwargs.get("num_items_in_batch"))
                loss = loss + part * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
            router_logits=found.router_logits,
        )

    def _logits(self, hidden, mix):
        logits = self.lm_head(hidden, mix) if isinstance(self.lm_head, BamHeads) else self.lm_head(hidden)
        logits = logits * self.config.logit_scale if self.config.logit_scale != 1 else logits
        return softcap(logits, self.config.logit_softcap)

    def _part_of_batch(self, labels, n_items):
        """The share of these tokens in the batch that a trainer accumulates: router losses are means over tokens."""
        if n_items is None:
            return 1.0
        n_items = n_items.to(labels.device) if torch.is_tensor(n_items) else n_items
        return (labels[..., 1:] != -100).sum() / n_items


__all__ = ["BamConfig", "BamForCausalLM", "BamModel", "BamPreTrainedModel"]
