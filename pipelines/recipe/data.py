"""The keys `data` of a phase: shares of domains, a plan by which they change, or a rule by which they adapt.

`uniform`, `{law: 0.5, code: 0.5}`, `{start: ..., end: ...}` or `{adaptive: {...}}`. Types and defaults; what they mean
to the core (`training_fields`) and what must hold of them (`data_problems`), the same wherever there is such a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from bam_core.config import Adaptive, Anneal, shares_problems
from bam_core.errors import Problem, nearest
from pipelines.recipe.base import TAG, Named, Part
from pipelines.recipe.document import join
from pipelines.recipe.values import Count, Number, Text, parse_number

OWN = "own"
"""In the data of experts: the expert's own domain."""

Shares = Named[Number]
Uniform = Annotated[Literal["uniform"], Tag(f"{TAG}uniform")]


def _word_or_shares(value: Any) -> str:
    return f"{TAG}uniform" if isinstance(value, str) else f"{TAG}shares"


Fixed = Annotated[Uniform | Annotated[Shares, Tag(f"{TAG}shares")], Discriminator(_word_or_shares)]
"""Shares that stay."""


class Schedule(Part):
    """Shares that go from `start` to `end` while the phase trains, between two fractions of its steps."""

    model_config = ConfigDict(serialize_by_alias=True)

    start: Fixed
    end: Fixed
    shape: Literal["linear", "cosine", "step"] = "linear"
    begin: Number = Field(default=0.0, alias="from")
    until: Number = 1.0


class Adapting(Part):
    """Shares that follow the loss on each domain; the first four as in `bam_core.config.Adaptive`.

    eval_tokens: of each domain's training text at most, kept from training to judge on. start: the first shares.
    """

    rule: Literal["excess_loss", "loss_slope"] = "excess_loss"
    every: Number = 0.05
    rate: Number = 1.0
    floor: Number = 0.05
    start: Fixed = "uniform"
    eval_tokens: Count = 4096
    reference: Literal["specialists", "seed", "none"] = "specialists"


class AdaptiveData(Part):
    adaptive: Adapting


KEYS = frozenset({"start", "end", "shape", "from", "until"})
"""Of a schedule. A domain may have such a name: its share is a number."""


def _form(value: Any) -> str:
    """Which form is meant, so that an error speaks of that one."""
    if isinstance(value, Schedule):
        return f"{TAG}schedule"
    if isinstance(value, AdaptiveData):
        return f"{TAG}adaptive"
    if isinstance(value, Mapping):
        if "adaptive" in value and not _is_number(value["adaptive"]):
            return f"{TAG}adaptive"
        if any(key in KEYS and not _is_number(given) for key, given in value.items()):
            return f"{TAG}schedule"
    return _word_or_shares(value)


def _is_number(value: Any) -> bool:
    try:
        parse_number(value)
    except ValueError:
        return False
    return True


_Shares = Annotated[Shares, Tag(f"{TAG}shares")]
_Schedule = Annotated[Schedule, Tag(f"{TAG}schedule")]
_Adaptive = Annotated[AdaptiveData, Tag(f"{TAG}adaptive")]
Planned = Annotated[Uniform | _Shares | _Schedule | _Adaptive, Discriminator(_form)]
"""`data` of any phase; which forms a phase takes is said by `data_problems`."""


def _form_of_expert(value: Any) -> str:
    return f"{TAG}shares" if isinstance(value, str) else _form(value)


PlannedForExpert = Annotated[_Shares | _Schedule | _Adaptive, Discriminator(_form_of_expert)]
"""The same for experts, whose fixed data names shares."""


def training_fields(data: Any, domains: Iterable[str], own: str | None = None) -> dict[str, Any]:
    """The fields of `TrainConfig` that a checked `data` stands for: `shares`, and `anneal` or `adaptive` if any.

    domains: of the recipe, for `uniform`. own: the domain that `own` stands for.
    """
    domains = tuple(domains)

    def shares(given: str | Mapping[str, float]) -> dict[str, float]:
        if isinstance(given, str):
            return dict.fromkeys(domains, 1 / len(domains))
        found: dict[str, float] = {}
        for name, share in given.items():
            name = own if own is not None and name == OWN else name
            found[name] = found.get(name, 0.0) + share
        return found

    if isinstance(data, Schedule):
        anneal = Anneal(dict(sorted(shares(data.end).items())), data.shape, data.begin, data.until)
        return {"shares": shares(data.start), "anneal": anneal}
    if isinstance(data, AdaptiveData):
        return {"shares": shares(data.adaptive.start), "adaptive": _adaptive(data.adaptive)}
    return {"shares": shares(data)}


