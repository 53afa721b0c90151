"""Runs on record: what was written is read, what is damaged is passed over, and nothing leaves its folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from store_kit import store, uri  # noqa: F401

from bam_core.errors import ArtifactDamaged
from bam_core.graph.runs import Run, RunStage
from infra.store import ArtifactStore

KEY = "ab" * 32


def a_run(name: str = "quick-1", started: float = 1.0) -> Run:
    stages = {
        "seed": RunStage(KEY, "reuse", {}),
        "expert.law": RunStage("cd" * 32, "run", {"seed": ("seed", KEY)}),
    }
    return Run(name, "quick", "running", started, None, {"name": "quick"}, stages, {"user": "me"})


def test_a_run_is_read_as_it_was_written_and_replaced_by_its_end(store: ArtifactStore) -> None:  # noqa: F811
    store.runs.write(a_run("b", started=2.0))
    store.runs.write(a_run("a", started=3.0))
    ended = replace(a_run("b", started=2.0), status="done", ended=5.0)
    store.runs.write(ended)
    assert store.runs.all() == [ended, a_run("a", started=3.0)]
    assert ended.artifacts() == [("seed", KEY), ("expert.law", "cd" * 32)]
    store.runs.remove("b")
    assert store.runs.all() == [a_run("a", started=3.0)]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 99}', json.dumps(a_run("other").to_json())])
def test_a_damaged_or_misplaced_run_is_passed_over(store: ArtifactStore, text: str) -> None:  # noqa: F811
    store.runs.write(a_run())
    store.storage.write_atomic("runs/broken.json", text.encode())
    assert store.runs.all() == [a_run()]


def test_what_is_wrong_with_a_run_is_named() -> None:
    with pytest.raises(ArtifactDamaged, match=r"x\.json: not a run of this version of bam"):
        Run.from_json(a_run().to_json() | {"stages": {"seed": {}}}, "x.json")
    with pytest.raises(ArtifactDamaged, match=r"x\.json: schema 7"):
        Run.from_json(a_run().to_json() | {"schema": 7}, "x.json")
