"""The receipt of a written mixture: passes for every variant, and sees a swapped, lost or damaged expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bam_core.checkpoint import open_tensors, write_model
from bam_core.config import ModelConfig
from bam_core.nn.lm import LM, init_weights
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.variants import VARIANTS, Variant, mixture_config, rules_for

DENSE = ModelConfig(vocab_size=40, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=32)
NAMES = ("general", "code", "law")

ROUNDING = 1e-10
"""Of the largest logit: float64 rounding, amplified by long router vectors; faults here are above 1e-6."""


def dense_folders(root: Path, config: ModelConfig) -> dict[str, Path]:
    folders = {name: root / name for name in NAMES}
    for seed, folder in enumerate(folders.values()):
        model = LM(config)
        init_weights(model, seed)
        write_model(folder, config, model.state_dict().items(), tokenizer=None, card="")
    return folders


def mixed(root: Path, folders: dict[str, Path], config: ModelConfig, variant: Variant) -> Path:
    target = mixture_config(config, list(folders), variant)
    rules = rules_for(variant, config.residual, config.tie_embeddings)
    sources = {name: open_tensors(folder) for name, folder in folders.items()}
    write_model(root / "mix", target, upcycle(target, rules, sources, seed=0), tokenizer=None, card="")
    return root / "mix"


def largest_error(found: dict[str, Any]) -> float:
    return max(expert["max_abs_diff"] / expert["max_abs_logit"] for expert in found["experts"].values())


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_expert_is_in_the_mixture(tmp_path: Path, variant: str, residual: Any) -> None:
    config = replace(DENSE, residual=residual, norm="rms" if residual == "parallel" else "layer")
    folders = dense_folders(tmp_path, config)
    found = receipt(mixed(tmp_path, folders, config, VARIANTS[variant]), folders)
    assert list(found["experts"]) == list(NAMES)
    assert found["n_tokens"] == 12
    assert largest_error(found) < ROUNDING


def test_gate_sums_say_how_a_branch_starts(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    layers = receipt(mixed(tmp_path, folders, DENSE, VARIANTS["bam"]), folders)["layers"]
    assert len(layers) == 2
    for layer in layers:
        assert layer["attention_gate_sum"] == pytest.approx(1)
        assert 1 / 3 < layer["ffn_gate_sum"] < 0.5
    zero = replace(VARIANTS["btx"], router_init="zero")
    layers = receipt(mixed(tmp_path, folders, DENSE, zero), folders)["layers"]
    assert [layer["attention_gate_sum"] for layer in layers] == [None, None]
    assert [layer["ffn_gate_sum"] for layer in layers] == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("fault", ["swapped", "lost", "one weight"])
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
        weight[2, 3, 5] += 0.1
    write_model(folder, mixture_config(DENSE, NAMES, VARIANTS["bam"]), tensors.items(), tokenizer=None, card="")
    found = receipt(folder, folders)["experts"]
    assert found["law"]["max_abs_diff"] > 1e4 * ROUNDING * found["law"]["max_abs_logit"]
    assert found["code"]["max_abs_diff"] < ROUNDING * found["code"]["max_abs_logit"]


def test_receipt_repeats_and_leaves_global_random_state_alone(tmp_path: Path) -> None:
    folders = dense_folders(tmp_path, DENSE)
    folder = mixed(tmp_path, folders, DENSE, VARIANTS["bam_shared_kv"])
    before = torch.get_rng_state()
    assert receipt(folder, folders) == receipt(folder, folders)
    assert torch.equal(torch.get_rng_state(), before)
