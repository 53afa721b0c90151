"""How a mixture was made, as its `mix.json` says: rules in words, the tensors that each made, what held at step 0."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OPERATIONS = {
    "stack": "stacked, one slice per expert",
    "random": "freshly initialised experts, stacked",
    "mean": "mean",
    "weighted": "weighted mean",
    "seed": "copied from the seed",
    "copy": "copied from the seed",
    "slerp": "interpolated on the sphere (SLERP)",
    "ties": "the seed plus merged differences (TIES)",
    "dare": "the seed plus sampled differences (DARE)",
    "fresh": "fresh",
    "zero": "zeros",
}
"""Op of `upcycle.rules` -> what a card calls it."""


@dataclass(frozen=True)
class Operation:
    """Tensors that were made alike. names: with `*` for the layer. layers: those that they are in, () for all.

    factors: the least and the greatest by which they were multiplied; () for 1.
    """

    op: str
    models: tuple[str, ...]
    names: tuple[str, ...]
    init: str = ""
    layers: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    def in_words(self) -> str:
        words = OPERATIONS.get(self.op, self.op) + (f": {self.init}" if self.init else "")
        if not self.factors:
            return words
        least, most = (f"{factor:.3g}" for factor in self.factors)
        return f"{words}, times {least}" + ("" if least == most else f" to {most}")


@dataclass(frozen=True)
class Mixed:
    """variant: as in `mix.json`. largest_difference: of any output of an expert from its dense model's, beside the
    output's own size; None where nothing was compared. step0: what was measured as the mixture was made."""

    stage: str
    variant: Mapping[str, Any]
    operations: tuple[Operation, ...]
    largest_difference: tuple[float, float] | None = None
    random: tuple[str, ...] = ()
    step0: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: str, mix: Mapping[str, Any]) -> Mixed:
        """stage: that made the mixture. mix: its `mix.json`; what an older one lacks is left out."""
        receipt = mix.get("receipt", {})
        compared = [found for found in receipt.get("experts", {}).values() if found.get("layer") is not None]
        compared += [found for found in receipt.get("shared", {}).values() if found.get("tensor") is not None]
        worst = max(compared, key=lambda found: found["max_abs_diff"], default=None)
        step0 = receipt.get("step0") or {}
        return cls(
            stage=stage,
            variant=mix.get("variant", {}),
            operations=tuple(operations(mix.get("tensors", {}))),
            largest_difference=None if worst is None else (worst["max_abs_diff"], worst["max_abs_value"]),
            random=tuple(receipt.get("random", ())),
            step0={name: value for name, value in step0.items() if name != "layers"},
        )


