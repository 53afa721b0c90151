"""Calibration: the streamed mixture is the real one, routers are fitted to what they read, and the report is true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import exp
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.lm import LM, init_tensor
from bam_core.nn.losses import next_token_loss
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle import walk
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.calibrate import Calibration, calibrate, halves
from bam_core.upcycle.router_init import FITS
from bam_core.upcycle.variants import (
    VARIANTS,
    AttentionSpec,
    FFNSpec,
    MergeSpec,
    Variant,
    mixture_config,
    rules_for,
    variant_sources,
    with_gains,
)
from tests.core.upcycle_models import InMemory

DENSE = ModelConfig(vocab_size=30, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16)
NAMES = ("general", "code", "law")

SINGLE = 1e-5
"""Relative, of float32 through a few layers."""

BAM = VARIANTS["bam"]


def models(config: ModelConfig = DENSE, names: tuple[str, ...] = NAMES, same: bool = False) -> dict[str, InMemory]:
    """Dense models as a child of init has them; `same`: all of them equal."""
    return {
        name: InMemory(
            {key: init_tensor(key, s, config.n_layers, 0 if same else seed) for key, s in tensor_shapes(config).items()}
        )
        for seed, name in enumerate(names)
    }


def text(n_rows: int = 6, domains: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """Each domain has ten words of its own, so its text can be told from the others' by any token."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(10 * i, 10 * i + 10, (n_rows, 17), generator=generator) for i, name in enumerate(domains)
    }


def calibrated(
    variant: Variant,
    sources: Mapping[str, InMemory],
    rows: Mapping[str, Tensor] | None = None,
    config: ModelConfig = DENSE,
) -> tuple[Calibration, LM]:
    """The calibration, and the model that is made with it."""
    target = mixture_config(config, list(sources), variant)
    read = {name: sources[name] for name in variant_sources(variant, list(sources))}
    found = calibrate(target, rules_for(variant, target), read, variant, rows if rows is not None else text(), 7)
    target = with_gains(target, found.gains) if found.gains else target
    model = LM(target)
    model.load_state_dict(dict(upcycle(target, rules_for(variant, target), read, 7, fitted=found.fitted)))
    return found, model.eval()


def dense_lm(source: InMemory, config: ModelConfig = DENSE) -> LM:
    model = LM(config)
    model.load_state_dict(source.tensors)
    return model.eval()


@torch.no_grad()
def perplexity(model: LM, tokens_BT: Tensor) -> float:
    hidden = model(tokens_BT[:, :-1]).hidden_BTD
    return exp(float(next_token_loss(model.logits(hidden), tokens_BT[:, 1:])) / tokens_BT[:, 1:].numel())


@torch.no_grad()
def read_by(model: LM, name: str, tokens_BT: Tensor) -> Tensor:
    """What one module of the model reads."""
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    model(tokens_BT[:, :-1])
    hook.remove()
    return found[0]


@torch.no_grad()
def after_layer(model: LM, layer: int, tokens_BT: Tensor) -> Tensor:
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0])

    hook = model.blocks[layer].register_forward_hook(note)
    model(tokens_BT[:, :-1])
    hook.remove()
    return found[0]


