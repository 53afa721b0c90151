"""Configs as they are published, in the words of the versions that wrote them.

Each is read, and its tensors come to the number of parameters that is known of the model."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import pytest

from bam_core.config import ModelConfig, RopeScaling
from bam_core.hf import FAMILIES

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def sizes(layers: int, d: int, d_ff: int, heads: int, kv: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": d,
        "intermediate_size": d_ff,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        **more,
    }


PUBLISHED: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "llama-3.1-8b": (
        sizes(32, 4096, 14336, 32, 8, 128256, model_type="llama", rope_scaling=LLAMA3, rope_theta=500000.0)
        | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "pretraining_tp": 1, "torch_dtype": "bfloat16"},
        8_030_261_248,
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "rope_theta": 500_000.0, "d_head": None},
    ),
    "mistral-7b-v0.1": (
        sizes(32, 4096, 14336, 32, 8, 32000, model_type="mistral", sliding_window=4096, rope_theta=10000.0)
        | {"max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "hidden_act": "silu"},
        7_241_732_096,
        {"window": 4096, "global_layers": ()},
    ),
    "qwen2.5-0.5b": (
        sizes(24, 896, 4864, 14, 2, 151936, model_type="qwen2", rope_theta=1000000.0, tie_word_embeddings=True)
        | {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24, "use_mrope": False}
        | {"max_position_embeddings": 32768},
        494_032_768,
        {"window": None, "qkv_bias": True, "o_bias": False, "norm_eps": 1e-6},
    ),
    "qwen3-0.6b": (
        sizes(28, 1024, 3072, 16, 8, 151936, model_type="qwen3", head_dim=128, rope_theta=1000000)
        | {"tie_word_embeddings": True, "sliding_window": None, "rope_scaling": None, "max_position_embeddings": 40960},
        596_049_920,
        {"d_head": 128, "qk_norm": True, "qk_norm_over": "head"},
    ),
    "olmo-2-1124-7b": (
        sizes(32, 4096, 11008, 32, 32, 100352, model_type="olmo2", rope_theta=500000, rms_norm_eps=1e-06),
        7_298_617_344,
        {"norms": "after", "qk_norm_over": "all"},
    ),
    "gemma-2-2b": (
        sizes(26, 2304, 9216, 8, 4, 256000, model_type="gemma2", head_dim=256, query_pre_attn_scalar=256)
        | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "max_position_embeddings": 8192},
        2_614_341_888,
        {
            "global_layers": tuple(range(1, 26, 2)),
            "window": 4096,
            "attention_scale": None,
            "embed_scale": sqrt(2304),
            "logit_softcap": 30.0,
        },
    ),
    "command-r-v01": (
        sizes(40, 8192, 22528, 64, 64, 256000, model_type="cohere", rope_theta=8000000.0, logit_scale=0.0625)
        | {"layer_norm_eps": 1e-05, "max_position_embeddings": 8192, "use_qk_norm": False},
        34_980_831_232,
        {"rotary_pairs": "interleaved", "logit_scale": 0.0625, "tie_embeddings": True},
    ),
    "command-r7b-12-2024": (
        sizes(32, 4096, 14336, 32, 8, 256000, model_type="cohere2", rope_theta=50000, logit_scale=0.25)
        | {"sliding_window": 4096, "sliding_window_pattern": 4, "head_dim": 128, "max_position_embeddings": 8192}
        | {"order_of_interleaved_layers": "local_attn_first", "rotary_pct": 1.0, "use_parallel_block": True},
        8_028_033_024,
        {"unrotated_layers": tuple(range(3, 32, 4)), "global_layers": tuple(range(3, 32, 4)), "window": 4096},
    ),
    "pythia-70m": (
        {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048}
        | {"layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6}
        | {"rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True, "vocab_size": 50304},
        70_426_624,
        {"rotary_frac": 0.25, "parallel_norms": 2, "qkv_bias": True, "tie_embeddings": False},
    ),
    "stablelm-2-1_6b": (
        sizes(24, 2048, 5632, 32, 32, 100352, model_type="stablelm", partial_rotary_factor=0.25, use_qkv_bias=True)
        | {"layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "rope_theta": 10000},
        1_644_515_328,
        {"residual": "sequential", "norm": "layer", "norm_bias": True, "o_bias": False},
    ),
    "phi-2": (
        sizes(32, 2560, 10240, 32, 32, 51200, model_type="phi", partial_rotary_factor=0.4, hidden_act="gelu_new")
        | {"qk_layernorm": False, "rope_scaling": None, "resid_pdrop": 0.1, "max_position_embeddings": 2048},
        2_779_683_840,
        {"rotary_frac": 0.4, "head_bias": True, "activation": "gelu_tanh", "gated": False},
    ),
    "falcon-7b": (
        {"model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False, "bias": False}
        | {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "multi_query": True}
        | {"new_decoder_architecture": False, "parallel_attn": True, "vocab_size": 65024, "layer_norm_epsilon": 1e-05},
        6_921_720_704,
        {"n_kv_heads": 1, "parallel_norms": 1, "d_ff": 4 * 4544, "activation": "gelu"},
    ),
    "falcon-40b": (
        {"model_type": "falcon", "alibi": False, "bias": False, "hidden_size": 8192, "num_attention_heads": 128}
        | {"num_hidden_layers": 60, "num_kv_heads": 8, "new_decoder_architecture": True, "parallel_attn": True}
        | {"vocab_size": 65024, "layer_norm_epsilon": 1e-05},
        41_303_293_952,
        {"n_kv_heads": 8, "parallel_norms": 2, "tie_embeddings": True},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name: str) -> None:
    data, n_parameters, expected = PUBLISHED[name]
    family = FAMILIES[data["model_type"]]
    config = family.config(data)
    assert {field: getattr(config, field) for field in expected} == expected
    shapes = {theirs: shape for link in family.links(config) for theirs, shape in link.theirs.items()}
    assert sum(map(prod, shapes.values())) == n_parameters
    assert family.config(family.to_hf(config)) == config


def test_every_family_is_published() -> None:
    assert {data["model_type"] for data, _, _ in PUBLISHED.values()} == FAMILIES.keys()
    assert isinstance(FAMILIES["llama"].config(PUBLISHED["llama-3.1-8b"][0]), ModelConfig)