def operations(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[Operation]:
    """The tensors of a `mix.json`, those that were made alike together, in the order in which they were made."""
    layers: dict[tuple[str, str, tuple[str, ...], str], set[int]] = {}
    factors: dict[tuple[str, str, tuple[str, ...], str], list[float]] = {}
    every = {layer for name in tensors for layer in _layer(name)}
    for name, entry in tensors.items():
        models = tuple(dict.fromkeys(str(source.get("expert", "?")) for source in entry.get("from", ())))
        alike = (_pattern(name), str(entry.get("op", "?")), models, str(entry.get("init", "")))
        layers.setdefault(alike, set()).update(_layer(name))
        factors.setdefault(alike, []).append(float(entry.get("factor", 1.0)))
    groups: dict[tuple[Any, ...], list[str]] = {}
    for (pattern, op, models, init), found in layers.items():
        where = tuple(sorted(found)) if found and found != every else ()
        spread = factors[pattern, op, models, init]
        factor = () if set(spread) == {1.0} else (min(spread), max(spread))
        groups.setdefault((op, models, init, where, factor), []).append(pattern)
    for (op, models, init, where, factor), names in groups.items():
        yield Operation(op, models, tuple(names), init, where, factor)


def _pattern(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)


def _layer(name: str) -> tuple[int, ...]:
    found = re.match(r"blocks\.(\d+)\.", name)
    return (int(found[1]),) if found else ()


def rules_in_words(variant: Mapping[str, Any]) -> dict[str, str]:
    """What the variant did with each part of the dense models. Fields at their default may be left out."""
    words = {}
    for part, name in (("attention", "Attention"), ("ffn", "FFN")):
        spec = variant.get(part, "merged")
        words[name] = _experts(part, spec) if isinstance(spec, Mapping) else "merged over the dense models; no experts"
    if isinstance(variant.get("shared"), Mapping):
        words["Embedding, norms, output head"] = _shared(variant["shared"])
    words["All else, where it is not new"] = _merge(variant.get("merge", {}))
    if any(isinstance(variant.get(part), Mapping) for part in ("attention", "ffn", "shared")):
        words["Routers"] = _routers(variant)
    return words


def _experts(part: str, spec: Mapping[str, Any]) -> str:
    words = [_slots(spec.get("experts", "per-domain"))]
    top_k = spec.get("top_k", 1)
    if spec.get("routing", "soft" if part == "attention" else "top_k") == "soft":
        words.append("every token goes to all of them")
    else:
        words.append("a token goes to the best one" if top_k == 1 else f"a token goes to the best {top_k}")
    if part == "attention":
        words.append(_KEYS_VALUES.get(spec.get("kv", "expert"), str(spec.get("kv"))))
    words += [f"gate {spec.get('gate', 'softmax_topk')}"]
    if spec.get("split", 1) != 1:
        words.append(f"each cut into {spec['split']} groups of columns")
    if spec.get("shared_expert"):
        words.append("beside them the seed's, always on")
    if spec.get("scale", "none") != "none":
        words.append(_SCALES.get(spec["scale"], str(spec["scale"])))
    if spec.get("layers") is not None:
        words.append(f"in layers {', '.join(map(str, spec['layers']))}, merged in the others")
    return "; ".join(words)


_KEYS_VALUES = {
    "expert": "each with queries, keys, values and outputs of its own",
    "shared": "each with queries and outputs of its own, keys and values merged",
    "value_only": "each with values and outputs of its own, queries and keys merged",
}
_SCALES = {
    "gate": "gates multiplied, so that the branch starts at the scale of a dense one",
    "experts": "output matrices multiplied, so that the branch starts at the scale of a dense one",
    "weights": "matrices multiplied, so that the branch starts at the scale of a dense one",
}


def _shared(spec: Mapping[str, Any]) -> str:
    """What was done with what experts share, where that is routed."""
    heads = {"top1": "the head of the most probable model", "soft": "the logits of all heads by its parts"}
    parts = {"embed": "embeddings", "norms": "norm scales"}
    soft = [words for part, words in parts.items() if spec.get(part, "soft") == "soft"]
    how = [f"{' and '.join(soft)} by its parts"] if soft else []
    how += [heads[spec.get("head", "top1")]] if spec.get("head", "top1") in heads else []
    rest = "; the rest is merged" if len(soft) < len(parts) or spec.get("head") == "merged" else ""
    return f"of every dense model, mixed at each position by a router of the text so far: {', '.join(how)}{rest}"


def _slots(experts: str | Sequence[str]) -> str:
    if experts == "per-domain":
        return "one expert per dense model"
    return "experts initialised afresh" if experts == "random" else f"experts: {', '.join(experts)}"


def _merge(merge: Mapping[str, Any]) -> str:
    method = str(merge.get("method", "mean"))
    words = {"mean": "mean of the dense models", "weighted": "weighted mean", "seed": "the seed's"}
    if method == "weighted":
        return f"weighted mean: {', '.join(f'{name} {part:g}' for name, part in merge.get('weights', {}).items())}"
    more = {"ties": f", density {merge.get('density', 0.2):g}", "dare": f", drop {merge.get('drop', 0.5):g}"}
    return words.get(method, method.upper()) + more.get(method, "")


def _routers(variant: Mapping[str, Any]) -> str:
    init = variant.get("router_init", "random")
    if init in ("centroid", "ridge"):
        return f"new, fitted on text ({init})"
    return "new, zeros" if init == "zero" else f"new, {init}, of std {variant.get('router_std', 0.02):g}"
