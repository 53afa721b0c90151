"""Where a mixture sends what: per layer and expert, mean gate and fraction of tokens; how sharp the routers are.

Definitions: `mean_gate[e]` = mean over tokens of expert e's gate value (its weight in the sum, 0 where not chosen);
`fraction[e]` = share of the token-to-expert assignments that expert e got (sums to 1); `entropy` = mean over tokens of
the entropy of the router's probabilities over log E (0: always sure, 1: uniform). A layer in which the branch has no
experts has null in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bam_core.config import ModelConfig
from bam_core.nn.lm import LayerRouting
from bam_core.nn.routing import Routing, dense_gate, normalised_entropy


class RoutingSums:
    """Running sums over batches of one domain."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        attention = config.attention
        self._attention = _RouterSums(config.n_layers, attention.n_experts, attention.threshold) if attention else None
        self._ffn = _RouterSums(config.n_layers, config.ffn.n_experts) if config.ffn else None

    def add(self, routing: Sequence[LayerRouting]) -> None:
        """Add one forward pass's routing (one entry per layer)."""
        for layer, chosen in enumerate(routing):
            if self._attention is not None and chosen.attention is not None:
                self._attention.add(layer, chosen.attention)
            if self._ffn is not None and chosen.ffn is not None:
                self._ffn.add(layer, chosen.ffn)

    def attention_used(self) -> tuple[list[int], list[int]]:
        """For each layer how many attention experts all tokens used together, and the number of tokens."""
        if self._attention is None:
            return [0] * self._config.n_layers, [0] * self._config.n_layers
        return self._attention.used.tolist(), self._attention.n_tokens.long().tolist()

    def to_json(self) -> dict[str, Any]:
        """Per branch; None for one without experts."""
        return {
            "attention": self._attention.to_json(with_fraction=False) if self._attention else None,
            "ffn": self._ffn.to_json(with_fraction=True) if self._ffn else None,
        }


class _RouterSums:
    """threshold: of the gates of attention experts that are used."""

    def __init__(self, n_layers: int, n_experts: int, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.used = torch.zeros(n_layers, dtype=torch.int64)
        self.n_tokens = torch.zeros(n_layers, dtype=torch.float64)
        self.gate = torch.zeros(n_layers, n_experts, dtype=torch.float64)
        self.count = torch.zeros(n_layers, n_experts, dtype=torch.float64)
        self.entropy = torch.zeros(n_layers, dtype=torch.float64)

    def add(self, layer: int, routing: Routing) -> None:
        n_experts = self.gate.shape[1]
        gate_NE = dense_gate(routing).reshape(-1, n_experts)
        probs_NE = routing.probs_NE.reshape(-1, n_experts)
        self.n_tokens[layer] += len(gate_NE)
        self.used[layer] += ((gate_NE > 0) & (gate_NE >= self.threshold)).sum().cpu()
        self.gate[layer] += gate_NE.sum(0).double().cpu()
        self.count[layer] += torch.bincount(routing.experts_NK.reshape(-1), minlength=n_experts).double().cpu()
        self.entropy[layer] += normalised_entropy(probs_NE).sum().double().cpu()

    def to_json(self, with_fraction: bool) -> dict[str, Any]:
        n_tokens_L1 = self.n_tokens[:, None].clamp(min=1)
        table: dict[str, Any] = {
            "mean_gate": self._where_routed(self.gate / n_tokens_L1),
            "entropy": self._where_routed(self.entropy / n_tokens_L1[:, 0]),
        }
        if with_fraction:
            table["fraction"] = self._where_routed(self.count / self.count.sum(1, keepdim=True).clamp(min=1))
        return table

    def _where_routed(self, figures_L: Tensor) -> list[Any]:
        return [figure if n > 0 else None for figure, n in zip(figures_L.tolist(), self.n_tokens.tolist(), strict=True)]
