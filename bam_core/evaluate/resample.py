"""What several models made of the same documents under the same seeds, and what else they might have made of them.

A figure here is the logarithm of a perplexity, of every model and seed: of the documents as they are, of documents
drawn anew (the bootstrap) and of all but one. Every model sees the same draw, so that differences are paired.

In a draw each domain gives n - 1 of its n documents, with replacement: the variance of a mean over them is then
s^2 / n, where n draws give (n - 1) / n of that. Source: McCarthy and Snowden (1985), "The bootstrap and finite
population sampling".

Suffixes: M models, R seeds (runs), N documents of one domain, B draws, K domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.seeds import child_seed

AVERAGE = "average_perplexity"
"""Mean of the domains' perplexities (BAM, Table 1's Average)."""
TOKEN_AVERAGE = "token_average_perplexity"
"""Of all tokens of all domains together."""
OF_DOMAIN = "perplexity."
"""Before a domain's name: its perplexity."""

Floats = NDArray[np.float64]
_BLOCK = 250
"""Draws whose counts are in memory at a time."""


@dataclass(frozen=True, eq=False)
class DocumentScores:
    """seeds: R of them. documents, tokens: domain -> each document's number and its predicted tokens [N].

    nll: model -> domain -> nats of each document under each seed [R, N]. Documents and tokens are those of every model.
    A loss that is not finite makes its model's figures NaN.
    """

    seeds: tuple[int, ...]
    documents: Mapping[str, NDArray[np.int64]]
    tokens: Mapping[str, NDArray[np.int64]]
    nll: Mapping[str, Mapping[str, Floats]]

    def __post_init__(self) -> None:
        for model, domains in self.nll.items():
            assert domains.keys() == self.tokens.keys(), f"{model}: {list(domains)} are not {list(self.tokens)}"
            for domain, nll_RN in domains.items():
                expected = (len(self.seeds), len(self.tokens[domain]))
                assert nll_RN.shape == expected, f"{model}, {domain}: {nll_RN.shape} is not {expected}"

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.tokens)

    @property
    def n_documents(self) -> int:
        """Those that have a token to predict."""
        return sum(int((tokens > 0).sum()) for tokens in self.tokens.values())


