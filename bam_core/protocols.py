"""The ports: what the core and the pipelines ask of the outside. Adapters in `infra` implement them.

A stage function is `(StageContext) -> metrics`. It reads `inputs`, writes files under `out`, and trains through
`trainer`; it knows nothing of Ray, MLflow, fsspec or where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from bam_core.graph.record import Output, Record
    from bam_core.graph.stage import Resources, Stage

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Document:
    """One whole text. source: where it came from, for people; never part of an identity. part: of several sources, the
    number of the one that it is from."""

    text: str
    source: str
    part: int = 0


@dataclass
class Tally:
    """What became of the rows of a source, counted while they go by. parts: of each of several sources.

    dropped: reason -> rows. stopped: the key by which reading ended before the end of the source, or "".
    """

    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    stopped: str = ""
    parts: list[Tally] = field(default_factory=list)

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def kept(self) -> int:
        return self.read - sum(self.dropped.values())


class Sources(Protocol):
    """Opens the text that a recipe's `source:` describes, and the checkpoints that it imports."""

    def digest(self, spec: Mapping[str, Any]) -> str:
        """Content identity: hex sha256 over the sorted content hashes (a resolved commit for a hub data set).

        Of a checkpoint, `{kind: model, path: DIR}` or `{kind: hub-model, id: ID, revision: COMMIT}`, likewise.
        """
        ...

    def folder(self, spec: Mapping[str, Any]) -> Path:
        """A local folder with the files of a checkpoint. Raises InvalidInput."""
        ...

    def read(self, spec: Mapping[str, Any], tally: Tally | None = None) -> Iterator[Document]:
        """Documents in an order that depends on content only. tally: is told what was read and what left out."""
        ...

    def read_file(self, path: str) -> bytes:
        """One file as it is, such as a task's. Raises InvalidInput if there is none, or more than one of this name."""
        ...


class TrainWorker(Protocol):
    """One process of a worker group, as the training loop sees it. All ranks make the same calls in the same order."""

    rank: int
    world_size: int
    device: str
    threads: int
    inputs: Mapping[str, Path]
    """role -> local folder of the stage's input artifact, on this worker's machine."""

    def resume_dir(self) -> Path | None:
        """The folder of the newest checkpoint of this run, or None."""
        ...

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        """Persist a checkpoint: rank 0 calls `write(folder)` on an empty folder. A barrier.

        sharded: every rank writes files of its own, under names of its own, and the checkpoint is all of them.
        metrics: judge the model at this step, for whoever compares runs (a search over recipes).
        """
        ...

    def log(self, step: int, metrics: Metrics) -> None:
        """Publish live figures (loss, lr, tokens_per_s ...). Rank 0 only has an effect; must never raise."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a training loop ends with. write: puts the output files into an empty folder; called on rank 0 only."""

    result: Mapping[str, Any]
    write: Callable[[Path], None]


TrainLoop = Callable[[TrainWorker, Mapping[str, Any]], Trained]
"""`(worker, config) -> Trained`. A module-level function: it is sent to worker processes by name."""


Place = Mapping[str, str | int]
"""Where something ran: `host`, and on a cluster `node` (its id); of a worker its `rank` too."""


class Trainer(Protocol):
    """Runs a training loop on a worker group. Called again for the same artifact, it resumes from its checkpoint.

    workers: where each rank of the last `fit` ended; empty before.
    """

    @property
    def workers(self) -> list[Place]: ...

    def fit(self, loop: TrainLoop, config: Mapping[str, Any], group: Resources, out: Path) -> Mapping[str, Any]:
        """Returns the loop's result; what rank 0 wrote is then in `out`. A BamError of the loop is raised here."""
        ...


@dataclass(frozen=True)
class Trial:
    """One training of a search. name: says what it is, so that its checkpoints are no other's. config: the loop's."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TrialEnd:
    """losses: held-out loss at each rung that was reached, the last of a finished trial being its end.

    stopped: its loss was not among the best, so the rest was not trained. seconds: from its start to here.
    """

    name: str
    status: Literal["finished", "stopped", "diverged"]
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Halving:
    """At each rung a trial goes on if it is among the best 1/reduction. at_once: trials side by side at most."""

    n_rungs: int
    reduction: int
    at_once: int | None = None


class Searcher(Protocol):
    """Runs trainings of one kind and stops those that fall behind. Called again, it continues: none runs twice."""

    def run(
        self,
        loop: TrainLoop,
        trials: Sequence[Trial],
        halving: Halving,
        group: Resources,
        heard: Callable[[Sequence[TrialEnd]], None],
    ) -> list[TrialEnd]:
        """Each trial on a worker group of its own. Returns their ends in the order of `trials`.

        The loop says its losses so far as `metrics={"loss_0": ..., "loss_1": ...}` of a `save` at each rung but the
        last, and all of them as `losses` of its result; it leaves no files. A trial that diverges is one of the ends;
        any other error is raised. heard: is told, whenever a trial ends, of those that have.
        """
        ...


@dataclass(frozen=True)
class StageContext:
    """All that a stage function gets."""

    stage: str
    key: str
    config: Mapping[str, Any]
    runtime: Mapping[str, Any]
    resources: Resources
    inputs: Mapping[str, Path]
    """role -> local folder of the input artifact (read only)."""
    records: Mapping[str, Record]
    """role -> the input's record."""
    out: Path
    trainer: Trainer
    sources: Sources
    history: Callable[[], Sequence[Record]]
    """Every record of the store, oldest first."""
    log: Callable[[int, Metrics], None] = field(default=lambda step, metrics: None)
    """Live figures of a stage that does not train (e.g. documents done)."""
    searcher: Searcher | None = None
    """Of a stage that searches."""


