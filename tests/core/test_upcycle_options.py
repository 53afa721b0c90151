"""What public families have beside the plain block goes into a mixture, shows in its receipt, and comes out again."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from upcycle_models import DENSE, FAMILIES, NAMES, InMemory, dense_models, mix

from bam_core.checkpoint import open_tensors, read_config, write_model
from bam_core.config import ModelConfig, SharedExperts, Sparser
from bam_core.errors import InvalidInput
from bam_core.nn.lm import LM
from bam_core.nn.losses import next_token_loss
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle import walk
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.calibrate import Calibration, calibrate
from bam_core.upcycle.edit import adding, edited
from bam_core.upcycle.extract import Recorded, extracted
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.retrace import digests_in, retrace_mixture
from bam_core.upcycle.sparser import load_sparser
from bam_core.upcycle.variants import (
    VARIANTS,
    AttentionSpec,
    FFNSpec,
    Variant,
    mixture_config,
    rules_for,
    variant_sources,
)

ROUNDING = 1e-12
BAM = VARIANTS["bam"]
every_family = pytest.mark.parametrize("family", FAMILIES)


def of(family: str, **sizes: Any) -> ModelConfig:
    return replace(DENSE, **FAMILIES[family], **sizes)


def calm(sources: dict[str, InMemory]) -> dict[str, InMemory]:
    """Of the scale of trained models, so that a receipt's rounding is that of float64."""
    for source in sources.values():
        source.tensors = {name: 0.3 * t + name.endswith("norm.weight") for name, t in source.tensors.items()}
    return sources


def tokens(batch: int = 2, n_time: int = 9) -> Tensor:
    return torch.randint(19, (batch, n_time), generator=torch.Generator().manual_seed(3))


