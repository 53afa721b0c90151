"""Whether models can be mixed, and what would come of it: what `bam check` says. Nothing is made.

The first model is the seed; each other is held against it, line by line, as a mixture would need it. A line that does
not hold keeps the models from being mixed; a note is good to know. All but the distance of weights follows from
config.json, the headers of the weights, and tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem
from bam_core.nn.costs import cache_bytes_per_token, mixing_bytes, params_active, params_total
from bam_core.upcycle.compat import config_problems
from bam_core.upcycle.distance import RELATED, Distance
from bam_core.upcycle.variants import VARIANTS, mixture_config
from bam_core.upcycle.vocabulary import (
    Common,
    Relation,
    Rule,
    Vocabulary,
    common_vocabulary,
    relation,
    vocabulary_problems,
)

Verdict = Literal["fits", "note", "misfit"]
SHOWN_TOKENS = 5
"""Special tokens that are named before the rest is counted."""

ASPECTS: dict[str, tuple[str, ...]] = {
    "shapes": ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "tie_embeddings"),
    "rotary": ("rope_theta", "rotary_frac", "rotary_pairs", "rope_scaling", "unrotated_layers"),
    "norm": ("norm", "norm_eps", "norms", "norm_bias", "parallel_norms", "qk_norm", "qk_norm_over"),
}
"""Line of the table -> fields of a config. All others, but those with a rule of their own, are `architecture`."""
ORDER = ("opened", "architecture", *ASPECTS, "context", "tokenizer", "special tokens", "dtype", "weights")
MIXTURES = {"bam": "BAM, expert keys and values", "bam_shared_kv": "BAM, shared keys and values", "btx": "BTX"}
"""Rows of `VARIANTS` whose sizes are told."""


@dataclass(frozen=True)
class Model:
    """A model that was looked at. config: None where it could not be opened: then `problems` says why.

    rows: of its embedding. adapter: the rank, of a LoRA that is merged into the seed. notes: what is good to know.
    """

    name: str
    family: str = "?"
    config: ModelConfig | None = None
    vocabulary: Vocabulary | None = None
    dtype: str = "?"
    adapter: int | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """aspect: one of `ORDER`."""

    aspect: str
    verdict: Verdict
    words: str


@dataclass(frozen=True)
class Sizes:
    """Of a mixture of all models. weight_bytes: in bf16; to_mix_bytes: memory while it is made; cache: in bf16."""

    params_total: int
    params_active: int
    weight_bytes: int
    to_mix_bytes: int
    cache_bytes_per_token: int


@dataclass(frozen=True)
class Fit:
    """models: name -> its lines, the seed's first. relations: of each other's vocabulary to the seed's. distances: name
    -> group -> distance; empty where weights were not read. vocabulary: rows of the common one, None where there is
    none. sizes: of `MIXTURES`; empty where no mixture can be made."""

    seed: str
    rule: Rule
    models: Mapping[str, tuple[Line, ...]]
    relations: Mapping[str, Relation]
    distances: Mapping[str, Mapping[str, Distance]]
    vocabulary: int | None
    sizes: Mapping[str, Sizes] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return all(line.verdict != "misfit" for lines in self.models.values() for line in lines)

    def to_json(self) -> dict[str, Any]:
        return {"fits": self.fits, **asdict(self)}


def fit(models: Sequence[Model], rule: Rule, distances: Mapping[str, Mapping[str, Distance]]) -> Fit:
    """Hold every model against the first. Their names differ; distances: of those whose weights were read."""
    seed, *others = models
    found = {seed.name: _own(seed)} | {
        other.name: _in_order([*_own(other), *_against(seed, other, rule, distances.get(other.name))])
        for other in others
    }
    common = _common(models, rule)
    relations = {
        other.name: relation(seed.vocabulary, other.vocabulary)
        for other in others
        if seed.vocabulary is not None and other.vocabulary is not None
    }
    made = Fit(seed.name, rule, found, relations, distances, common.size if common is not None else None)
    return replace(made, sizes=_sizes(seed, models, made)) if made.fits else made


def _in_order(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: ORDER.index(line.aspect)))


def _own(model: Model) -> tuple[Line, ...]:
    lines = [Line("opened", "misfit", str(problem)) for problem in model.problems]
    if not lines:
        of = f", a LoRA adapter of rank {model.adapter} merged into the seed" if model.adapter is not None else ""
        lines = [Line("opened", "fits", f"{model.family}{of}")]
        if model.vocabulary is None:
            remedy = "a recipe must then name one: tokenizer: {kind: file, path: ...}"
            lines.append(Line("tokenizer", "note", f"has no tokenizer.json; {remedy}"))
    if model.config is not None and model.config.is_mixture:
        made_of = ", ".join(model.config.experts)
        lines.append(Line("architecture", "misfit", f"is a mixture of {made_of}; dense models are mixed"))
    return (*lines, *(Line("opened", "note", words) for words in model.notes))


def _against(seed: Model, other: Model, rule: Rule, distance: Mapping[str, Distance] | None) -> Iterator[Line]:
    if seed.config is None or other.config is None:
        return
    yield from _config_lines(seed.config, other.config)
    if seed.vocabulary is not None and other.vocabulary is not None:
        rows = seed.config.vocab_size, other.config.vocab_size
        yield from _vocabulary_lines((seed.vocabulary, rows[0]), (other.vocabulary, rows[1]), rule)
    elif other.config.vocab_size != seed.config.vocab_size:
        words = f"{other.config.vocab_size:,} rows, the seed has {seed.config.vocab_size:,}, and no tokenizer.json"
        yield Line("tokenizer", "misfit", f"{words} says which token each is")
    if seed.dtype != other.dtype:
        yield Line("dtype", "note", f"{other.dtype}, the seed's is {seed.dtype}; a mixture is made in float32")
    else:
        yield Line("dtype", "fits", other.dtype)
    if distance is not None:
        yield _distance_line(distance)


def _config_lines(ours: ModelConfig, theirs: ModelConfig) -> Iterator[Line]:
    if theirs.max_seq_len != ours.max_seq_len:
        words = f"reads {theirs.max_seq_len:,} tokens, the seed {ours.max_seq_len:,}; a mixture has the seed's"
        yield Line("context", "note", words)
    else:
        yield Line("context", "fits", f"{ours.max_seq_len:,} tokens")
    alike = replace(theirs.dense(), vocab_size=ours.vocab_size, max_seq_len=ours.max_seq_len)
    differing = {problem.path.split(".", 1)[1]: problem for problem in config_problems({"": ours.dense(), "x": alike})}
    aspects = {name: aspect for aspect, names in ASPECTS.items() for name in names}
    found: dict[str, list[str]] = {aspect: [] for aspect in ("architecture", *ASPECTS)}
    for name in differing:
        value, wanted = getattr(theirs, name), getattr(ours, name)
        found[aspects.get(name, "architecture")].append(f"{name} {value!r}, the seed's is {wanted!r}")
    for aspect, differences in found.items():
        words = "; ".join(differences)
        yield Line(aspect, "misfit", words) if words else Line(aspect, "fits", "as the seed's")


def _vocabulary_lines(seed: tuple[Vocabulary, int], other: tuple[Vocabulary, int], rule: Rule) -> Iterator[Line]:
    (ours, _), (theirs, _) = seed, other
    problems = list(vocabulary_problems(*seed, {"": other}, rule))
    words = _relation_words(ours, theirs)
    if problems:
        yield Line("tokenizer", "misfit", f"{words}; {problems[0].expected}; {problems[0].remedy}".rstrip("; "))
    elif relation(ours, theirs) == "identical" and ours.cut == theirs.cut:
        yield Line("tokenizer", "fits", "identical")
    else:
        what = {"union": "the tokens of all are kept", "seed": "the seed's tokens are kept", "refuse": ""}[rule]
        cuts = "" if ours.cut == theirs.cut else "; it cuts text in another way, and text is cut as by the seed"
        yield Line("tokenizer", "note", f"{words}; by vocabulary: {rule} {what}{cuts}")
    only = [f"{_some(theirs.special - ours.special)} of its own"] if theirs.special - ours.special else []
    only += [f"lacks {_some(ours.special - theirs.special)}"] if ours.special - theirs.special else []
    yield Line("special tokens", "note" if only else "fits", "; ".join(only) or "the same")


def _some(tokens: frozenset[str]) -> str:
    first = sorted(tokens)[:SHOWN_TOKENS]
    rest = len(tokens) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def _relation_words(ours: Vocabulary, theirs: Vocabulary) -> str:
    found = relation(ours, theirs)
    more, fewer = len(theirs.ids.keys() - ours.ids.keys()), len(ours.ids.keys() - theirs.ids.keys())
    return {
        "identical": "the same tokens and ids",
        "reordered": "the same vocabulary in another order",
        "superset": f"a superset: {more:,} tokens more",
        "subset": f"a subset: {fewer:,} tokens fewer",
        "different": f"different: {more:,} tokens of its own, {fewer:,} of the seed's missing",
    }[found]


def _distance_line(distance: Mapping[str, Distance]) -> Line:
    judged = distance["judged"]
    words = f"{judged.relative:.2g} of the seed's norm away, cosine {judged.cosine:.3f}"
    if judged.relative == 0:
        return Line("weights", "note", "equal to the seed's in every attention and FFN matrix")
    if judged.cosine < RELATED:
        expected = "unrelated to the seed: trained from other random weights, so that a mean of the two is noise"
        return Line("weights", "misfit", f"{words}: {expected}")
    return Line("weights", "fits", words)


def _common(models: Sequence[Model], rule: Rule) -> Common | None:
    known = {m.name: (m.vocabulary, m.config.vocab_size) for m in models if m.vocabulary and m.config}
    if len(known) < len(models):
        return None
    sound = {name: (vocabulary, rows) for name, (vocabulary, rows) in known.items() if vocabulary is not None}
    first, *others = sound
    wrong = list(vocabulary_problems(*sound[first], {name: sound[name] for name in others}, rule))
    return None if wrong else common_vocabulary(sound, rule)


def _sizes(seed: Model, models: Sequence[Model], found: Fit) -> dict[str, Sizes]:
    assert seed.config is not None
    dense = replace(seed.config, vocab_size=found.vocabulary or seed.config.vocab_size)
    sizes = {}
    for name in MIXTURES:
        try:
            mixture = mixture_config(dense, [model.name for model in models], VARIANTS[name])
        except InvalidInput:  # of a block that this kind of mixture has no form for
            continue
        total = params_total(mixture)
        cache = cache_bytes_per_token(mixture)
        sizes[name] = Sizes(total, params_active(mixture), 2 * total, mixing_bytes(mixture), cache)
    return sizes
