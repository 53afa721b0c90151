"""The options of public families: what goes together, what is refused, and JSON that is as before without them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, RopeScaling
from bam_core.config.block import OPTIONS
from bam_core.errors import InvalidInput
from bam_core.nn.layers import rotary_tables
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.shapes import tensor_shapes

PLAIN = ModelConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12, max_seq_len=16)
SEQUENTIAL: dict[str, Any] = {"residual": "sequential"}
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
OTHERWISE: dict[str, dict[str, Any]] = {
    "d_head": {"d_head": 6},
    "qkv_bias": {"qkv_bias": True},
    "o_bias": {"o_bias": True},
    "norm_bias": {"norm_bias": True},
    "ffn_bias": {"ffn_bias": True},
    "head_bias": {"head_bias": True, "tie_embeddings": False},
    "activation": {"activation": "gelu_tanh"},
    "gated": {"gated": False},
    "norms": {"norms": "around", **SEQUENTIAL},
    "parallel_norms": {"parallel_norms": 2},
    "qk_norm_over": {"qk_norm_over": "all", "qk_norm": True},
    "embed_scale": {"embed_scale": 4.0},
    "logit_scale": {"logit_scale": 0.0625},
    "logit_softcap": {"logit_softcap": 30.0},
    "attention_softcap": {"attention_softcap": 50.0},
    "attention_scale": {"attention_scale": 0.0625},
    "window": {"window": 4},
    "global_layers": {"window": 4, "global_layers": (1,)},
    "unrotated_layers": {"unrotated_layers": (0, 1)},
    "rope_scaling": {"rope_scaling": LLAMA3},
}


def test_a_model_without_them_is_written_as_before_they_were_there() -> None:
    before = ["vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len", "residual", "norm"]
    before += ["norm_eps", "rope_theta", "tie_embeddings", "qk_norm", "rotary_frac", "rotary_pairs"]
    assert list(PLAIN.to_json()) == [*before, "attention", "ffn", "experts", "layout_version"]
    assert PLAIN.identity().keys() == set(before[:7])
    assert set(OPTIONS) < {field.name for field in fields(ModelConfig)}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_is_part_of_what_a_model_is(name: str) -> None:
    config = replace(PLAIN, **OTHERWISE[name]).checked()
    written = json.loads(json.dumps(config.to_json()))
    assert ModelConfig.from_json(written) == config
    assert ModelConfig.from_json(json.loads(json.dumps(config.identity()))) == config
    assert name in written
    assert name in config.identity()
    if name in ("global_layers",):
        return
    model = LM(config)
    init_weights(model, 0)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == tensor_shapes(config)
    for tensor, parameter in model.named_parameters():  # norms start at 1, biases at 0
        if tensor.endswith(("norm.weight", "_norm")):
            assert (parameter == 1).all()
        if tensor.endswith("bias") or ".b_" in tensor:
            assert (parameter == 0).all()


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"d_head": 0}, "d_head", "at least 1"),
        ({"d_head": 5}, "d_head", "even number"),
        ({"qkv_bias": "yes"}, "qkv_bias", "true or false"),
        ({"activation": "swiglu"}, "activation", "one of silu, gelu, gelu_tanh, relu"),
        ({"norms": "after"}, "norms", "residual: sequential"),
        ({"norms": "post", **SEQUENTIAL}, "norms", "one of before, after, around"),
        ({"parallel_norms": 2, **SEQUENTIAL}, "parallel_norms", "residual: parallel"),
        ({"parallel_norms": True}, "parallel_norms", "1 or 2"),
        ({"qk_norm_over": "all"}, "qk_norm_over", "with qk_norm"),
        ({"head_bias": True}, "head_bias", "head of its own"),
        ({"embed_scale": 0}, "embed_scale", "positive number"),
        ({"logit_scale": float("nan")}, "logit_scale", "positive number"),
        ({"logit_softcap": 0.0}, "logit_softcap", "positive number, or left out"),
        ({"attention_scale": "0.1"}, "attention_scale", "positive number, or left out"),
        ({"window": 0}, "window", "at least 1"),
        ({"global_layers": (0,)}, "global_layers", "without the window"),
        ({"window": 4, "global_layers": (1, 0)}, "global_layers", "ascending"),
        ({"unrotated_layers": (2,)}, "unrotated_layers", "from 0 to 1"),
        ({"unrotated_layers": [0]}, "unrotated_layers", "from 0 to 1"),
        ({"unrotated_layers": 3}, "unrotated_layers", "from 0 to 1"),
        ({"rope_scaling": {"kind": "yarn"}}, "rope_scaling", "a kind and a factor"),
        ({"rope_scaling": RopeScaling("yarn", 2.0)}, "rope_scaling.kind", "one of linear, llama3"),  # type: ignore[arg-type]
        ({"rope_scaling": RopeScaling("linear", 0.5)}, "rope_scaling.factor", "at least 1"),
        ({"rope_scaling": RopeScaling("linear", 2.0, 1.0)}, "rope_scaling.low_freq_factor", "kind: llama3"),
        ({"rope_scaling": RopeScaling("llama3", 2.0, 4.0, 4.0, 8)}, "rope_scaling.high_freq_factor", "above"),
        ({"rope_scaling": RopeScaling("llama3", 2.0, 1.0, 4.0)}, "rope_scaling.original_max_seq_len", "at least 1"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], path: str, words: str) -> None:
    problems = list(replace(PLAIN, **changes).problems())
    assert [problem.path for problem in problems] == [path]
    assert words in str(problems[0])


def test_an_output_bias_is_of_no_column_group() -> None:
    split = replace(PLAIN, ffn=FFNExperts(4, split=2), experts=("a", "b"), ffn_bias=True)
    assert [problem.path for problem in split.problems()] == ["ffn.split"]
    assert not list(replace(split, ffn_bias=False).problems())


@pytest.mark.parametrize(
    ("scaling", "path"),
    [
        ({"kind": "linear"}, "rope_scaling.factor"),
        ({"kind": "linear", "factor": 2, "beta": 1}, "rope_scaling.beta"),
        ("linear", "rope_scaling"),
    ],
)
def test_scaling_that_is_no_scaling_is_refused(scaling: Any, path: str) -> None:
    with pytest.raises(InvalidInput, match=path):
        ModelConfig.from_json(PLAIN.to_json() | {"rope_scaling": scaling})


def test_a_mixture_keeps_them_and_so_does_its_dense_model() -> None:
    changes = {name: value for case in ("norm_bias", "window", "gated") for name, value in OTHERWISE[case].items()}
    mixture = replace(PLAIN, **changes, attention=AttentionExperts(2, 2), ffn=FFNExperts(2), experts=("a", "b"))
    assert mixture.checked().dense() == replace(PLAIN, **changes)
    assert [mixture.window_at(layer) for layer in range(2)] == [4, 4]
    assert [replace(mixture, global_layers=(1,)).window_at(layer) for layer in range(2)] == [4, None]


def test_llama3_scaling_slows_long_waves_alone() -> None:
    """Frequencies by their number of turns over the original context: below 1 slowed by all of it, above 4 not."""
    sizes = 2, 64, 500_000.0, torch.float64, torch.device("cpu")
    plain, scaled = (rotary_tables(*sizes, scaling)[1][1, 32:].double().asin() for scaling in (None, LLAMA3))
    turns = 8192 / (2 * torch.pi / plain)
    ratio = plain / scaled
    assert torch.allclose(ratio[turns > 4], torch.ones((), dtype=torch.float64), atol=1e-6)
    assert torch.allclose(ratio[turns < 1], torch.full((), 8.0, dtype=torch.float64), atol=1e-4)
    between = ratio[(turns >= 1) & (turns <= 4)]
    assert ((between > 1) & (between < 8)).all()
    assert len(between) > 0
