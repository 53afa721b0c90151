"""Whether the tensors of a mixture are what was written down of them: made again from its sources, and compared.

`mix.json` and `edit.json` say of each tensor what it was made from, with digests. Here the code that made the mixture
runs once more over the same sources, under the same rules, and what it gives must be the same: the sources' digests,
the operation, and the bytes. A router that was fitted on text is not fitted again; its bytes are compared by digest
alone.

Copies, stacks and means are exact on every machine, so another result is a fault. Random draws and sums in an order
that the machine chooses (`INEXACT`) may come out otherwise elsewhere, which proves nothing.

Memory: that of `upcycle`, one target tensor and one source tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from bam_core.checkpoint import TensorSource, read_config, read_digests, tensor_sha256
from bam_core.config import ModelConfig
from bam_core.documents import read_json
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.apply import Fitted, coverage, upcycle
from bam_core.upcycle.edit import adding, edited, removing
from bam_core.upcycle.rules import FITTED_INITS
from bam_core.upcycle.variants import Variant, common_config, mixture_config, rules_for
from bam_core.upcycle.walk import ReopenedTensors

INEXACT = frozenset({"random", "fresh", "slerp", "ties", "dare"})
NAMED = 3
"""Tensors that a message names; the rest is counted."""

T = TypeVar("T")


@dataclass(frozen=True)
class Retraced:
    """again: tensors that came out of their sources with the same bytes. by_digest: those that were only compared with
    what was written down. changed: source -> its tensors that have other bytes now than were read.
    """

    again: tuple[str, ...] = ()
    by_digest: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()


def digests_in(folder: Path) -> dict[str, str]:
    """Tensor -> sha256 of its bytes as they are, one in memory at a time. Raises ArtifactDamaged."""
    source = ReopenedTensors(folder)
    return {name: tensor_sha256(source.get(name)) for name in source.names()}


def tensor_faults(folder: Path, found: Mapping[str, str]) -> list[str]:
    """A model folder's tensors against its config.json. found: `digests_in(folder)`. Raises ArtifactDamaged."""
    config, written = read_config(folder), read_digests(folder)
    wanted = tensor_shapes(config)
    faults = _named("not in the weights", [name for name in wanted if name not in found])
    faults += _named("of no place in this model", [name for name in found if name not in wanted])
    if written:  # models from before digests were kept have none
        faults += _other_bytes("config.json", written, found)
    return faults


def retrace_mixture(
    folder: Path, config: Mapping[str, Any], sources: Mapping[str, Path | None], found: Mapping[str, str]
) -> Retraced:
    """A `mix.*`. config: of its payload. sources: expert -> its folder, None where that cannot be read; in stacking
    order. found: `digests_in(folder)`.

    Raises ArtifactDamaged for a file that cannot be read, InvalidInput if the sources make no such mixture.
    """
    mix = read_json(folder / "mix.json")
    entries: Mapping[str, Any] = mix["tensors"]
    target, variant = read_config(folder), Variant.from_json(config["variant"])
    faults = [*_other_bytes("mix.json", _sums(entries), found)]
    if list(mix["experts"]) != list(sources):
        faults.append(f"mix.json names the experts {', '.join(mix['experts'])}, its key {', '.join(sources)}")
    opened = {name: ReopenedTensors(path) for name, path in sources.items() if path is not None}
    if lost := sources.keys() - opened.keys():
        return _by_digest(entries, "expert", opened, lost, faults)
    dense = common_config({name: read_config(path) for name, path in sources.items() if path is not None})
    if _without_gain(mixture_config(dense, list(sources), variant)) != _without_gain(target):
        faults.append(f"config.json is not that of variant {variant.name!r} over these experts")
        return Retraced(faults=tuple(faults))
    rules = rules_for(variant, target)
    claims = coverage(tensor_shapes(target), rules, opened).claims
    fitted = [name for name, rule in claims.items() if rule.op == "fresh" and rule.init in FITTED_INITS]
    measured = variant.ffn != "merged" and variant.ffn.scale == "experts"
    factors = {name: entry["factor"] for name, entry in entries.items() if "factor" in entry} if measured else {}
    given = Fitted(_AsWritten(ReopenedTensors(folder), fitted), factors)
    made: dict[str, Any] = {}
    _exhaust(upcycle(target, rules, opened, config["seed"], made, given))
    inexact = {name for name, rule in claims.items() if rule.op in INEXACT}
    return _compared("mix.json", "expert", entries, made, inexact, set(fitted), faults)


