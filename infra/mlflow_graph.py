"""The lineage graph read back from MLflow alone: no record and no store is looked at. Raises what MLflow raises.

An edge counts only if MLflow's own pages show it, where they can: between models, and from data to a run, by links;
other edges, and all roles, by tags. Invariant: after a run or a sync, the graph is that of the files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.graph import refs
from bam_core.graph.lineage import Direction, Edge, ForeignRecord, Graph, lineage
from bam_core.graph.record import InputRef, Record
from bam_core.graph.verify import ORIGIN_FILE
from infra import mlflow_runs as runs
from infra.adopting import brought
from infra.mlflow_catalog import all_models, all_runs, seen_model
from infra.mlflow_lineage import DIGEST_CHARS, SOURCE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run


def graph_from_mlflow(client: MlflowClient, ref: str, direction: Direction = "up") -> Graph:
    """Of what `ref` names, as `bam lineage` names it. Raises UsageError when it names nothing, or several."""
    experiments = runs.experiment_ids(client)
    newest: dict[tuple[str, str], Run] = {}
    for run in all_runs(client, experiments):
        tags = run.data.tags
        if run.info.status == "FINISHED" and {runs.KEY, runs.STAGE, runs.DIGEST} <= tags.keys():
            node = tags[runs.STAGE], tags[runs.KEY]
            if node not in newest or newest[node].info.end_time < run.info.end_time:
                newest[node] = run
    records = {node: _record(run) for node, run in newest.items()}
    foreign = [other for node, run in newest.items() for other in _foreign(client, run, records[node])]
    graph = lineage(records.values(), refs.resolve(ref, records.values()).key, direction, foreign)
    models = {model.model_id: seen_model(model) for model in all_models(client, experiments)}
    bytes_of = {name: (m.tags.get(runs.KEY), m.tags.get(runs.DIGEST)) for name, m in models.items()}
    shown = _Shown(client, newest, records, bytes_of)
    return replace(graph, edges=tuple(edge for edge in graph.edges if shown.has(edge)))


def differences(one: Graph, other: Graph) -> list[str]:
    """What one of two graphs has and the other has not, or has otherwise; none if they agree.

    Nodes agree in digest, in their store and in being there; edges in their role and in having been replaced.
    """
    found = []
    nodes, other_nodes = ({n.id: (n.digest, n.store, n.missing) for n in graph.nodes} for graph in (one, other))
    edges, other_edges = set(one.edges), set(other.edges)
    for node in sorted(nodes.keys() | other_nodes.keys()):
        if nodes.get(node) != other_nodes.get(node):
            found.append(f"{node[0]}@{node[1][:12]}: {nodes.get(node)} and {other_nodes.get(node)}")
    for edge in sorted(edges ^ other_edges, key=lambda edge: (edge.parent, edge.child, edge.role)):
        side = "one" if edge in edges else "other"
        found.append(
            f"only the {side} has {edge.parent[0]} -> {edge.child[0]} as {edge.role}, replaced={edge.replaced}"
        )
    return found


class _Shown:
    """Whether MLflow shows an edge as a link, where it can."""

    def __init__(
        self,
        client: MlflowClient,
        newest: Mapping[tuple[str, str], Run],
        records: Mapping[tuple[str, str], Record],
        bytes_of: Mapping[str, tuple[str | None, str | None]],
    ) -> None:
        self._client, self._newest, self._records, self._bytes_of = client, newest, records, bytes_of
        self._known_models = set(bytes_of.values())
        self._linked: dict[tuple[str, str], set[tuple[str | None, str | None]]] = {}

    def has(self, edge: Edge) -> bool:
        child = self._records.get(edge.child)
        ref = child.inputs.get(edge.role) if child is not None else None
        if ref is None:
            return True  # a text that a stage read is known by its link alone
        if ref.stage.startswith("data."):
            return (ref.stage, ref.digest[:DIGEST_CHARS]) in self._data(edge.child)
        read = ref.key, ref.digest
        return read not in self._known_models or read in self._models(edge.child)

    def _data(self, node: tuple[str, str]) -> set[tuple[str, str]]:
        return {(entry.dataset.name, entry.dataset.digest) for entry in _datasets(self._newest[node])}

    def _models(self, node: tuple[str, str]) -> set[tuple[str | None, str | None]]:
        if node not in self._linked:
            run = self._client.get_run(self._newest[node].info.run_id)  # a search returns no model inputs
            links = run.inputs.model_inputs if run.inputs else []
            self._linked[node] = {self._bytes_of.get(link.model_id, (None, None)) for link in links}
        return self._linked[node]


def _record(run: Run) -> Record:
    """What the run says of its artifact, in the form in which the graph is made from records."""
    tags = run.data.tags
    inputs = {}
    for role, key in _with_prefix(tags, runs.PARENT):
        stage, _, digest = tags.get(runs.READ + role, "").partition("@")
        inputs[role] = InputRef(stage or role, key, digest)
    config: dict[str, Any] = {"domains": dict(_sources(run))}
    with suppress(ValueError):
        config["origin"] = json.loads(tags.get(runs.ORIGIN, ""))
    model_ids = [link.model_id for link in run.outputs.model_outputs] if run.outputs else []
    return Record(
        stage=tags[runs.STAGE],
        key=tags[runs.KEY],
        payload={"config": config},
        inputs=inputs,
        outputs=(),
        digest=tags[runs.DIGEST],
        metrics=dict(run.data.metrics),
        provenance={
            "git_commit": tags.get("mlflow.source.git.commit"),
            "host": tags.get("bam.host"),
            "run": tags.get(runs.RUN),
            "pipeline": tags.get(runs.PIPELINE),
            "adopted_from": tags.get(runs.ADOPTED_FROM),
        },
        started=run.info.start_time / 1000,
        ended=run.info.end_time / 1000,
        attempt=int(tags.get(runs.ATTEMPT, 1)),
        mlflow={"run_id": run.info.run_id, "model_id": model_ids[0] if model_ids else None},
    )


def _foreign(client: MlflowClient, run: Run, record: Record) -> list[ForeignRecord]:
    """What an adopted artifact brought with it: the run has the small file that says so."""
    if runs.ORIGIN not in run.data.tags:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, ORIGIN_FILE, folder)
        return list(brought(record, Path(file).read_bytes()))


def _sources(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Domain -> the part of a configuration that names its text."""
    for entry in _datasets(run):
        if entry.dataset.name.startswith(SOURCE):
            spec = json.loads(entry.dataset.source)
            digest = json.loads(entry.dataset.profile or "{}").get("digest", entry.dataset.digest)
            yield entry.dataset.name.removeprefix(SOURCE), {"source": {**spec, "digest": digest}}


def _datasets(run: Run) -> list[DatasetInput]:
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _with_prefix(tags: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    return ((name.removeprefix(prefix), value) for name, value in tags.items() if name.startswith(prefix))
