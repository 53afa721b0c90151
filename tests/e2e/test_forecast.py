"""What a finished store says of a plan's forecast: predicted beside measured, for every stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml

from bam_core.graph.record import Record
from pipelines.wiring.estimating import _own_peak
from tests.core.test_planner import DEVICE
from tests.e2e.kit import STAGES, Place

TRAINED = {"seed", "expert.code", "expert.law", "train.bam", "train.btx", "dense"}


def test_predicted_beside_measured(finished: Place, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(DEVICE.to_json()))
    node = {"name": "here", "cpus": 2, "memory": "16G", "calibration": "calibration.json"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"nodes": [node]}))
    on = ("--on", str(tmp_path / "cluster.yaml"), "--compare")
    answer = finished.plan(*on)
    assert answer.status == 0, answer.err
    stages = answer.json["forecast"]["stages"]
    assert [stage["stage"] for stage in stages] == list(STAGES)
    for stage in stages:
        record = finished.record(stage["stage"])
        assert stage["measured_s"] == record["ended"] - record["started"]
        assert stage["measured_bytes"] is None, "one process made all of them"
    shown = finished.bam("plan", str(finished.recipe), *on).out
    assert "together: predicted" in shown
    assert "made with torch" not in shown, "the calibration does not say"
    packages = finished.record("seed")["provenance"]["packages"]
    for calibrated, is_told in ((packages["torch"], False), ("2.0.0+cu126", True)):
        other = DEVICE.to_json() | {"made": {"torch": calibrated}}
        (tmp_path / "calibration.json").write_text(json.dumps(other))
        shown = finished.bam("plan", str(finished.recipe), *on).out
        assert (f"made with torch {packages['torch']}, calibrated with 2.0.0+cu126: " in shown) == is_told
    assert json.loads(finished.bam("plan", str(finished.recipe), *on[:2], "--json").out)["forecast"]["stages"] == []


def test_memory_is_compared_where_a_training_has_its_own_process(finished: Place) -> None:
    record = Record.from_json(finished.record("seed"), "seed")
    on_ray = replace(record, provenance={**record.provenance, "ran_on": [{"host": "a", "node": "n", "rank": 0}]})
    assert _own_peak(on_ray) == record.metrics["peak_memory_bytes"] > 50e6
    assert _own_peak(record) is None
    assert _own_peak(Record.from_json(finished.record("data.law"), "data")) is None


def test_the_peak_is_in_the_record_and_in_no_file(finished: Place) -> None:
    for stage in TRAINED:
        assert finished.record(stage)["metrics"]["peak_memory_bytes"] > 0
        texts = [path for path in finished.artifact(stage).iterdir() if path.suffix in (".json", ".md")]
        assert [path.name for path in texts if b"peak_memory" in path.read_bytes()] == ["record.json"]