def _adaptive(data: Adapting) -> Adaptive:
    reference = "none" if data.rule == "loss_slope" else data.reference
    return Adaptive(data.rule, data.every, data.rate, data.floor, data.eval_tokens, reference)


def data_problems(
    data: Any, domains: Iterable[str] | None, path: str, *, has_own: bool = False, adapts: bool = True, row: int = 1
) -> Iterator[Problem]:
    """Everything wrong with a `data` that may have holes. domains: of the recipe, where they are known.

    has_own: `own` is a domain here. adapts: the shares of this phase may follow the losses. row: tokens of a row.
    """
    known = None if domains is None else tuple(domains)
    if isinstance(data, Schedule):
        yield from _fixed(data.start, known, f"{path}.start", has_own)
        yield from _fixed(data.end, known, f"{path}.end", has_own)
        if None not in (data.shape, data.begin, data.until):
            for problem in Anneal({"all": 1.0}, data.shape, data.begin, data.until).problems():
                yield replace(problem.under(path), path=f"{path}.{'from' if problem.path == 'begin' else problem.path}")
    elif isinstance(data, AdaptiveData):
        if not adapts:
            expected = "only the shares of phases.mixture follow the losses"
            yield Problem(f"{path}.adaptive", "...", expected, "use start and end here")
        elif data.adaptive is not None:
            yield from _adapting(data.adaptive, known, f"{path}.adaptive", row)
    elif data is not None:
        yield from _fixed(data, known, path, has_own)


def _fixed(data: Any, known: tuple[str, ...] | None, path: str, has_own: bool) -> Iterator[Problem]:
    if not isinstance(data, Mapping):
        return
    if None not in data.values():
        yield from shares_problems(data, path)
    if known is None:
        return
    names = {*known, OWN} if has_own else set(known)
    for name, share in data.items():
        if share is None:
            continue
        if name == OWN and not has_own:
            yield Problem(f"{path}.own", share, "only phases.expert has a domain of its own", "name the domain")
        elif name not in names:
            yield Problem(join(path, name), share, "is not a domain", nearest(name, names))


def _adapting(data: Adapting, known: tuple[str, ...] | None, path: str, row: int) -> Iterator[Problem]:
    yield from _fixed(data.start, known, f"{path}.start", has_own=False)
    for name, share in data.start.items() if isinstance(data.start, Mapping) else ():
        if share == 0:
            yield Problem(join(f"{path}.start", name), share, "must be above 0: it adapts", "leave the domain out")
    values = {name: getattr(data, name) for name in Adapting.model_fields if name != "start"}
    sound = Adaptive(**{name: value for name, value in values.items() if value is not None})
    n_domains = len(data.start) if isinstance(data.start, Mapping) else len(known or ()) or None
    for problem in sound.problems(n_domains):
        yield problem.under(path)
    if data.eval_tokens is not None and 0 < data.eval_tokens < row:
        yield Problem(f"{path}.eval_tokens", data.eval_tokens, f"must be at least one row, {row} tokens")


def in_words(data: Any) -> Text | None:
    """How shares change, for people; None where they stay."""
    if isinstance(data, Schedule):
        shape = {"linear": "on a straight line", "cosine": "along a cosine", "step": "in one step"}[data.shape]
        whole = (data.begin, data.until) == (0, 1)
        span = "" if whole else f" between {data.begin:.4g} and {data.until:.4g} of the steps"
        return f"from {_in_words(data.start)} to {_in_words(data.end)} {shape}{span}"
    if isinstance(data, AdaptiveData):
        spec = data.adaptive
        often = f"{spec.every:.4g} of the steps" if spec.every < 1 else f"{spec.every:.0f} steps"
        above = {"specialists": " above that of its own model", "seed": " above the seed's", "none": ""}
        by = f"the loss{above[spec.reference]}" if spec.rule == "excess_loss" else "how fast the loss falls"
        return (
            f"from {_in_words(spec.start)}, every {often} by {by} on {spec.eval_tokens} tokens of each domain"
            f" (rate {spec.rate:.4g}, each at least {spec.floor:.4g})"
        )
    return None


def _in_words(data: str | Mapping[str, float]) -> str:
    return data if isinstance(data, str) else ", ".join(f"{name} {share:.4g}" for name, share in data.items())
