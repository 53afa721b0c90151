"""What a router's choice tells of a text's domain, from a table of how often they met; all in nats and float64.

A table `joint_DE` has a row per domain and a column per expert: counts of tokens, or sums of the routers'
probabilities (then the expert is one drawn by the router, and the figure is the "soft" one). It is taken as the joint
distribution of the two after division by its sum; domains count as much as they have tokens in it.
Source: Cover and Thomas, Elements of Information Theory, chapter 2; figures of agreement say theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def entropy(weights: ArrayLike) -> float:
    """-sum p ln p of non-negative weights over their sum; 0 ln 0 is 0."""
    p = _distribution(weights).ravel()
    p = p[p > 0]
    return float(max(0.0, -(p * np.log(p)).sum()))


def mutual_information(joint_DE: ArrayLike) -> float:
    """I(domain; expert) = sum p(d, e) ln(p(d, e) / (p(d) p(e))): 0 if independent, ln E if E domains have one each.

    From counts of n tokens it is too large by about (D - 1)(E - 1) / (2 n) on average (Miller 1955).
    """
    p_DE = _distribution(joint_DE)
    independent_DE = p_DE.sum(1, keepdims=True) * p_DE.sum(0, keepdims=True)
    met = p_DE > 0
    return float(max(0.0, (p_DE[met] * np.log(p_DE[met] / independent_DE[met])).sum()))


def normalised_mutual_information(joint_DE: ArrayLike) -> float:
    """I(domain; expert) / min(H(domain), H(expert)): 1 where one of the two follows from the other.

    0 where either is always the same: there is nothing to tell.
    Source: Vinh, Epps and Bailey 2010, Table 2 (the normalisation by the minimum).
    """
    p_DE = _distribution(joint_DE)
    most = min(entropy(p_DE.sum(1)), entropy(p_DE.sum(0)))
    return min(1.0, mutual_information(p_DE) / most) if most > 0 else 0.0


def purity(joint_DE: ArrayLike) -> float:
    """Share of tokens that are of the domain that their expert sees most of: from 1/D (all alike) to 1.

    Source: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, section 16.3.
    """
    joint = _weights(joint_DE)
    return float(joint.max(0).sum() / joint.sum())


def agreement(both_EE: ArrayLike) -> float:
    """Share of tokens for which two routers chose the same: rows are the choice of one, columns of the other."""
    both = _weights(both_EE)
    return float(np.trace(both) / both.sum())


def cohen_kappa(both_EE: ArrayLike) -> float | None:
    """(agreement - chance) / (1 - chance), chance being that of two routers that choose as often and independently.

    1: they always agree; 0: as often as by chance. None where both always choose the same one expert.
    Source: Cohen 1960.
    """
    p_EE = _distribution(both_EE)
    chance = float(p_EE.sum(1) @ p_EE.sum(0))
    return (agreement(p_EE) - chance) / (1 - chance) if chance < 1 else None


def variation(load_E: ArrayLike) -> float:
    """Coefficient of variation of the experts' loads: standard deviation over mean; 0 if even, sqrt(E - 1) at most."""
    load = np.asarray(load_E, dtype=np.float64)
    return float(load.std() / load.mean())


def _distribution(weights: ArrayLike) -> NDArray[np.float64]:
    w = _weights(weights)
    p: NDArray[np.float64] = w / w.sum()
    return p


def _weights(weights: ArrayLike) -> NDArray[np.float64]:
    w = np.asarray(weights, dtype=np.float64)
    assert w.min(initial=0) >= 0 < w.sum() < np.inf, f"not weights of a distribution: {w}"
    return w
