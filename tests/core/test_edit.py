"""An expert added is not heard at first, one removed is gone, one extracted is the dense model bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from upcycle_models import DENSE, NAMES, InMemory

from bam_core.checkpoint import tensor_sha256
from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged, InvalidInput
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.edit import UNHEARD, adding, edited, removing
from bam_core.upcycle.extract import Recorded, extracted
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, Variant, mixture_config, rules_for

STEP_0 = 1e-6
"""Of the issue: the largest change of a logit by an expert that was added. Logits here are of size 1."""

SLOTS = ("general", "general", "law", "code")
SPECS: dict[str, tuple[Any, Any]] = {
    "bam": (AttentionSpec(kv="expert"), FFNSpec()),
    "shared kv": (AttentionSpec(kv="shared"), FFNSpec()),
    "value only": (AttentionSpec(kv="value_only"), FFNSpec()),
    "btx": ("merged", FFNSpec()),
    "btx top-2": ("merged", FFNSpec(top_k=2, gate="topk_softmax")),
    "renormalised": ("merged", FFNSpec(top_k=2, gate="softmax_topk_renorm")),
    "attention top-2": (AttentionSpec(routing="top_k", top_k=2), "merged"),
    "soft": (AttentionSpec(), FFNSpec(routing="soft")),
    "copies": (AttentionSpec(experts=SLOTS), FFNSpec(experts=SLOTS)),
    "split": (AttentionSpec(), FFNSpec(top_k=3, split=2)),
    "split copies": ("merged", FFNSpec(top_k=2, split=3, experts=SLOTS)),
    "some layers": (AttentionSpec(layers=(0,)), FFNSpec(layers=(1,), soft_layers=(1,))),
    "shared expert": ("merged", FFNSpec(shared_expert=True)),
    "balance bias": ("merged", FFNSpec(top_k=2, balance="bias")),
    "sample top-1": (AttentionSpec(), FFNSpec(gate="sample_top1")),
}
WIRINGS = {
    "parallel": DENSE,
    "sequential": replace(DENSE, residual="sequential", qk_norm=True, tie_embeddings=False),
}


def dense_model(name: str, config: ModelConfig) -> InMemory:
    """As a trained one is: of the scale that models start from, every expert different."""
    model = LM(config)
    init_weights(model, seed=sum(map(ord, name)))
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return InMemory({key: t + 0.01 * len(name) if t.ndim == 1 else t for key, t in tensors.items()})


class Mixed:
    """A mixture of all but the last of NAMES, unless `of` says otherwise."""

    def __init__(self, spec: str, config: ModelConfig = DENSE, of: tuple[str, ...] = NAMES[:-1], **ffn: Any) -> None:
        attention, ffn_spec = SPECS[spec]
        variant = Variant("v", attention, replace(ffn_spec, **ffn) if ffn else ffn_spec)
        self.dense = {name: dense_model(name, config) for name in NAMES}
        self.config = mixture_config(config, of, variant)
        self.provenance: dict[str, Any] = {}
        sources = {name: self.dense[name] for name in self.config.experts}
        rules = rules_for(variant, self.config)
        self.tensors = dict(upcycle(self.config, rules, sources, 7, self.provenance))
        generator = torch.Generator().manual_seed(5)
        for name, tensor in self.tensors.items():
            if name.endswith(".balance_bias"):
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
            if name.endswith(".router"):
                # A router that has learned: of two equal logits, torch chooses by the number of experts.
                tensor.mul_(20).add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
        self.source = InMemory(self.tensors)

    def recorded(self, name: str) -> Recorded:
        digests, factors = {}, {}
        for target, entry in self.provenance.items():
            for source in entry["from"]:
                if source["expert"] == name:
                    digests[source["tensor"]] = source["sha256"]
            if "factor" in entry:
                factors[target] = entry["factor"]
        return Recorded(digests, factors)


def logits(config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    model = LM(config).cast(dtype).eval()
    model.load_state_dict(dict(tensors))
    tokens_BT = torch.randint(config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.logits(model(tokens_BT).hidden_BTD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_an_expert_that_is_added_is_not_heard(spec: str, wiring: str, dtype: torch.dtype) -> None:
    mixed = Mixed(spec, WIRINGS[wiring])
    edit = adding(mixed.config, WIRINGS[wiring], "math")
    tensors = dict(edited(edit, mixed.source, mixed.dense["math"]))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(edit.target)
    before, after = logits(mixed.config, mixed.tensors, dtype), logits(edit.target, tensors, dtype)
    assert (before - after).abs().max() <= STEP_0

    loud = {name: torch.zeros_like(t) if name.endswith("router_bias") else t for name, t in tensors.items()}
    assert (before - logits(edit.target, loud, dtype)).abs().max() > 100 * STEP_0, "the bias is what keeps it unheard"


@pytest.mark.parametrize("spec", SPECS)
def test_the_new_expert_is_the_dense_model_in_its_place(spec: str) -> None:
    """Against a mixture made of all four at once: stacked tensors are equal; what is shared stays the mixture's."""
    mixed = Mixed(spec)
    experts = {"experts": (*SLOTS, "math")} if "copies" in spec else {}
    attention, ffn = (s if s == "merged" else replace(s, **experts) for s in SPECS[spec])
    variant = Variant("v", attention, ffn)
    whole = mixture_config(DENSE, NAMES, variant)
    sources = {name: mixed.dense[name] for name in whole.experts}
    at_once = dict(upcycle(whole, rules_for(variant, whole), sources, 7))
    edit = adding(mixed.config, DENSE, "math")
    tensors = dict(edited(edit, mixed.source, mixed.dense["math"]))
    for branch in ("attention", "ffn"):
        found, wanted = getattr(edit.target, branch), getattr(whole, branch)
        assert found is None or found == replace(wanted, router_bias=True, slots=found.slots), branch
        assert edit.target.expert_labels(branch) == (whole.expert_labels(branch) if wanted else ())
    for name, shape in tensor_shapes(edit.target).items():
        kind = name.rpartition(".")[2]
        if kind == "router_bias":
            n_old = mixed.tensors[name.replace("_bias", "")].shape[0]
            assert tensors[name].tolist() == [0.0] * n_old + [UNHEARD] * (shape[0] - n_old)
        elif shape == tuple(mixed.tensors[name].shape):
            assert torch.equal(tensors[name], mixed.tensors[name]), name
        elif kind == "router":
            n_old = len(mixed.tensors[name])
            assert torch.equal(tensors[name][:n_old], mixed.tensors[name])
            assert not tensors[name][n_old:].any()
        elif kind != "balance_bias":
            assert torch.equal(tensors[name], at_once[name]), name


