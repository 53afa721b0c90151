"""Does a training fit into a worker's memory, and if not, what is the smallest change that makes it fit.

Changes in the order of what they cost: fewer rows of a micro-batch (more and smaller products), activation
checkpointing (about a third more time), both, and shards of the training state on several workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isinf

from bam_core.graph.words import size
from bam_core.planner.estimate import Memory
from bam_core.planner.work import Training

MOST_SHARDS = 1024
Keys = tuple[tuple[str, str], ...]
"""Keys of a recipe and their values."""


@dataclass(frozen=True)
class Change:
    """keys: of the recipe, with their values. need: bytes of a worker then."""

    keys: Keys
    training: Training
    need: float

    def __str__(self) -> str:
        return ", ".join(f"{key}: {value}" for key, value in self.keys)


def smallest_change(
    training: Training,
    need: Callable[[Training], float],
    room: Callable[[int], float],
    group: str,
    workers: int = 1,
) -> Change | None:
    """The first change with which each worker fits; None if none is known.

    need: bytes of a worker. room: bytes that each of so many workers can have. group: of `runtime`; workers: that it
    has now, each with `training.rows` of the batch.
    """
    for keys, changed, n_workers in _changes(training, group, workers):
        wanted = need(changed)
        if wanted <= room(n_workers):
            return Change(keys, changed, wanted)
    return None


def _changes(training: Training, group: str, workers: int) -> Iterator[tuple[Keys, Training, int]]:
    fewer = list(_fewer(training.micro_batch_rows))
    for rows in fewer:
        yield (_rows(rows),), training.with_micro_batches_of(rows), workers
    again: Keys = ()
    if not training.recompute:
        again = (("runtime.activation_checkpointing", "true"),)
        kept = replace(training, recompute=True)
        yield again, kept, workers
        for rows in fewer:
            yield (_rows(rows), *again), kept.with_micro_batches_of(rows), workers
    shards = max(2, workers if training.shards == 1 else 2 * workers)
    while shards <= min(MOST_SHARDS, training.rows * workers):
        part = replace(training, recompute=True, shards=shards, rows=-(-training.rows * workers // shards))
        sharding = ((f"runtime.{group}.strategy", "fsdp"), (f"runtime.{group}.workers", str(shards)))
        yield (_rows(1), *again, *sharding), part.with_micro_batches_of(1), shards
        shards *= 2


def _fewer(rows: int) -> Iterator[int]:
    while rows > 1:
        rows //= 2
        yield rows


def _rows(n: int) -> tuple[str, str]:
    return "runtime.micro_batch_rows", str(n)


def room_of_each(nodes: Sequence[tuple[float, int]], workers: int) -> float:
    """The most bytes that each of so many workers can have at once; 0 if there is no place for all of them.

    nodes: of each, its memory, and how many workers it takes were it not for that.
    """
    rooms = {memory / n for memory, most in nodes for n in range(1, min(most, workers) + 1)}
    for room in sorted(rooms, reverse=True):
        if sum(most if isinf(memory) else min(most, int(memory / room + 1e-9)) for memory, most in nodes) >= workers:
            return room
    return 0.0


def arithmetic(memory: Memory) -> str:
    """`1.2 GiB = process 256 MiB + activations 800 MiB + ...`, the largest part first."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    return f"{size(int(memory.total))} = " + " + ".join(f"{name} {size(int(n))}" for name, n in parts)


def refusal(stage: str, memory: Memory, room: float, where: str, change: Change | None, trains: bool = True) -> str:
    """Why a stage is refused. room: the most bytes that each worker can have; where: the node with the most memory."""
    what = f"{stage}: a worker needs {arithmetic(memory)}; the most room is {size(int(room))} ({where})"
    if change is not None:
        return f"{what}; it fits with {change}: {size(int(change.need))}"
    of = "GPU with" if memory.on_gpu else "node that gives each worker"
    tried = "no smaller batch, checkpointing or sharding makes it fit: " if trains else ""
    return f"{what}; {tried}add a {of} {size(int(memory.total))}"
