"""Formulas for parameters and FLOPs against the tensors that exist and the products that torch counts.

Mutations, each planted in `test_oracles_can_fail.py`: a router less per layer; half the width of the FFN; one set of
keys under Expert-KV.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from agreement import Agreement
from test_naive_composition import CONFIGS, N_TIME
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn import costs
from bam_core.nn.attention import Cache
from bam_core.nn.lm import LM, init_weights

PAPER = ModelConfig(256_000, 1024, 6, 8, 8, 2048, 256, tie_embeddings=False)  # BAM, Table 8, small
FOUR = ("general", "code", "law", "math")


@pytest.mark.oracle("T17 parameters: formula, tensors and Table 9", each=False)
@pytest.mark.parametrize(("kv", "total"), [("expert", 776_002_560), ("shared", 738_253_824)])
def test_the_papers_totals(kv: str, total: int, agree: Agreement) -> None:
    config = replace(PAPER, attention=AttentionExperts(4, 4, kv), ffn=FFNExperts(4), experts=FOUR)
    with torch.device("meta"):
        in_tensors = sum(parameter.numel() for parameter in LM(config).parameters())
    agree(torch.tensor(in_tensors), torch.tensor(total), 0.0, "tensors")
    agree(torch.tensor(costs.params_total(config)), torch.tensor(total), 0.0, "formula")


@pytest.mark.oracle("T17 parameters: formula and tensors, every field", each=False)
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_sum_over_tensors(name: str, agree: Agreement) -> None:
    with torch.device("meta"):
        in_tensors = sum(parameter.numel() for parameter in LM(CONFIGS[name]).parameters())
    agree(torch.tensor(costs.params_total(CONFIGS[name])), torch.tensor(in_tensors), 0.0)


@pytest.mark.oracle("T17 FLOPs: formula and torch's count, every field", each=False)
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_the_products_that_run(name: str, agree: Agreement) -> None:
    """Without a causal kernel every position attends to all N_TIME: the context of the formula."""
    model = LM(CONFIGS[name]).eval()
    init_weights(model, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        output = model(torch.zeros(1, N_TIME, dtype=torch.long))
        model.logits(output.hidden_BTD, output.mix_BTE)
    expected = torch.tensor(counter.get_total_flops())
    agree(torch.tensor(N_TIME * costs.flops_per_token(CONFIGS[name], N_TIME)), expected, 0.0)


@pytest.mark.oracle("T17 cache bytes: formula and tensors, every field", each=False)
@pytest.mark.parametrize("name", CONFIGS)
def test_cache_bytes_are_those_of_its_tensors(name: str, agree: Agreement) -> None:
    cache = Cache(CONFIGS[name], 1, 1, torch.bfloat16)
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys_BGSC, layer.values_BGSX)]
    in_tensors = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    agree(torch.tensor(costs.cache_bytes_per_token(CONFIGS[name])), torch.tensor(in_tensors), 0.0)
