"""Writes the pages that MLflow shows: a run per pipeline, a nested run per stage, a LoggedModel per model.

The same for a run that goes on and for `bam lineage sync`, so that both leave the same. Raises what MLflow raises.
Handles are plain JSON, so any process can go on with a run; no active-run globals, so there is never a second run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import ArtifactDamaged
from bam_core.graph.lineage import ForeignRecord, NodeId, lineage, origin_of
from bam_core.graph.lineage_render import to_html
from bam_core.graph.record import InputRef, Record
from bam_core.graph.runs import Run
from bam_core.graph.stage import Stage
from infra import mlflow_lineage as edges
from infra import mlflow_pages as pages
from infra import mlflow_runs as runs
from infra.ancestry import Ancestry, node_of
from infra.mlflow_artifacts import Artifacts
from infra.mlflow_catalog import Catalog, SeenRun
from infra.mlflow_connect import artifact_root
from infra.mlflow_trials import log_trials
from infra.provenance import mask_text, mask_values

if TYPE_CHECKING:
    from mlflow import MlflowClient

Handle = Mapping[str, Any]
ForeignOf = Callable[[Iterable[Record]], Iterable[ForeignRecord]]

RUN_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "running": "RUNNING"}
LINEAGE_PAGE, RECIPE_FILE, REPORT = "lineage.html", "recipe.yaml", "report.html"
ERROR, STORE = "bam.error", "bam.store"
_EXPERIMENT_CHARS = 400  # MLflow allows 500
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class View:
    """catalog: what MLflow holds already. folder_of: a local folder with an artifact's outputs. foreign_of: what the
    adopted among some records brought with them; they get no runs of their own, but tags and a place in every graph.

    Handles: {run_id, parent_run_id, experiment_id, run, pipeline}, and of a stage {started, resumed, models, pages}:
    models: stage -> model id of each input model; pages: key of an input -> where MLflow shows it.
    """

    catalog: Catalog
    ancestry: Ancestry
    folder_of: Callable[[Record], Path]
    foreign_of: ForeignOf
    tracking_uri: str
    store_uri: str

    @property
    def client(self) -> MlflowClient:
        return self.catalog.client

    @cached_property
    def shown_store(self) -> str:
        return mask_text(self.store_uri)

    def experiment(self, pipeline: str) -> str:
        """The id of the pipeline's experiment, made when absent."""
        from mlflow.exceptions import MlflowException

        name = f"{runs.EXPERIMENTS}{pipeline}"[:_EXPERIMENT_CHARS]
        if (found := self.client.get_experiment_by_name(name)) is None:
            root = artifact_root(self.tracking_uri)
            location = None if root is None else (root / _folder(pipeline)).as_uri()
            try:
                made = str(self.client.create_experiment(name, location, runs.EXPERIMENT_TAGS))
            except MlflowException:  # another process was first
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
            else:
                return made
        return str(found.experiment_id)

    def open_pipeline(
        self, pipeline: str, run: str, recipe: Mapping[str, Any], made_by: Mapping[str, Any], started: float
    ) -> SeenRun:
        """A run of MLflow for a run of ours. made_by: as `provenance.capture` gives it."""
        tags = runs.run_tags(run, pipeline) | runs.origin_tags(made_by)
        tags |= {STORE: self.shown_store, runs.NOTE: pages.started_note(pipeline, run)}
        opened = self._create(self.experiment(pipeline), started, tags, run)
        self.complete_pipeline(opened, recipe)
        return opened

    def complete_pipeline(self, opened: SeenRun, recipe: Mapping[str, Any]) -> None:
        """Its recipe, unless all of it is there: as a file first, since parameters are what tells."""
        recipe = mask_values(recipe)
        if not runs.param_names(recipe) <= opened.params.keys():
            self.client.log_dict(opened.run_id, dict(recipe), RECIPE_FILE)
            runs.log_params(self.client, opened.run_id, recipe, known=opened.params)

    def close_pipeline(self, opened: SeenRun, run: Run, status: str) -> bool:
        """Write what the run came to, unless that is there already. status: of MLflow. Returns whether it was not."""
        nodes = run.artifacts()
        found = self.ancestry.of(nodes)
        made = {record.stage: record for node in nodes if (record := found[node]) is not None}
        addresses = {record.key: page for record in made.values() if (page := self.catalog.page(record.ref))}
        report = made.get("report")
        names = [name for name, there in ((REPORT, report), (LINEAGE_PAGE, made), (RECIPE_FILE, True)) if there]
        linked = {name: pages.run_address(opened.experiment_id, opened.run_id, name) for name in names}
        note = pages.describe_run(run, status, addresses, linked)
        lacks = opened.tags.get(runs.NOTE) != note[: runs.TAG_CHARS]
        if lacks:
            files = self._files(opened)
            if made:
                last = [record for name in run.stages if (record := made.get(name)) is not None][-1]
                files.add_text(LINEAGE_PAGE, self._lineage(found.values(), last))
            if report is not None:
                with suppress(ArtifactDamaged):  # whoever reads the report is told by its own stage
                    files.add_outputs(report, self.folder_of(report))
            self.set_tags(opened, {runs.NOTE: note})
        if opened.status == status:
            return lacks
        if status != "RUNNING":
            ended = run.ended or max((record.ended for record in made.values()), default=run.started)
            self.client.set_terminated(opened.run_id, status, runs.milliseconds(ended))
        else:
            self.client.update_run(opened.run_id, status)
        opened.status = status
        return True

    def open_stage(
        self,
        parent: Handle,
        stage: Stage,
        key: str,
        inputs: Mapping[str, InputRef],
        started: float,
        *,
        made: Record | None = None,
        resumes: bool = True,
    ) -> dict[str, Any]:
        """Open the stage's run, or reopen one that was left unfinished. started: epoch seconds.

        made: what came of it, if that is known. resumes: whether a run that is unfinished may be taken; else it is of
        somebody who works on it.
        """
        tags = self.stage_tags(parent, stage, key, inputs)
        addresses = self.pages_of(inputs)
        left = [
            run
            for run in (self.catalog.runs_of(key) if resumes else ())
            if (run.experiment_id, run.tags.get(runs.ARTIFACT)) == (parent["experiment_id"], tags[runs.ARTIFACT])
            and run.status != "FINISHED"
        ]
        if left:
            run, linked = left[0], self.catalog.model_inputs(left[0].run_id)
            self._retire_vanished_parent(run, parent["run_id"])
            self.client.update_run(run.run_id, "RUNNING")
            self.set_tags(run, tags)
        else:
            results = {} if made is None else self.result_tags(parent["experiment_id"], made, addresses)
            run, linked = self._create(parent["experiment_id"], started, tags | results, stage.name), set()
        if made is None:  # else they are told with the results
            runs.log_params(self.client, run.run_id, mask_values(stage.config), known=run.params)
        models = edges.input_models(self.catalog, inputs)
        edges.link_inputs(self.catalog, run, stage, inputs, models.values(), linked, self.artifact_uri)
        return {
            "run_id": run.run_id,
            "parent_run_id": parent["run_id"],
            "experiment_id": run.experiment_id,
            "run": parent.get("run"),
            "pipeline": parent.get("pipeline"),
            "started": run.started / 1000,
            "resumed": bool(left),
            "models": models,
            "pages": addresses,
        }

    def close_stage(self, handle: Handle, record: Record, folder: Path, *, is_live: bool = True) -> dict[str, Any]:
        """Write what the stage made, link its model, and finish its run. is_live: it was made just now."""
        client, run = self.client, self.catalog.run(handle["run_id"])
        assert run is not None, f"no run {handle['run_id']}"
        self.set_tags(run, self.result_tags(run.experiment_id, record, handle["pages"]))
        if ERROR in run.tags:  # of an earlier attempt
            client.delete_tag(run.run_id, ERROR)
            del run.tags[ERROR]
        model = edges.log_model(self.catalog, run, record, lambda: folder, self.model_tags(run))
        model_id = None if model is None else model.model_id
        is_told = is_live or handle["resumed"]
        runs.log_results(client, run.run_id, record, folder, model_id, run.params, is_told=is_told, is_live=is_live)
        files = self._files(run)
        files.add_outputs(record, folder)
        if model_id is not None:
            behind = self._behind(record.inputs.values()).values()
            files.add_text(LINEAGE_PAGE, self._lineage([record, *behind], record))
        edges.log_scores(self.catalog, handle["models"], record, lambda: folder)
        log_trials(self.catalog, run, record, lambda: folder)
        run.status, run.ended = "FINISHED", runs.milliseconds(record.ended)
        client.set_terminated(run.run_id, run.status, run.ended)
        return {"run_id": run.run_id, "model_id": model_id}

    def mend_stage(self, run: SeenRun, parent: Handle, record: Record) -> bool:
        """Write what a finished run lacks: of its edges, where a parent was not there when it was written.

        Returns whether it lacked anything.
        """

        def folder() -> Path:
            return self.folder_of(record)

        stage = stage_of(record)
        before = len(run.datasets), dict(run.tags), dict(run.outputs)
        models = edges.input_models(self.catalog, record.inputs)
        linked = self.catalog.model_inputs(run.run_id) if models else set()
        edges.link_inputs(self.catalog, run, stage, record.inputs, models.values(), linked, self.artifact_uri)
        tags = self.stage_tags(parent, stage, record.key, record.inputs)
        tags |= self.result_tags(run.experiment_id, record, self.pages_of(record.inputs))
        self.set_tags(run, tags)
        model = edges.log_model(self.catalog, run, record, folder, self.model_tags(run))
        lacked = before != (len(run.datasets), run.tags, run.outputs) or not linked >= set(models.values())
        if model is not None:
            lacked |= edges.mend_tags(self.catalog, model, self.model_tags(run))
        lacked |= edges.log_scores(self.catalog, models, record, folder, only_missing=True)
        log_trials(self.catalog, run, record, folder)
        return lacked

    def set_tags(self, run: SeenRun, tags: Mapping[str, str]) -> None:
        """Those that it lacks."""
        cut = {name: value[: runs.TAG_CHARS] for name, value in tags.items()}
        new = {name: value for name, value in cut.items() if run.tags.get(name) != value}
        runs.set_tags(self.client, run.run_id, new)
        run.tags |= new

    def stage_tags(self, parent: Handle, stage: Stage, key: str, inputs: Mapping[str, InputRef]) -> dict[str, str]:
        """What is known before the stage has run."""
        tags = runs.identity_tags(stage.name, key, inputs, self.artifact_uri(stage.name, key))
        tags |= runs.ancestor_tags(self._nodes_behind(inputs.values()))
        tags |= runs.run_tags(parent.get("run"), parent.get("pipeline")) | runs.foreign_tags(stage.config)
        return tags | ({runs.PARENT_RUN: parent["run_id"]} if parent["run_id"] else {})

    def result_tags(self, experiment_id: str, record: Record, addresses: Mapping[str, str]) -> dict[str, str]:
        """What is known when it has run. addresses: key of an input -> its page."""
        name = f"{runs.ANCESTOR}{record.stage}"
        children = pages.search_address(experiment_id, runs.condition({name: record.key}))
        note = pages.describe(record, self.artifact_uri(record.stage, record.key), addresses, children)
        facts = {runs.DIGEST: record.digest, runs.NOTE: note, runs.ATTEMPT: str(record.attempt)}
        if origin_of(record) is not None:
            facts |= runs.ancestor_tags(self._nodes_behind(record.inputs.values(), record))
        return facts | runs.origin_tags(record.provenance)

    def pages_of(self, inputs: Mapping[str, InputRef]) -> dict[str, str]:
        return {ref.key: page for ref in inputs.values() if (page := self.catalog.page(ref)) is not None}

    def artifact_uri(self, stage: str, key: str) -> str:
        return f"{self.shown_store}/artifacts/{stage}/{key[:12]}"

    def model_tags(self, run: SeenRun) -> dict[str, str]:
        """Of the tags of the run that made it, those that say what a model is."""
        return {name: value for name, value in run.tags.items() if name.startswith("bam.") or name == runs.NOTE}

    def _behind(self, inputs: Iterable[InputRef]) -> dict[NodeId, Record | None]:
        return self.ancestry.of(node_of(ref) for ref in inputs)

    def _nodes_behind(self, inputs: Iterable[InputRef], adopted: Record | None = None) -> set[NodeId]:
        """All artifacts that something was made from, those of other stores too."""
        behind = self._behind(inputs)
        found = [record for record in (*behind.values(), adopted) if record is not None]
        foreign = {node_of(other.record) for other in self.foreign_of(found)}
        origins = {node_of(origin) for record in found if (origin := origin_of(record)) is not None}
        return {*behind, *foreign, *origins}

    def _lineage(self, found: Iterable[Record | None], root: Record) -> str:
        records = [record for record in found if record is not None]
        return to_html(lineage(records, root.key, "up", self.foreign_of(records)))

    def _files(self, run: SeenRun) -> Artifacts:
        return Artifacts(run.files, self.tracking_uri)

    def _create(self, experiment_id: str, started: float, tags: dict[str, str], name: str) -> SeenRun:
        tags = {tag: value[: runs.TAG_CHARS] for tag, value in tags.items()}
        made = self.client.create_run(experiment_id, runs.milliseconds(started), tags, name)
        place = made.info.run_id, experiment_id, "RUNNING", made.info.artifact_uri
        run = SeenRun(*place, runs.milliseconds(started), tags=tags)
        self.catalog.add(run)
        return run

    def _retire_vanished_parent(self, run: SeenRun, parent_id: str | None) -> None:
        """Close the pipeline run of a driver that was killed: it left open a stage that is now another's."""
        old_id = run.tags.get(runs.PARENT_RUN)
        if run.status == "RUNNING" and old_id and old_id != parent_id:
            old = self.catalog.run(old_id)
            if old is not None and old.status == "RUNNING":
                self.client.set_terminated(old_id, "KILLED")
                old.status = "KILLED"


def stage_of(record: Record) -> Stage:
    """The stage that a record says that it is of."""
    payload = record.payload
    return Stage(record.stage, payload["function"], payload["version"], payload["config"])


def _folder(pipeline: str) -> str:
    """A folder's name for any pipeline, whatever a record says that it is called."""
    if _FOLDER.fullmatch(pipeline):
        return pipeline
    return f"other-{hashlib.sha256(pipeline.encode()).hexdigest()[:16]}"
