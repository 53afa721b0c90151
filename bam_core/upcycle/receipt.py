"""What holds at step 0, measured on the mixture as written: each expert is in it, whole and in its place.

An untrained mixture computes what no dense model does, so it cannot be compared with one as it is. But the
experts are all that it did not average: give it expert i's own shared tensors, and routers that send
everything to expert i, and its logits must be those of dense model i. This runs the mixture's real forward
pass, so it catches experts that were lost, swapped or laid out wrongly, for any variant (of a soup only the
shared part is left, and the check is trivial).

A router has no bias, so no router sends every input to one expert; but some router does for N <= D given
inputs: with their matrix H_ND, the vector d with H d = 1 gives expert i the logit +LOGIT and the others
-LOGIT on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bam_core.checkpoint import TensorSource, load_model, open_tensors
from bam_core.nn.block import LayerRouting
from bam_core.nn.lm import LM
from bam_core.nn.routing import Routing

LOGIT = 1e4
"""exp(-2 * LOGIT) is 0 in float64, so the gates are exactly 1 and 0."""

MAX_TOKENS = 32


@torch.inference_mode()
def receipt(mixture: Path, experts: Mapping[str, Path], seed: int = 0) -> dict[str, Any]:
    """Compare a mixture with the dense models it was made from, on random tokens, in float64.

    mixture, experts: model folders, the experts in stacking order. Memory: the mixture and one dense model.

    Returns {n_tokens, experts: {name: {max_abs_logit, max_abs_diff}},
             layers: [{attention_gate_sum, ffn_gate_sum}]}

    max_abs_diff: the mixture sent to this expert against the dense model; rounding only, some 1e-13 of
    max_abs_logit. *_gate_sum: the sum of a token's gates, mean over tokens, under the routers as they are;
    None for a branch without experts. By that factor a branch of equal experts starts out: 1 for soft
    attention, little over 1/E for top-1 without renormalisation (BAM leaves it to training to make up for).
    """
    model = load_model(mixture, dtype=torch.float64)
    config = model.config
    assert not config.is_mixture or tuple(experts) == config.experts, f"{list(experts)} != {config.experts}"
    generator = Generator().manual_seed(seed)
    n_tokens = min(MAX_TOKENS, config.d_model // 2, config.max_seq_len)
    tokens_BT = torch.randint(config.vocab_size, (1, n_tokens), generator=generator)
    layers = [_gate_sums(layer) for layer in model(tokens_BT).routing]
    found = {}
    for index, (name, folder) in enumerate(experts.items()):
        dense = load_model(folder, dtype=torch.float64)
        wanted_BTV, router_inputs = _run_dense(dense, tokens_BT)
        _send_all_to(index, model, open_tensors(folder), router_inputs)
        got_BTV = model.logits(model(tokens_BT).hidden_BTD)
        found[name] = {
            "max_abs_logit": wanted_BTV.abs().max().item(),
            "max_abs_diff": (got_BTV - wanted_BTV).abs().max().item(),
        }
    return {"n_tokens": n_tokens, "experts": found, "layers": layers}


def _gate_sums(layer: LayerRouting) -> dict[str, float | None]:
    return {"attention_gate_sum": _gate_sum(layer.attention), "ffn_gate_sum": _gate_sum(layer.ffn)}


def _gate_sum(routing: Routing | None) -> float | None:
    return None if routing is None else routing.weights_NK.sum(-1).mean().item()


def _run_dense(dense: LM, tokens_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The dense model's logits, and what each branch reads: `blocks.{l}.attn` or `.ffn` -> input_ND."""
    inputs: dict[str, Tensor] = {}

    def note(branch: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[branch] = args[0].flatten(0, -2)

        return hook

    for layer in range(dense.config.n_layers):
        for branch in (f"blocks.{layer}.attn", f"blocks.{layer}.ffn"):
            dense.get_submodule(branch).register_forward_pre_hook(note(branch))
    return dense.logits(dense(tokens_BT).hidden_BTD), inputs


def _send_all_to(index: int, model: LM, expert: TensorSource, router_inputs: Mapping[str, Tensor]) -> None:
    """Saturate the routers of `model` to expert `index`; what is shared becomes that expert's own."""
    dense_shapes = {name: expert.shape(name) for name in expert.names()}
    for name, tensor in model.state_dict().items():
        branch, _, part = name.rpartition(".")
        if part == "router":
            sign_E = torch.full((len(tensor), 1), -LOGIT, dtype=tensor.dtype)
            sign_E[index] = LOGIT
            tensor.copy_(sign_E * _unit_response(router_inputs[branch]))
        elif tuple(tensor.shape) == dense_shapes[name]:
            tensor.copy_(expert.get(name))


def _unit_response(input_ND: Tensor) -> Tensor:
    """The shortest d_D with input_ND @ d_D = 1."""
    ones_N1 = input_ND.new_ones(len(input_ND), 1)
    d_D: Tensor = torch.linalg.lstsq(input_ND, ones_N1, driver="gelsd").solution.squeeze(1)
    response_N = input_ND @ d_D
    assert (response_N > 0.5).all(), f"no router sends these tokens to one expert: {response_N.min().item()}"
    return d_D
