"""The nodes that a run is planned on: what each has, what it costs, and how fast it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from bam_core.errors import InvalidInput, Problem, nearest

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class NodeKind:
    """`count` nodes that are alike. memory, gpu_memory: bytes of the node and of one GPU; None: unknown, not checked.

    price_per_hour, watts: of one node while it works; None: unknown. calibration: file with what it does in a second.
    """

    name: str
    count: int = 1
    cpus: int = 1
    memory: int | None = None
    gpus: int = 0
    gpu_memory: int | None = None
    price_per_hour: float | None = None
    watts: float | None = None
    calibration: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """As Ray says them."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def read_cluster(document: Any, where: str) -> tuple[NodeKind, ...]:
    """The nodes of a cluster file, ours (`nodes`) or one of Ray's (`available_node_types`).

    Raises InvalidInput with all that is wrong at once.
    """
    if isinstance(document, Mapping) and "available_node_types" in document and "nodes" not in document:
        return _of_ray(document, where)
    problems: list[Problem] = []
    if not isinstance(document, Mapping):
        raise InvalidInput(where, [Problem("", document, "must be a mapping with nodes")])
    unknown = sorted(map(str, document.keys() - {"nodes"}))
    problems += [Problem(key, document.get(key), "unknown key", nearest(key, ["nodes"])) for key in unknown]
    entries = document.get("nodes")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InvalidInput(where, [*problems, Problem("nodes", entries, "must be a list of kinds of nodes")])
    kinds = []
    for place, entry in enumerate(entries):
        reader = _Reader(entry, f"nodes.{place}")
        kinds.append(reader.node())
        problems += reader.problems
    names = [kind.name for kind in kinds]
    problems += [
        Problem(f"nodes.{place}.name", name, "is the name of another kind", "give each its own")
        for place, name in enumerate(names)
        if name in names[:place] and name
    ]
    if problems:
        raise InvalidInput(where, problems)
    return tuple(kinds)


@dataclass
class _Reader:
    """One entry of `nodes`; what is wrong with it is collected."""

    entry: Any
    path: str
    problems: list[Problem] = field(default_factory=list)

    def node(self) -> NodeKind:
        if not isinstance(self.entry, Mapping):
            self._wrong("", self.entry, "must be a mapping of keys, such as {name: small, cpus: 8, memory: 32G}")
            return NodeKind("")
        known = set(NodeKind.__dataclass_fields__)
        for key in sorted(map(str, self.entry.keys() - known)):
            self._wrong(key, self.entry.get(key), "unknown key", nearest(key, known))
        gpus = self._count("gpus", 0, least=0)
        return NodeKind(
            name=self._text("name", required=True) or "",
            count=self._count("count", 1, least=1),
            cpus=self._count("cpus", 1, least=0, required=True),
            memory=self._size("memory"),
            gpus=gpus,
            gpu_memory=self._size("gpu_memory"),
            price_per_hour=self._number("price_per_hour"),
            watts=self._number("watts"),
            calibration=self._text("calibration"),
        )

    def _wrong(self, key: str, value: Any, expected: str, remedy: str = "") -> None:
        self.problems.append(Problem(key, value, expected, remedy).under(self.path))

    def _is_missing(self, key: str, required: bool) -> bool:
        if key in self.entry:
            return False
        if required:
            self._wrong(key, None, "is missing")
        return True

    def _text(self, key: str, required: bool = False) -> str | None:
        if self._is_missing(key, required):
            return None
        value = self.entry[key]
        if not isinstance(value, str) or not value:
            self._wrong(key, value, "must be text")
            return None
        return value

    def _count(self, key: str, default: int, *, least: int, required: bool = False) -> int:
        if self._is_missing(key, required):
            return default
        value = self.entry[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self._wrong(key, value, f"must be a whole number of at least {least}")
            return default
        return value

    def _number(self, key: str) -> float | None:
        if self._is_missing(key, False):
            return None
        value = self.entry[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
            self._wrong(key, value, "must be a number of 0 or more")
            return None
        return float(value)

    def _size(self, key: str) -> int | None:
        if self._is_missing(key, False):
            return None
        value = self.entry[key]
        found = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
        if found is None:
            self._wrong(key, value, "must be bytes, such as 16G or 512M")
            return None
        return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def _of_ray(document: Mapping[str, Any], where: str) -> tuple[NodeKind, ...]:
    """As many of each kind as may be started; the head counts once. A kind with nothing to give is left out."""
    problems, kinds, types = [], [], document["available_node_types"]
    if not isinstance(types, Mapping):
        raise InvalidInput(where, [Problem("available_node_types", types, "must be a mapping of kinds of nodes")])
    for name, entry in types.items():
        given = entry.get("resources") if isinstance(entry, Mapping) else None
        path = f"available_node_types.{name}.resources"
        if not isinstance(given, Mapping):
            problems.append(Problem(path, given, "is missing", "say what a node has: {CPU: 8, memory: 34359738368}"))
            continue
        numbers = {unit: given.get(unit, 0) for unit in ("CPU", "GPU", "memory")}
        wrong = [unit for unit, n in numbers.items() if isinstance(n, bool) or not isinstance(n, int | float) or n < 0]
        problems += [Problem(f"{path}.{unit}", numbers[unit], "must be a number of 0 or more") for unit in wrong]
        if wrong:
            continue
        is_head = name == document.get("head_node_type")
        count = 1 if is_head else entry.get("max_workers", document.get("max_workers", 1))
        if (numbers["CPU"] or numbers["GPU"]) and count:
            memory = int(numbers["memory"]) or None
            kinds.append(NodeKind(name, int(count), int(numbers["CPU"]), memory, int(numbers["GPU"])))
    if problems or not kinds:
        none = Problem("available_node_types", list(types), "no kind of node has a CPU or a GPU to give")
        raise InvalidInput(where, problems or [none])
    return tuple(kinds)


def nodes_of(kinds: Sequence[NodeKind]) -> Iterator[tuple[str, NodeKind]]:
    """Every single node with a name of its own."""
    for kind in kinds:
        for number in range(kind.count):
            yield (kind.name if kind.count == 1 else f"{kind.name}-{number + 1}"), kind