def lm(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> LM:
    model = LM(config)
    model.load_state_dict(tensors)
    return model.to(dtype).eval()


@torch.no_grad()
def logits(model: LM) -> Tensor:
    output = model(tokens())
    return model.logits(output.hidden_BTD, output.mix_BTE)


@pytest.mark.parametrize("kv", ["expert", "shared", "value_only"])
@every_family
def test_a_bias_is_copied_or_averaged_with_its_matrix(family: str, kv: Any) -> None:
    config, variant = of(family), replace(BAM, attention=AttentionSpec(kv=kv))
    sources = dense_models(config)
    mixture = mix(variant, sources, config)
    assert {name: tuple(tensor.shape) for name, tensor in mixture.items()} == tensor_shapes(
        mixture_config(config, NAMES, variant)
    )
    merged = {
        part
        for letter in {"shared": "kv", "value_only": "qk", "expert": ""}[kv]
        for part in (f"attn.w_{letter}", f"attn.b_{letter}", f"attn.{letter}_norm")
    }
    for name, tensor in mixture.items():
        kind = name.split(".", 2)[-1]
        if not name.endswith(".router"):
            parents = torch.stack([source.tensors[name] for source in sources.values()])
            is_expert = kind.startswith(("attn.", "ffn.")) and kind not in merged
            assert torch.equal(tensor, parents if is_expert else parents.double().mean(0).float()), name


@pytest.mark.parametrize("variant", ["bam", "bam_shared_kv", "btx"])
@every_family
def test_equal_copies_are_the_dense_model(family: str, variant: str) -> None:
    """Under gates that sum to 1."""
    config, whole = of(family), replace(VARIANTS[variant], ffn=FFNSpec(gate="topk_softmax", top_k=2))
    one = calm(dense_models(config))["code"]
    mixture = lm(mixture_config(config, NAMES, whole), mix(whole, dict.fromkeys(NAMES, one), config))
    expected = logits(lm(config, one.tensors))
    assert (logits(mixture) - expected).abs().max() < ROUNDING * max(1.0, float(expected.abs().max()))


@every_family
def test_one_hot_routers_leave_one_dense_model(family: str) -> None:
    """One-hot by the routers' own bias, so whatever they read; what is merged is that dense model's."""
    config = of(family)
    sources = calm(dense_models(config))
    target, tensors = mixture_config(config, NAMES, BAM), mix(BAM, sources, config)
    assert target.attention is not None
    assert target.ffn is not None
    biased = replace(
        target, attention=replace(target.attention, router_bias=True), ffn=replace(target.ffn, router_bias=True)
    )
    for place, source in enumerate(sources.values()):
        merged = {name for name, tensor in source.tensors.items() if tensor.shape == tensors[name].shape}
        own = tensors | {name: source.tensors[name] for name in merged}
        for name in [name for name in own if name.endswith(".router")]:
            own[name] = torch.zeros_like(own[name])
            own[f"{name}_bias"] = torch.full((len(NAMES),), -1e4).index_fill_(0, torch.tensor(place), 1e4)
        expected = logits(lm(config, source.tensors))
        found = logits(lm(biased, own))
        assert (found - expected).abs().max() < ROUNDING * max(1.0, float(expected.abs().max()))


VARIANTS_OF_RECEIPT = {
    "bam": BAM,
    "shared kv, scaled": replace(VARIANTS["bam_shared_kv"], ffn=FFNSpec(scale="experts", shared_expert=True)),
    "value only, gain": Variant("v", AttentionSpec(kv="value_only"), FFNSpec(scale="gate", top_k=2)),
    "routed": replace(BAM, shared=SharedExperts(), router_init="random"),
}


def written(root: Path, config: ModelConfig, variant: Variant) -> tuple[Path, dict[str, Path], dict[str, Any]]:
    """The mixture, the dense models, and what was made of what."""
    sources, made = calm(dense_models(config)), dict[str, Any]()
    folders = {name: root / name for name in NAMES}
    for name, folder in folders.items():
        write_model(folder, config, sources[name].tensors.items(), tokenizer=None, card="")
    target = mixture_config(config, NAMES, variant)
    read = {name: open_tensors(folders[name]) for name in variant_sources(variant, NAMES)}
    tensors = upcycle(target, rules_for(variant, target), read, 0, made)
    write_model(root / "mix", target, tensors, tokenizer=None, card="")
    return root / "mix", folders, made


@pytest.mark.parametrize("variant", VARIANTS_OF_RECEIPT)
@every_family
def test_the_receipt_finds_every_expert(tmp_path: Path, family: str, variant: str) -> None:
    config = of(family, d_model=16, n_heads=4)
    folder, folders, made = written(tmp_path, config, VARIANTS_OF_RECEIPT[variant])
    found = receipt(folder, folders, made=made)
    for one in (*found["experts"].values(), *found.get("shared", {}).values()):
        assert one["max_abs_diff"] <= ROUNDING * max(1.0, one["max_abs_value"])


@pytest.mark.parametrize(
    "name",
    ["blocks.1.attn.b_q", "blocks.1.attn.b_v", "blocks.1.attn.b_o", "blocks.1.ffn.b_up", "blocks.1.ffn.b_down"],
)
def test_a_bias_of_another_expert_shows(tmp_path: Path, name: str) -> None:
    folder, folders, made = written(tmp_path, of("neox", d_model=16, n_heads=4), BAM)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][2] = tensors[name][1]
    write_model(folder, read_config(folder), tensors.items(), tokenizer=None, card="")
    found = receipt(folder, folders, made=made)["experts"]["law"]
    assert found["max_abs_diff"] > 1e-3
    assert (found["layer"], found["branch"]) == (1, "attention" if "attn" in name else "ffn")


@pytest.mark.parametrize("name", ["norm.bias", "head.bias", "blocks.1.norm.bias"])
def test_a_shared_bias_of_another_model_shows(tmp_path: Path, name: str) -> None:
    routed = VARIANTS_OF_RECEIPT["routed"]
    folder, folders, made = written(tmp_path, of("phi", d_model=16, n_heads=4), routed)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][2] = tensors[name][1]
    write_model(folder, read_config(folder), tensors.items(), tokenizer=None, card="")
    found = receipt(folder, folders, made=made)["shared"]
    assert found["law"]["tensor"] == name.replace("bias", "weight")
    assert found["law"]["max_abs_diff"] > 1e-3
    assert found["code"]["max_abs_diff"] <= ROUNDING * found["code"]["max_abs_value"]


