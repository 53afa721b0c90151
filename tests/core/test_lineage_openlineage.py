"""Lineage as OpenLineage events: what the specification requires, and ids that stay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from bam_core.graph.lineage import ForeignRecord, lineage
from bam_core.graph.lineage_openlineage import events, pipeline_run_id, to_openlineage
from tests.lineage_kit import hostile, key, of, quickstart, record, small

STORE = "s3://bucket/bam store"


def exported(stage: str = "train.bam") -> list[dict[str, Any]]:
    records = quickstart()
    return [json.loads(line) for line in to_openlineage(lineage(records, of(records, stage).key), STORE).splitlines()]


def facets(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("facets", "inputFacets", "outputFacets"):
                yield from inner.values()
            yield from facets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from facets(inner)


def test_every_event_has_what_the_specification_requires() -> None:
    for event in exported():
        assert event["eventType"] in ("START", "COMPLETE")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["eventTime"])
        assert UUID(event["run"]["runId"]).version == 5
        assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
        assert event["job"]["namespace"] == "bam"
        for dataset in (*event["inputs"], *event["outputs"]):
            assert dataset.keys() >= {"namespace", "name", "facets"}
    for facet in facets(exported()):
        assert facet["_producer"] == "urn:bam:lineage"
        assert re.fullmatch(r"https://openlineage\.io/spec/facets/[\d-]+/(\w+)\.json#/\$defs/\1", facet["_schemaURL"])


def test_an_artifact_is_a_run_that_starts_and_completes() -> None:
    records = quickstart()
    graph = lineage(records, of(records, "train.bam").key)
    found = exported()
    artifacts = [node for node in graph.nodes if node.source is None]
    assert [event["eventType"] for event in found] == ["START", "COMPLETE"] * len(artifacts)
    for start, end in zip(found[::2], found[1::2], strict=True):
        assert start["run"] == end["run"]
        assert start["job"] == end["job"]
        assert start["eventTime"] < end["eventTime"]
    assert len({event["run"]["runId"] for event in found}) == len(artifacts)


def test_edges_are_datasets_with_their_digest_as_version() -> None:
    records = quickstart()
    event = next(e for e in exported() if e["outputs"][0]["name"] == "mix.bam")
    mix = of(records, "mix.bam")
    assert event["outputs"][0]["facets"]["version"]["datasetVersion"] == mix.digest
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["size"] == 10_545_664
    assert {d["name"]: d["facets"]["version"]["datasetVersion"] for d in event["inputs"]} == {
        ref.stage: ref.digest for ref in mix.inputs.values()
    }
    assert {d["namespace"] for d in event["inputs"]} == {STORE}
    assert event["outputs"][0]["facets"]["dataSource"]["uri"] == "s3://bucket/bam%20store"
    assert event["outputs"][0]["facets"]["storage"]["fileFormat"] == "safetensors"


def test_a_stage_names_the_pipeline_run_that_it_belongs_to() -> None:
    parents = {json.dumps(event["run"]["facets"]["parent"], sort_keys=True) for event in exported()}
    (parent,) = map(json.loads, parents)
    assert parent["run"]["runId"] == pipeline_run_id("quickstart-1")
    assert parent["job"] == {"namespace": "bam", "name": "quickstart"}
    assert {event["job"]["name"] for event in exported("seed")} >= {"quickstart.seed", "quickstart.tokenizer"}


def test_ids_stay_and_an_attempt_is_another_run() -> None:
    """Written down: another id would make every artifact that was exported before another run."""
    first, again = record("seed"), replace(record("seed"), attempt=2)
    ids = [next(events(lineage([made], made.key), STORE))["run"]["runId"] for made in (first, again)]
    assert ids[0] == "9354234e-5341-595a-974d-46c37ec53985"
    assert ids[1] != ids[0]
    assert pipeline_run_id("quickstart-1") == "f90c4493-a411-5b3f-bb9b-0f2adcb46061"


def test_an_older_record_names_no_pipeline() -> None:
    event = next(events(lineage([record("seed")], key("seed")), STORE))
    assert event["run"]["facets"] == {}
    assert event["job"]["name"] == "seed"


def test_what_has_no_record_is_a_dataset_and_no_run() -> None:
    left = [found for found in small() if found.stage != "tokenizer"]
    found = list(events(lineage(left, key("seed")), STORE))
    assert {event["outputs"][0]["name"] for event in found} == {"data.law", "seed"}
    assert {"source.law", "tokenizer"} <= {dataset["name"] for event in found for dataset in event["inputs"]}


def test_another_stores_datasets_are_in_its_namespace() -> None:
    origin = {"stage": "expert.law", "key": key("expert.law"), "digest": "bytes of expert.law"}
    adopted = record("adopted.law", {}, {"origin": origin})
    foreign = [ForeignRecord(record("expert.law"), "s3://theirs")]
    found = list(events(lineage([adopted], adopted.key, "up", foreign), STORE))
    assert {event["outputs"][0]["name"]: event["outputs"][0]["namespace"] for event in found} == {
        "expert.law": "s3://theirs",
        "adopted.law": STORE,
    }


@pytest.mark.parametrize("odd", [{"started": float("nan")}, {"ended": float("inf")}, {"started": -1e20}])
def test_times_that_no_calendar_has(odd: dict[str, float]) -> None:
    made = replace(record("seed"), **odd)
    assert all(json.loads(line) for line in to_openlineage(lineage([made], made.key), STORE).splitlines())


def test_a_line_is_an_event_whatever_the_names() -> None:
    records = hostile()
    lines = to_openlineage(lineage(records, records[-1].key), STORE).split("\n")
    assert len(lines) == 2 * len(records)
    assert {json.loads(line)["outputs"][0]["name"] for line in lines} == {made.stage for made in records}
