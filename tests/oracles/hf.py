"""Models of `transformers` as oracles: random weights, float64 throughout, and their weights in our layout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import EXACT, Agreement
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.nn.lm import LM

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
HEAD_DIM = 8
TIME = 13
OURS = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, max_seq_len=64)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

Tensors = dict[str, Tensor]


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(101, (2, TIME), generator=torch.Generator().manual_seed(seed))


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(2, TIME, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(module: nn.Module, seed: int) -> None:
    """Normal weights of std 0.3, norms around 1, biases 0, in float64: outputs of order 1 with no symmetry left."""
    module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            value.zero_()
        elif parameter.ndim == 1 or "_norm" in name:
            value += 1
        parameter.data.copy_(value)


class _Wide:
    """`torch` with float64 where the code of a model asks for float32 by name."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextmanager
def float64_inside(*modules: nn.Module) -> Iterator[None]:
    """Run public models without their casts to float32, so that 1e-12 can be asked of them.

    Rotary tables stay as they are, since their float32 angles are the convention that we follow.
    """
    narrow = torch.Tensor.float
    sources = {type(part).__module__ for module in modules for part in module.modules()}
    families = [sys.modules[name] for name in sources if name.startswith("transformers.models.")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda x: x.double() if x.is_floating_point() else narrow(x))
        for family in families:
            patch.setattr(family, "torch", _Wide())
            for name, found in list(vars(family).items()):
                if name.endswith("RotaryEmbedding"):
                    patch.setattr(found, "forward", _as_published(family, found.forward, narrow))
        yield


def _as_published(family: ModuleType, forward: Callable[..., Any], narrow: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", narrow)
            patch.setattr(family, "torch", torch)
            return forward(*args, **kwargs)

    return call


def compare(
    agree: Agreement,
    theirs: nn.Module,
    layout: Callable[[nn.Module], Tensors],
    config: ModelConfig,
    *,
    gradients: bool = True,
    tolerance: float = EXACT,
) -> None:
    """Logits of the whole model and the gradient of every tensor, with the weights of `theirs` in our layout."""
    ours = LM(config).cast(torch.float64)
    ours.load_state_dict(layout(theirs))
    actual = ours.logits(ours(tokens()).hidden_BTD)
    with float64_inside(theirs):
        expected = theirs(tokens()).logits
    agree(actual, expected, tolerance, "logits")
    if not gradients:
        return
    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    for parameter in theirs.parameters():  # each gradient in its parameter's place: one conversion serves both
        parameter.data.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    for name, expected_grad in layout(theirs).items():
        grad = ours.get_parameter(name).grad
        agree(torch.zeros_like(expected_grad) if grad is None else grad, expected_grad, tolerance, f"d {name}")


def half_pairs(w_RD: Tensor, head_dim: int = HEAD_DIM) -> Tensor:
    """Rows of a query or key projection from interleaved rotary pairs (2j, 2j+1) to half pairs (j, j + C/2).

    The same permutation of queries and keys leaves their products, and so the scores, as they were.
    """
    order = torch.cat((torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)))
    return w_RD.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


def attention(module: nn.Module, *, permute: bool = False) -> Tensors:
    """w_q, w_k, w_v, w_o (and scales) of a module with q_proj, k_proj, v_proj, o_proj; permute: to half pairs."""
    q, k, v, o = (getattr(module, f"{name}_proj").weight.detach() for name in "qkvo")
    rows = half_pairs if permute else (lambda w: w)
    found = {"w_q": rows(q), "w_k": rows(k), "w_v": v, "w_o": o.T}
    if hasattr(module, "q_norm"):
        for name, heads in (("q_norm", len(q) // HEAD_DIM), ("k_norm", len(k) // HEAD_DIM)):
            scale = getattr(module, name).weight.detach()  # per head, or one for all heads
            found[name] = rows(scale.expand(heads, HEAD_DIM).flatten())
    if getattr(module, "qk_layernorm", False):  # StableLM: a list of norms
        for name in ("q", "k"):
            norms = getattr(module, f"{name}_layernorm").norms
            found[f"{name}_norm"] = torch.cat([norm.weight.detach() for norm in norms])
    return found


def swiglu(module: nn.Module) -> Tensors:
    """w_gate, w_up, w_down of a module with gate_proj, up_proj, down_proj."""
    gate, up, down = (getattr(module, f"{name}_proj").weight.detach() for name in ("gate", "up", "down"))
    return {"w_gate": gate, "w_up": up, "w_down": down.T}


def experts(module: nn.Module) -> Tensors:
    """w_gate, w_up, w_down, router of a sparse block with `gate` (or `router`) and fused `experts`."""
    gate, up = module.experts.gate_up_proj.detach().chunk(2, dim=1)
    router = module.gate if hasattr(module, "gate") else module.router
    found = {"w_gate": gate, "w_up": up, "w_down": module.experts.down_proj.detach().mT}
    found["router"] = router.weight.detach()
    if hasattr(module, "shared_experts"):
        found |= prefixed("shared", swiglu(module.shared_experts))
    return found


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def layout(
    model: nn.Module,
    norms: dict[str, str],
    attention: Callable[[nn.Module], Tensors] = attention,
    ffn: Callable[[nn.Module], Tensors] = swiglu,
) -> Tensors:
    """A whole causal model. norms: our names and theirs."""
    found = {"embed.weight": model.model.embed_tokens.weight.detach(), "norm.weight": model.model.norm.weight.detach()}
    if not model.config.tie_word_embeddings:
        found["head.weight"] = model.lm_head.weight.detach()
    for i, layer in enumerate(model.model.layers):
        found |= prefixed(f"blocks.{i}.attn", attention(layer.self_attn))
        found |= prefixed(f"blocks.{i}.ffn", ffn(layer.mlp))
        found |= {f"blocks.{i}.{mine}.weight": getattr(layer, its).weight.detach() for mine, its in norms.items()}
    return found
