"""What a mixture's routers did, in figures by branch and layer; all from the sample that `routing.parquet` lists.

`entropy`: mean over tokens of the entropy of a router's probabilities over ln E. `load`: each expert's share of the
pairs of a token and a chosen expert; of a soft router its mean probability. `load_max`, `load_min`, `load_variation`:
of those; an even load is 1/E, 1/E, 0. `mutual_information`: of the token's domain and its first expert, in nats;
`mutual_information_frac`: over the most that it can be. `soft_*`: the same for an expert drawn from the router's
probabilities. `purity`: share of tokens of the domain that their first expert sees most of. `own_domain_frac`: share of
tokens whose first expert came from their own domain's model, among domains that have an expert; None where fewer than
two have one. `first`: tokens by domain and first expert, from which the figures of first experts follow.
`agreement`: of the two routers of a layer, the share of tokens whose first experts came from one dense model, and
Cohen's kappa of it. Formulas and sources: `information`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bam_core.config import ModelConfig
from bam_core.evaluate import information
from bam_core.evaluate.knock_out import BRANCHES, Branch, expert_models
from bam_core.evaluate.routing_sample import Choices, Sample


def summarise(config: ModelConfig, samples: Mapping[str, Sample]) -> dict[str, Any]:
    """The summary of one mixture. samples: of every domain; a layer without experts in a branch has None there."""
    domains = list(samples)
    found: dict[str, Any] = {
        "layers": config.n_layers,
        "experts": list(config.experts),
        "tokens": {domain: sample.n_tokens for domain, sample in samples.items()},
    }
    for branch in BRANCHES:
        found[f"{branch}_experts"] = list(config.expert_labels(branch))
        models = expert_models(config, branch)
        layers = [_of_all(samples, branch, layer) for layer in range(config.n_layers)]
        found[branch] = (
            [_layer(domains, models, choices) if choices else None for choices in layers] if models else None
        )
    found["agreement"] = [_agreement(config, samples, layer) for layer in range(config.n_layers)]
    return found


def _of_all(samples: Mapping[str, Sample], branch: Branch, layer: int) -> list[Choices]:
    """What the router did with each domain; empty if there is none."""
    of_branch = [sample.branches.get(branch, {}) for sample in samples.values()]
    return [layers[layer] for layers in of_branch if layer in layers]


def _layer(domains: Sequence[str], models: Sequence[str], choices: Sequence[Choices]) -> dict[str, Any]:
    first_DE = np.stack([np.bincount(choice.expert_N, minlength=len(models)) for choice in choices])
    probs_DE = np.stack([choice.probs_E for choice in choices])
    load_E = np.sum([choice.load_E for choice in choices], axis=0)
    load_E = load_E / load_E.sum()
    return {
        "entropy": float(np.concatenate([choice.entropy_N for choice in choices]).mean(dtype=np.float64)),
        "load": load_E.tolist(),
        "load_max": float(load_E.max()),
        "load_min": float(load_E.min()),
        "load_variation": information.variation(load_E),
        "mutual_information": information.mutual_information(first_DE),
        "mutual_information_frac": information.normalised_mutual_information(first_DE),
        "soft_mutual_information": information.mutual_information(probs_DE),
        "soft_mutual_information_frac": information.normalised_mutual_information(probs_DE),
        "purity": information.purity(first_DE),
        "own_domain_frac": own_domain_frac(first_DE, domains, models),
        "first": {domain: count_E.tolist() for domain, count_E in zip(domains, first_DE, strict=True)},
    }


def own_domain_frac(first_DE: NDArray[np.int64], domains: Sequence[str], models: Sequence[str]) -> float | None:
    """Share of tokens whose first expert came from their own domain's model, among domains that have an expert."""
    is_own_DE = np.array([[model == domain for model in models] for domain in domains])
    has_one = is_own_DE.any(1)
    if has_one.sum() < 2:
        return None
    return float((first_DE * is_own_DE)[has_one].sum() / first_DE[has_one].sum())


def _agreement(config: ModelConfig, samples: Mapping[str, Sample], layer: int) -> dict[str, Any] | None:
    attention, ffn = (_of_all(samples, branch, layer) for branch in BRANCHES)
    if not attention or not ffn:
        return None
    both_EE = np.zeros((len(config.experts),) * 2)
    models = {branch: np.array([config.experts.index(m) for m in expert_models(config, branch)]) for branch in BRANCHES}
    for one, other in zip(attention, ffn, strict=True):
        np.add.at(both_EE, (models["attention"][one.expert_N], models["ffn"][other.expert_N]), 1)
    return {"frac": information.agreement(both_EE), "kappa": information.cohen_kappa(both_EE)}
