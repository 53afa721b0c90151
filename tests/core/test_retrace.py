"""A mixture is made again from its sources and compared: a whole one agrees to the last bit, a mistake is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from upcycle_models import DENSE, NAMES, random_tensors, write

from bam_core.checkpoint import open_tensors, read_config, write_model
from bam_core.errors import InvalidInput
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import Fitted, coverage, upcycle
from bam_core.upcycle.edit import adding, edited, removing
from bam_core.upcycle.retrace import Retraced, digests_in, retrace_edit, retrace_mixture, tensor_faults
from bam_core.upcycle.rules import FITTED_INITS
from bam_core.upcycle.variants import VARIANTS, Variant, mixture_config, rules_for, variant_sources, with_gains

BAM = VARIANTS["bam"]
SEED = 3
VARIED = {
    "bam": BAM,
    "soup": VARIANTS["soup"],
    "ties": Variant.from_json({"name": "x", "attention": "merged", "ffn": {}, "merge": {"method": "ties"}}),
    "dare": Variant.from_json({"name": "x", "attention": "merged", "ffn": {}, "merge": {"method": "dare"}}),
    "slerp": Variant.from_json({"name": "x", "attention": "merged", "ffn": {}, "merge": {"method": "slerp"}}),
    "weighted": Variant.from_json(
        {
            "name": "x",
            "attention": "merged",
            "ffn": {},
            "merge": {"method": "weighted", "weights": {"general": 0.75, "law": 0.25}},
        }
    ),
    "slots, split and a shared expert": Variant.from_json(
        {
            "name": "x",
            "attention": {"experts": ["law", "law"]},
            "ffn": {"split": 2, "shared_expert": True, "scale": "weights", "top_k": 2},
            "merge": "seed",
        }
    ),
    "fitted routers and measured factors": Variant.from_json(
        {"name": "x", "attention": {}, "ffn": {"scale": "experts", "top_k": 1}, "router_init": "centroid"}
    ),
    "random experts": Variant.from_json({"name": "x", "attention": "merged", "ffn": {"experts": "random"}}),
}


def mixed(folder: Path, variant: Variant, sources: Mapping[str, Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write the mixture as the stage does. Returns its configuration and the folders that it was made from."""
    read = {name: sources[name] for name in variant_sources(variant, tuple(sources))}
    target = mixture_config(DENSE, list(read), variant)
    opened = {name: open_tensors(path) for name, path in read.items()}
    claims = coverage(tensor_shapes(target), rules_for(variant, target), opened).claims
    routers = {
        name: torch.randn(tensor_shapes(target)[name], generator=torch.Generator().manual_seed(1))
        for name, rule in claims.items()
        if rule.op == "fresh" and rule.init in FITTED_INITS
    }
    is_measured = variant.ffn != "merged" and variant.ffn.scale == "experts"
    factors = {"blocks.0.ffn.w_down": 2.5, "blocks.1.ffn.w_down": 3.25} if is_measured else {}
    if target.ffn is not None and not is_measured:
        target = with_gains(target, [1.5] * target.n_layers)  # as measured, in place of what an untrained router needs
    made: dict[str, Any] = {}
    tensors = upcycle(target, rules_for(variant, target), opened, SEED, made, Fitted(routers, factors))
    write_model(folder, target, tensors, tokenizer=None, card="")
    mix = {"variant": variant.to_json(), "experts": {name: f"expert.{name}" for name in read}, "tensors": made}
    (folder / "mix.json").write_text(json.dumps(mix))
    return {"variant": json.loads(json.dumps(variant.identity())), "seed": SEED}, read


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {name: write(tmp_path / name, tensors=random_tensors(DENSE, seed)) for seed, name in enumerate(NAMES[:3])}


@pytest.mark.parametrize("name", VARIED)
def test_every_tensor_of_a_whole_mixture_comes_out_again(name: str, tmp_path: Path, sources: dict[str, Path]) -> None:
    config, read = mixed(tmp_path / "mix", VARIED[name], sources)
    digests = digests_in(tmp_path / "mix")
    found = retrace_mixture(tmp_path / "mix", config, read, digests)
    assert tensor_faults(tmp_path / "mix", digests) == []
    assert (found.faults, found.cannot, found.changed) == ((), (), {})
    assert sorted(found.again + found.by_digest) == sorted(digests)
    routers = {name for name in digests if name.endswith(".router")}
    assert set(found.by_digest) == (routers if VARIED[name].router_init in FITTED_INITS else set())


