"""The coverage check: whatever does not match is refused, and all of it is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upcycle_models import DENSE, NAMES, InMemory, dense_models, mix

from bam_core.errors import InvalidInput
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.upcycle.apply import coverage, upcycle
from bam_core.upcycle.rules import Rule
from bam_core.upcycle.specs import MergeSpec
from bam_core.upcycle.variants import VARIANTS, mixture_config, rules_for

BAM = VARIANTS["bam"]
BAM_RULES = rules_for(BAM, mixture_config(DENSE, NAMES, BAM))
BAM_SHAPES = tensor_shapes(mixture_config(DENSE, NAMES, BAM))


def problems_of(target: Mapping[str, Shape], rules: Iterable[Rule], sources: Mapping[str, InMemory]) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        coverage(target, tuple(rules), sources)
    assert all(problem.path in str(caught.value) for problem in caught.value.problems)
    return {problem.path: problem.expected for problem in caught.value.problems}


def test_coverage_names_a_dropped_a_doubled_a_misshapen_and_a_lost_tensor_at_once() -> None:
    sources = dense_models()
    del sources["law"].tensors["blocks.1.ffn.w_up"]
    sources["code"].tensors["blocks.0.attn.w_q"] = torch.zeros(8, 9)
    sources["math"].tensors["embed.weight"] = torch.zeros(20, 8)
    sources["math"].tensors["lora.a"] = torch.zeros(2)
    rules = [*BAM_RULES, Rule("mean", "blocks.1.attn.w_o")]
    found = problems_of(BAM_SHAPES, rules, sources)
    assert found == {
        "law.blocks.1.ffn.w_up": "is missing; stack needs it",
        "code.blocks.0.attn.w_q": "stack gives [4, 8, 9] of it, and the target has [4, 8, 8]",
        "math.embed.weight": "mean gives [20, 8] of it, and the target has [19, 8]",
        "math.lora.a": "would be lost: no rule uses it",
        "blocks.1.attn.w_o": "must be claimed by exactly one rule",
    }


def test_coverage_names_a_target_that_no_rule_makes() -> None:
    rules = [rule for rule in BAM_RULES if rule.pattern != "blocks.*.ffn.router"]
    expected = "must be claimed by exactly one rule"
    assert problems_of(BAM_SHAPES, rules, dense_models()) == {
        "blocks.0.ffn.router": expected,
        "blocks.1.ffn.router": expected,
    }


def test_coverage_names_rules_that_cannot_be_followed() -> None:
    rules = [
        *BAM_RULES,
        Rule("stack", "blocks.*.attn.w_z"),
        Rule("man", "norm.wait"),
        Rule("fresh", "x", "rnd"),
    ]
    with pytest.raises(InvalidInput) as caught:
        coverage(BAM_SHAPES, rules, dense_models())
    text = str(caught.value)
    assert "'man': must be one of stack, random, copy, fresh, zero, mean, weighted" in text
    assert "(did you mean 'mean'?)" in text
    assert "'rnd': must be one of random, zero, orthogonal, centroid, ridge" in text
    assert text.count("matches no tensor of the target") == 3


def test_coverage_refuses_a_mixture_as_a_source() -> None:
    sources = dense_models()
    sources["law"] = InMemory(mix(BAM, dense_models()))
    found = problems_of(BAM_SHAPES, BAM_RULES, sources)
    assert "law.blocks.0.attn.router" in found
    assert "law.blocks.0.attn.w_q" in found


def test_coverage_refuses_another_number_of_experts() -> None:
    sources = dense_models()
    del sources["math"]
    found = problems_of(BAM_SHAPES, BAM_RULES, sources)
    assert found["law.blocks.0.ffn.w_up"] == "stack gives [3, 12, 8] of it, and the target has [4, 12, 8]"
    assert problems_of(BAM_SHAPES, BAM_RULES, {}) == {"experts": "must be at least one dense model"}


@settings(deadline=None)
@given(st.data())
def test_any_damage_to_any_tensor_is_named(data: st.DataObject) -> None:
    sources = dense_models()
    everything = [(expert, name) for expert in NAMES for name in sources[expert].names()]
    chosen = data.draw(st.lists(st.sampled_from(everything), min_size=1, max_size=6, unique=True))
    for expert, name in chosen:
        tensor = sources[expert].tensors.pop(name)
        damage = data.draw(st.sampled_from(["drop", "grow", "transpose", "rename"]))
        if damage == "grow":
            sources[expert].tensors[name] = torch.cat([tensor, tensor])
        elif damage == "transpose":
            sources[expert].tensors[name] = tensor[None]
        elif damage == "rename":
            sources[expert].tensors[name + "_"] = tensor
    found = problems_of(BAM_SHAPES, BAM_RULES, sources)
    assert {path.removesuffix("_") for path in found} == {f"{expert}.{name}" for expert, name in chosen}


@settings(deadline=None)
@given(st.lists(st.sampled_from(BAM_RULES), min_size=1, unique=True), st.booleans())
def test_any_rule_dropped_or_doubled_is_named(touched: list[Rule], double: bool) -> None:
    rules = [*BAM_RULES, *touched] if double else [rule for rule in BAM_RULES if rule not in touched]
    claimed = {name for name in BAM_SHAPES if any(rule.claims(name) for rule in touched)}
    assert problems_of(BAM_SHAPES, rules, dense_models()).keys() == claimed


def test_a_star_is_one_component() -> None:
    rule = Rule("mean", "blocks.*.norm.weight")
    assert rule.claims("blocks.10.norm.weight")
    for name in (
        "blocks.0.attn.norm.weight",
        "blocks.0.attn_norm.weight",
        "norm.weight",
        "xblocks.0.norm.weight",
    ):
        assert not rule.claims(name)
    assert not rule.claims("blocks.0.normXweight")
    assert not rule.claims("blocks.0.norm.weight.x")


def test_nothing_is_made_before_the_check_and_experts_must_be_in_the_targets_order() -> None:
    sources = dense_models()
    target = mixture_config(DENSE, NAMES, BAM)
    backwards = dict(reversed(sources.items()))
    with pytest.raises(InvalidInput, match="in order"):
        upcycle(target, BAM_RULES, backwards, seed=0)
    with pytest.raises(InvalidInput, match="exactly one rule"):
        upcycle(target, BAM_RULES[1:], sources, seed=0)
    assert not any(source.given for source in sources.values())


@pytest.mark.parametrize("name", ["blocks.1.ffn.w_up", "norm.weight"])
def test_a_value_that_is_not_finite_is_refused_where_it_is_read(name: str) -> None:
    """A NaN that is averaged into the shared part would reach every expert."""
    sources = dense_models()
    sources["law"].tensors[name].view(-1)[3] = torch.nan
    with pytest.raises(InvalidInput, match=rf"law\.{name}: '1 NaN of \d+ values': must all be finite"):
        mix(BAM, sources)


@pytest.mark.parametrize(
    ("rule", "models"),
    [
        (Rule("stack"), ("seed", "code", "law")),
        (Rule("stack", slots=("law", "code", "law")), ("law", "code")),
        (Rule("mean"), ("seed", "code", "law")),
        (Rule("weighted", merge=MergeSpec("weighted", {"law": 1.0})), ("law",)),
        (Rule("copy"), ("seed",)),
        (Rule("seed"), ("seed",)),
        (Rule("random"), ()),
        (Rule("fresh"), ()),
        (Rule("zero"), ()),
    ],
)
def test_which_models_a_rule_reads(rule: Rule, models: tuple[str, ...]) -> None:
    assert rule.reads(("seed", "code", "law")) == models


@pytest.mark.parametrize("op", ["fresh", "zero"])
def test_what_the_dense_models_do_not_have_has_no_source(op: str) -> None:
    assert Rule(op, "blocks.*.ffn.router").source_of("blocks.0.ffn.router") is None
    assert Rule("copy", "blocks.*.up", source="blocks.*.down").source_of("blocks.3.up") == "blocks.3.down"
