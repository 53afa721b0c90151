"""`bam lineage sync`: MLflow's whole view from a store's files. Raises what MLflow raises.

What is there stays and gets what it lacks; what is missing is written; again, nothing is. Parents come before children,
by what records say and not by clocks. What failed and was never made has no record: such attempts are in MLflow only
if it heard of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged
from bam_core.graph.lineage import Edge, levels
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from infra import mlflow_runs as runs
from infra.ancestry import in_records, node_of
from infra.mlflow_catalog import SeenRun, Snapshot, is_pipeline
from infra.mlflow_tracker import MlflowTracker
from infra.mlflow_view import RUN_STATUS, STORE, ForeignOf, Handle, View, stage_of

SYNCED = "synced"
"""The pipeline of artifacts of which neither they nor any run on record say what they were made in."""
IsLive = Callable[[str, str], bool]


@dataclass(frozen=True)
class Synced:
    """made: stages whose run was written now. mended: those that got what they lacked. present: that were whole.

    pipelines: runs of pipelines that were written now. damaged: why artifacts were left out.
    """

    made: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    present: int = 0
    pipelines: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Artifacts that MLflow now shows."""
        return len(self.made) + len(self.mended) + self.present


def sync(
    records: Iterable[Record],
    pipeline_runs: Iterable[Run],
    tracker: MlflowTracker,
    folder_of: Callable[[Record], Path],
    is_live: IsLive = lambda stage, key: False,
    foreign_of: ForeignOf = lambda records: (),
) -> Synced:
    """folder_of: a local folder with the artifact's small files; raises ArtifactDamaged. is_live: whether somebody
    works on (stage, key) now. foreign_of: what the adopted among some records brought with them.

    Raises UsageError when records name each other as parents.
    """
    known = {node_of(record): record for record in records}
    catalog = Snapshot(tracker.client)
    view = tracker.view(catalog, in_records(known.values()), folder_of, foreign_of)
    pipelines = _Pipelines(view, catalog, list(pipeline_runs))
    made, mended, damaged, present = [], [], [], 0
    for record in _parents_first(known):
        parent = pipelines.parent_of(record)
        run = _run_of(record, catalog)
        try:
            if run is None:
                _write(record, parent, view, is_live)
                made.append(record.stage)
            elif view.mend_stage(run, parent, record):
                mended.append(record.stage)
            else:
                present += 1
        except ArtifactDamaged as error:  # found before anything of it is written
            damaged.append(str(error))
    _close_left(catalog, view, is_live, pipelines.close(is_live))
    return Synced(tuple(made), tuple(mended), present, tuple(pipelines.made), tuple(damaged))


@dataclass
class _Pipelines:
    """The runs of pipelines in MLflow, made as far as they are missing, and which of them made a record."""

    view: View
    catalog: Snapshot
    runs: list[Run]
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._makers: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            for name, stage in run.stages.items():
                if stage.action == "run":
                    self._makers.setdefault((name, stage.key), run)
        for run in self.runs:
            for node in run.artifacts():  # nobody says that he made it: whoever used it first
                self._makers.setdefault(node, run)
        self._opened = {run.name: self._open(run) for run in self.runs}
        self._experiments: dict[str, str] = {}

    def parent_of(self, record: Record) -> dict[str, Any]:
        """The handle of the run that made it. Without one: only what is known, and the experiment."""
        said = record.provenance
        maker = self._makers.get(node_of(record))
        name = said.get("run") or (maker.name if maker else None)
        pipeline = said.get("pipeline") or (maker.pipeline if maker else None)
        found = {"run": name, "pipeline": pipeline}
        if (opened := self._opened.get(str(name))) is not None:
            return {"run_id": opened.run_id, "experiment_id": opened.experiment_id, **found}
        left = [run for run in self.catalog.runs_of(record.key) if run.status != "FINISHED"]
        if pipeline is None and left:
            experiment = left[0].experiment_id
            return {"run_id": left[0].tags.get(runs.PARENT_RUN), "experiment_id": experiment, **found}
        return {"run_id": None, "experiment_id": self._experiment(str(pipeline or SYNCED)), **found}

    def close(self, is_live: IsLive) -> set[str]:
        """Returns the ids of those that go on."""
        going = set()
        for run in self.runs:
            opened, status = self._opened[run.name], run.status
            if status == "running" and any(is_live(*node) for node in run.artifacts()):
                going.add(opened.run_id)
            elif status == "running":
                status = "interrupted"  # its driver was killed, and nobody could write its end
            self.view.close_pipeline(opened, run, RUN_STATUS[status])
        return going

    def _open(self, run: Run) -> SeenRun:
        if there := self.catalog.pipelines_of(run.name):
            self.view.complete_pipeline(there[0], run.recipe)
            return there[0]
        self.made.append(run.name)
        return self.view.open_pipeline(run.pipeline, run.name, run.recipe, run.provenance, run.started)

    def _experiment(self, pipeline: str) -> str:
        if pipeline not in self._experiments:
            self._experiments[pipeline] = self.view.experiment(pipeline)
        return self._experiments[pipeline]


def _write(record: Record, parent: Handle, view: View, is_live: IsLive) -> None:
    folder = view.folder_of(record)
    resumes = not is_live(record.stage, record.key)  # else an unfinished run is that of an attempt that goes on
    stage, started = stage_of(record), record.started
    handle = view.open_stage(parent, stage, record.key, record.inputs, started, made=record, resumes=resumes)
    view.close_stage(handle, record, folder, is_live=False)


def _run_of(record: Record, catalog: Snapshot) -> SeenRun | None:
    """The finished run of just this attempt."""
    attempt = str(record.attempt)
    done = catalog.done(record.key, record.digest)
    return next((run for run in done if run.tags.get(runs.ATTEMPT) == attempt), None)


def _parents_first(known: Mapping[tuple[str, str], Record]) -> list[Record]:
    edges = [
        Edge(node_of(ref), node, role)
        for node, record in known.items()
        for role, ref in record.inputs.items()
        if node_of(ref) in known
    ]
    level = levels(known, edges)
    return sorted(known.values(), key=lambda record: (level[node_of(record)], record.ended, node_of(record)))


def _close_left(catalog: Snapshot, view: View, is_live: IsLive, going: set[str]) -> None:
    """Whatever of this store MLflow believes to be running, and nobody works on. going: pipelines that are."""
    running = [run for run in catalog.all() if run.status == "RUNNING"]
    for run in running:
        stage, key = run.tags.get(runs.STAGE, ""), run.key or ""
        if run.key is None or run.tags.get(runs.ARTIFACT) != view.artifact_uri(stage, key):
            continue
        if is_live(stage, key):
            going.add(run.tags.get(runs.PARENT_RUN, ""))
        else:
            _kill(run, view)
    for run in running:
        if is_pipeline(run.tags) and run.tags.get(STORE) == view.shown_store and run.run_id not in going:
            _kill(run, view)


def _kill(run: SeenRun, view: View) -> None:
    view.client.set_terminated(run.run_id, "KILLED")
    run.status = "KILLED"
