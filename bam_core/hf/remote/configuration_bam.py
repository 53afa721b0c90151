"""Configuration of a BAM model: a dense transformer, or a mixture of attention and FFN experts made from several.

This file and modeling_bam.py are all that is needed to run the weights beside them; they import torch and transformers
(5 or later) alone.
"""

# mypy: ignore-errors

from typing import Any, ClassVar

from transformers import PretrainedConfig


class BamConfig(PretrainedConfig):
    """Sizes have short names; transformers' own (hidden_size, num_hidden_layers, ...) are read and set as well.

    head_dim: channels of a head. d_ff: hidden width of one expert's FFN.
    residual, norms: `parallel` y = x + Attn(norm x) + FFN(norm x); `sequential`, with norms `before`, `after` (of what
    a branch has made) or `around` it. parallel_norms: 2 gives each branch of a parallel block a norm of its own.
    norm, norm_eps: `rms` or `layer`. qk_norm: of queries and keys, `head` by head or over `all` heads together.
    rotary_frac: the part of a head's channels that rotate, in pairs (j, j + R/2). rotary_scaling: {kind, factor, ...}
    of the frequencies. unrotated_layers: those without. window: how many positions a query sees, itself included, but
    in global_layers. gated, activation: FFN(x) = down(act(gate x) * up x), or down(act(up x)).
    attention_scale: of scores, None for head_dim ** -0.5. *_softcap: cap * tanh(x / cap).

    experts: names of the dense models behind a mixture. Of the branches with experts:
    attention: {n_experts, top_k, kv, gate, layers, router_bias, dense_router_gradient, threshold}; kv says what each
    expert has of its own: `expert` queries, keys, values, outputs; `shared` queries, outputs; `value_only` values,
    outputs. Outside training an expert whose gate is below the threshold is left out.
    ffn: {n_experts, top_k, gate, layers, soft_layers, split, shared_expert, capacity_factor, gain, balance,
    router_bias, dense_router_gradient}; each is of width d_ff / split.
    shared: {embed, norms, head, temperature, head_gradient}: what is kept of every dense model beside experts, and
    mixed by a router of the text so far; None where it is one for all. router_input: what the other routers read, the
    `token`'s vector, or with `text` beside it the mean of the embeddings of the text so far.

    load_balancing_coef, z_loss_coef: factors of the router losses, which are added to the loss in training mode only.
    gumbel_temperature: of the noise by which the gate `sample_top1` chooses in training mode.
    """

    model_type = "bam"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
        "sliding_window": "window",
    }

    vocab_size: int = 257
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 4
    head_dim: int = 16
    d_ff: int = 128
    max_seq_len: int = 256
    residual: str = "parallel"
    norms: str = "before"
    parallel_norms: int = 1
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    qk_norm: str | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    activation: str = "silu"
    gated: bool = True
    rope_theta: float = 10_000.0
    rotary_frac: float = 1.0
    rotary_scaling: dict | None = None
    unrotated_layers: list | None = None
    window: int | None = None
    global_layers: list | None = None
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    attention_scale: float | None = None
    attention: dict | None = None
    ffn: dict | None = None
    shared: dict | None = None
    experts: list | None = None
    router_input: str = "token"
    load_balancing_coef: float = 0.01
    z_loss_coef: float = 0.001
    gumbel_temperature: float = 0.5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    output_router_logits: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list | None = None
    pad_token_id: int | None = None
    layer_types: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Caches and masks of transformers read them.
        is_global = [self.window is None or layer in (self.global_layers or ()) for layer in range(self.n_layers)]
        self.layer_types = ["full_attention" if found else "sliding_attention" for found in is_global]
        super().__post_init__(**kwargs)

    def attention_at(self, layer: int) -> dict | None:
        """The attention experts of one layer; None where it is dense."""
        return _at(self.attention, layer)

    def ffn_at(self, layer: int) -> dict | None:
        """The FFN experts of one layer; None where it is dense. A soft layer sends every token to all of them."""
        found = _at(self.ffn, layer)
        if found is not None and layer in (found.get("soft_layers") or ()):
            return {**found, "top_k": found["n_experts"], "gate": "softmax_topk"}
        return found

    def is_routed(self, part: str) -> bool:
        """Whether `embed`, `norms` or `head` is kept of every dense model."""
        return self.shared is not None and self.shared[part] != "merged"


def _at(experts: dict | None, layer: int) -> dict | None:
    if experts is None or (experts.get("layers") is not None and layer not in experts["layers"]):
        return None
    return experts
