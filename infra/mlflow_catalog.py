"""What MLflow holds of ours: asked for one thing at a time, or read once for a sync. Raises what MLflow raises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bam_core.graph.record import InputRef
from infra import mlflow_runs as runs
from infra.mlflow_pages import model_address, run_address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

PAGE = 1000


@dataclass
class SeenRun:
    """A run of ours. started, ended: ms since the epoch. files: where its own are. outputs: model id -> step."""

    run_id: str
    experiment_id: str
    status: str
    files: str
    started: int
    ended: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    outputs: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str | None:
        """Of the stage's artifact; None for the run of a pipeline or of a trial."""
        return self.tags.get(runs.KEY)


@dataclass
class SeenModel:
    """A LoggedModel of ours. files: where MLflow keeps its own. metrics: names."""

    model_id: str
    experiment_id: str
    status: str
    files: str
    source_run_id: str
    tags: dict[str, str]
    metrics: set[str] = field(default_factory=set)


class Catalog:
    """Asks MLflow each time: while a pipeline runs, others write too. What is whole stays so, and is remembered."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self._pages: dict[tuple[str, str], str] = {}

    def experiments(self) -> list[str]:
        """Ids of all experiments of ours."""
        return [found.experiment_id for found in _experiments(self.client)]

    def runs_of(self, key: str) -> list[SeenRun]:
        """All runs of the stage with this key, newest first."""
        return self._runs({runs.KEY: key})

    def pipelines_of(self, run: str) -> list[SeenRun]:
        """Runs of MLflow for the pipeline run of this name."""
        return [seen for seen in self._runs({runs.RUN: run}) if is_pipeline(seen.tags)]

    def nested_in(self, run_id: str) -> list[SeenRun]:
        return self._runs({runs.PARENT_RUN: run_id})

    def run(self, run_id: str) -> SeenRun | None:
        return seen_run(self.client.get_run(run_id))

    def model_inputs(self, run_id: str) -> set[str]:
        """Ids of the models that the run is linked to as its inputs: only MLflow's `get_run` tells."""
        inputs = self.client.get_run(run_id).inputs
        return {link.model_id for link in inputs.model_inputs} if inputs else set()

    def model(self, key: str, digest: str) -> SeenModel | None:
        """The LoggedModel of exactly these bytes, in any of our experiments: a READY one if there is any."""
        if not (experiments := self.experiments()):
            return None
        found = self.client.search_logged_models(experiments, runs.condition({runs.KEY: key, runs.DIGEST: digest}))
        return first_ready([seen_model(model) for model in found])

    def model_of_id(self, model_id: str) -> SeenModel:
        return seen_model(self.client.get_logged_model(model_id))

    def done(self, key: str, digest: str) -> list[SeenRun]:
        """Finished runs that made these bytes, newest first."""
        found = [run for run in self.runs_of(key) if run.status == "FINISHED" and run.tags.get(runs.DIGEST) == digest]
        return sorted(found, key=lambda run: (run.ended or 0, run.run_id), reverse=True)

    def page(self, ref: InputRef) -> str | None:
        """Where MLflow shows an artifact: its model if it is one, else the run that made it."""
        known = self._pages.get((ref.key, ref.digest))
        if known is None and (known := self._page(ref)) is not None:
            self._pages[ref.key, ref.digest] = known
        return known

    def add(self, run: SeenRun) -> None:
        """Written now."""

    def add_model(self, model: SeenModel) -> None:
        """Written now."""

    def _page(self, ref: InputRef) -> str | None:
        model = self.model(ref.key, ref.digest) if runs.may_be_model(ref.stage) else None
        if model is not None and model.status == "READY":
            return model_address(model.experiment_id, model.model_id)
        done = self.done(ref.key, ref.digest)
        return run_address(done[0].experiment_id, done[0].run_id) if done else None

    def _runs(self, tags: dict[str, str]) -> list[SeenRun]:
        experiments = self.experiments()
        found = self.client.search_runs(experiments, runs.condition(tags)) if experiments else []
        return [seen_run(run) for run in found]