def test_a_router_row_may_start_from_the_mean() -> None:
    mixed = Mixed("bam")
    edit = adding(mixed.config, DENSE, "math")
    tensors = dict(edited(edit, mixed.source, mixed.dense["math"], router_row="mean"))
    router = "blocks.1.attn.router"
    assert torch.equal(tensors[router][3], mixed.tensors[router].double().mean(0).float())
    assert (logits(mixed.config, mixed.tensors) - logits(edit.target, tensors)).abs().max() <= STEP_0


def test_the_new_expert_is_scaled_as_the_others_are() -> None:
    mixed = Mixed("btx", scale="experts")
    name = "blocks.0.ffn.w_down"
    factors = {name: entry["factor"] for name, entry in mixed.provenance.items() if "factor" in entry}
    assert factors[name] == 3
    provenance: dict[str, Any] = {}
    edit = adding(mixed.config, DENSE, "math")
    tensors = dict(edited(edit, mixed.source, mixed.dense["math"], factors=factors, provenance=provenance))
    assert torch.equal(tensors[name][3], 3 * mixed.dense["math"].tensors[name])
    assert provenance[name] == {
        "op": "append",
        "from": [
            {"input": "base", "tensor": name, "sha256": tensor_sha256(mixed.tensors[name])},
            {"input": "expert", "tensor": name, "sha256": tensor_sha256(mixed.dense["math"].tensors[name])},
        ],
        "slots": [["base", 0], ["base", 1], ["base", 2], ["expert", 0]],
        "factor": 3,
        "sha256": tensor_sha256(tensors[name]),
    }
    assert provenance["norm.weight"]["op"] == "keep"