def change_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewritten(folder: Path, name: str) -> None:
    """One entry of a tensor is another, and every file of the folder says so."""
    source, config = open_tensors(folder), read_config(folder)
    tensors = {kept: source.get(kept).clone() for kept in source.names()}
    tensors[name].view(-1)[0] += 1
    write_model(folder, config, tensors.items(), tokenizer=None, card="")
    digest = digests_in(folder)[name]
    for file in ("mix.json", "edit.json"):
        if (folder / file).exists():
            change_json(folder / file, lambda content: content["tensors"][name].update(sha256=digest))


def retraced(folder: Path, config: dict[str, Any], read: Mapping[str, Path | None]) -> Retraced:
    return retrace_mixture(folder, config, read, digests_in(folder))


def test_a_tensor_that_its_sources_do_not_make_is_named_though_all_files_agree(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)
    rewritten(tmp_path / "mix", "blocks.1.attn.w_q")
    assert tensor_faults(tmp_path / "mix", digests_in(tmp_path / "mix")) == []
    found = retraced(tmp_path / "mix", config, read)
    assert found.faults == ("tensor not what their sources make: blocks.1.attn.w_q",)
    assert "blocks.1.attn.w_q" not in found.again


def test_random_draws_that_differ_prove_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    """Another machine may draw otherwise."""
    config, read = mixed(tmp_path / "mix", BAM, sources)
    rewritten(tmp_path / "mix", "blocks.1.attn.router")
    found = retraced(tmp_path / "mix", config, read)
    assert found.faults == ()
    [words] = found.cannot
    assert words.endswith("come out otherwise on this machine: blocks.1.attn.router")
    assert found.by_digest == ("blocks.1.attn.router",)


def test_a_source_with_other_bytes_is_named_with_its_tensors(tmp_path: Path, sources: dict[str, Path]) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)
    rewritten(sources["law"], "blocks.0.ffn.w_up")
    found = retraced(tmp_path / "mix", config, read)
    assert (found.faults, found.changed) == ((), {"law": ("blocks.0.ffn.w_up",)})
    assert "blocks.0.ffn.w_up" not in found.again

    gone = retraced(tmp_path / "mix", config, {**read, "code": None})
    assert (gone.again, gone.changed) == ((), {"law": ("blocks.0.ffn.w_up",)})
    assert gone.cannot == ("its tensors were not made again: code cannot be read",)
    assert set(gone.by_digest) == set(digests_in(tmp_path / "mix"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mix: mix["tensors"]["norm.weight"].update(op="copy"), "tensor made otherwise than mix.json says: norm"),
        (lambda mix: mix["tensors"]["norm.weight"]["from"].pop(), "tensor made otherwise than mix.json says: norm"),
        (lambda mix: mix["tensors"].pop("norm.weight"), "tensor of other bytes than mix.json says: norm.weight"),
        (lambda mix: mix["tensors"].update(x=mix["tensors"]["norm.weight"]), "tensor in mix.json only: x"),
        (lambda mix: mix.update(experts={"general": "seed"}), "mix.json names the experts general, its key general, "),
        (
            lambda mix: [entry.update(sha256="0" * 64) for entry in mix["tensors"].values()],
            f"{len(tensor_shapes(mixture_config(DENSE, NAMES[:3], BAM)))} tensors of other bytes than mix.json says: ",
        ),
    ],
)
def test_what_mix_json_says_wrongly_is_named(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path, sources: dict[str, Path]
) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)
    change_json(tmp_path / "mix" / "mix.json", change)
    assert any(fault.startswith(words) for fault in retraced(tmp_path / "mix", config, read).faults)


def test_a_source_s_digest_in_mix_json_is_compared(tmp_path: Path, sources: dict[str, Path]) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)

    def change(mix: dict[str, Any]) -> None:
        mix["tensors"]["blocks.0.ffn.w_up"]["from"][1]["sha256"] = "0" * 64

    change_json(tmp_path / "mix" / "mix.json", change)
    assert retraced(tmp_path / "mix", config, read).changed == {"code": ("blocks.0.ffn.w_up",)}


