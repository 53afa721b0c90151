"""A lineage as OpenLineage events, a JSON object a line: what the field's lineage servers read.

Every artifact on record is a run of a job: a START and a COMPLETE event (the export is of what was done, so nothing
fails here). Ids are UUIDv5 of what they stand for, so that the same artifact exported again, or from another store, is
the same run there. Parents without a record are input datasets of their consumers and nothing else.

Source: OpenLineage 2-0-2, https://openlineage.io/spec/2-0-2/OpenLineage.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid5

from bam_core.graph.lineage import Edge, Graph, Node, NodeId
from bam_core.graph.words import iso

NAMESPACE = "bam"
"""Of jobs."""
PRODUCER = "urn:bam:lineage"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
IDS = UUID("5f0c6f9e-0d5b-5d0e-9c0b-6261616d0001")
"""What our ids are derived from; another value would make all of them others."""
_FACETS = {
    "parent": ("1-2-0", "ParentRunFacet"),
    "version": ("1-0-1", "DatasetVersionDatasetFacet"),
    "dataSource": ("1-0-1", "DatasourceDatasetFacet"),
    "storage": ("1-0-1", "StorageDatasetFacet"),
    "outputStatistics": ("1-0-2", "OutputStatisticsOutputDatasetFacet"),
    "jobType": ("2-0-4", "JobTypeJobFacet"),
}
Json = dict[str, Any]


def to_openlineage(graph: Graph, store: str = PRODUCER) -> str:
    """store: URI of ours, the namespace of its datasets."""
    return "\n".join(json.dumps(event, allow_nan=False) for event in events(graph, store))


def events(graph: Graph, store: str) -> Iterator[Json]:
    """Parents first."""
    nodes = {node.id: node for node in graph.nodes}
    into: dict[NodeId, list[Edge]] = {}
    for edge in graph.edges:
        into.setdefault(edge.child, []).append(edge)
    for node in graph.nodes:
        if node.missing or node.source is not None:
            continue
        inputs = [_dataset(nodes[edge.parent], store) for edge in into.get(node.id, ())]
        output = _dataset(node, store) | _statistics(node)
        started = node.started or 0.0
        for kind, time in (("START", started), ("COMPLETE", started if node.ended is None else node.ended)):
            yield {
                "eventType": kind,
                "eventTime": iso(time),
                "run": {"runId": run_id(node), "facets": _parent(node)},
                "job": _job(node),
                "inputs": inputs,
                "outputs": [output],
                "producer": PRODUCER,
                "schemaURL": SCHEMA,
            }


def run_id(node: Node) -> str:
    """Of the attempt that made the artifact."""
    attempt = 1 if node.record is None else node.record.attempt
    return str(uuid5(IDS, f"{node.stage}@{node.key}+{attempt}"))


def pipeline_run_id(run: str) -> str:
    """Of a `bam run`."""
    return str(uuid5(IDS, f"run {run}"))


def _job(node: Node) -> Json:
    name = f"{node.pipeline}.{node.stage}" if node.pipeline else node.stage
    kind = _facet("jobType", processingType="BATCH", integration="BAM", jobType=node.function or "stage")
    return {"namespace": NAMESPACE, "name": name, "facets": kind}


def _parent(node: Node) -> Json:
    if node.run is None:
        return {}
    job = {"namespace": NAMESPACE, "name": node.pipeline or node.run}
    return _facet("parent", run={"runId": pipeline_run_id(node.run)}, job=job)


def _dataset(node: Node, store: str) -> Json:
    """Named by its stage; which artifact of that stage it is, is its version."""
    place = node.store or store
    facets = _facet("version", datasetVersion=node.digest) | _facet("dataSource", name=place, uri=_uri(place))
    if node.source is None:
        facets |= _facet("storage", storageLayer="bam", fileFormat=_format(node))
    return {"namespace": place, "name": node.stage, "facets": facets}


def _format(node: Node) -> str:
    """What most of its bytes are."""
    outputs = node.record.outputs if node.record is not None else ()
    largest = max(outputs, key=lambda output: output.size, default=None)
    return largest.path.rpartition(".")[2] if largest is not None else "unknown"


def _statistics(node: Node) -> Json:
    outputs = node.record.outputs if node.record is not None else ()
    if not outputs:
        return {}
    sizes = [output.size for output in outputs]
    return {"outputFacets": _facet("outputStatistics", size=sum(sizes), fileCount=len(sizes))}


def _facet(name: str, /, **values: Any) -> Json:
    version, kind = _FACETS[name]
    url = f"https://openlineage.io/spec/facets/{version}/{kind}.json#/$defs/{kind}"
    return {name: {"_producer": PRODUCER, "_schemaURL": url, **values}}


def _uri(place: str) -> str:
    is_uri = "://" in place or place.startswith("urn:")
    return quote(place if is_uri else f"file://{place}", safe=":/?#[]@!$&'()*+,;=%~")
