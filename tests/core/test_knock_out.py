"""Masking an expert is the model without that expert; and it leaves the model as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import DENSE, fresh

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.evaluate.knock_out import BRANCHES, Branch, expert_models, knock_out, masked, masks, score_rows
from bam_core.nn.lm import LM

EXACT = 1e-12
"""Of logits of order 1 in float64: a sum over experts loses a term of 0, so the order of additions may change."""
NAMES = ("general", "code", "law", "math")
WIDE = replace(DENSE, n_kv_heads=2, experts=NAMES)


def mixture(attention: AttentionExperts | None = None, ffn: FFNExperts | None = None) -> ModelConfig:
    return replace(WIDE, attention=attention, ffn=ffn)


def lively(config: ModelConfig) -> LM:
    """A model in float64 whose routers choose differently from token to token, and whose biases are not 0."""
    model = fresh(config).cast(torch.float64)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("router"):
            parameter.data.mul_(30)
        elif name.endswith("_bias"):
            parameter.data.normal_(0, 0.5, generator=generator)
    return model.eval()


def tokens(n_rows: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 61, (n_rows, 8)))


def without(model: LM, branch: Branch, gone: Sequence[int]) -> LM:
    """A model of its own that never had these experts: their rows are left out of every tensor that has one of each."""
    experts = getattr(model.config, branch)
    n_experts = experts.n_experts
    left = [place for place in range(n_experts) if place not in gone]
    slots = tuple(expert_models(model.config, branch)[place] for place in left)
    smaller: Any = replace(experts, n_experts=len(left), top_k=min(experts.top_k, len(left)), slots=slots)
    made = LM(replace(model.config, **{branch: smaller})).cast(torch.float64).eval()
    part = "attn" if branch == "attention" else "ffn"
    stacked = ("w_", "router", "balance_bias", "q_norm", "k_norm")
    for name, parameter in made.named_parameters():
        tensor = model.get_parameter(name).data
        *_, of, kind = name.split(".")
        is_expert = of == part and kind.startswith(stacked) and len(tensor) == n_experts
        parameter.data = tensor[left].clone() if is_expert else tensor.clone()
    return made


CASES: dict[str, tuple[ModelConfig, Branch]] = {
    "soft attention": (mixture(AttentionExperts(4, 4)), "attention"),
    "soft attention, shared keys and values": (mixture(AttentionExperts(4, 4, kv="shared")), "attention"),
    "soft attention, own values": (mixture(AttentionExperts(4, 4, kv="value_only")), "attention"),
    "top-2 attention": (mixture(AttentionExperts(4, 2)), "attention"),
    "top-3 attention with a bias": (mixture(AttentionExperts(4, 3, router_bias=True)), "attention"),
    "top-1 FFN": (mixture(ffn=FFNExperts(4, 1)), "ffn"),
    "top-3 FFN": (mixture(ffn=FFNExperts(4, 3)), "ffn"),
    "BTX's gate": (mixture(ffn=FFNExperts(4, 2, gate="topk_softmax")), "ffn"),
    "renormalised": (mixture(ffn=FFNExperts(4, 2, gate="softmax_topk_renorm")), "ffn"),
    "straight-through": (mixture(ffn=FFNExperts(4, 2, gate="softmax_topk_ste")), "ffn"),
    "sampled": (mixture(ffn=FFNExperts(4, 1, gate="sample_top1", soft_layers=(0,))), "ffn"),
    "balancing and router bias": (mixture(ffn=FFNExperts(4, 2, balance="bias", router_bias=True)), "ffn"),
    "one layer, shared expert": (mixture(ffn=FFNExperts(4, 1, layers=(1,), shared_expert=True)), "ffn"),
    "both branches": (mixture(AttentionExperts(4, 4), FFNExperts(4, 1)), "ffn"),
    "gain": (mixture(ffn=FFNExperts(4, 1, gain=(2.0, 3.0))), "ffn"),
}


@pytest.mark.parametrize(("config", "branch"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("gone", [(2,), (0, 3)], ids=["one", "two"])
@torch.no_grad()
def test_a_masked_model_is_the_model_without_the_expert(
    config: ModelConfig, branch: Branch, gone: tuple[int, ...]
) -> None:
    model = lively(config)
    intact = model(tokens()).hidden_BTD
    with masked(model, branch, gone):
        found = model(tokens()).hidden_BTD
    expected = without(model, branch, gone)(tokens()).hidden_BTD
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert (found - intact).abs().max() > 1e-3  # else this says little


@torch.no_grad()
def test_where_top_k_asks_for_more_than_are_left_all_that_are_left_answer() -> None:
    model = lively(mixture(ffn=FFNExperts(4, 3, gate="topk_softmax")))
    with masked(model, "ffn", (0, 1)):
        output = model(tokens())
    expected = without(model, "ffn", (0, 1))(tokens()).hidden_BTD
    torch.testing.assert_close(output.hidden_BTD, expected, rtol=EXACT, atol=EXACT)
    for layer in output.routing:
        weights = torch.zeros_like(layer.ffn.probs_NE).scatter(-1, layer.ffn.experts_NK, layer.ffn.weights_NK)
        assert weights[..., :2].eq(0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 8, dtype=torch.float64))


@torch.no_grad()
def test_an_expert_without_probability_is_not_chosen_for_the_sake_of_balance() -> None:
    """The balancing bias takes part in the choice: it must not bring a masked expert back."""
    model = lively(mixture(ffn=FFNExperts(4, 1, balance="bias")))
    for block in model.blocks:
        block.ffn.balance_bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    assert all(layer.ffn.experts_NK.eq(2).all() for layer in model(tokens()).routing)
    with masked(model, "ffn", (2,)):
        assert not any(layer.ffn.experts_NK.eq(2).any() for layer in model(tokens()).routing)


@pytest.mark.parametrize(("config", "branch"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_the_model_is_restored_bit_for_bit_also_after_an_error(config: ModelConfig, branch: Branch) -> None:
    model = lively(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    intact = model(tokens()).hidden_BTD
    with pytest.raises(KeyboardInterrupt), masked(model, branch, (1,)):
        raise KeyboardInterrupt
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert torch.equal(model(tokens()).hidden_BTD, intact)


def test_masks_nest_and_one_expert_must_be_left() -> None:
    model = lively(mixture(AttentionExperts(4, 4), FFNExperts(4, 1)))
    with torch.no_grad(), masked(model, "attention", (1,)), masked(model, "ffn", (1,)):
        found = model(tokens()).hidden_BTD
    expected = without(without(model, "attention", (1,)), "ffn", (1,))
    with torch.no_grad():
        torch.testing.assert_close(found, expected(tokens()).hidden_BTD, rtol=EXACT, atol=EXACT)
    with pytest.raises(AssertionError, match="cannot mask"), masked(model, "ffn", range(4)):
        pass
    with pytest.raises(AssertionError, match="has no experts"), masked(lively(DENSE), "ffn", (0,)):
        pass


def test_every_expert_has_a_row_by_its_label_and_every_dense_model_one_for_all_of_its() -> None:
    ffn = FFNExperts(6, 3, slots=("general", "general", "general", "code", "law", "math"))
    found = [(mask.section, mask.label, dict(mask.experts)) for mask in masks(mixture(AttentionExperts(4, 4), ffn))]
    assert found == [
        *(("attention", name, {"attention": (place,)}) for place, name in enumerate(NAMES)),
        ("ffn", "general", {"ffn": (0,)}),
        ("ffn", "general#2", {"ffn": (1,)}),
        ("ffn", "general#3", {"ffn": (2,)}),
        ("ffn", "code", {"ffn": (3,)}),
        ("ffn", "law", {"ffn": (4,)}),
        ("ffn", "math", {"ffn": (5,)}),
        ("both", "general", {"attention": (0,), "ffn": (0, 1, 2)}),
        ("both", "code", {"attention": (1,), "ffn": (3,)}),
        ("both", "law", {"attention": (2,), "ffn": (4,)}),
        ("both", "math", {"attention": (3,), "ffn": (5,)}),
    ]


def test_column_groups_have_rows_and_what_would_leave_no_expert_has_none() -> None:
    split = masks(mixture(ffn=FFNExperts(8, 2, split=2)))
    assert [mask.label for mask in split] == [f"{name}/{group}" for name in NAMES for group in (1, 2)]
    copies = FFNExperts(3, 1, slots=("law", "law", "law"))
    assert [(m.section, m.label) for m in masks(mixture(AttentionExperts(4, 4), copies))][-4:] == [
        ("ffn", "law#3"),
        ("both", "general"),
        ("both", "code"),
        ("both", "math"),
    ]
    assert masks(replace(DENSE, experts=("a",), ffn=FFNExperts(1, 1))) == []


class Packed:
    """Random rows."""

    def __init__(self, seed: int, n_rows: int = 5) -> None:
        chance = np.random.default_rng(seed)
        self.tokens = chance.integers(0, 61, (n_rows, 9))
        self.n_bytes = chance.integers(8, 20, n_rows)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.tokens[indices]


def test_the_matrix_is_the_change_of_perplexity_on_the_same_rows() -> None:
    model = lively(mixture(AttentionExperts(4, 4), FFNExperts(4, 1)))
    rows = {"general": Packed(1), "law": Packed(2)}
    chosen = {"general": np.array([0, 2, 4]), "law": np.array([1])}
    found = knock_out(model, rows, chosen)
    assert list(found) == ["intact", "attention", "ffn", "both"]
    for domain in rows:
        intact = score_rows(model, rows[domain], chosen[domain])
        assert found["intact"][domain]["nll"] == intact.nll
        assert found["intact"][domain]["tokens"] == 8 * len(chosen[domain])
        assert intact.nll == pytest.approx(_plain_nll(model, rows[domain].tokens[chosen[domain]]), rel=1e-12)
        for section in ("attention", "ffn", "both"):
            other = model
            for branch in BRANCHES if section == "both" else (section,):
                other = without(other, branch, (2,))
            nll = _plain_nll(other, rows[domain].tokens[chosen[domain]])
            cell = found[section]["law"][domain]
            assert cell["nll"] == pytest.approx(nll, rel=1e-12)
            assert cell["perplexity"] == pytest.approx(exp(nll))
            assert cell["change"] == pytest.approx(exp(nll) / exp(intact.nll) - 1, abs=1e-10)


@torch.no_grad()
def _plain_nll(model: LM, rows: np.ndarray) -> float:
    read = torch.from_numpy(rows)
    log_probs = model.logits(model(read[:, :-1]).hidden_BTD).log_softmax(-1)
    return float(-log_probs.gather(-1, read[:, 1:, None]).mean())


def test_a_mixture_of_one_branch_has_no_other_rows() -> None:
    found = knock_out(lively(mixture(ffn=FFNExperts(4, 1))), {"law": Packed(2)}, {"law": np.arange(2)})
    assert (found["attention"], found["both"]) == (None, None)
    assert list(found["ffn"]) == list(NAMES)