def test_nothing_is_rounded_when_the_expert_is_wider() -> None:
    mixed = Mixed("btx")
    wide = InMemory({name: tensor.double() / 3 for name, tensor in mixed.dense["math"].tensors.items()})
    tensors = dict(edited(adding(mixed.config, DENSE, "math"), mixed.source, wide))
    name = "blocks.0.ffn.w_up"
    assert torch.equal(tensors[name][3], wide.tensors[name])
    assert torch.equal(tensors[name][:3], mixed.tensors[name].double())


@pytest.mark.parametrize("spec", SPECS)
def test_removing_is_as_if_the_expert_had_never_a_chance(spec: str) -> None:
    """Against the mixture with that expert's logits at minus a thousand: a router bias of the whole model."""
    mixed = Mixed(spec)
    edit = removing(mixed.config, "law")
    tensors = dict(edited(edit, mixed.source))
    assert "law" not in edit.target.experts
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(edit.target)

    parts = {part: getattr(mixed.config, part) for part in ("attention", "ffn") if getattr(mixed.config, part)}
    biased = replace(mixed.config, **{part: replace(e, router_bias=True) for part, e in parts.items()})
    silenced = dict(mixed.tensors)
    for name, shape in tensor_shapes(biased).items():
        branch = "attention" if ".attn." in name else "ffn"
        if name.endswith("router_bias"):
            labels = mixed.config.expert_labels(branch)
            silenced[name] = torch.tensor([-1e3 if label.startswith("law") else 0.0 for label in labels])
            assert shape == (len(labels),)
        if name.endswith("balance_bias"):
            law = [i for i, label in enumerate(mixed.config.expert_labels(branch)) if label.startswith("law")]
            silenced[name] = mixed.tensors[name].index_fill(0, torch.tensor(law), -1e3)
    torch.testing.assert_close(
        logits(edit.target, tensors), logits(biased, silenced), rtol=0, atol=1e-12
    )  # float64: rounding only


def test_removing_takes_all_copies_and_the_top_k_down() -> None:
    mixed = Mixed("copies", routing="top_k", top_k=3)
    target = removing(mixed.config, "general").target
    assert set(target.experts) == {"law", "code"}
    assert target.ffn is not None
    assert (target.ffn.n_experts, target.ffn.top_k, target.ffn.slots) == (2, 2, ("law", "code"))
    assert target.attention is not None
    assert (target.attention.n_experts, target.attention.top_k) == (2, 2), "soft stays soft"


def test_removing_what_was_added_gives_everything_back() -> None:
    mixed = Mixed("bam")
    edit = adding(mixed.config, DENSE, "math")
    grown = InMemory(dict(edited(edit, mixed.source, mixed.dense["math"])))
    back = removing(edit.target, "math")
    tensors = dict(edited(back, grown))
    assert back.target.experts == mixed.config.experts
    for name, tensor in tensors.items():
        wanted = torch.zeros(3) if name.endswith("router_bias") else mixed.tensors[name]
        assert torch.equal(tensor, wanted), name


BAD_ADDS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "a name that is taken": ({}, "law", ["name: 'law': is taken", "give another --name"]),
    "a name that is no name": ({}, "La w", ["name: 'La w'", "a-z, 0-9"]),
    "another width": ({"d_model": 16, "d_ff": 24}, "math", ["expert.d_model: 16", "8", "expert.d_ff: 24", "12"]),
    "another norm": ({"norm": "layer"}, "math", ["expert.norm: 'layer'", "'rms'"]),
    "another rotary base": ({"rope_theta": 5e5}, "math", ["expert.rope_theta: 500000.0", "10000.0"]),
    "another vocabulary": ({"vocab_size": 20}, "math", ["expert.vocab_size: 20", "19"]),
}


