"""What a model can be exported to, and which of it is chosen: a class of transformers that equals it, or `bam`.

`bam` is every model of ours with its code beside it. A class is chosen only where it computes the same; else the first
reason of each is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bam_core.checkpoint import TensorSource
from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem, UsageError, nearest
from bam_core.hf.classes import CLASSES
from bam_core.hf.families import FAMILIES, Family
from bam_core.hf.moves import Move
from bam_core.hf.to_bam import ARCHITECTURE, bam_config, bam_moves, unknown_problems
from bam_core.hf.to_classes import Class

AUTO = "auto"
BAM = "bam"
TARGETS = (AUTO, BAM, *CLASSES, *FAMILIES)


@dataclass(frozen=True)
class Target:
    """One way to write a model. config: config.json, dtype and special tokens aside. notes: what to know of it."""

    name: str
    architecture: str
    config: Mapping[str, Any]
    moves: Sequence[Move]
    reason: str
    refused: Mapping[str, Problem]
    notes: tuple[str, ...] = ()

    @property
    def has_code(self) -> bool:
        return self.name == BAM


def choose(config: ModelConfig, source: TensorSource, to: str = AUTO, dtype: torch.dtype | None = None) -> Target:
    """The target of this name, or with `auto` the first that equals the model, `bam` if none does.

    dtype: that it is to be written in; None for the stored one. Raises UsageError for an unknown name, InvalidInput
    with field, value and reason where the class that was asked for is another model.
    """
    require_fitting(config, to)
    if to == BAM:
        return _bam(config, "as asked for", {})
    if to != AUTO:
        if problems := _value_problems(to, config, source):
            raise InvalidInput(f"an export to {to}", [_with_remedy(problem) for problem in problems])
        notes = [_in_words(problem) for problem in _dtype_problems(to, config, source, dtype)]
        return _target(to, config, "as asked for", {}, tuple(notes))
    refused: dict[str, Problem] = {}
    for name in _candidates(config):
        problem = next(_every_problem(name, config, source, dtype), None)
        if problem is None:
            reason = f"{_architecture(name)} computes the same"
            return _target(name, config, reason, refused)
        refused[name] = problem
    return _bam(config, "; ".join(f"{name}: {_in_words(problem)}" for name, problem in refused.items()), refused)


def require_fitting(config: ModelConfig, to: str) -> None:
    """What can be said without the weights: raises as `choose`."""
    if to not in TARGETS:
        raise UsageError(f"no export to {to!r}: {nearest(to, TARGETS)}; there is {', '.join(TARGETS)}")
    if to not in (AUTO, BAM) and (problems := _problems(to, config)):
        raise InvalidInput(f"an export to {to}", [_with_remedy(problem) for problem in problems])


def _candidates(config: ModelConfig) -> list[str]:
    """Those of which the first reason why not is of use to people."""
    wirings = [name for name, found in CLASSES.items() if config.residual in found.wanted["residual"]]
    return wirings if config.is_mixture else [*FAMILIES, *(name for name in wirings if CLASSES[name].dense_layers)]


def _every_problem(
    name: str, config: ModelConfig, source: TensorSource, dtype: torch.dtype | None
) -> Iterator[Problem]:
    problems = _problems(name, config)
    yield from problems
    if not problems:
        yield from _value_problems(name, config, source)
        yield from _dtype_problems(name, config, source, dtype)


def _problems(name: str, config: ModelConfig) -> list[Problem]:
    """What its config says against it."""
    if name in CLASSES:
        return CLASSES[name].problems(config)
    if config.is_mixture:
        branches = [part for part in ("attention", "ffn", "shared") if getattr(config, part) is not None]
        return [Problem(branches[0], "experts", f"{_architecture(name)} is a dense model")]
    try:
        FAMILIES[name].to_hf(config)
    except InvalidInput as error:
        return list(error.problems)
    return []


def _value_problems(name: str, config: ModelConfig, source: TensorSource) -> list[Problem]:
    """What the values of vectors say against it: scales that differ from head to head, a bias that is not zero."""
    if _problems(name, config):
        return []
    problems: list[Problem] = []
    for move in _moves(name, config):
        if move.is_small and _may_refuse(move):
            try:
                move.turn([source.get(ours) for ours in move.ours])
            except InvalidInput as error:
                problems += error.problems
    return problems


def _may_refuse(move: Move) -> bool:
    leaf = move.ours[0].rsplit(".", 1)[-1]
    return leaf in ("q_norm", "k_norm", "router_bias", "balance_bias")


def _dtype_problems(
    name: str, config: ModelConfig, source: TensorSource, dtype: torch.dtype | None
) -> Iterator[Problem]:
    """What another dtype than ours would round."""
    stored = source.get("embed.weight").dtype
    written = stored if dtype is None else dtype
    words = str(written).removeprefix("torch.")
    routers = [move.ours[0] for move in _moves(name, config) if move.is_router]
    if routers and (torch.finfo(written).bits < 32):
        reason = f"{_architecture(name)} has routers in {words} too, where experts that are near a tie change places"
        yield Problem("dtype", words, reason)
    rounded = next((move for move in _moves(name, config) if move.rounds), None)
    if rounded is not None and torch.finfo(written).bits < 32:
        yield Problem(rounded.ours[0], words, f"{rounded.how}: rounded in {words}")


def _with_remedy(problem: Problem) -> Problem:
    remedy = problem.remedy or "`bam` takes any model, `auto` what fits"
    return Problem(problem.path, problem.value, problem.expected, remedy)


def _in_words(problem: Problem) -> str:
    return f"{problem.path} {problem.value}: {problem.expected}"


def _architecture(name: str) -> str:
    found: Class | Family = CLASSES[name] if name in CLASSES else FAMILIES[name]
    return found.architecture


def _moves(name: str, config: ModelConfig) -> list[Move]:
    if name in CLASSES:
        return CLASSES[name].moves(config)
    return [
        Move(link.ours, link.theirs, "", link.to_theirs, rounds=link.is_wide) for link in FAMILIES[name].links(config)
    ]


def _target(
    name: str, config: ModelConfig, reason: str, refused: Mapping[str, Problem], notes: tuple[str, ...] = ()
) -> Target:
    make: Callable[[ModelConfig], dict[str, Any]]
    make = CLASSES[name].config if name in CLASSES else FAMILIES[name].to_hf
    notes = (*notes, *_training_notes(name, config))
    return Target(name, _architecture(name), make(config), _moves(name, config), reason, refused, notes)


def _training_notes(name: str, config: ModelConfig) -> Iterator[str]:
    """What holds in training only, and is not the class's."""
    experts = config.ffn
    if experts is None:
        return
    for field, default in (("capacity_factor", None), ("dense_router_gradient", False), ("balance", "loss")):
        value = getattr(experts, field)
        if value != default:
            yield f"ffn.{field} {value}: is for training, and {_architecture(name)} trains without"


def _bam(config: ModelConfig, reason: str, refused: Mapping[str, Problem]) -> Target:
    if new := unknown_problems(config):
        raise InvalidInput("an export", new)
    for part in ("attention", "ffn"):
        experts = getattr(config, part)
        if experts is not None and "." in experts.gate and experts.top_k < experts.n_experts:
            problem = Problem(f"{part}.gate", experts.gate, "is a plug-in's, whose code an export does not have")
            raise InvalidInput("an export", [problem])
    return Target(BAM, ARCHITECTURE, bam_config(config), bam_moves(config), reason, refused)
