"""Each oracle notices an error: one is planted in our code (or in the loss that is compared), and it must disagree.

A row: the oracle's test, the case to run, and what is planted (`planted.py`). No oracle is without one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import planted
import planted_options
import pytest
import test_attention_modules
import test_dense_families
import test_ffn_experts
import test_naive_composition
import test_router_losses
import test_sizes
import test_training_invariance
import test_whole_mixtures
from agreement import Agreement, Disagreement
from planted import Patch, Plant

from bam_core.nn import moa, moe

MODULES: tuple[ModuleType, ...] = (
    test_attention_modules,
    test_dense_families,
    test_ffn_experts,
    test_naive_composition,
    test_router_losses,
    test_sizes,
    test_training_invariance,
    test_whole_mixtures,
)


@dataclass(frozen=True)
class Row:
    test: Callable[..., None]
    case: dict[str, Any]
    plant: Plant
    named: str = ""

    @property
    def id(self) -> str:
        case = "-".join(str(getattr(value, "__name__", value)) for value in self.case.values())
        planted = self.named or getattr(self.plant, "__name__", "").strip("<>")
        return f"{self.test.__name__}-{case[:40]}-{planted}"


dense = test_dense_families.test_dense_model_has_the_logits_and_gradients_of
published = test_dense_families.test_dense_model_agrees_with_the_family_as_published
pairs = test_dense_families.test_interleaved_pairs_are_half_pairs_of_permuted_rows
module = test_attention_modules.test_dense_attention_is_that_of
jetmoe = test_attention_modules.test_shared_kv_attention_is_that_of_jetmoe
gated_sum = test_attention_modules.test_mixture_is_the_gated_sum_of_public_attentions
short = test_attention_modules.test_short_attention_is_that_of_torch
tied = test_attention_modules.test_tied_experts_are_shared_ones
ffn = test_ffn_experts.test_ffn_experts_are_those_of
gpt_oss = test_ffn_experts.test_router_bias_is_part_of_the_logits
top1 = test_ffn_experts.test_top1_router_has_the_gradient_of_its_probability
groups = test_ffn_experts.test_all_column_groups_of_a_model_add_up_to_its_ffn
narrower = test_ffn_experts.test_split_experts_are_a_block_of_narrower_ones
dense_gradient = test_ffn_experts.test_dense_router_gradient
whole_bam = test_whole_mixtures.test_whole_bam_has_the_logits_and_gradients_of_its_composition
whole_btx = test_whole_mixtures.test_btx_is_a_cohere2_moe
copies = test_whole_mixtures.test_copies_of_one_dense_model_are_that_model
scaled = test_whole_mixtures.test_copies_under_bams_gate_are_the_dense_model_with_a_scaled_ffn
saturated = test_whole_mixtures.test_saturated_routers_are_that_dense_expert
cached = test_whole_mixtures.test_decoding_with_a_cache_is_the_whole_text_at_once
padded = test_whole_mixtures.test_a_padded_row_is_the_row_alone
their_padding = test_whole_mixtures.test_padded_decoding_is_that_of_cohere2_moe
plain = test_naive_composition.test_logits_and_every_gradient_are_those_of_the_plain_sum
drawn = test_naive_composition.test_any_combination_is_the_plain_sum
one_layer = test_router_losses.test_one_layer_is_that_of_hugging_face_over_k
averaged = test_router_losses.test_layers_are_averaged_and_not_pooled
masked = test_router_losses.test_masked_tokens_count_for_nothing
formulas = test_router_losses.test_load_balancing_is_that_of_other_codebases
by_hand = test_router_losses.test_values_worked_out_by_hand
see_logits = test_router_losses.test_z_loss_and_balance_see_logits
split_gradient = test_training_invariance.test_any_split_has_the_gradient_of_the_plain_objective
totals = test_sizes.test_the_papers_totals
parameters = test_sizes.test_parameters_are_the_sum_over_tensors
flops = test_sizes.test_flops_are_the_products_that_run
cache_bytes = test_sizes.test_cache_bytes_are_those_of_its_tensors

TOKENS, PIECES = (1,) * 13, (6, 1, 1, 5)
ROWS = [
    Row(dense, {"name": "cohere"}, planted.other_pairs),
    Row(dense, {"name": "cohere"}, planted.norm_without_mean),
    Row(dense, {"name": "cohere"}, planted.query_heads_interleaved_over_groups),
    Row(dense, {"name": "cohere"}, planted.ffn_reads_the_stream_without_norm),
    Row(dense, {"name": "cohere-permuted"}, planted.other_pairs),
    Row(dense, {"name": "cohere-qk-norm"}, planted.no_qk_norm),
    Row(dense, {"name": "cohere-qk-norm-permuted"}, planted.one_scale_for_all_heads),
    Row(dense, {"name": "cohere2"}, planted.other_pairs),
    Row(dense, {"name": "cohere2-moe-dense-rms"}, planted.no_scale),
    Row(dense, {"name": "stablelm"}, planted.other_pairs),
    Row(dense, {"name": "stablelm-rotary-quarter"}, planted.last_channels_rotate),
    Row(dense, {"name": "stablelm-qk-norm-rotary-half"}, planted.one_scale_for_all_heads),
    Row(dense, {"name": "llama"}, planted.keys_of_another_group),
    Row(dense, {"name": "llama"}, planted.token_hidden_from_itself),
    Row(dense, {"name": "qwen3"}, planted.no_qk_norm),
    Row(published, {"name": "cohere"}, planted.other_pairs),
    Row(published, {"name": "stablelm-sequential"}, planted.norm_without_mean),
    Row(pairs, {"rotary_frac": 1.0}, planted.other_pairs),
    Row(pairs, {"rotary_frac": 0.5}, planted.rows_of_pairs_not_reordered),
    *(Row(module, {"name": name}, planted.no_scale) for name in test_attention_modules.MODULES),
    Row(module, {"name": "gptj"}, planted.other_pairs),
    Row(module, {"name": "neox-rotary-quarter"}, planted.last_channels_rotate),
    Row(module, {"name": "phi"}, planted.token_hidden_from_itself),
    Row(module, {"name": "falcon-gqa"}, planted.keys_of_another_group),
    Row(jetmoe, {"top_k": 4}, planted.attention_gates_on_the_wrong_experts),
    Row(jetmoe, {"top_k": 2}, planted.gate("topk_softmax", "softmax_topk"), "softmax first"),
    Row(jetmoe, {"top_k": 4}, planted.shared_queries_in_the_wrong_order),
    *(
        Row(gated_sum, {"kv": kv, "qk_norm": False, "top_k": k}, planted.attention_gates_on_the_wrong_experts)
        for kv in ("expert", "shared", "value_only")
        for k in (1, 4)
    ),
    Row(gated_sum, {"kv": "expert", "qk_norm": True, "top_k": 4}, planted.one_scale_for_all_heads),
    Row(
        gated_sum,
        {"kv": "expert", "qk_norm": False, "top_k": 1},
        planted.gate("softmax_topk", "topk_softmax"),
        "weight 1",
    ),
    Row(gated_sum, {"kv": "value_only", "qk_norm": False, "top_k": 4}, planted.values_in_the_wrong_order),
    Row(gated_sum, {"kv": "expert", "qk_norm": False, "top_k": 4}, planted.keys_of_another_group),
    Row(short, {"n_kv_heads": 2, "n_time": 13}, planted.short_attention_looks_ahead),
    Row(tied, {"kv": "shared", "n_kv_heads": 2}, planted.shared_queries_in_the_wrong_order),
    Row(tied, {"kv": "value_only", "n_kv_heads": 2}, planted.values_in_the_wrong_order),
    Row(ffn, {"name": "flex-olmo", "top_k": 1}, planted.gate("softmax_topk", "topk_softmax"), "softmax last"),
    Row(ffn, {"name": "olmoe", "top_k": 2}, planted.gate("softmax_topk", "softmax_topk_renorm"), "renormalised"),
    Row(ffn, {"name": "olmoe-renorm", "top_k": 2}, planted.gate("softmax_topk_renorm", "softmax_topk"), "as it is"),
    Row(ffn, {"name": "flex-olmo", "top_k": 4}, planted.other_experts),
    Row(
        ffn,
        {"name": "mixtral-as-topk-softmax", "top_k": 2},
        planted.gate("topk_softmax", "softmax_topk"),
        "softmax first",
    ),
    Row(
        ffn, {"name": "mixtral-as-renorm", "top_k": 2}, planted.gate("softmax_topk_renorm", "softmax_topk"), "as it is"
    ),
    Row(
        ffn,
        {"name": "mixtral-as-renorm", "top_k": 2},
        planted.gate("softmax_topk_renorm", "softmax_topk_ste"),
        "gradient",
    ),
    Row(ffn, {"name": "granite", "top_k": 2}, planted.gate_and_up_swapped),
    Row(ffn, {"name": "jetmoe", "top_k": 2}, planted.other_experts),
    Row(ffn, {"name": "deepseek-v2", "top_k": 2}, planted.while_computing(shared=None), "no shared expert"),
    Row(ffn, {"name": "deepseek-v2", "top_k": 2}, planted.while_computing(gain=1.0), "no gain"),
    Row(ffn, {"name": "ernie", "top_k": 2}, planted.balance_in_the_weights),
    Row(ffn, {"name": "ernie", "top_k": 2}, planted.route_with(moe, balance_E=None), "no balancing bias"),
    Row(gpt_oss, {"top_k": 2}, planted.route_with(test_ffn_experts, bias_E=None), "no router bias"),
    Row(top1, {"gate": "softmax_topk", "learns": True}, planted.gate("softmax_topk", "topk_softmax"), "no gradient"),
    Row(
        top1,
        {"gate": "softmax_topk_ste", "learns": True},
        planted.gate("softmax_topk_ste", "softmax_topk_renorm"),
        "same",
    ),
    Row(
        top1, {"gate": "topk_softmax", "learns": False}, planted.gate("topk_softmax", "softmax_topk_ste"), "a gradient"
    ),
    Row(groups, {"split": 2}, planted.other_experts),
    Row(groups, {"split": 2}, planted.while_computing(gain=1.0), "no gain"),
    Row(narrower, {"top_k": 3}, planted.other_experts),
    Row(dense_gradient, {"top_k": 1}, planted.sparse_router_gradient),
    *(
        Row(whole_bam, {"family": family, "kv": kv}, planted.attention_gates_on_the_wrong_experts)
        for family in ("cohere", "llama")
        for kv in ("expert", "shared", "value_only")
    ),
    Row(
        whole_bam,
        {"family": "cohere", "kv": "expert"},
        planted.gate("softmax_topk", "softmax_topk_renorm"),
        "renormalised",
    ),
    Row(whole_bam, {"family": "cohere", "kv": "shared"}, planted.ffn_reads_the_stream_without_norm),
    Row(whole_bam, {"family": "cohere", "kv": "shared"}, planted.other_experts),
    Row(whole_bam, {"family": "cohere-qk-norm", "kv": "expert"}, planted.one_scale_for_all_heads),
    Row(whole_btx, {"top_k": 2, "shared_expert": False}, planted.gate("topk_softmax", "softmax_topk"), "softmax first"),
    Row(whole_btx, {"top_k": 1, "shared_expert": True}, planted.while_computing(shared=None), "no shared expert"),
    Row(copies, {"kv": "expert", "gate": "topk_softmax"}, planted.gate("topk_softmax", "softmax_topk"), "sum below 1"),
    Row(copies, {"kv": "shared", "gate": "topk_softmax"}, planted.shared_queries_in_the_wrong_order),
    Row(scaled, {}, planted.gate("softmax_topk", "softmax_topk_renorm"), "renormalised"),
    Row(saturated, {"chosen": 1, "kv": "expert"}, planted.attention_gates_on_the_wrong_experts),
    Row(saturated, {"chosen": 0, "kv": "shared"}, planted.other_experts),
    Row(saturated, {"chosen": 2, "kv": "value_only"}, planted.values_in_the_wrong_order),
    Row(cached, {"name": "shared", "pieces": TOKENS}, planted.positions_off_by_one),
    Row(cached, {"name": "expert", "pieces": PIECES}, planted.positions_off_by_one),
    Row(padded, {"name": "value_only", "pieces": PIECES}, planted.pads_are_seen),
    Row(padded, {"name": "dense", "pieces": TOKENS}, planted.positions_off_by_one),
    Row(padded, {"name": "shared", "pieces": PIECES}, planted.positions_count_pads),
    Row(their_padding, {}, planted.pads_are_seen),
    Row(their_padding, {}, planted.positions_off_by_one),
    Row(plain, {"name": "dense-rotary-half-interleaved", "training": True}, planted.other_pairs),
    Row(plain, {"name": "dense-qk-norm", "training": True}, planted.no_qk_norm),
    Row(plain, {"name": "bam-value-only", "training": True}, planted.values_in_the_wrong_order),
    Row(plain, {"name": "bam", "training": True}, planted.attention_gates_on_the_wrong_experts),
    Row(plain, {"name": "bam-shared", "training": False}, planted.shared_queries_in_the_wrong_order),
    Row(
        plain,
        {"name": "btx-ste", "training": True},
        planted.gate("softmax_topk_ste", "softmax_topk_renorm"),
        "gradient",
    ),
    Row(plain, {"name": "btx-sample", "training": True}, planted.route_with(moe, temperature=1.0), "no temperature"),
    Row(plain, {"name": "ffn-capacity", "training": True}, planted.capacity_off_by_one),
    Row(plain, {"name": "ffn-shared-expert-gain", "training": True}, planted.while_computing(gain=1.0), "no gain"),
    Row(
        plain,
        {"name": "ffn-shared-expert-gain", "training": True},
        planted.while_computing(shared=None),
        "no shared expert",
    ),
    Row(plain, {"name": "ffn-balance-bias", "training": True}, planted.route_with(moe, bias_E=None), "no router bias"),
    Row(plain, {"name": "ffn-balance-bias", "training": True}, planted.balance_in_the_weights),
    Row(
        plain, {"name": "attention-ste-bias", "training": True}, planted.route_with(moa, bias_E=None), "no router bias"
    ),
    Row(plain, {"name": "ffn-dense-gradient", "training": True}, planted.sparse_router_gradient),
    Row(plain, {"name": "attention-dense-gradient", "training": True}, planted.sparse_router_gradient),
    Row(plain, {"name": "ffn-split", "training": True}, planted.other_experts),
    *(
        Row(plain, {"name": name, "training": True}, plant, said)
        for name, plant, said in (
            ("dense-gemma", planted_options.scored(window=None), "no window"),
            ("gemma-bam", planted_options.scored(window=5), "window one too wide"),
            ("gemma-shared-kv", planted_options.scored(softcap=None), "no cap of scores"),
            ("gemma-value-only", planted_options.scored(scale=None), "the usual scale"),
            ("dense-cohere", planted_options.every_layer_rotates, ""),
            ("neox-bam", planted_options.output_biases_without_their_gates, ""),
            ("olmo-bam", planted_options.no_norm_of_what_was_made, ""),
            ("olmo-shared-kv", planted_options.norms_per_head, "norms per head"),
            ("neox-value-only", planted_options.one_norm_for_both_branches, ""),
            ("dense-neox", planted_options.other_gelu, ""),
            ("dense-gemma", planted_options.embeddings_as_they_are, ""),
            ("dense-gemma", planted_options.logits_capped_before_their_scale, ""),
            ("dense-llama3", planted_options.frequencies_as_they_were, "no scaling"),
        )
    ),
    Row(drawn, {"config": test_naive_composition.CONFIGS["bam"], "seed": 3, "training": True}, planted.no_scale),
    Row(one_layer, {"top_k": 2}, planted.TIMES_K, "f not over k"),
    Row(one_layer, {"top_k": 1}, planted.TWICE_SOFTMAX, "softmax twice"),
    Row(averaged, {"top_k": 2}, planted.POOLED, "pooled"),
    Row(averaged, {"top_k": 1}, planted.SUMMED, "sum over layers"),
    Row(masked, {"top_k": 2}, planted.UNMASKED, "no mask"),
    Row(masked, {"top_k": 2}, planted.UNMASKED_Z, "no mask in the z-loss"),
    *(
        Row(formulas, {"formula": f, "top_k": 1}, planted.SUMMED, "sum over layers")
        for f in (test_router_losses.megatron, test_router_losses.olmo_core, test_router_losses.switch)
    ),
    Row(formulas, {"formula": test_router_losses.olmo_core, "top_k": 2}, planted.TIMES_K, "f not over k"),
    Row(by_hand, {}, planted.TWICE_SOFTMAX, "softmax twice"),
    Row(by_hand, {}, planted.TIMES_K, "f not over k"),
    Row(see_logits, {}, planted.SUMMED_Z, "sum over layers"),
    Row(see_logits, {}, planted.TWICE_SOFTMAX, "softmax twice"),
    Row(split_gradient, {"name": "bam"}, planted.balance_not_by_share),
    Row(split_gradient, {"name": "btx-top2"}, planted.no_z_loss),
    Row(split_gradient, {"name": "one-layer"}, planted.balance_against_own_fractions),
    Row(split_gradient, {"name": "sample-top1"}, planted.noise_of_the_part),
    Row(split_gradient, {"name": "capacity-balance-bias"}, planted.capacity_off_by_one),
    Row(split_gradient, {"name": "value-only-dense-gradient"}, planted.sparse_router_gradient),
    Row(totals, {"kv": "shared", "total": 738_253_824}, planted.counted(attention_routed=lambda n: 0), "no router"),
    Row(parameters, {"name": "bam"}, planted.counted(keys=lambda n: 1), "keys of one expert"),
    Row(flops, {"name": "btx"}, planted.counted(ffn_size=lambda n: n.ffn_size // 2), "half the FFN"),
    Row(flops, {"name": "bam-value-only"}, planted.counted(queries=lambda n: n.outputs), "queries of all experts"),
    Row(cache_bytes, {"name": "bam-value-only"}, planted.counted(keys=lambda n: n.values), "keys of all experts"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_planted_error_is_noticed(row: Row, monkeypatch: Patch) -> None:
    run = row.test.hypothesis.inner_test if hasattr(row.test, "hypothesis") else row.test
    row.plant(monkeypatch)
    with pytest.raises(Disagreement):
        run(**row.case, agree=Agreement())


def test_every_oracle_has_a_planted_error() -> None:
    oracles = {
        test.__name__
        for source in MODULES
        for _, test in inspect.getmembers(source, inspect.isfunction)
        if any(mark.name == "oracle" for mark in getattr(test, "pytestmark", []))
    }
    assert oracles
    assert oracles == {row.test.__name__ for row in ROWS}