StageFunction = Callable[[StageContext], Mapping[str, Any]]


class Lease(Protocol):
    """Held while a stage runs; renewed in the background until released."""

    def require(self) -> None:
        """Raises LeaseHeld if it was lost: another run has taken over, so this one must not commit."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class LeaseInfo:
    owner: str
    expires: float


class Store(Protocol):
    """Artifacts under `<root>/artifacts/<stage>/<key12>/`. `record.json` is written last."""

    uri: str

    def artifact_uri(self, stage: str, key: str) -> str: ...

    def check_writable(self) -> None:
        """Raises StoreError with the reason if artifacts could not be written. Leaves nothing behind."""
        ...

    def record(self, stage: str, key: str) -> Record | None:
        """The record of a done artifact: valid, and every output exists with its size. None if there is no record.

        Raises ArtifactDamaged if there is a record that does not hold.
        """
        ...

    def records(self, stage: str | None = None) -> list[Record]:
        """Every readable record, newest last."""
        ...

    def lease_info(self, stage: str, key: str) -> LeaseInfo | None:
        """Who holds a live lease now, or None."""
        ...

    def acquire(self, stage: str, key: str, owner: str) -> Lease:
        """Take the lease by exclusive create, or take over an expired one. Raises LeaseHeld."""
        ...

    def scratch(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """An empty local folder to write outputs into; removed afterwards."""
        ...

    def commit(self, folder: Path, record: Record) -> None:
        """Move the outputs into place, then write the record. All or nothing as seen by `record`."""
        ...

    def localize(self, record: Record) -> Path:
        """A local folder with the artifact's outputs: in place on a local store, a cached download elsewhere."""
        ...

    def hash_outputs(self, folder: Path) -> tuple[Output, ...]:
        """Every file below `folder` with its size and sha256, sorted by path."""
        ...

    def clear_training(self, stage: str, key: str) -> None:
        """Forget the checkpoints of a run that has committed."""
        ...

    def next_attempt(self, stage: str, key: str) -> int: ...

    def attempt_dir(self, stage: str, key: str, attempt: int) -> Path:
        """A local folder for this attempt's `log.txt` and `progress.json`; synchronised by `close_attempt`."""
        ...

    def close_attempt(self, stage: str, key: str, attempt: int, error: Mapping[str, Any] | None) -> None:
        """Publish the attempt's files; `error` becomes `error.json`."""
        ...

    def progress(self, stage: str, key: str) -> Mapping[str, Any] | None:
        """The newest live figures of a running stage."""
        ...


class Tracker(Protocol):
    """A view for people. No method may raise: a tracker that is down warns once, and the pipeline goes on."""

    def start_pipeline(self, pipeline: str, run: str, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a JSON handle to pass to stages (possibly in other processes)."""
        ...

    def end_pipeline(self, handle: Mapping[str, Any], status: str) -> None: ...

    def start_stage(
        self, parent: Mapping[str, Any], stage: Stage, key: str, inputs: Mapping[str, Record]
    ) -> Mapping[str, Any]:
        """Opens (or reopens, for a resumed attempt) the stage's nested run. Returns a JSON handle."""
        ...

    def log(self, handle: Mapping[str, Any], step: int, metrics: Metrics) -> None: ...

    def end_stage(self, handle: Mapping[str, Any], record: Record, folder: Path) -> Mapping[str, Any]:
        """Closes the run as done, makes a LoggedModel for a model artifact, links edges. Returns {run_id, model_id}."""
        ...

    def fail_stage(self, handle: Mapping[str, Any], error: str) -> None: ...


class Executor(Protocol):
    """Runs tasks somewhere. It decides nothing: what may start, and when, is `graph.schedule`.

    `submit` and `wait` raise ExecutorLost if that is gone for good, and with it all that ran there.
    capacity: how many stages are worth running at once where nobody said.
    """

    capacity: int

    def submit(self, stage: Stage, task: Callable[..., Any], *args: Any) -> None:
        """Start `task(*args)`; task is a module-level function and args are picklable."""
        ...

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Any]]:
        """(stage name, result or exception) of tasks that ended, after at most `timeout_s`."""
        ...

    def close(self) -> None: ...
