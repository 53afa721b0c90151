"""Searching numbers of a phase's `data`: which keys there are, the fields that they set, and what values make sense.

`data.law` is the field `shares.law` of a training; with a plan `data.start.law` is that, `data.end.law` is
`anneal.end.law` and `data.from` `anneal.begin`; with a rule `data.adaptive.rate` is `adaptive.rate`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bam_core.config import Adaptive, Anneal
from bam_core.errors import Problem, nearest
from bam_core.train.search import SHARES, Space
from pipelines.recipe.data import OWN, AdaptiveData, Schedule

OF_PLAN = {"from": "begin", "until": "until"}
OF_RULE = ("rate", "floor", "every")


def why_not(data: Any, keys: Sequence[str], domains: Collection[str]) -> str | None:
    """Why a key of `data`, one that may have holes, cannot be searched; None if it can. domains: `own` among them."""
    place, share = _split(data, keys)
    if share is not None:
        return None if share in domains else f"{share!r} is not a domain"
    if isinstance(data, Schedule):
        known = [*OF_PLAN, "start.DOMAIN", "end.DOMAIN"]
    elif isinstance(data, AdaptiveData):
        known = [*(f"adaptive.{name}" for name in OF_RULE), "adaptive.start.DOMAIN"]
    else:
        return "is not a key of the recipe"
    found = ".".join(place)
    return None if found in known else f"{found!r} is none of {', '.join(known)}; {nearest(found, known)}"


def field_of(data: Any, keys: Sequence[str], own: str) -> str:
    """The field of a training that the key sets. own: the domain that `own` stands for."""
    place, share = _split(data, keys)
    if share is not None:
        group = "anneal.end" if place == ["end"] else "shares"
        return f"{group}.{own if share == OWN else share}"
    return f"anneal.{OF_PLAN[place[0]]}" if isinstance(data, Schedule) else ".".join(place)


def _split(data: Any, keys: Sequence[str]) -> tuple[list[str], str | None]:
    """Where below `data`, and if that is a share, whose."""
    if isinstance(data, Schedule):
        is_share = len(keys) == 2 and keys[0] in ("start", "end")
    elif isinstance(data, AdaptiveData):
        is_share = len(keys) == 3 and list(keys[:2]) == ["adaptive", "start"]
    else:
        is_share = len(keys) == 1
    return (list(keys[:-1]), keys[-1]) if is_share else (list(keys), None)


def shares_said(data: Any, domains: Iterable[str], own: str) -> Iterator[tuple[str, str, str, float]]:
    """(key below `data`, group of fields, domain, share) of each share that a recipe says. It may have holes."""
    domains = list(domains)
    parts: list[tuple[str, str, Any]]
    if isinstance(data, Schedule):
        parts = [("start.", "shares", data.start), ("end.", "anneal.end", data.end)]
    elif isinstance(data, AdaptiveData):
        parts = [("adaptive.start.", "shares", data.adaptive.start if data.adaptive else None)]
    else:
        parts = [("", "shares", data)]
    for prefix, group, said in parts:
        shares = said if isinstance(said, Mapping) else dict.fromkeys(domains, 1 / len(domains) if domains else 0.0)
        for name, share in shares.items():
            yield prefix + name, group, own if name == OWN else name, share or 0.0


def unsearched(
    data: Any, phase: Mapping[str, Any], domains: Iterable[str], own: str, fields: Mapping[str, str]
) -> dict[str, Any]:
    """What is left of the JSON of a phase without what searches say of its data. fields: key below `data` -> field."""
    left = dict(phase)
    for group in SHARES:
        if any(field.startswith(f"{group}.") for field in fields.values()):
            shares: dict[str, float] = {}
            for key, its_group, domain, share in shares_said(data, domains, own):
                if its_group == group and key not in fields:
                    shares[domain] = shares.get(domain, 0.0) + share
            shares = dict(sorted(shares.items()))
            left |= {"shares": shares} if group == "shares" else {"anneal": {**left["anneal"], "end": shares}}
    for field in fields.values():
        group, _, name = field.partition(".")
        if group in ("anneal", "adaptive") and "." not in name:
            left[group] = {key: value for key, value in left[group].items() if key != name}
    return left


def searched_domains(fields: Iterable[str]) -> set[str]:
    """The domains that may be given a share by these fields of a training."""
    places = [field.rpartition(".") for field in fields]
    return {domain for group, _, domain in places if group in SHARES}


def read_domains(phase: Mapping[str, Any]) -> list[str]:
    """The domains that have a share at some step of a phase in JSON, which may lack what is searched."""
    shares, ends = phase["shares"], phase.get("anneal", {}).get("end", {})
    return [name for name in dict.fromkeys([*shares, *ends]) if shares.get(name, 0) + ends.get(name, 0) > 0]


def value_problems(
    data: Any, keys: Sequence[str], space: Space, here: str, searched: Mapping[str, Space], n_domains: int
) -> Iterator[Problem]:
    """What is wrong with values of a key that sets no share. searched: key below `data` -> where it is searched."""
    name = keys[-1]
    if isinstance(data, Schedule):
        other = "until" if name == "from" else "from"
        others = searched[other].values if other in searched else (data.begin if other == "from" else data.until,)
        for value in space.values:
            ends = {name: value, other: max(others) if other == "from" else min(others)}
            for problem in Anneal({"all": 1.0}, begin=ends["from"], until=ends["until"]).problems():
                yield Problem(here, value, f"{'' if problem.path == OF_PLAN[name] else 'with '}{problem.expected}")
    else:
        for value in space.values:
            said: dict[str, Any] = {name: value}
            for problem in Adaptive(**said).problems(n_domains):
                yield Problem(here, value, problem.expected)