@pytest.mark.parametrize("case", BAD_ADDS)
def test_an_expert_that_does_not_fit_is_refused_by_field(case: str) -> None:
    changes, name, words = BAD_ADDS[case]
    with pytest.raises(InvalidInput) as caught:
        adding(Mixed("bam").config, replace(DENSE, **changes), name)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_mixture_or_no_dense_model_is_refused() -> None:
    mixture = Mixed("bam").config
    for call in (
        lambda: adding(DENSE, DENSE, "math"),
        lambda: adding(mixture, mixture, "math"),
        lambda: removing(DENSE, "law"),
        lambda: list(extracted(DENSE, InMemory({}), "law", shared="mixture")),
    ):
        with pytest.raises(InvalidInput, match="mixture"):
            call()


def test_an_unknown_or_last_expert_is_not_removed() -> None:
    mixture = Mixed("bam").config
    with pytest.raises(InvalidInput, match="did you mean 'law'"):
        removing(mixture, "lwa")
    one = removing(removing(mixture, "general").target, "law").target
    with pytest.raises(InvalidInput, match="'code': is the last expert of attention"):
        removing(one, "code")


def test_values_that_are_not_finite_are_refused() -> None:
    mixed = Mixed("bam")
    bad = mixed.dense["math"]
    bad.tensors["blocks.1.attn.w_q"][0, 0] = float("nan")
    with pytest.raises(InvalidInput, match=r"expert\.blocks\.1\.attn\.w_q.*1 NaN"):
        dict(edited(adding(mixed.config, DENSE, "math"), mixed.source, bad))


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("spec", SPECS)
def test_extracting_gives_every_dense_parent_back_bit_by_bit(spec: str, wiring: str) -> None:
    mixed = Mixed(spec, WIRINGS[wiring])
    for name in mixed.config.experts:
        parent, taken = mixed.dense[name], dict[str, str]()
        made = extracted(
            mixed.config,
            mixed.source,
            name,
            shared="parent",
            parent=parent,
            recorded=mixed.recorded(name),
            taken=taken,
        )
        tensors = dict(made)
        assert tensors.keys() == parent.tensors.keys()
        assert all(torch.equal(tensors[key], parent.tensors[key]) for key in tensors)
        stacked = [key for key in tensors if mixed.tensors[key].shape != tensors[key].shape]
        assert taken == {key: "mixture" if key in stacked else "parent" for key in tensors}


