"""Whether rules, targets and sources match completely: nothing made twice, nothing missing, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bam_core.checkpoint import TensorSource
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.nn.shapes import Shape
from bam_core.plugins import is_plugin_name
from bam_core.upcycle.rules import OPS, ROUTER_INITS, Rule


@dataclass(frozen=True)
class Coverage:
    """claims: target tensor -> its rule. set_aside: dense model -> its tensors that no rule reads, though one stands
    for them: those of a model that has no slot, or of all but the seed."""

    claims: Mapping[str, Rule]
    set_aside: Mapping[str, tuple[str, ...]]


def coverage(target: Mapping[str, Shape], rules: Sequence[Rule], sources: Mapping[str, TensorSource]) -> Coverage:
    """Match rules, targets and sources completely. Raises InvalidInput listing all that does not match."""
    claims, problems = _claims(target, rules)
    models = tuple(sources)
    if not models:
        problems.append(Problem("experts", [], "must be at least one dense model"))
    for name, rule in claims.items():
        problems += _slot_problems(name, target[name], rule, models)
    read = {model: _read_of(model, claims, models) for model in models}
    stood_for = {rule.source_of(name) for name, rule in claims.items()}
    for model, source in sources.items():
        problems += [problem.under(model) for problem in _shape_problems(target, read[model], source, len(models))]
        # A target that no single rule claims is reported once, above, not again for each model.
        lost = [name for name in source.names() if name not in stood_for and (name not in target or name in claims)]
        for name in sorted(lost):
            problems.append(Problem(f"{model}.{name}", list(source.shape(name)), "would be lost: no rule uses it"))
    if problems:
        raise InvalidInput("upcycling", problems)
    set_aside = {}
    for model, source in sources.items():
        used = {name for name, _, _ in read[model]}
        set_aside[model] = tuple(name for name in source.names() if name not in used)
    return Coverage(claims, set_aside)


def _claims(target: Mapping[str, Shape], rules: Sequence[Rule]) -> tuple[dict[str, Rule], list[Problem]]:
    problems = list(_rule_problems(rules, target))
    claims: dict[str, Rule] = {}
    for name in target:
        claiming = [rule for rule in rules if rule.claims(name)]
        if len(claiming) == 1:
            claims[name] = claiming[0]
        else:
            found = [f"{rule.pattern} ({rule.op})" for rule in claiming]
            problems.append(Problem(name, found, "must be claimed by exactly one rule"))
    return claims, problems


Read = tuple[str, str, Rule]
"""A source tensor, the target tensor that is made of it, and the rule that does it."""


def _read_of(model: str, claims: Mapping[str, Rule], models: Sequence[str]) -> list[Read]:
    sources = ((rule.source_of(name), name, rule) for name, rule in claims.items() if model in rule.reads(models))
    return [(source, name, rule) for source, name, rule in sources if source is not None]


def _rule_problems(rules: Sequence[Rule], target: Mapping[str, Shape]) -> Iterator[Problem]:
    for rule in rules:
        if rule.op not in OPS and not is_plugin_name(rule.op):
            yield Problem(rule.pattern, rule.op, f"must be one of {', '.join(OPS)}", nearest(rule.op, OPS))
        if rule.op == "fresh" and rule.init not in ROUTER_INITS:
            remedy = nearest(rule.init, ROUTER_INITS)
            yield Problem(rule.pattern, rule.init, f"must be one of {', '.join(ROUTER_INITS)}", remedy)
        if not any(rule.claims(name) for name in target):
            yield Problem(rule.pattern, rule.op, "matches no tensor of the target")


def _slot_problems(name: str, made: Shape, rule: Rule, models: Sequence[str]) -> Iterator[Problem]:
    for slot in dict.fromkeys(rule.slots):
        if slot not in models:
            yield Problem(name, slot, "is none of the dense models", nearest(slot, models))
    n_slots = len(rule.slots or models)
    if rule.op == "random" and models and n_slots * rule.split != made[0]:
        yield Problem(name, n_slots * rule.split, f"is the number of random experts, and the target has {made[0]}")
    if rule.op == "fresh" and made[0] % rule.split:
        yield Problem(name, list(made), f"must be rows of {rule.split} column groups")


def _shape_problems(
    target: Mapping[str, Shape], read: Sequence[Read], source: TensorSource, n_models: int
) -> Iterator[Problem]:
    held = set(source.names())
    for name, made_name, rule in read:
        if name not in held:
            yield Problem(name, None, f"is missing; {rule.op} needs it")
            continue
        shape = source.shape(name)
        made = _stacked(shape, rule, n_models) if rule.op == "stack" else shape
        if made != target[made_name]:
            wanted = f"{rule.op} gives {list(made)} of it, and the target has {list(target[made_name])}"
            yield Problem(name, list(shape), wanted)


def _stacked(shape: Shape, rule: Rule, n_models: int) -> Shape:
    n_slots = len(rule.slots) or n_models
    if rule.split == 1:
        return (n_slots, *shape)
    if not shape or shape[0] % rule.split:
        return (n_slots * rule.split, 0, *shape[1:])  # no target has this
    return (n_slots * rule.split, shape[0] // rule.split, *shape[1:])
