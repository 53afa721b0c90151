"""`shared: routed` on its way into a mixture: nothing averaged, the router fitted, retraced, taken out again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from upcycle_models import InMemory

from bam_core.card.mixed import Mixed, rules_in_words
from bam_core.checkpoint import open_tensors, read_config, tensor_sha256, write_model
from bam_core.config import ModelConfig, SharedExperts
from bam_core.errors import InvalidInput
from bam_core.evaluate.knock_out import row_nll
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.losses import next_token_loss
from bam_core.nn.shared import embed_each, text_so_far
from bam_core.upcycle import shared_receipt, walk
from bam_core.upcycle.apply import Fitted, coverage, upcycle
from bam_core.upcycle.calibrate import Calibration, calibrate, halves
from bam_core.upcycle.compat import config_problems
from bam_core.upcycle.edit import adding, removing
from bam_core.upcycle.extract import Recorded, expert_slots, extracted
from bam_core.upcycle.receipt import receipt
from bam_core.upcycle.retrace import digests_in, retrace_mixture
from bam_core.upcycle.router_init import ridge
from bam_core.upcycle.variants import (
    VARIANTS,
    FFNSpec,
    MergeSpec,
    Variant,
    mixture_config,
    rules_for,
    variant_sources,
)

DENSE = ModelConfig(vocab_size=30, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=16)
UNTIED = replace(DENSE, tie_embeddings=False, residual="sequential", norm="layer", qk_norm=True)
NAMES = ("general", "code", "law")
SINGLE = 1e-5
"""Relative, of float32 through a few layers."""

ALL = SharedExperts()
BAM = replace(VARIANTS["bam"], shared=ALL, router_init="ridge")
BTX = replace(
    VARIANTS["btx"],
    ffn=FFNSpec(experts=("general", "general", "general", "code", "law", "law"), top_k=3, gate="softmax_topk_renorm"),
    shared=ALL,
    router_init="ridge",
)
KINDS = {
    "bam": BAM,
    "btx": BTX,
    "text routers": replace(BAM, router_input="text"),
    "text routers, btx": replace(BTX, router_input="text"),
    "soft head": replace(BAM, shared=SharedExperts(head="soft", temperature=2.0)),
    "norms": replace(BAM, shared=SharedExperts(embed="merged", head="merged")),
    "head": replace(BTX, shared=SharedExperts(embed="merged", norms="merged")),
    "embedding": replace(BTX, shared=SharedExperts(norms="merged", head="merged")),
    "nothing else": replace(VARIANTS["soup"], shared=ALL, router_init="centroid"),
}
PARTS = {"embed.weight": "embed", "head.weight": "head"}


def models(config: ModelConfig = DENSE) -> dict[str, InMemory]:
    """Every tensor of every model different, norms too."""
    found = {}
    for seed, name in enumerate(NAMES):
        model = LM(config)
        init_weights(model, seed)
        tensors = {key: t.clone() + (0.1 * (seed + 1) if t.ndim == 1 else 0) for key, t in model.state_dict().items()}
        found[name] = InMemory(tensors)
    return found


def text(n_rows: int = 6) -> dict[str, Tensor]:
    """Each domain has ten words of its own."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(10 * i, 10 * i + 10, (n_rows, 17), generator=generator) for i, name in enumerate(NAMES)}


def mixed(variant: Variant, sources: Mapping[str, InMemory], config: ModelConfig = DENSE) -> dict[str, Tensor]:
    target = mixture_config(config, NAMES, variant)
    rows = rules_for(variant, target)
    routers = {
        name: torch.randn(router.shape)
        for name, router in ((n, p) for n, p in LM(target).named_parameters() if n.endswith(".router"))
    }
    return dict(upcycle(target, rows, sources, 7, fitted=Fitted(routers)))