class Snapshot(Catalog):
    """All that MLflow holds of ours, read once. Whoever writes tells it."""

    def __init__(self, client: MlflowClient) -> None:
        super().__init__(client)
        self._experiments = super().experiments()
        self._seen: dict[str, SeenRun] = {}
        self._by_key: dict[str, list[SeenRun]] = defaultdict(list)
        self._by_pipeline: dict[str, list[SeenRun]] = defaultdict(list)
        self._by_parent: dict[str, list[SeenRun]] = defaultdict(list)
        self._models: dict[str, SeenModel] = {}
        self._by_bytes: dict[tuple[str, str], list[SeenModel]] = defaultdict(list)
        for run in all_runs(client, self._experiments):
            self.add(seen_run(run))
        for model in all_models(client, self._experiments):
            self.add_model(seen_model(model))

    def all(self) -> list[SeenRun]:
        return list(self._seen.values())

    def experiments(self) -> list[str]:
        return self._experiments

    def runs_of(self, key: str) -> list[SeenRun]:
        return sorted(self._by_key.get(key, ()), key=lambda run: (run.started, run.run_id), reverse=True)

    def pipelines_of(self, run: str) -> list[SeenRun]:
        return self._by_pipeline.get(run, [])

    def nested_in(self, run_id: str) -> list[SeenRun]:
        return self._by_parent.get(run_id, [])

    def run(self, run_id: str) -> SeenRun | None:
        return self._seen.get(run_id)

    def model(self, key: str, digest: str) -> SeenModel | None:
        return first_ready(self._by_bytes.get((key, digest), []))

    def model_of_id(self, model_id: str) -> SeenModel:
        return self._models[model_id]

    def add(self, run: SeenRun) -> None:
        self._seen[run.run_id] = run
        if run.key is not None:
            self._by_key[run.key].append(run)
        if is_pipeline(run.tags):
            self._by_pipeline[run.tags[runs.RUN]].append(run)
        if parent := run.tags.get(runs.PARENT_RUN):
            self._by_parent[parent].append(run)

    def add_model(self, model: SeenModel) -> None:
        self._models[model.model_id] = model
        self._by_bytes[model.tags.get(runs.KEY, ""), model.tags.get(runs.DIGEST, "")].append(model)


def all_runs(client: MlflowClient, experiments: list[str]) -> Iterator[Run]:
    if experiments:
        yield from _pages(lambda token: client.search_runs(experiments, max_results=PAGE, page_token=token))


def all_models(client: MlflowClient, experiments: list[str]) -> Iterator[LoggedModel]:
    if experiments:
        yield from _pages(lambda token: client.search_logged_models(experiments, max_results=PAGE, page_token=token))


def is_pipeline(tags: dict[str, str]) -> bool:
    """Whether a run of MLflow is that of a whole pipeline: not of a stage, nor of a trial."""
    return runs.RUN in tags and runs.KEY not in tags and runs.PARENT_RUN not in tags


def seen_run(run: Run) -> SeenRun:
    datasets = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    return SeenRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        files=run.info.artifact_uri,
        started=run.info.start_time,
        ended=run.info.end_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        datasets={(entry.dataset.name, entry.dataset.digest) for entry in datasets},
        outputs={link.model_id: link.step for link in outputs},
    )


def seen_model(model: LoggedModel) -> SeenModel:
    return SeenModel(
        model_id=model.model_id,
        experiment_id=model.experiment_id,
        status=str(model.status),
        files=model.artifact_location,
        source_run_id=model.source_run_id or "",
        tags=dict(model.tags),
        metrics={metric.key for metric in model.metrics or ()},
    )


def first_ready(models: list[SeenModel]) -> SeenModel | None:
    return min(models, key=lambda model: (model.status != "READY", model.model_id), default=None)


def _experiments(client: MlflowClient) -> Iterator[Any]:
    ours = f"name LIKE '{runs.EXPERIMENTS}%'"
    yield from _pages(lambda token: client.search_experiments(filter_string=ours, max_results=PAGE, page_token=token))


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        if not (token := page.token):
            return
