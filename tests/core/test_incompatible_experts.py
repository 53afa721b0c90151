"""Dense models that cannot be mixed, and mixtures that cannot be made of them: each case with the words of its error.

`python -m tests.core.test_incompatible_experts` prints them all. Every error names the field, the value found, the
value that it must be or the reason, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from bam_core.config import FFNExperts, ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.shapes import Shape, tensor_shapes
from bam_core.upcycle.compat import expert_problems, value_problem
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, MergeSpec, Variant, common_config, mixture_config

DENSE = ModelConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12, max_seq_len=16)
NAMES = ("general", "code", "law")


@dataclass
class Source:
    """Zeros in the shapes of a config; `listed` are names that are there once more."""

    tensors: dict[str, torch.Tensor]
    listed: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return [*self.tensors, *self.listed]

    def shape(self, name: str) -> Shape:
        return tuple(self.tensors[name].shape)

    def get(self, name: str) -> torch.Tensor:
        self.read.append(name)
        return self.tensors[name]


def source(config: ModelConfig = DENSE) -> Source:
    return Source({name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()})


def check_configs(**law: Any) -> None:
    common_config(dict.fromkeys(NAMES, DENSE) | {"law": replace(DENSE, **law)})


def check_tensors(damage: Callable[[Source], object]) -> None:
    sources = {name: source() for name in NAMES}
    damage(sources["law"])
    raise InvalidInput("experts to mix", expert_problems(dict.fromkeys(NAMES, DENSE), sources))


def check_variant(
    attention: Any = "merged", ffn: Any = "merged", experts: tuple[str, ...] = NAMES, **variant: Any
) -> None:
    mixture_config(DENSE, experts, Variant("v", attention, ffn, **variant))


def drop(name: str) -> Callable[[Source], object]:
    return lambda law: law.tensors.pop(name)


def put(name: str, tensor: torch.Tensor) -> Callable[[Source], object]:
    return lambda law: law.tensors.update({name: tensor})


def spoil(name: str, *values: float) -> Callable[[Source], object]:
    return lambda law: law.tensors[name].view(-1)[: len(values)].copy_(torch.tensor(values))


Case = tuple[Callable[[], None], tuple[str, ...]]
"""What raises the error, and words that it must contain: where, value, the other value or reason, remedy."""

FROM_SEED = "train it again from the seed, or leave it out"


def config_case(name: str, value: Any, remedy: str = FROM_SEED) -> Case:
    wanted = f"must be as in general, {getattr(DENSE, name)!r}"
    return lambda: check_configs(**{name: value}), (f"law.{name}: {value!r}:", wanted, remedy)


A_MIXTURE = replace(DENSE, ffn=FFNExperts(2), experts=("a", "b"))
WEIGHTED = MergeSpec("weighted", {"general": 0.5, "law": 0.4})

CASES: dict[str, Case] = {
    "another vocabulary": config_case("vocab_size", 20, "train all from one seed with one tokenizer"),
    "another width": config_case("d_model", 32),
    "another depth": config_case("n_layers", 3),
    "another number of heads": config_case("n_heads", 2),
    "another number of key-value heads": config_case("n_kv_heads", 4),
    "another FFN width": config_case("d_ff", 24),
    "another context": config_case("max_seq_len", 32, "train all with one context length"),
    "another residual": config_case("residual", "sequential"),
    "another norm": config_case("norm", "layer"),
    "another norm epsilon": config_case("norm_eps", 1e-6),
    "another rotary base": config_case("rope_theta", 500_000.0),
    "another rotary fraction": config_case("rotary_frac", 0.5),
    "other rotary pairs": config_case("rotary_pairs", "interleaved"),
    "untied embeddings": config_case("tie_embeddings", False),
    "QK-norm in one": config_case("qk_norm", True),
    "another layout": config_case("layout_version", 2, "write both with one version of bam"),
    "a mixture": (
        lambda: common_config(dict.fromkeys(NAMES, DENSE) | {"law": A_MIXTURE}),
        ("law: 'a mixture of a, b': must be a dense model", "bam expert extract"),
    ),
    "a missing tensor": (
        lambda: check_tensors(drop("blocks.1.ffn.w_up")),
        ("law.blocks.1.ffn.w_up: is missing; must be [12, 16]", "write the checkpoint again"),
    ),
    "a tensor too many": (
        lambda: check_tensors(put("blocks.0.attn.w_q.lora_a", torch.zeros(2, 16))),
        (
            "law.blocks.0.attn.w_q.lora_a: [2, 16]: is no tensor of this config",
            "merge an adapter",
            "'blocks.0.attn.w_q'",
        ),
    ),
    "a tensor of another shape": (
        lambda: check_tensors(put("blocks.0.attn.w_k", torch.zeros(16, 8))),
        ("law.blocks.0.attn.w_k: [16, 8]: must be [8, 16]", "or correct its config.json"),
    ),
    "a name twice": (
        lambda: check_tensors(lambda law: law.listed.append("norm.weight")),
        ("law.norm.weight: '2 times': must be there once", "write the checkpoint again"),
    ),
    "NaN": (
        lambda: check_tensors(spoil("embed.weight", torch.nan, torch.nan)),
        ("law.embed.weight: '2 NaN of 304 values': must all be finite", "take an earlier checkpoint"),
    ),
    "infinity": (
        lambda: check_tensors(spoil("norm.weight", -torch.inf, torch.nan)),
        ("law.norm.weight: '1 NaN and 1 infinite of 16 values': must all be finite", "take an earlier checkpoint"),
    ),
    "a model twice": (
        lambda: check_variant(ffn=FFNSpec(), experts=("general", "law", "law")),
        (
            "experts: ['general', 'law', 'law']: must be at least one name, each used once",
            "repeat it in the variant's list",
        ),
    ),
    "no model": (
        lambda: check_variant(ffn=FFNSpec(), experts=()),
        ("experts: []: must be at least one name",),
    ),
    "top-k above E": (
        lambda: check_variant(ffn=FFNSpec(top_k=4)),
        ("ffn.top_k: 4: must be at most the number of experts, 3",),
    ),
    "top-k attention above E": (
        lambda: check_variant(attention=AttentionSpec("top_k", 3, experts=("law", "code"))),
        ("attention.top_k: 3: must be at most the number of experts, 2",),
    ),
    "an unknown slot": (
        lambda: check_variant(ffn=FFNSpec(experts=("general", "lwa"))),
        ("ffn.experts: 'lwa': is none of the dense models", "did you mean 'law'?"),
    ),
    "weights that do not sum to 1": (
        lambda: check_variant(merge=WEIGHTED),
        (
            "merge.weights: {'general': 0.5, 'law': 0.4}: must sum to 1; their sum is 0.9",
            "try general: 0.555556, law: 0.444444",
        ),
    ),
    "weights of an unknown model": (
        lambda: check_variant(merge=MergeSpec("weighted", {"general": 0.5, "cod": 0.5})),
        ("merge.weights: 'cod': is none of the dense models", "did you mean 'code'?"),
    ),
    "a negative weight": (
        lambda: check_variant(merge=MergeSpec("weighted", {"general": 1.5, "law": -0.5})),
        ("merge.weights.law: -0.5: must be a number above 0", "leave out a model that has no part"),
    ),
    "density out of range": (
        lambda: check_variant(merge=MergeSpec("ties", density=20)),
        ("merge.density: 20: must be above 0 and at most 1",),
    ),
    "drop out of range": (
        lambda: check_variant(merge=MergeSpec("dare", drop=1)),
        ("merge.drop: 1: must be from 0 to below 1",),
    ),
    "a router too loud": (
        lambda: check_variant(ffn=FFNSpec(), router_std=1),
        ("router_std: 1: gives logits of std 4", "saturated before any training", "set it to 0.5 or less"),
    ),
    "a split that does not divide": (
        lambda: check_variant(ffn=FFNSpec(split=5)),
        ("ffn.split: 5: must divide d_ff, 12",),
    ),
    "a layer that is not there": (
        lambda: check_variant(ffn=FFNSpec(layers=(0, 2))),
        ("ffn.layers: (0, 2): must be different layers from 0 to 1",),
    ),
    "Sample Top-1 with more than one": (
        lambda: check_variant(ffn=FFNSpec(top_k=2, gate="sample_top1")),
        ("ffn.top_k: 2: sample_top1 chooses one expert", "set it to 1"),
    ),
    "Sample Top-1 for attention": (
        lambda: check_variant(attention=AttentionSpec(gate="sample_top1")),
        ("attention.gate: 'sample_top1': is for FFN experts only", "choose softmax_topk"),
    ),
    "an initialiser that is none": (
        lambda: check_variant(ffn=FFNSpec(), router_init="centroids"),
        ("router_init: 'centroids': must be one of random, zero, orthogonal", "did you mean 'centroid'?"),
    ),
}


def message(case: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        CASES[case][0]()
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_the_field_both_values_and_what_to_do(case: str) -> None:
    text = message(case)
    for words in CASES[case][1]:
        assert words in text
    assert "1 problem\n" in text, "one mistake, one problem"


def test_there_are_twenty_kinds() -> None:
    assert len({message(case) for case in CASES}) == len(CASES) >= 20


def test_everything_is_named_at_once() -> None:
    law = source()
    law.tensors["extra"] = torch.zeros(1)
    del law.tensors["norm.weight"]
    code = source()
    code.tensors["embed.weight"][0, 0] = torch.nan
    configs = dict.fromkeys(NAMES, DENSE) | {"code": replace(DENSE, rope_theta=1e6, norm_eps=1e-6)}
    found = list(expert_problems(configs, {"general": source(), "code": code, "law": law}))
    assert [problem.path for problem in found] == [
        "code.norm_eps",
        "code.rope_theta",
        "code.embed.weight",
        "law.extra",
        "law.norm.weight",
    ]
    assert law.read == []  # its names are wrong: its values tell nothing more


def test_models_that_fit_have_no_problems_and_are_read_once() -> None:
    sources = {name: source() for name in NAMES}
    assert list(expert_problems(dict.fromkeys(NAMES, DENSE), sources)) == []
    assert all(found.read == found.names() for found in sources.values())


@pytest.mark.parametrize("values", [[3e38, 3e38, 3e38], [-3e38, -3e38, 1.0]])
def test_values_whose_sum_is_too_large_are_finite(values: list[float]) -> None:
    assert value_problem("law", "w", torch.tensor(values)) is None


@pytest.mark.parametrize("values", [[torch.inf, -torch.inf], [torch.inf, 1.0], [torch.nan, 3e38, 3e38]])
def test_what_is_not_finite_is_found_whatever_it_is_added_to(values: list[float]) -> None:
    assert value_problem("law", "w", torch.tensor(values)) is not None


if __name__ == "__main__":
    for number, name in enumerate(CASES, start=1):
        print(f"{number:2}. {name}\n{message(name)}\n")