@pytest.mark.parametrize("config", [DENSE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_routed_is_stacked_and_the_rest_is_the_mean(kind: str, config: ModelConfig) -> None:
    sources, target = models(config), mixture_config(config, NAMES, KINDS[kind])
    made = mixed(KINDS[kind], sources, config)
    assert set(made) == set(LM(target).state_dict())
    for name in made:
        part: Any = PARTS.get(name, "norms" if name.endswith("norm.weight") else "")
        if not part:
            continue
        source = "embed.weight" if name not in sources["law"].tensors else name
        each = torch.stack([model.tensors[source] for model in sources.values()])
        expected = each if target.is_routed(part) else each.double().mean(0).float()
        assert torch.equal(made[name], expected), name
    assert made["shared.router"].shape == (3, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_twice_missing_or_lost(kind: str) -> None:
    for config in (DENSE, UNTIED):
        target, sources = mixture_config(config, NAMES, KINDS[kind]), models(config)
        shapes = {name: tuple(t.shape) for name, t in LM(target).state_dict().items()}
        found = coverage(shapes, rules_for(KINDS[kind], target), sources)
        assert set(found.claims) == set(shapes)
        assert not any(found.set_aside.values())


def test_every_dense_model_is_read_whatever_the_experts_are() -> None:
    seeds = replace(VARIANTS["btx"], ffn=FFNSpec(experts=("general", "general")), merge=MergeSpec("seed"))
    assert variant_sources(seeds, NAMES) == ("general",)
    assert variant_sources(replace(seeds, shared=ALL), NAMES) == NAMES


def calibrated(variant: Variant, config: ModelConfig = DENSE, n_rows: int = 6) -> tuple[Calibration, LM]:
    sources, target = models(config), mixture_config(config, NAMES, variant)
    found = calibrate(target, rules_for(variant, target), sources, variant, text(n_rows), 7)
    model = LM(target)
    model.load_state_dict(dict(upcycle(target, rules_for(variant, target), sources, 7, fitted=found.fitted)))
    return found, model.eval()


@torch.no_grad()
def perplexity(model: LM, tokens_BT: Tensor) -> float:
    output = model(tokens_BT[:, :-1])
    logits_BTV = model.logits(output.hidden_BTD, output.mix_BTE)
    return exp(float(next_token_loss(logits_BTV, tokens_BT[:, 1:])) / tokens_BT[:, 1:].numel())


@pytest.mark.parametrize("config", [DENSE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_streamed_is_what_is_made(kind: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixture's perplexity as the walk measures it, in chunks, is that of the finished model."""
    monkeypatch.setattr(walk, "CHUNK_TOKENS", 40)
    monkeypatch.setattr(walk, "CHUNK_LOGITS", 1000)
    found, model = calibrated(KINDS[kind], config)
    wanted = {domain: perplexity(model, tokens) for domain, tokens in text().items()}
    wanted["average"] = sum(wanted.values()) / 3
    assert found.report["perplexity"]["mixture"] == pytest.approx(wanted, rel=SINGLE)


@pytest.mark.parametrize("kind", ["bam", "norms"])
def test_the_router_is_fitted_to_what_it_reads(kind: str) -> None:
    """Ridge on every other row of the text so far, of the mean embedding; measured on the rest."""
    found, model = calibrated(KINDS[kind], n_rows=20)
    read = {name: text_so_far(embed_each(t[:, :-1], model.embed.weight)).detach() for name, t in text(20).items()}
    wanted = ridge([halves(text_BTD)[0] for text_BTD in read.values()])
    router = found.fitted.routers["shared.router"]
    torch.testing.assert_close(router, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    assert torch.equal(router, model.shared.router)
    held = [halves(text_BTD)[1] @ router.mT for text_BTD in read.values()]
    accuracy = sum((logits.argmax(-1) == e).double().mean().item() for e, logits in enumerate(held)) / 3
    own = sum(logits.softmax(-1)[:, e].double().mean().item() for e, logits in enumerate(held)) / 3
    assert found.report["shared"]["accuracy"] == pytest.approx(accuracy)
    assert found.report["shared"]["own"] == pytest.approx(own, rel=SINGLE)
    assert accuracy > 0.97, "domains without a common word"


def test_a_mixture_without_it_is_told_as_before() -> None:
    found, _ = calibrated(replace(BAM, shared="merged"))
    assert "shared" not in found.report
    assert "shared.router" not in found.fitted.routers


def test_an_unfitted_router_is_warned_of() -> None:
    (warning,) = replace(BAM, router_init="random").warnings(NAMES)
    assert "router_init random" in warning
    assert "ridge or centroid" in warning
    assert BAM.warnings(NAMES) == []


def write_all(root: Path, variant: Variant, config: ModelConfig) -> tuple[Path, dict[str, Path], dict[str, Any]]:
    """The dense models and the mixture as the stage writes them, with what it says of each tensor."""
    sources, folders, made = models(config), {name: root / name for name in NAMES}, dict[str, Any]()
    for name, folder in folders.items():
        write_model(folder, config, sources[name].tensors.items(), tokenizer=None, card="")
    target = mixture_config(config, NAMES, variant)
    opened = {name: open_tensors(folder) for name, folder in folders.items()}
    found = calibrate(target, rules_for(variant, target), opened, variant, text(), 7)
    tensors = upcycle(target, rules_for(variant, target), opened, 7, made, found.fitted)
    write_model(root / "mix", target, tensors, tokenizer=None, card="")
    mix = {"variant": variant.to_json(), "experts": {name: f"expert.{name}" for name in NAMES}, "tensors": made}
    (root / "mix" / "mix.json").write_text(json.dumps(mix))
    return root / "mix", folders, made


@pytest.mark.parametrize("config", [DENSE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_receipt_finds_every_part_exactly(tmp_path: Path, kind: str, config: ModelConfig) -> None:
    folder, folders, made = write_all(tmp_path, KINDS[kind], config)
    found = receipt(folder, folders, made=made)
    assert list(found["shared"]) == list(NAMES)
    for one in found["shared"].values():
        assert one["tensor"] is not None
        assert one["max_abs_diff"] <= 1e-13 * one["max_abs_value"]
    for one in found["experts"].values():
        assert one["max_abs_diff"] <= 1e-12 * one["max_abs_value"]


@pytest.mark.parametrize("fault", ["swapped", "one weight", "not a number"])
@pytest.mark.parametrize("name", ["embed.weight", "norm.weight", "blocks.1.attn_norm.weight", "head.weight"])
def test_a_fault_in_any_part_shows(tmp_path: Path, name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_receipt, "CHUNK_ROWS", 7)
    folder, folders, _ = write_all(tmp_path, BAM, UNTIED)
    tensors = load_file(folder / "model.safetensors")
    if fault == "swapped":
        tensors[name][[0, 2]] = tensors[name][[2, 0]]
    else:
        tensors[name][2].view(-1)[-1] += 0.1 if fault == "one weight" else float("nan")
    write_model(folder, read_config(folder), tensors.items(), tokenizer=None, card="")
    found = receipt(folder, folders)["shared"]
    assert found["law"]["tensor"] == name
    assert not found["law"]["max_abs_diff"] <= 1e-3
    assert found["code"]["max_abs_diff"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_again_from_its_sources(tmp_path: Path, kind: str) -> None:
    folder, folders, made = write_all(tmp_path, KINDS[kind], DENSE)
    config = {"variant": json.loads(json.dumps(KINDS[kind].identity())), "seed": 7}
    found = retrace_mixture(folder, config, folders, digests_in(folder))
    assert (found.faults, found.cannot, found.changed) == ((), (), {})
    assert set(found.by_digest) == {name for name in made if name.endswith(".router")}
    assert sorted(found.again + found.by_digest) == sorted(made)


@pytest.mark.parametrize("config", [DENSE, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("name", NAMES)
def test_a_dense_model_comes_out_whole_without_its_parent(tmp_path: Path, name: str, config: ModelConfig) -> None:
    """BAM with all of its parts: nothing was merged, so nothing is lost."""
    whole = replace(BAM, router_init="random")
    folder, folders, _ = write_all(tmp_path, whole, config)
    source = open_tensors(folder)
    parent = {key: open_tensors(folders[name]).get(key) for key in open_tensors(folders[name]).names()}
    recorded = Recorded({key: tensor_sha256(tensor) for key, tensor in parent.items()})
    taken: dict[str, str] = {}
    made = dict(extracted(read_config(folder), source, name, shared="mixture", recorded=recorded, taken=taken))
    assert made.keys() == parent.keys()
    assert all(torch.equal(made[key], parent[key]) for key in parent)
    assert set(taken.values()) == {"mixture"}


def test_of_a_mixture_of_shared_parts_alone_an_expert_can_be_taken() -> None:
    target = mixture_config(DENSE, NAMES, KINDS["nothing else"])
    assert expert_slots(target, "law") == {"shared": 2}
    with pytest.raises(InvalidInput, match="no expert of this mixture"):
        expert_slots(target, "math")
    copies = mixture_config(DENSE, NAMES, BTX)
    assert expert_slots(copies, "law#2") == {"ffn": 5, "shared": 2}


def test_editing_is_refused_with_the_reason() -> None:
    target = mixture_config(DENSE, NAMES, BAM)
    for edit in (lambda: adding(target, DENSE, "math"), lambda: removing(target, "law")):
        with pytest.raises(InvalidInput, match="reads the mean embedding of all experts") as error:
            edit()
        assert [problem.path for problem in error.value.problems] == ["mixture.shared"]
        assert "mix the dense models anew" in str(error.value)
    assert adding(replace(target, shared=None), DENSE, "math")


def test_a_mixture_is_no_expert_and_its_dense_config_is_the_models() -> None:
    target = mixture_config(DENSE, NAMES, BAM)
    assert target.dense() == DENSE
    (problem,) = config_problems({"general": DENSE, "mix": replace(DENSE, shared=ALL, experts=NAMES)})
    assert "must be a dense model" in str(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_survives_json_and_one_without_it_is_as_before(kind: str) -> None:
    variant = KINDS[kind]
    assert Variant.from_json(json.loads(json.dumps(variant.to_json()))) == variant
    assert Variant.from_json(json.loads(json.dumps(variant.identity()))) == variant
    assert "shared" not in replace(variant, shared="merged").to_json()
    assert "shared" not in replace(variant, shared="merged").identity()


def test_wrong_variants_are_told() -> None:
    base = {"name": "x", "attention": {}, "ffn": {}}
    assert Variant.from_json(base | {"shared": "routed"}).shared == ALL
    assert Variant.from_json(base | {"shared": "merged"}).shared == "merged"
    for shared, words in (
        ("averaged", "must be merged, routed or a mapping"),
        ({"heads": 1}, "shared.heads: 1: unknown field"),
        ({"head": "top2"}, "shared.head: 'top2': must be one of top1, soft, merged"),
        ({"temperature": -1.0}, "shared.temperature: -1.0: must be a positive number"),
    ):
        with pytest.raises(InvalidInput, match=words):
            Variant.from_json(base | {"shared": shared})


def test_a_card_says_what_was_done_with_what_is_shared() -> None:
    words = rules_in_words(BAM.to_json())["Embedding, norms, output head"]
    assert words == (
        "of every dense model, mixed at each position by a router of the text so far: embeddings and norm scales by "
        "its parts, the head of the most probable model"
    )
    some = rules_in_words(replace(BAM, shared=SharedExperts("merged", "soft", "soft")).identity())
    assert some["Embedding, norms, output head"] == (
        "of every dense model, mixed at each position by a router of the text so far: norm scales by its parts, the "
        "logits of all heads by its parts; the rest is merged"
    )
    assert "Embedding, norms, output head" not in rules_in_words(VARIANTS["bam"].to_json())


def test_a_knock_out_and_a_quick_score_take_the_mix_along() -> None:
    _, model = calibrated(KINDS["bam"])
    rows = torch.stack([tokens[0] for tokens in text().values()])
    output = model(rows[:, :-1])
    wanted = -model.logits(output.hidden_BTD, output.mix_BTE).log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    torch.testing.assert_close(row_nll(model, rows)[0], wanted, rtol=SINGLE, atol=SINGLE)


def test_a_card_counts_the_largest_difference_of_all_parts() -> None:
    one = {"max_abs_diff": 1e-15, "max_abs_value": 2.0, "layer": 0, "branch": "ffn"}
    shared = {"max_abs_diff": 3e-15, "max_abs_value": 4.0, "tensor": "embed.weight"}
    found = Mixed.of("mix.bam", {"receipt": {"experts": {"law": one}, "shared": {"law": shared}}})
    assert found.largest_difference == (3e-15, 4.0)