class Resampler:
    """Draws documents for some of the models. Equal scores, models and seed give equal draws."""

    def __init__(self, scores: DocumentScores, models: Sequence[str], draws: int, seed: int) -> None:
        _check(scores, models)
        self.scores, self.models, self.n_draws = scores, tuple(models), draws
        self.tokens: dict[str, Floats] = {}
        self.nll: dict[str, Floats] = {}  # domain -> [M, R, N]
        for domain, tokens_N in scores.tokens.items():
            kept = tokens_N > 0  # a document of no tokens says nothing, and a draw of nothing else would have no mean
            self.tokens[domain] = tokens_N[kept].astype(np.float64)
            nll_MRN = np.stack([scores.nll[model][domain][:, kept] for model in models]).astype(np.float64)
            self.nll[domain] = np.where(np.isfinite(nll_MRN), nll_MRN, np.nan)
        self._seed = seed

    def figure(self, figure: str) -> Floats:
        """[M, R] of the documents as they are."""
        return self._log(figure, *self._whole)

    def drawn(self, figure: str) -> Floats:
        """[M, R, B] of documents drawn anew, each domain's by itself."""
        return self._log(figure, *self._draws)

    def without(self, figure: str) -> Iterator[Floats]:
        """[M, R, N] for each domain of several documents that the figure is of: all documents but the n-th."""
        nll_MRK, tokens_K = self._whole
        for place, (domain, tokens_N) in enumerate(self.tokens.items()):
            if len(tokens_N) > 1 and (not figure.startswith(OF_DOMAIN) or figure == OF_DOMAIN + domain):
                nll = np.repeat(nll_MRK[:, :, None, :], len(tokens_N), axis=2)
                tokens = np.repeat(tokens_K[None, :], len(tokens_N), axis=0)
                nll[..., place] -= self.nll[domain]
                tokens[:, place] -= tokens_N
                yield self._log(figure, nll, tokens)

    @property
    def alone(self) -> list[str]:
        """Domains of one document, which always is the one that is drawn."""
        return [domain for domain, tokens_N in self.tokens.items() if len(tokens_N) == 1]

    @cached_property
    def _whole(self) -> tuple[Floats, Floats]:
        """Sums over documents: nats [M, R, K] and tokens [K]."""
        nll = np.stack([nll_MRN.sum(-1) for nll_MRN in self.nll.values()], axis=-1)
        return nll, np.array([tokens_N.sum() for tokens_N in self.tokens.values()])

    @cached_property
    def _draws(self) -> tuple[Floats, Floats]:
        """The same of every draw: [M, R, B, K] and [B, K]."""
        shape = (len(self.models), len(self.scores.seeds), self.n_draws, len(self.tokens))
        nll, tokens = np.empty(shape), np.empty(shape[2:])
        for place, (domain, tokens_N) in enumerate(self.tokens.items()):
            rng = np.random.default_rng(child_seed(self._seed, domain))
            for start in range(0, self.n_draws, _BLOCK):
                here = slice(start, min(start + _BLOCK, self.n_draws))
                counts_BN = _counts(rng, len(tokens_N), here.stop - start)
                nll[:, :, here, place] = self.nll[domain] @ counts_BN.T
                tokens[here, place] = counts_BN @ tokens_N
        return nll, tokens

    def _log(self, figure: str, nll: Floats, tokens: Floats) -> Floats:
        """The figure's logarithm from sums over documents, whose last dimension is K."""
        if figure == TOKEN_AVERAGE:
            summed: Floats = nll.sum(-1) / tokens.sum(-1)
            return summed
        of_domain = nll / tokens
        if figure == AVERAGE:
            highest = of_domain.max(-1, keepdims=True)
            mean: Floats = np.log(np.exp(of_domain - highest).mean(-1)) + highest[..., 0]
            return mean
        one: Floats = of_domain[..., list(self.tokens).index(figure.removeprefix(OF_DOMAIN))]
        return one


def figure_over_seeds(scores: DocumentScores, model: str, figure: str) -> float:
    """A figure of one model. Raises InvalidInput for a model that was not scored."""
    return over_seeds(Resampler(scores, [model], draws=0, seed=0).figure(figure)[0])


def over_seeds(log_R: Floats) -> float:
    """A perplexity of several seeds from its logarithms: their geometric mean, the one that reports and tables show.

    Of differences too, then as a ratio. NaN stays NaN, and what is too large is infinite.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(log_R.mean()))


def check_figure(scores: DocumentScores, figure: str) -> None:
    """Raises InvalidInput for a figure that these scores do not have."""
    known = [AVERAGE, TOKEN_AVERAGE, *(OF_DOMAIN + domain for domain in scores.domains)]
    if figure not in known:
        raise InvalidInput("a comparison", [Problem("figure", figure, "is not a figure", nearest(figure, known))])


def _check(scores: DocumentScores, models: Sequence[str]) -> None:
    unknown = [model for model in dict.fromkeys(models) if model not in scores.nll]
    found = [Problem("models", model, "has no scored documents", nearest(model, scores.nll)) for model in unknown]
    empty = [domain for domain, tokens_N in scores.tokens.items() if not (tokens_N > 0).any()]
    found += [Problem(f"domains.{domain}", 0, "has no tokens to compare models on") for domain in empty]
    found += [] if scores.tokens else [Problem("domains", [], "has no domain to compare models on")]
    if found:
        raise InvalidInput("a comparison", found)


def _counts(rng: np.random.Generator, n_documents: int, draws: int) -> Floats:
    """How often each document is in each draw [B, N]."""
    if n_documents == 1:
        return np.ones((draws, 1))
    chosen = rng.integers(0, n_documents, (draws, n_documents - 1)) + n_documents * np.arange(draws)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=draws * n_documents)  # four to six times as fast as rng.multinomial
    return counts.reshape(draws, n_documents).astype(np.float64)