def test_another_variant_than_the_key_names_is_a_fault(tmp_path: Path, sources: dict[str, Path]) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)
    other = config | {"variant": VARIANTS["btx"].identity()}
    assert retraced(tmp_path / "mix", other, read).faults == (
        "config.json is not that of variant 'btx' over these experts",
    )
    reseeded = retraced(tmp_path / "mix", config | {"seed": SEED + 1}, read)
    assert "router" in reseeded.cannot[0]


def test_sources_that_make_no_mixture_are_refused_in_words(tmp_path: Path, sources: dict[str, Path]) -> None:
    config, read = mixed(tmp_path / "mix", BAM, sources)
    write_model(
        sources["law"],
        replace(DENSE, rope_theta=5.0),
        random_tensors(DENSE, 2),
        tokenizer=None,
        card="",
    )
    with pytest.raises(InvalidInput, match="rope_theta"):
        retraced(tmp_path / "mix", config, read)


@pytest.mark.parametrize("router_row", ["zeros", "mean"])
def test_an_edit_is_made_again_too(router_row: str, tmp_path: Path, sources: dict[str, Path]) -> None:
    mixed(tmp_path / "mix", BAM, {name: sources[name] for name in ("general", "code")})
    edit = adding(read_config(tmp_path / "mix"), read_config(sources["law"]), "law")
    config = {"operation": "add", "name": "law", "router_row": router_row, "factors": {"blocks.0.ffn.w_up": 2.0}}
    made: dict[str, Any] = {}
    tensors = edited(
        edit,
        open_tensors(tmp_path / "mix"),
        open_tensors(sources["law"]),
        router_row=router_row,
        factors=config["factors"],
        provenance=made,
    )
    write_model(tmp_path / "edit", edit.target, tensors, tokenizer=None, card="")
    (tmp_path / "edit" / "edit.json").write_text(json.dumps({"tensors": made}))
    read = {"base": tmp_path / "mix", "expert": sources["law"]}
    digests = digests_in(tmp_path / "edit")
    whole = retrace_edit(tmp_path / "edit", config, read, digests)
    assert whole == Retraced(again=tuple(made))

    without = retrace_edit(tmp_path / "edit", config, {**read, "expert": None}, digests)
    assert without.cannot == ("its tensors were not made again: expert cannot be read",)
    rewritten(tmp_path / "edit", "blocks.0.ffn.w_up")
    found = retrace_edit(tmp_path / "edit", config, read, digests_in(tmp_path / "edit"))
    assert found.faults == ("tensor not what their sources make: blocks.0.ffn.w_up",)
    rewritten(sources["law"], "blocks.1.ffn.w_up")
    found = retrace_edit(tmp_path / "edit", config, read, digests_in(tmp_path / "edit"))
    assert found.changed == {"expert": ("blocks.1.ffn.w_up",)}
    other = retrace_edit(tmp_path / "edit", config | {"name": "math"}, read, digests_in(tmp_path / "edit"))
    assert other.faults == ("config.json is not that of this edit",)


def test_a_removal_is_made_again(tmp_path: Path, sources: dict[str, Path]) -> None:
    mixed(tmp_path / "mix", BAM, sources)
    edit = removing(read_config(tmp_path / "mix"), "code")
    made: dict[str, Any] = {}
    tensors = edited(edit, open_tensors(tmp_path / "mix"), provenance=made)
    write_model(tmp_path / "edit", edit.target, tensors, tokenizer=None, card="")
    (tmp_path / "edit" / "edit.json").write_text(json.dumps({"tensors": made}))
    config = {"operation": "remove", "name": "code"}
    found = retrace_edit(tmp_path / "edit", config, {"base": tmp_path / "mix"}, digests_in(tmp_path / "edit"))
    assert found == Retraced(again=tuple(made))


def test_config_json_s_digests_are_compared_with_the_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    [fault] = tensor_faults(folder, digests_in(folder))
    assert fault.startswith("tensor of other bytes than config.json says: ")