def retrace_edit(
    folder: Path, config: Mapping[str, Any], sources: Mapping[str, Path | None], found: Mapping[str, str]
) -> Retraced:
    """An `edit.*`. sources: `base` and, where one was added, `expert`. Otherwise as `retrace_mixture`."""
    entries: Mapping[str, Any] = read_json(folder / "edit.json")["tensors"]
    faults = [*_other_bytes("edit.json", _sums(entries), found)]
    there = {role: path for role, path in sources.items() if path is not None}
    opened = {role: ReopenedTensors(path) for role, path in there.items()}
    if lost := sources.keys() - opened.keys():
        return _by_digest(entries, "input", opened, lost, faults)
    base = read_config(there["base"])
    if config["operation"] == "add":
        edit = adding(base, read_config(there["expert"]), config["name"])
    else:
        edit = removing(base, config["name"])
    if edit.target != read_config(folder):
        faults.append("config.json is not that of this edit")
        return Retraced(faults=tuple(faults))
    made: dict[str, Any] = {}
    router_row = config.get("router_row", "zeros")
    more = {"router_row": router_row, "factors": config.get("factors"), "provenance": made}
    _exhaust(edited(edit, opened["base"], opened.get("expert"), **more))
    inexact = {name for name in made if router_row == "mean" and name.endswith(".router")}
    return _compared("edit.json", "input", entries, made, inexact, set(), faults)


def _compared(
    file: str,
    role: str,
    entries: Mapping[str, Any],
    made: Mapping[str, Any],
    inexact: set[str],
    fitted: set[str],
    faults: list[str],
) -> Retraced:
    """What was written down (entries) and what came out now (made)."""
    changed: dict[str, list[str]] = {}
    again: list[str] = []
    otherwise: list[str] = []
    elsewhere: list[str] = []
    undone: list[str] = []
    for name, now in made.items():
        then = entries.get(name)
        if then is None or _said(then, role) != _said(now, role):
            undone.append(name)
            continue
        moved = [part for part, old in zip(now["from"], then["from"], strict=True) if part["sha256"] != old["sha256"]]
        for part in moved:
            changed.setdefault(part[role], []).append(part["tensor"])
        if moved or name in fitted:
            continue
        if now["sha256"] == then["sha256"]:
            again.append(name)
        else:
            (elsewhere if name in inexact else otherwise).append(name)
    faults += _named(f"made otherwise than {file} says", undone)
    faults += _named("not what their sources make", otherwise)
    cannot = _named("of random draws or sums that come out otherwise on this machine", elsewhere)
    return Retraced(
        again=tuple(again),
        by_digest=(*sorted(fitted), *elsewhere),
        changed={source: tuple(dict.fromkeys(names)) for source, names in changed.items()},
        faults=tuple(faults),
        cannot=tuple(cannot),
    )


def _by_digest(
    entries: Mapping[str, Any], role: str, opened: Mapping[str, TensorSource], lost: Iterable[str], faults: list[str]
) -> Retraced:
    """Without all of its sources: the digests of those that are there."""
    read = {(part[role], part["tensor"], part["sha256"]) for entry in entries.values() for part in entry["from"]}
    changed: dict[str, list[str]] = {}
    for source, tensor, sha256 in sorted(read):
        if source not in opened:
            continue
        if tensor not in opened[source].names() or tensor_sha256(opened[source].get(tensor)) != sha256:
            changed.setdefault(source, []).append(tensor)
    why = f"its tensors were not made again: {', '.join(sorted(lost))} cannot be read"
    names = {source: tuple(tensors) for source, tensors in changed.items()}
    return Retraced(by_digest=tuple(entries), changed=names, faults=tuple(faults), cannot=(why,))


def _said(entry: Mapping[str, Any], role: str) -> dict[str, Any]:
    """How a tensor was made, without digests."""
    parts = [{name: value for name, value in part.items() if name != "sha256"} for part in entry["from"]]
    return {name: value for name, value in entry.items() if name != "sha256"} | {"from": parts}


def _sums(entries: Mapping[str, Any]) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in entries.items()}


def _other_bytes(file: str, written: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    differing = [name for name, sha256 in found.items() if written.get(name) != sha256]
    return _named(f"of other bytes than {file} says", differing) + _named(
        f"in {file} only", [name for name in written if name not in found]
    )


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{'tensor' if len(names) == 1 else f'{len(names)} tensors'} {what}: {shortened(names)}"]


def shortened(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _without_gain(config: ModelConfig) -> ModelConfig:
    return config if config.ffn is None else replace(config, ffn=replace(config.ffn, gain=()))


def _exhaust(items: Iterator[T]) -> None:
    """To the end, keeping none: a loop's variable would hold one tensor while the next is made."""
    deque(items, maxlen=0)


class _AsWritten(Mapping[str, Tensor]):
    """Some of a model's tensors, each read when asked for."""

    def __init__(self, source: TensorSource, names: Iterable[str]) -> None:
        self._source, self._names = source, tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
