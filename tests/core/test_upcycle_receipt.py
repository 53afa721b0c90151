"""The receipt of a written mixture: passes for every variant, and sees a swapped, lost or damaged expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bam_core.checkpoint import open_tensors, read_config, write_model
from bam_core.config import ModelConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.upcycle.apply import Fitted, upcycle
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.variants import (
    VARIANTS,
    AttentionSpec,
    FFNSpec,
    MergeSpec,
    Variant,
    mixture_config,
    rules_for,
    variant_sources,
)

DENSE = ModelConfig(vocab_size=40, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=32)
NAMES = ("general", "code", "law")

ROUNDING = 1e-12
"""Of the largest output: float64 rounding, amplified by long router vectors; faults here are above 1e-4."""

FULL = Variant("full", AttentionSpec(), FFNSpec())

MORE = {
    "top-2 attention": replace(FULL, attention=AttentionSpec(routing="top_k", top_k=2, gate="topk_softmax")),
    "value only": replace(FULL, attention=AttentionSpec(kv="value_only")),
    "shared expert": replace(FULL, ffn=FFNSpec(shared_expert=True)),
    "split": replace(FULL, ffn=FFNSpec(split=2, top_k=3)),
    "split, shared, scaled": replace(FULL, ffn=FFNSpec(split=2, shared_expert=True, scale="experts")),
    "soft": replace(FULL, ffn=FFNSpec(routing="soft")),
    "renormalised": replace(FULL, ffn=FFNSpec(top_k=2, gate="softmax_topk_renorm")),
    "straight through": replace(FULL, ffn=FFNSpec(gate="softmax_topk_ste", dense_router_gradient=True)),
    "sampled": replace(FULL, ffn=FFNSpec(gate="sample_top1", soft_layers=(0,))),
    "balanced by bias": replace(FULL, ffn=FFNSpec(balance="bias", capacity_factor=0.1)),
    "gain": replace(FULL, ffn=FFNSpec(scale="gate")),
    "scaled experts": replace(FULL, ffn=FFNSpec(scale="experts")),
    "scaled weights": replace(FULL, ffn=FFNSpec(scale="weights")),
    "one layer": replace(FULL, attention=AttentionSpec(layers=(1,)), ffn=FFNSpec(layers=(0,))),
    "copies": replace(FULL, ffn=FFNSpec(experts=("law", "general", "law", "code"), top_k=2)),
    "ties": replace(VARIANTS["btx"], merge=MergeSpec("ties")),
}


def dense_folders(root: Path, config: ModelConfig) -> dict[str, Path]:
    folders = {name: root / name for name in NAMES}
    for seed, folder in enumerate(folders.values()):
        model = LM(config)
        init_weights(model, seed)
        write_model(folder, config, model.state_dict().items(), tokenizer=None, card="")
    return folders


def mixed(
    root: Path,
    folders: Mapping[str, Path],
    config: ModelConfig,
    variant: Variant,
    made: dict[str, Any] | None = None,
    fitted: Fitted | None = None,
) -> Path:
    target = mixture_config(config, list(folders), variant)
    sources = {name: open_tensors(folders[name]) for name in variant_sources(variant, list(folders))}
    tensors = upcycle(target, rules_for(variant, target), sources, 0, made, fitted)
    write_model(root / "mix", target, tensors, tokenizer=None, card="")
    return root / "mix"


def largest_error(found: dict[str, Any]) -> float:
    return max(expert["max_abs_diff"] / expert["max_abs_value"] for expert in found["experts"].values())


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", ["bam", "bam_shared_kv", "btx"])
def test_each_expert_is_in_the_mixture(tmp_path: Path, variant: str, residual: Any) -> None:
    config = replace(DENSE, residual=residual, norm="rms" if residual == "parallel" else "layer")
    folders = dense_folders(tmp_path, config)
    found = receipt(mixed(tmp_path, folders, config, VARIANTS[variant]), folders)
    assert list(found["experts"]) == list(NAMES)
    assert found["n_tokens"] == 12
    assert found["random"] == []
    assert largest_error(found) < ROUNDING


@pytest.mark.parametrize("variant", MORE.values(), ids=MORE)
def test_whatever_the_variant(tmp_path: Path, variant: Variant) -> None:
    config = replace(DENSE, qk_norm=True, tie_embeddings=False, rotary_frac=0.67, rotary_pairs="interleaved")
    folders = dense_folders(tmp_path, config)
    made: dict[str, Any] = {}
    found = receipt(mixed(tmp_path, folders, config, variant, made), folders, made=made)
    assert largest_error(found) < ROUNDING


def test_a_measured_factor_is_taken_into_account_and_a_wrong_one_shows(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    made: dict[str, Any] = {}
    factors = {"blocks.0.ffn.w_down": 2.2, "blocks.1.ffn.w_down": 2.9}
    folder = mixed(tmp_path, folders, DENSE, MORE["scaled experts"], made, Fitted(factors=factors))
    assert largest_error(receipt(folder, folders, made=made)) < ROUNDING
    made["blocks.1.ffn.w_down"]["factor"] = 2.91
    assert largest_error(receipt(folder, folders, made=made)) > 1e-3
    assert receipt(folder, folders, made=made)["experts"]["law"]["layer"] == 1


def test_a_model_that_is_no_expert_has_nothing_to_compare(tmp_path: Path) -> None:
    nothing = {"max_abs_diff": 0.0, "max_abs_value": 0.0, "layer": None, "branch": None}
    folders = dense_folders(tmp_path, DENSE)
    soup = receipt(mixed(tmp_path, folders, DENSE, VARIANTS["soup"]), folders)
    assert soup["experts"] == dict.fromkeys(NAMES, nothing)
    two = replace(VARIANTS["btx"], ffn=FFNSpec(experts=("law", "general")))
    found = receipt(mixed(tmp_path, folders, DENSE, two), folders)["experts"]
    assert found["code"] == nothing
    assert found["law"]["branch"] == found["general"]["branch"] == "ffn"


def test_random_experts_are_reported_as_such(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    made: dict[str, Any] = {}
    found = receipt(
        mixed(tmp_path, folders, DENSE, replace(FULL, ffn=FFNSpec(experts="random")), made), folders, made=made
    )
    assert found["random"] == ["ffn"]
    assert {expert["branch"] for expert in found["experts"].values()} == {"attention"}
    assert largest_error(found) < ROUNDING


@pytest.mark.parametrize("fault", ["swapped", "lost", "one weight", "not a number"])
@pytest.mark.parametrize("part", ["attn.w_q", "attn.w_v", "attn.w_o", "ffn.w_gate", "ffn.w_down"])
def test_a_fault_in_any_expert_shows(tmp_path: Path, part: str, fault: str) -> None:
    folders = dense_folders(tmp_path, DENSE)
    folder = mixed(tmp_path, folders, DENSE, VARIANTS["bam"])
    tensors = load_file(folder / "model.safetensors")
    weight = tensors[f"blocks.1.{part}"]
    if fault == "swapped":
        weight[[0, 2]] = weight[[2, 0]]
    elif fault == "lost":
        weight[2] = 0
    else:
        weight[2, 3, 5] += 0.1 if fault == "one weight" else float("nan")
    found = rewritten_receipt(folder, folders, tensors)
    assert not found["law"]["max_abs_diff"] <= 1e4 * ROUNDING * found["law"]["max_abs_value"]
    assert (found["law"]["layer"], found["law"]["branch"]) == (1, "attention" if part[:4] == "attn" else "ffn")
    assert found["code"]["max_abs_diff"] < ROUNDING * found["code"]["max_abs_value"]


def test_a_fault_in_a_group_a_copy_or_the_shared_expert_shows(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    spec = FFNSpec(experts=("law", "code", "law"), split=2, shared_expert=True)
    folder = mixed(tmp_path, folders, DENSE, replace(VARIANTS["btx"], ffn=spec))
    whole = load_file(folder / "model.safetensors")
    for name, index, hit in (("w_up", 5, ["law"]), ("w_up", 2, ["code"]), ("shared.w_up", 3, ["code", "law"])):
        tensors = {key: value.clone() for key, value in whole.items()}
        tensors[f"blocks.0.ffn.{name}"][index] *= 1.5
        found = rewritten_receipt(folder, folders, tensors)
        wrong = [model for model, one in found.items() if one["max_abs_diff"] > 1e-4]
        assert sorted(wrong) == hit, name


def rewritten_receipt(folder: Path, folders: Mapping[str, Path], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    write_model(folder, read_config(folder), tensors.items(), tokenizer=None, card="")
    experts: dict[str, Any] = receipt(folder, folders)["experts"]
    return experts


def test_receipt_repeats_and_leaves_global_random_state_alone(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    folder = mixed(tmp_path, folders, DENSE, VARIANTS["bam_shared_kv"])
    before = torch.get_rng_state()
    assert receipt(folder, folders) == receipt(folder, folders)
    assert torch.equal(torch.get_rng_state(), before)
