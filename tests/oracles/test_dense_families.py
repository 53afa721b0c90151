"""Dense blocks against three public families, with random weights: logits of the whole model."""

from __future__ import annotations

import hf
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from bam_core.config import ModelConfig
from bam_core.nn.lm import LM

FLOAT32_INSIDE = {"rtol": 1e-5, "atol": 1e-5}
"""Cohere and Llama compute norm or rotary in float32 whatever the model's dtype."""

DOUBLE = {"rtol": 1e-12, "atol": 1e-12}

OURS = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, max_seq_len=64)
TOKENS_BT = torch.randint(101, (2, 13), generator=torch.Generator().manual_seed(0))
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


def ours(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> LM:
    model = LM(config).cast(dtype)
    model.load_state_dict(tensors)
    return model


def blocks(model: nn.Module, norms: dict[str, str], *, interleaved: bool) -> dict[str, Tensor]:
    tensors = {
        "embed.weight": model.model.embed_tokens.weight.detach(),
        "norm.weight": model.model.norm.weight.detach(),
    }
    for i, layer in enumerate(model.model.layers):
        tensors |= hf.prefixed(f"blocks.{i}.attn", hf.attention(layer.self_attn, interleaved=interleaved))
        tensors |= hf.prefixed(f"blocks.{i}.ffn", hf.swiglu(layer.mlp))
        tensors |= {
            f"blocks.{i}.{mine}.weight": getattr(layer, theirs).weight.detach() for mine, theirs in norms.items()
        }
    return tensors


def test_cohere_is_our_parallel_block_with_interleaved_rotary_pairs() -> None:
    theirs = CohereForCausalLM(CohereConfig(**hf.TINY, logit_scale=1.0, rope_parameters=ROPE)).eval()
    hf.randomise(theirs, seed=1)
    config = ModelConfig(**{**vars(OURS), "norm": "layer"})
    model = ours(config, blocks(theirs, {"norm": "input_layernorm"}, interleaved=True), torch.float32)
    torch.testing.assert_close(model.logits(model(TOKENS_BT).hidden_BTD), theirs(TOKENS_BT).logits, **FLOAT32_INSIDE)


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_stablelm_agrees_to_the_last_digits_of_float64(residual: str) -> None:
    settings = StableLmConfig(
        **hf.TINY,
        use_parallel_residual=residual == "parallel",
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0},
        attn_implementation="sdpa",
    )
    theirs = StableLmForCausalLM(settings).double().eval()
    hf.randomise(theirs, seed=2)
    norms = {"norm": "input_layernorm"}
    if residual == "sequential":
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    tensors = blocks(theirs, norms, interleaved=False)
    tensors["head.weight"] = theirs.lm_head.weight.detach()
    config = ModelConfig(**{**vars(OURS), "norm": "layer", "residual": residual, "tie_embeddings": False})
    model = ours(config, tensors, torch.float64)
    torch.testing.assert_close(model.logits(model(TOKENS_BT).hidden_BTD), theirs(TOKENS_BT).logits, **DOUBLE)


def test_llama_is_our_sequential_block_with_rms_norm() -> None:
    settings = LlamaConfig(**hf.TINY, rms_norm_eps=1e-5, rope_parameters=ROPE, tie_word_embeddings=False)
    theirs = LlamaForCausalLM(settings).eval()
    hf.randomise(theirs, seed=3)
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    tensors = blocks(theirs, norms, interleaved=False) | {"head.weight": theirs.lm_head.weight.detach()}
    config = ModelConfig(**{**vars(OURS), "residual": "sequential", "tie_embeddings": False})
    model = ours(config, tensors, torch.float32)
    torch.testing.assert_close(model.logits(model(TOKENS_BT).hidden_BTD), theirs(TOKENS_BT).logits, **FLOAT32_INSIDE)
