"""The branch-train-merge ensemble: the dense experts side by side, their probabilities mixed by domain posterior.

    p(y_t | y_<t) = sum_e w_e(t) p_e(y_t | y_<t),    w_e(t) = prior_e p_e(y_<t) / sum_i prior_i p_i(y_<t)

The posterior is what the experts' own likelihoods say of the document so far; nothing is trained. A numerator is the
next denominator, so the product over a document's tokens is

    p(document) = sum_e prior_e p_e(document)

and the ensemble needs no forward pass of its own and no figure of any single token: each expert's loss on the document
is enough. A document is scored as if a domain were drawn once for the whole of it: it costs at most -ln(prior_e) nats
more than expert e, whichever e.
Source: Branch-Train-Merge (arXiv 2208.03306), the domain posterior of its output ensemble, after DEMix (2108.05036).
Their prior is estimated on other text; ours is given, uniform by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bam_core.evaluate.strided import Scored


def ensemble_scored(experts: Sequence[Scored], prior: Sequence[float] | None = None) -> Scored:
    """The ensemble on the documents of one domain, from each expert's losses on them."""
    first = experts[0]
    for other in experts[1:]:
        assert np.array_equal(first.numbers, other.numbers), "experts scored on different documents"
        assert np.array_equal(first.tokens, other.tokens), "experts scored on different tokens"
    nll_D = ensemble_nll(np.stack([scored.nll for scored in experts]), prior)
    return Scored(first.numbers, nll_D, first.tokens, first.n_bytes)


def ensemble_nll(nll_ED: NDArray[np.float64], prior: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Negative log likelihood of every document under the ensemble, [D] in nats.

    nll_ED: the same of each expert. prior: probability of each expert at a document's start; uniform by default.
    """
    n_experts = len(nll_ED)
    prior_E = np.asarray(prior if prior is not None else [1 / n_experts] * n_experts, dtype=np.float64)
    assert prior_E.shape == (n_experts,), f"a prior for {len(prior_E)} of {n_experts} experts"
    assert prior_E.min() >= 0 < prior_E.sum(), f"not a prior: {prior}"
    possible = prior_E > 0
    log_prior_E1 = np.log(prior_E[possible] / prior_E.sum())[:, None]
    log_p_D: NDArray[np.float64] = np.logaddexp.reduce(log_prior_E1 - nll_ED[possible], axis=0)
    return -log_p_D