def test_slices_are_read_from_the_mixture_and_not_from_the_parent() -> None:
    """With a parent that has other experts' tensors, and a mixture that is asked for its own shared ones."""
    mixed = Mixed("split")
    made = extracted(mixed.config, mixed.source, "law", shared="mixture", recorded=mixed.recorded("law"))
    for key, tensor in made:
        stacked = mixed.tensors[key].shape != tensor.shape
        assert torch.equal(tensor, (mixed.dense["law"].tensors if stacked else mixed.tensors)[key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_parent_of_another_width_comes_back_as_it_is_stored(dtype: torch.dtype) -> None:
    mixed = Mixed("bam")
    parent = InMemory({key: (tensor.double() / 3).to(dtype) for key, tensor in mixed.dense["law"].tensors.items()})
    tensors = {key: tensor.clone() for key, tensor in mixed.tensors.items()}
    for key, tensor in parent.tensors.items():
        if tensors[key].shape != tensor.shape:
            tensors[key][2] = tensor.float()
    recorded = Recorded({key: tensor_sha256(tensor) for key, tensor in parent.tensors.items()})
    taken: dict[str, str] = {}
    made = dict(
        extracted(
            mixed.config, InMemory(tensors), "law", shared="parent", parent=parent, recorded=recorded, taken=taken
        )
    )
    assert all(made[key].dtype == dtype and torch.equal(made[key], parent.tensors[key]) for key in made)
    rounded = dtype == torch.float64
    wanted = "parent: rounded from torch.float64 in the mixture" if rounded else "mixture"
    assert taken["blocks.0.attn.w_q"] == wanted


@pytest.mark.parametrize(("n", "exact"), [(2, True), (3, False)])
def test_a_scale_is_undone_where_that_is_exact(n: int, exact: bool) -> None:
    """Times 2 always is; times the cube root of 3 is not."""
    mixed = Mixed("btx", of=NAMES[:n], scale="experts" if exact else "weights")
    name, taken = NAMES[1], dict[str, str]()
    parent, recorded = mixed.dense[name], mixed.recorded(name)
    made = dict(
        extracted(mixed.config, mixed.source, name, shared="parent", parent=parent, recorded=recorded, taken=taken)
    )
    assert all(torch.equal(made[key], parent.tensors[key]) for key in made)
    why = taken["blocks.0.ffn.w_down"]
    assert why == "mixture" if exact else why.startswith("parent: scaled by 1.44225 in the mixture")


def test_random_experts_are_the_parents_and_it_is_said() -> None:
    mixed = Mixed("bam", experts="random")
    taken: dict[str, str] = {}
    parent, recorded = mixed.dense["law"], mixed.recorded("law")
    made = dict(
        extracted(mixed.config, mixed.source, "law", shared="parent", parent=parent, recorded=recorded, taken=taken)
    )
    assert all(torch.equal(made[key], parent.tensors[key]) for key in made)
    assert taken["blocks.0.ffn.w_up"] == "parent: the mixture's was drawn anew"
    assert taken["blocks.0.attn.w_q"] == "mixture"


def test_a_slice_that_is_not_what_went_in_is_refused() -> None:
    mixed = Mixed("bam")
    mixed.source.tensors["blocks.1.ffn.w_up"][2, 0, 0] += 1e-6
    with pytest.raises(ArtifactDamaged, match=r"blocks\.1\.ffn\.w_up"):
        dict(
            extracted(
                mixed.config,
                mixed.source,
                "law",
                shared="parent",
                parent=mixed.dense["law"],
                recorded=mixed.recorded("law"),
            )
        )


def test_a_parent_with_other_bytes_is_refused() -> None:
    mixed = Mixed("bam")
    recorded = mixed.recorded("law")
    with pytest.raises(ArtifactDamaged, match="made again"):
        dict(
            extracted(mixed.config, mixed.source, "law", shared="parent", parent=mixed.dense["math"], recorded=recorded)
        )


def test_of_a_trained_mixture_the_slices_are_what_was_trained() -> None:
    mixed = Mixed("shared kv")
    for tensor in mixed.source.tensors.values():
        tensor.mul_(1.5)
    own = dict(extracted(mixed.config, mixed.source, "code", shared="mixture"))
    assert torch.equal(own["blocks.0.attn.w_q"], 1.5 * mixed.dense["code"].tensors["blocks.0.attn.w_q"])
    assert torch.equal(own["blocks.0.attn.w_k"], mixed.source.tensors["blocks.0.attn.w_k"])
    parent = mixed.dense["code"]
    mine = dict(extracted(mixed.config, mixed.source, "code", shared="parent", parent=parent))
    assert torch.equal(mine["blocks.0.attn.w_q"], own["blocks.0.attn.w_q"])
    assert torch.equal(mine["blocks.0.attn.w_k"], parent.tensors["blocks.0.attn.w_k"])


def test_a_copy_is_named_by_its_label() -> None:
    mixed = Mixed("copies")
    mixed.source.tensors["blocks.0.ffn.w_up"][1] = 7.0
    second = dict(extracted(mixed.config, mixed.source, "general#2", shared="mixture"))
    first = dict(extracted(mixed.config, mixed.source, "general", shared="mixture"))
    assert (second["blocks.0.ffn.w_up"] == 7).all()
    assert torch.equal(first["blocks.0.ffn.w_up"], mixed.dense["general"].tensors["blocks.0.ffn.w_up"])
    for wrong, hint in (("general#3", "general#2"), ("lwa", "law"), ("general#", "general")):
        with pytest.raises(InvalidInput, match=hint):
            dict(extracted(mixed.config, mixed.source, wrong, shared="mixture"))