@every_family
def test_an_expert_is_added_unheard_and_comes_out_bit_by_bit(family: str) -> None:
    config, scaled = of(family), replace(BAM, ffn=FFNSpec(scale="experts"))
    sources, made = calm(dense_models(config)), dict[str, Any]()
    three = {name: sources[name] for name in NAMES[:3]}
    target = mixture_config(config, list(three), scaled)
    tensors = dict(upcycle(target, rules_for(scaled, target), three, 0, made))
    factors = {name: entry["factor"] for name, entry in made.items() if "factor" in entry}
    assert {name.rpartition(".")[2] for name in factors} == {"w_down"} | ({"b_down"} if config.ffn_bias else set())
    edit = adding(target, config, "math")
    more = dict(edited(edit, InMemory(tensors), sources["math"], factors=factors))
    assert (logits(lm(target, tensors)) - logits(lm(edit.target, more))).abs().max() < 1e-9
    digests = {part["tensor"]: part["sha256"] for e in made.values() for part in e["from"] if part["expert"] == "law"}
    recorded, parent = Recorded(digests, factors), sources["law"]
    out = dict(extracted(target, InMemory(tensors), "law", shared="parent", parent=parent, recorded=recorded))
    assert out.keys() == parent.tensors.keys()
    assert all(torch.equal(out[name], parent.tensors[name]) for name in out)


@pytest.mark.parametrize("shared", ["merged", SharedExperts(head="soft")], ids=["merged", "routed"])
@every_family
def test_what_is_streamed_is_what_is_made(family: str, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The perplexities of calibration are those of whole models, also in chunks."""
    monkeypatch.setattr(walk, "CHUNK_TOKENS", 10)
    monkeypatch.setattr(walk, "CHUNK_LOGITS", 200)
    config, variant = of(family), replace(BAM, ffn=FFNSpec(scale="experts"), shared=shared, router_init="ridge")
    sources = calm(dense_models(config))
    rows = {name: tokens(4, 12) for name in NAMES}
    found, mixture = calibrated(variant, config, sources, rows)
    models = {name: lm(config, source.tensors, torch.float32) for name, source in sources.items()}
    for name, model in (models | {"mixture": mixture}).items():
        wanted = perplexity(model, rows[NAMES[0]])
        assert found.report["perplexity"][name][NAMES[0]] == pytest.approx(wanted, rel=1e-5), name


def calibrated(
    variant: Variant, config: ModelConfig, sources: dict[str, InMemory], rows: dict[str, Tensor]
) -> tuple[Calibration, LM]:
    target = mixture_config(config, NAMES, variant)
    rules = rules_for(variant, target)
    found = calibrate(target, rules, sources, variant, rows, 7)
    return found, lm(target, dict(upcycle(target, rules, sources, 7, fitted=found.fitted)), torch.float32)


@torch.no_grad()
def perplexity(model: LM, tokens_BT: Tensor) -> float:
    output = model(tokens_BT[:, :-1])
    logits_BTV = model.logits(output.hidden_BTD, output.mix_BTE)
    return exp(float(next_token_loss(logits_BTV, tokens_BT[:, 1:])) / tokens_BT[:, 1:].numel())


def test_what_cannot_be_carried_is_refused_with_its_reason() -> None:
    scaled, split = (replace(BAM, ffn=spec) for spec in (FFNSpec(scale="weights"), FFNSpec(split=2)))
    with pytest.raises(InvalidInput, match=r"ffn\.scale.*SwiGLU without biases.*gated: False"):
        mixture_config(of("neox"), NAMES, scaled)
    with pytest.raises(InvalidInput, match=r"ffn\.split.*must be 1 with ffn_bias"):
        mixture_config(of("phi"), NAMES, split)


def test_cheaper_attention_has_the_mean_of_the_biases(tmp_path: Path) -> None:
    """Keys and values of all experts become one; queries and outputs stay theirs."""
    folder, _, _ = written(tmp_path, of("neox", d_model=16, n_heads=4), BAM)
    whole, cheaper = open_tensors(folder), load_sparser(folder, Sparser(kv="shared"), torch.float64)
    for letter, is_own in (("q", True), ("k", False), ("v", False), ("o", True)):
        name = f"blocks.1.attn.b_{letter}"
        stacked = whole.get(name).double()
        wanted = stacked if is_own else stacked.mean(0)
        torch.testing.assert_close(cheaper.get_parameter(name).data, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["neox", "gemma"])
def test_a_mixture_is_made_again_from_its_sources(tmp_path: Path, family: str) -> None:
    folder, folders, made = written(tmp_path, of(family, d_model=16, n_heads=4), BAM)
    mix_json = {"variant": BAM.to_json(), "experts": {name: name for name in NAMES}, "tensors": made}
    (folder / "mix.json").write_text(json.dumps(mix_json))
    config = {"variant": BAM.identity(), "seed": 0}
    found = retrace_mixture(folder, json.loads(json.dumps(config)), folders, digests_in(folder))
    assert (found.faults, found.cannot, found.changed) == ((), (), {})
    assert sorted(found.again + found.by_digest) == sorted(made)