VARIETY = {
    "soup": VARIANTS["soup"],
    "btx": VARIANTS["btx"],
    "shared kv, ridge": replace(VARIANTS["bam_shared_kv"], router_init="ridge"),
    "value only, copies, top-2": Variant(
        "v",
        AttentionSpec(kv="value_only", routing="top_k", top_k=2),
        FFNSpec(experts=("law", "law", "code"), top_k=2, gate="softmax_topk_renorm", layers=(1,)),
        merge=MergeSpec("seed"),
    ),
    "split, gate, centroid": replace(BAM, ffn=FFNSpec(split=2, top_k=2, scale="gate"), router_init="centroid"),
    "experts scaled, shared": replace(BAM, ffn=FFNSpec(scale="experts", shared_expert=True, balance="bias")),
    "weights scaled": replace(BAM, ffn=FFNSpec(scale="weights", soft_layers=(0,)), router_init="orthogonal"),
    "random experts": replace(BAM, ffn=FFNSpec(experts="random", gate="sample_top1")),
    "capacity, dense gradient": replace(BAM, ffn=FFNSpec(capacity_factor=0.1, dense_router_gradient=True)),
}


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", VARIETY.values(), ids=VARIETY)
def test_what_is_streamed_is_what_is_made(
    variant: Variant, residual: Literal["parallel", "sequential"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexities of the mixture and of the dense models, and distances, are those of whole models, also in chunks."""
    monkeypatch.setattr(walk, "CHUNK_TOKENS", 40)
    monkeypatch.setattr(walk, "CHUNK_LOGITS", 1000)
    config = replace(DENSE, residual=residual, qk_norm=True, tie_embeddings=residual == "parallel", rotary_frac=0.5)
    sources, rows = models(config), text()
    found, mixture = calibrated(variant, sources, rows, config)
    figures = found.report["perplexity"]
    assert list(figures) == [*NAMES, "mixture"]
    assert found.report["tokens_per_domain"] == dict.fromkeys(NAMES, 96)
    for name in figures:
        model = mixture if name == "mixture" else dense_lm(sources[name], config)
        wanted = {domain: perplexity(model, tokens) for domain, tokens in rows.items()}
        wanted["average"] = sum(wanted.values()) / 3
        assert figures[name] == pytest.approx(wanted, rel=SINGLE), name
    for layer, one in enumerate(found.report["layers"]):
        for domain, tokens in rows.items():
            mixed, own = (after_layer(m, layer, tokens) for m in (mixture, dense_lm(sources[domain], config)))
            wanted_distance = ((mixed - own).norm() / own.norm()).item()
            assert one["distance"][domain] == pytest.approx(wanted_distance, rel=1e-4, abs=SINGLE)


@pytest.mark.parametrize("init", FITS)
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_routers_are_fitted_to_what_they_read(residual: Literal["parallel", "sequential"], init: str) -> None:
    """Both routers, of both layers, by the inputs that hooks see in the finished model."""
    config = replace(DENSE, residual=residual)
    rows = text()
    found, mixture = calibrated(replace(BAM, router_init=init), models(config), rows, config)
    routers = [f"blocks.{layer}.{part}.router" for layer in range(2) for part in ("attn", "ffn")]
    assert list(found.fitted.routers) == routers
    for name in routers:
        inputs = [halves(read_by(mixture, name.removesuffix(".router"), tokens))[0] for tokens in rows.values()]
        wanted = FITS[init](inputs)
        assert torch.allclose(found.fitted.routers[name], wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
        assert torch.equal(found.fitted.routers[name], mixture.state_dict()[name])
    if residual == "sequential":
        assert not torch.allclose(*(found.fitted.routers[name] for name in routers[:2]), atol=1e-2)


def test_ridge_routes_separable_domains_and_random_does_not() -> None:
    sources, rows = models(), text(n_rows=20)
    ridge = calibrated(replace(BAM, router_init="ridge"), sources, rows)[0].report["layers"]
    random = calibrated(BAM, sources, rows)[0].report["layers"]
    for branch in ("attention", "ffn"):
        assert ridge[0][f"{branch}_accuracy"] == 1
        assert ridge[1][f"{branch}_accuracy"] > 0.85, "attention to 16 random words blurs the domains a little"
        assert all(layer[f"{branch}_accuracy"] < 0.7 for layer in random)
        assert all(layer[f"{branch}_condition"] < 5 for layer in random)


def test_accuracy_is_measured_on_rows_that_were_not_fitted() -> None:
    """Every other row has the text of the next domain: fitted on the one, the router is wrong about the other."""
    rows = text(n_rows=20)
    crossed = {name: tokens.clone() for name, tokens in rows.items()}
    for name, other in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
        crossed[name][1::2] = rows[other][1::2]
    layers = calibrated(replace(BAM, router_init="ridge"), models(), crossed)[0].report["layers"]
    for layer, one in enumerate(layers):
        assert one["ffn_accuracy"] <= 0.15 * layer
        assert one["attention_accuracy"] <= 0.15 * layer


def test_one_row_is_split_in_time() -> None:
    h = torch.arange(10.0).view(1, 5, 2)
    assert [half.tolist() for half in halves(h)] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9]]]
    found, _ = calibrated(replace(BAM, router_init="ridge"), models(), text(n_rows=1))
    assert all(layer["ffn_accuracy"] is not None for layer in found.report["layers"])


@pytest.mark.parametrize("variant", [BAM, VARIANTS["bam_shared_kv"], VARIANTS["soup"]], ids=lambda v: v.name)
def test_equal_experts_under_soft_gates_are_the_dense_model(variant: Variant) -> None:
    soft = variant if variant.ffn == "merged" else replace(variant, ffn=FFNSpec(routing="soft"))
    found, _ = calibrated(replace(soft, router_init="random"), models(same=True))
    for layer in found.report["layers"]:
        assert all(distance < 1e-6 for distance in layer["distance"].values())
    perplexities = found.report["perplexity"]
    assert perplexities["mixture"] == pytest.approx(perplexities["general"], rel=1e-6)


@pytest.mark.parametrize("scale", ["none", "gate", "experts"])
@pytest.mark.parametrize(("split", "top_k"), [(1, 1), (1, 2), (2, 2)])
def test_a_scale_makes_up_for_the_gate(scale: Any, split: int, top_k: int) -> None:
    """Of equal experts under equal gates the factor is exact, and only with it the mixture is the dense model."""
    spec = FFNSpec(scale=scale, split=split, top_k=top_k)
    found, _ = calibrated(Variant("v", AttentionSpec(), spec, router_init="zero"), models(same=True))
    gate_sum = top_k / (3 * split)
    factor = split / gate_sum
    for layer, one in enumerate(found.report["layers"]):
        assert one["ffn_gate_sum"] == pytest.approx(gate_sum, rel=1e-6)
        assert one["ffn_shrink"] == pytest.approx(1 / factor, rel=1e-6)
        assert found.gains == (() if scale != "gate" else pytest.approx((factor, factor), rel=1e-6))
        made = found.fitted.factors.get(f"blocks.{layer}.ffn.w_down")
        assert made == (pytest.approx(factor, rel=1e-6) if scale == "experts" else None)
        if split == 1:  # of tied column groups two of one kind may be chosen
            assert (max(one["distance"].values()) < SINGLE) == (scale != "none")


def test_gains_are_measured_layer_by_layer() -> None:
    """The gates of the finished model sum to 1 on average over domains; dense layers have none."""
    variant = replace(BAM, ffn=FFNSpec(scale="gate", layers=(1,)), router_init="ridge")
    rows = text()
    found, mixture = calibrated(variant, models(), rows)
    assert found.gains[0] == 1
    assert found.report["layers"][0]["ffn_gate_sum"] is None
    assert found.gains[1] == pytest.approx(1 / found.report["layers"][1]["ffn_gate_sum"])
    with torch.no_grad():
        sums = [mixture(tokens[:, :-1]).routing[1].ffn.weights_NK.sum(-1).mean().item() for tokens in rows.values()]
    assert sum(sums) / 3 == pytest.approx(1, rel=SINGLE)


def test_slots_of_one_model_share_its_row_and_an_expert_without_text_has_none() -> None:
    ffn = FFNSpec(experts=("law", "math", "law"), split=2, top_k=2)
    variant = Variant("v", "merged", ffn, router_init="ridge", merge=MergeSpec("seed"))
    sources = models(names=("general", "law", "math"))
    found, _ = calibrated(variant, sources, text(domains=("general", "code", "law")))
    router = found.fitted.routers["blocks.0.ffn.router"]
    assert router.shape == (6, 32)
    assert router[2:4].count_nonzero() == 0
    assert router[0].count_nonzero() == 32
    assert all(torch.equal(router[0], router[row]) for row in (1, 4, 5))
    assert set(found.report["layers"][0]["distance"]) == {"general", "law"}
    assert set(found.report["perplexity"]) == {"general", "law", "math", "mixture"}
    (warning,) = [warning for warning in found.report["warnings"] if "copies" in warning]
    assert "copies of law" in warning


def test_warnings_of_degenerate_routers() -> None:
    zero = calibrated(replace(BAM, router_init="zero"), models())[0].report
    assert zero["layers"][0]["ffn_condition"] is None
    assert len(zero["warnings"]) == 1, "soft attention is meant to start equal"
    assert "ffn routers of 2 of 2 layers give some experts equal logits" in zero["warnings"][0]
    crowd = FFNSpec(experts=NAMES * 8)  # 24 random rows of 32 entries are far from orthogonal
    (warning,) = calibrated(Variant("v", "merged", crowd), models())[0].report["warnings"]
    assert "ffn routers of 2 of 2 layers tell some experts apart far worse" in warning
    assert "above 5" in warning
    assert calibrated(BAM, models())[0].report["warnings"] == []


def test_no_text_of_any_expert_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"router_init: 'ridge': needs text of at least one of code, general, law"):
        calibrated(replace(BAM, router_init="ridge"), models(), text(domains=("a", "b", "c")))


def test_calibration_repeats_and_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = (calibrated(replace(BAM, router_init="centroid"), models())[0] for _ in range(2))
    assert first.report == second.report
    assert all(torch.equal(router, second.fitted.routers[name]) for name, router in first.fitted.routers.items())
    assert torch.equal(torch.get_rng_state(), before)


def test_one_tensor_of_a_model_is_alive_at_a_time() -> None:
    sources = models()
    peak = 0
    get = InMemory.get

    def watched(self: InMemory, name: str) -> Tensor:
        nonlocal peak
        peak = max(peak, sum(source.live() for source in sources.values()))
        return get(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InMemory, "get", watched)
        calibrated(replace(BAM, router_init="ridge"), sources)
    assert peak <= 2, f"{peak} tensors of dense models were alive when another was read"
