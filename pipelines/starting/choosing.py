"""How much to train, on which rows, with how many tokens in the vocabulary: from how much text there is.

Rules of thumb, each said in the recipe where it is used. Text that is read four times is worth nearly as much as new
text, and after some sixteen times little more is learnt from it (arXiv 2305.16264).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bam_core.errors import InvalidInput, Problem
from bam_core.graph.words import size as size_words
from pipelines.recipe.document import join
from pipelines.starting.found import Found
from pipelines.starting.sizes import IMPORTED, SIZES, SeedModel, Size

BYTES_PER_TOKEN = 3.5
"""About, of English and code with a vocabulary of some thousands."""
PASSES, MIXTURE_PASSES, TOO_MANY_PASSES = 4, 8, 16
"""Over the text of one phase; of the mixture over the smallest domain, as it reads equally much of each; in all."""
MOST_HELD_OUT, HELD_OUT = 0.2, (0.05, 0.1, 0.15)
HELD_OUT_TOKENS = 20_000
HELD_OUT_ROWS = 4
"""Rows that a domain's held-out text should fill at least."""
SHORTEST_ROW = 32
FEWEST_BATCHES = 50
BYTES_PER_ENTRY = 1000
FEWEST_ENTRIES = 512
ROOM = 2
"""`max_bytes` is so many times what is read."""
DOCUMENT_BYTES = 500
"""Of a document of the hub at least, where nobody knows."""


@dataclass(frozen=True)
class Start:
    """domains: the general one first; each text as one or several sources, their columns chosen.

    size: a name of SIZES, not used with a seed model. tokens: of the seed's training, as a person wants them; with a
    seed model, of each expert's. cpus, gpus: of this machine.
    """

    name: str
    domains: Mapping[str, Sequence[Found]]
    size: str = "tiny"
    tokens: int | None = None
    seed: SeedModel | None = None
    cpus: int = 1
    gpus: int = 0

    @property
    def general(self) -> str:
        return next(iter(self.domains))

    @property
    def shape(self) -> Size:
        return SIZES[self.size] if self.seed is None else IMPORTED

    def n_bytes(self, domain: str) -> int | None:
        """About so much text; None where nobody knows."""
        sizes = [found.n_bytes for found in self.domains[domain]]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True)
class Chosen:
    """own_tokens: of experts whose text is too little for `expert_tokens`. max_bytes: of domains with far more text
    than is read. notes: what a person should know, in words."""

    row: int
    vocab_size: int
    seed_tokens: int
    expert_tokens: int
    mixture_tokens: int
    valid_frac: Mapping[str, float]
    own_tokens: Mapping[str, int]
    max_bytes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose(start: Start) -> Chosen:
    """Raises InvalidInput naming each domain whose text cannot fill the shortest rows, and for too few tokens."""
    sizes = {domain: start.n_bytes(domain) for domain in start.domains}
    require_text(sizes)
    shape, n = start.shape, len(start.domains)
    asked = start.tokens if start.tokens is not None else shape.tokens
    if asked < shape.batch_tokens:
        raise InvalidInput("tokens", [Problem("tokens", asked, f"must be at least one batch, {shape.batch_tokens}")])
    after = asked if start.seed is not None else max(asked // 2, shape.batch_tokens)
    held_out = {domain: _held_out(size) for domain, size in sizes.items()}
    least = FEWEST_BATCHES * shape.batch_tokens

    def within(tokens: int, size: int | None) -> int:
        """No more than PASSES over so much text, unless a person wants more."""
        if start.tokens is not None or size is None:
            return tokens
        return _rounded(max(least, min(tokens, int(PASSES * size / BYTES_PER_TOKEN))))

    others = [domain for domain in start.domains if domain != start.general]
    experts = {domain: within(after, sizes[domain]) for domain in others}
    expert_tokens = max(experts.values())
    smallest = min((size for size in sizes.values() if size is not None), default=None)
    for_mixture = None if smallest is None else smallest * n * MIXTURE_PASSES // PASSES
    made = Chosen(
        row=_row(sizes, shape.row if start.seed is None else min(shape.row, start.seed.context)),
        vocab_size=_vocabulary(sizes[start.general], shape.vocab_size),
        seed_tokens=within(asked, sizes[start.general]),
        expert_tokens=expert_tokens,
        mixture_tokens=within(after, for_mixture),
        valid_frac={domain: frac for domain, frac in held_out.items() if frac != HELD_OUT[0]},
        own_tokens={domain: tokens for domain, tokens in experts.items() if tokens < 0.8 * expert_tokens},
    )
    needs = {domain: _need(start, made, domain, n) for domain in start.domains}
    limits = {domain: _limit(needs[domain], sizes[domain]) for domain in start.domains}
    notes = [note for domain in start.domains for note in _passes(domain, needs[domain], sizes[domain])]
    return replace(made, max_bytes={name: most for name, most in limits.items() if most}, notes=tuple(notes))


def require_text(sizes: Mapping[str, int | None]) -> None:
    """Raises InvalidInput naming each domain whose text cannot fill the shortest rows."""
    least = int(SHORTEST_ROW * HELD_OUT_ROWS * BYTES_PER_TOKEN / MOST_HELD_OUT)
    expected = f"of text, about: too little to train on; a domain needs {size_words(least)} at the very least"
    problems = [
        Problem(join("domains", domain), size, f"bytes {expected}", "give it more text, or leave the domain out")
        for domain, size in sizes.items()
        if size is not None and size < least
    ]
    if problems:
        raise InvalidInput("text", problems)


def _held_out(size: int | None) -> float:
    wanted = HELD_OUT_TOKENS * BYTES_PER_TOKEN
    return next((frac for frac in HELD_OUT if size is None or frac * size >= wanted), MOST_HELD_OUT)


def _row(sizes: Mapping[str, int | None], most: int) -> int:
    """The largest power of two that the held-out text of every domain fills HELD_OUT_ROWS times."""
    row = 1 << (most.bit_length() - 1)
    fewest = min((size for size in sizes.values() if size is not None), default=None)
    while fewest is not None and row > SHORTEST_ROW:
        if _held_out(fewest) * fewest / BYTES_PER_TOKEN >= HELD_OUT_ROWS * row:
            break
        row //= 2
    return row


def _vocabulary(size: int | None, most: int) -> int:
    wanted = most if size is None else min(most, max(FEWEST_ENTRIES, size // BYTES_PER_ENTRY))
    return 1 << (wanted.bit_length() - 1) if wanted else 0


def _rounded(tokens: int) -> int:
    """Two digits, which people can read; never more than there is."""
    unit: int = 10 ** max(0, len(str(tokens)) - 2)
    return tokens // unit * unit


def _need(start: Start, chosen: Chosen, domain: str, n: int) -> float:
    """Bytes of the domain's text that are read, over all passes."""
    is_general = domain == start.general
    tokens = chosen.mixture_tokens / n
    tokens += chosen.seed_tokens if is_general and start.seed is None else 0
    tokens += 0 if is_general else 0.9 * chosen.own_tokens.get(domain, chosen.expert_tokens)
    return tokens * BYTES_PER_TOKEN


def _limit(need: float, size: int | None) -> int | None:
    most = int(need * ROOM)
    unit = 10 ** (len(str(most)) - 1)
    most = -(-most // unit) * unit
    return most if size is None or size > ROOM * most else None


def _passes(domain: str, need: float, size: int | None) -> Iterator[str]:
    if size is not None and need > TOO_MANY_PASSES * size:
        times = need / size
        yield f"{domain}: its text is read some {times:.0f} times in all, which teaches little more: it needs more text"
