"""Every public family against transformers' own class: a random model saved by `save_pretrained`, read by us.

    python tests/oracles/families.py

prints, for each case, the largest difference of a logit and of a gradient (float64; over the largest value that is
compared), and whether the way back gives the same tensors, names and dtypes, and a model that transformers opens with
the same logits, to the bit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bam_core.hf import FAMILIES, Imported, read_checkpoint
from bam_core.nn.lm import LM

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "use_cache": False,
}
"""Three layers, so that the first, the middle and the last can differ."""
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Case:
    """model_type and the settings of its config class beside TINY. without: fields of TINY that it has not."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


MHA = {"num_key_value_heads": 4}
FALCON = ("num_key_value_heads", "intermediate_size")
CASES = {
    "llama": Case("llama", {"rope_parameters": ROPE, "rms_norm_eps": 1e-5}),
    "llama, tied, biases": Case("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads, llama3 rope": Case("llama", {"head_dim": 16, "rope_parameters": LLAMA3}),
    "llama, linear rope": Case("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}, **MHA}),
    "mistral": Case("mistral", {"sliding_window": 5}),
    "mistral, no window": Case("mistral", {"sliding_window": None, "hidden_act": "gelu"}),
    "qwen2": Case("qwen2"),
    "qwen2, window from a layer on": Case(
        "qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": True}
    ),
    "qwen3": Case("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biases": Case("qwen3", {"head_dim": 8, "attention_bias": True}),
    "olmo2": Case("olmo2"),
    "olmo2, all heads with keys": Case("olmo2", {"attention_bias": True, **MHA}),
    "gemma2": Case("gemma2", {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24}),
    "gemma2, no caps": Case(
        "gemma2",
        {"head_dim": 8, "sliding_window": 64, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "cohere": Case("cohere"),
    "cohere, query norms, biases": Case("cohere", {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.5}),
    "cohere2": Case("cohere2", {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 5}),
    "cohere2, long window": Case("cohere2", {"sliding_window": 64, "layer_types": [SLIDING, SLIDING, FULL]}),
    "gpt_neox": Case("gpt_neox", {"num_attention_heads": 2}, without=("num_key_value_heads",)),
    "gpt_neox, sequential": Case(
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
        },
        ("num_key_value_heads",),
    ),
    "stablelm": Case("stablelm", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "stablelm, parallel, query norms": Case(
        "stablelm",
        {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    "phi": Case("phi"),
    "phi, all channels rotate": Case("phi", {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}, **MHA}),
    "falcon, one key head": Case("falcon", {"ffn_hidden_size": 48}, FALCON),
    "falcon, new, two norms": Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, FALCON),
    "falcon, new, one norm": Case(
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        FALCON,
    ),
    "falcon, sequential, biases": Case(
        "falcon", {"multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 48}, FALCON
    ),
}

SAME = 1e-13
"""Difference of one model's logits from two files: on some processors float64 products of the same numbers round
otherwise where a mapped file has its numbers at another place. That the numbers are the same is `same_tensors`."""


@dataclass(frozen=True)
class Row:
    """What was found of a case. Differences over the largest value that is compared."""

    logits: float
    gradients: float
    same_tensors: bool
    same_model: bool


def build(case: Case, seed: int = 1) -> nn.Module:
    """Random, in float64; no parameter is at a value where an error could not be seen."""
    settings = {name: value for name, value in TINY.items() if name not in case.without} | case.settings
    config = AutoConfig.for_model(case.model_type, **settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, FAMILIES[case.model_type].architecture)(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # Of float32, as public checkpoints have at most: Gemma's scales less 1 are exact then.
        value = (0.3 * torch.randn(parameter.shape, generator=generator)).double()
        is_scale = "norm" in name and name.endswith("weight") and case.model_type != "gemma2"
        is_scale = is_scale or ("ln_" in name and name.endswith("weight"))
        parameter.data.copy_(value + 1 if is_scale else value)
    if case.model_type == "gemma2":  # a buffer that was rounded to float32
        model.model.embed_tokens.embed_scale.data.fill_(config.hidden_size**0.5)
    return model


def measure(case: Case, folder: Path, *, max_shard_size: str = "50GB") -> Row:
    """folder: empty, for the saved model and what goes back."""
    theirs = build(case)
    theirs.save_pretrained(folder / "theirs", max_shard_size=max_shard_size)
    imported = read_checkpoint(folder / "theirs")
    ours = LM(imported.config).double()
    ours.load_state_dict({name: imported.tensors.get(name) for name in imported.tensors.names()})
    tokens = hf.tokens()
    output = ours(tokens)
    actual = ours.logits(output.hidden_BTD)
    with hf.float64_inside(theirs):
        expected = theirs(tokens).logits
    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = 0.0
    for name, grad in _their_gradients(imported, ours):
        parameter = theirs.get_parameter("lm_head.weight" if name == "embed_out.weight" else name)
        wanted = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        gradients = max(gradients, _difference(grad, wanted))
    write_back(imported, folder / "back")
    back = AutoModelForCausalLM.from_pretrained(folder / "back", dtype=torch.float64, attn_implementation="eager")
    again = AutoModelForCausalLM.from_pretrained(folder / "theirs", dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        found, wanted = back.eval()(tokens).logits, again.eval()(tokens).logits
    same_model = _difference(found, wanted) < SAME
    return Row(_difference(actual, expected), gradients, same_tensors(folder), same_model)


def _their_gradients(imported: Imported, ours: LM) -> Iterator[tuple[str, Tensor]]:
    """Our gradients with respect to their tensors, through what made ours of them."""
    for link in imported.links:
        leaves = [imported.weights.files[name][1].get_tensor(name).requires_grad_() for name in link.theirs]
        grads = [ours.get_parameter(name).grad for name in link.ours]
        made = link.to_ours(leaves)
        given = [
            grad if grad is not None else torch.zeros_like(tensor) for grad, tensor in zip(grads, made, strict=True)
        ]
        yield from zip(link.theirs, torch.autograd.grad(made, leaves, given), strict=True)


def _difference(actual: Tensor, expected: Tensor) -> float:
    apart = float(torch.nan_to_num(actual.detach() - expected.detach(), nan=torch.inf).abs().max())
    return apart / max(1.0, float(expected.detach().abs().max()))


def write_back(imported: Imported, out: Path) -> None:
    out.mkdir()
    family = FAMILIES[imported.family]
    tensors = {name: tensor.contiguous() for name, tensor in family.hf_tensors(imported.config, imported.tensors)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(family.to_hf(imported.config)))


def same_tensors(folder: Path) -> bool:
    """Whether what goes back has the names, dtypes and bits of what came."""
    theirs = {}
    for path in (folder / "theirs").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            theirs |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with safe_open(folder / "back" / "model.safetensors", framework="pt") as file:
        back = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    same = (tensor.dtype == back[name].dtype and torch.equal(tensor, back[name]) for name, tensor in theirs.items())
    return theirs.keys() == back.keys() and all(same)


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{'family':<34} {'logits':>8} {'gradients':>10}  {'tensors back':<13} model back")
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, Path(folder))
        back = (
            "identical" if row.same_tensors else "NOT identical",
            "identical" if row.same_model else "NOT identical",
        )
        print(f"{name:<34} {row.logits:>8.0e} {row.gradients:>10.0e}  {back[0]:<13} {back[1]}", flush=True)


if __name__ == "__main__":
    main()
