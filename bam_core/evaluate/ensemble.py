"""The branch-train-merge ensemble: the dense experts side by side, their probabilities mixed by domain posterior.

    p(y_t | y_<t) = sum_e w_e(t) p_e(y_t | y_<t),    w_e(t) = prior_e p_e(y_<t) / sum_i prior_i p_i(y_<t)

The posterior of a row is what the experts' own likelihoods say of that row so far; nothing is trained. So the ensemble
needs no forward pass of its own: the experts' negative log likelihoods per token are enough. A row is scored as if a
domain were drawn once for the whole of it: it costs at most -ln(prior_e) nats more than expert e, whichever e.
Source: Branch-Train-Merge (arXiv 2208.03306), the domain posterior of its output ensemble, after DEMix (2108.05036);
both score documents, we rows. Their prior is estimated on other text; ours is given, uniform by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.evaluate.perplexity import DomainScore, Scored


def ensemble_score(experts: Sequence[Scored], prior: Sequence[float] | None = None) -> DomainScore:
    """The ensemble's score on one domain, from each expert's score of the same rows."""
    n_bytes = {scored.n_bytes for scored in experts}
    assert len(n_bytes) == 1, f"experts scored on different rows: {n_bytes} bytes"
    nll_RT = ensemble_nll(torch.stack([scored.nll_RT.double() for scored in experts]), prior)
    return Scored(nll_RT, n_bytes.pop()).total


def ensemble_nll(nll_ERT: Tensor, prior: Sequence[float] | None = None) -> Tensor:
    """Negative log likelihood of every token under the ensemble, [rows, T] in nats and float64.

    nll_ERT: the same of each expert. prior: probability of each expert at a row's start; uniform by default.
    """
    nll_ERT = nll_ERT.double()
    return -torch.logsumexp(log_posterior(nll_ERT, prior) - nll_ERT, dim=0)


def log_posterior(nll_ERT: Tensor, prior: Sequence[float] | None = None) -> Tensor:
    """ln w_e(t) before token t is seen: the prior at a row's first token; float64."""
    n_experts = len(nll_ERT)
    prior_E = torch.tensor(prior if prior is not None else [1 / n_experts] * n_experts, dtype=torch.float64)
    assert prior_E.shape == (n_experts,), f"a prior for {len(prior_E)} of {n_experts} experts"
    assert prior_E.min() >= 0 < prior_E.sum(), f"not a prior: {prior}"
    seen_ERT = F.pad(nll_ERT.double()[..., :-1].cumsum(-1), (1, 0))
    return torch.log_softmax(prior_E.to(seen_ERT.device).log()[:, None, None] - seen_ERT, dim=0)
