"""Import and export of every public family against transformers' own class, and that each option would be missed.

Mutations that these must notice: a norm's offset left out, queries and keys of packed matrices in another order, the
other rotary pairing, a window one longer, each by itself; `test_every_option_changes_the_logits` plants one per option.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import families
import hf
import pytest
import torch
from agreement import EXACT, Agreement
from families import CASES, FULL, LLAMA3, SLIDING, Case, measure
from transformers import AutoConfig

from bam_core.config import ModelConfig, RopeScaling
from bam_core.config.block import OPTIONS
from bam_core.hf import FAMILIES, read_checkpoint
from bam_core.nn.lm import LM
from bam_core.nn.shapes import tensor_shapes


@pytest.mark.oracle("public family")
@pytest.mark.parametrize("name", CASES)
def test_family_computes_what_transformers_does_and_goes_back(name: str, agree: Agreement, tmp_path: Path) -> None:
    """Sharded, so that every family is read so too."""
    row = measure(CASES[name], tmp_path, max_shard_size="60KB")
    agree(torch.tensor(row.logits), torch.tensor(0.0), EXACT, "logits")
    agree(torch.tensor(row.gradients), torch.tensor(0.0), EXACT, "gradients")
    assert row.same_tensors
    assert row.same_model
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1


def test_every_family_has_a_case() -> None:
    assert {case.model_type for case in CASES.values()} == FAMILIES.keys()


def test_every_option_changes_the_logits(tmp_path: Path) -> None:
    """With an option put back to its default the model is another: each case depends on what it says."""
    seen: set[str] = set()
    for number, case in enumerate(CASES.values()):
        families.build(case).save_pretrained(tmp_path / str(number))
        imported = read_checkpoint(tmp_path / str(number))
        tensors = {name: imported.tensors.get(name) for name in imported.tensors.names()}
        usual = _logits(imported.config, tensors)
        for changed, config in _put_back(imported.config):
            if tensors.keys() >= tensor_shapes(config).keys() and _fits(config, tensors):
                assert (_logits(config, tensors) - usual).abs().max() > 1e-6, (case, changed)
                seen.add(changed)
    by_shape = {"d_head", "gated", "norms", "parallel_norms"}
    assert seen >= {*OPTIONS, "rotary_pairs", "rotary_frac", "qk_norm", "norm"} - by_shape, seen


def _put_back(config: ModelConfig) -> list[tuple[str, ModelConfig]]:
    defaults = {field.name: field.default for field in fields(config)}
    others: dict[str, Any] = {"norm": "rms" if config.norm == "layer" else "layer", "rope_theta": 12_345.0}
    values = {name: defaults[name] for name in (*OPTIONS, "rotary_pairs", "rotary_frac", "qk_norm")} | others
    if config.window is not None:
        values["window"] = config.window + 1
    changed = [(name, replace(config, **{name: value})) for name, value in values.items()]
    return [(name, one) for name, one in changed if one != config and not list(one.problems())]


def _fits(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> bool:
    return all(tuple(tensors[name].shape) == shape for name, shape in tensor_shapes(config).items())


@torch.no_grad()
def _logits(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    model = LM(config).double().eval()
    model.load_state_dict({name: tensors[name] for name in tensor_shapes(config)})
    return model.logits(model(hf.tokens()).hidden_BTD)


@pytest.mark.parametrize("model_type", ["gemma2", "llama", "falcon"])
def test_bfloat16_goes_back_to_the_bit(model_type: str, tmp_path: Path) -> None:
    """As real checkpoints are stored; a scale stored less 1 has more digits here than there."""
    case = next(case for case in CASES.values() if case.model_type == model_type)
    families.build(case).bfloat16().save_pretrained(tmp_path / "theirs")
    imported = read_checkpoint(tmp_path / "theirs")
    assert imported.dtype == torch.bfloat16
    families.write_back(imported, tmp_path / "back")
    assert families.same_tensors(tmp_path)


def test_what_is_left_out_of_a_config_is_what_the_class_has() -> None:
    """Each family's smallest config, against the defaults of its config class."""
    for model_type, family in FAMILIES.items():
        sizes = {"vocab_size": 101, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 32}
        sizes |= {} if model_type == "falcon" else {"intermediate_size": 48}
        whole = AutoConfig.for_model(model_type, **sizes).to_dict()
        assert family.config({"model_type": model_type, **sizes}) == family.config(whole), model_type


@pytest.mark.parametrize(
    ("case", "older"),
    [
        (Case("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}), {"rope_theta": 777.0}),
        (
            Case("llama", {"rope_parameters": LLAMA3}),
            {"rope_theta": 10_000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
        ),
        (
            Case("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
            {"rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        (
            Case(
                "gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 1}}
            ),
            {"rotary_emb_base": 5_000, "rotary_pct": 1.0},
        ),
        (
            Case(
                "stablelm",
                {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            ),
            {"rope_theta": 10_000, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            Case("cohere2", {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 64}),
            {"sliding_window_pattern": 2, "sliding_window": 64, "rope_theta": 10_000.0},
        ),
    ],
)
def test_older_configs_mean_the_same(case: Case, older: dict[str, Any]) -> None:
    family = FAMILIES[case.model_type]
    settings = families.TINY | {"model_type": case.model_type, "num_key_value_heads": 4}
    assert family.config(settings | older) == family.config(settings | case.settings)
    if "rope_scaling" in older and older["rope_scaling"] and "type" not in older["rope_scaling"]:
        assert family.config(settings | older).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 16)


def test_the_way_back_refuses_what_the_class_has_no_words_for() -> None:
    from bam_core.errors import InvalidInput

    plain = FAMILIES["llama"].config(families.TINY)
    changed = replace(plain, residual="parallel", logit_scale=0.5, window=7)
    with pytest.raises(InvalidInput) as caught:
        FAMILIES["llama"].to_hf(changed)
    assert {problem.path for problem in caught.value.problems} == {"residual", "logit_scale", "window"}
    scales = read_different_scales(plain)
    with pytest.raises(InvalidInput, match="the same for all 4 heads"):
        dict(FAMILIES["qwen3"].hf_tensors(*scales))


def read_different_scales(plain: ModelConfig) -> tuple[ModelConfig, Any]:
    """Queries whose heads have scales of their own, as after training here."""
    config = replace(plain, qk_norm=True)
    model = LM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) % 11)

    class Source:
        def get(self, name: str) -> torch.Tensor:
            return model.get_parameter(name).detach()

    return config, Source()
