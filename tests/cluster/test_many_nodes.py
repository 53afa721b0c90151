"""Several nodes: separate raylets on this machine, each with CPUs of its own, and a store that only S3 can be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.store import ArtifactStore
from tests.cluster.groups import GATES, ROWS, STEPS
from tests.cluster.kit import LOOK_EVERY_S, Cluster
from tests.e2e.fixtures import empty, finished
from tests.e2e.kit import NO_MLFLOW, Place, merged
from tests.infra.s3_kit import S3Server, s3_server, use

__all__ = ["empty", "finished", "s3_server"]  # fixtures
pytestmark = [pytest.mark.long, pytest.mark.ray]  # a cluster takes half a minute to start

FEWER = {"variants": {"btx": None}, "dense": False}
TRAINED = ("seed", "expert.code", "expert.law", "mix.bam", "train.bam")


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a second node, one CPU each, with the credentials of the S3 server."""
    cluster = Cluster(tmp_path_factory.mktemp("c"), cpus=1, extra_env=s3_server.env())
    try:
        cluster.start().add_node("second", cpus=1)
        yield cluster
    finally:
        cluster.stop()


def bam(cluster: Cluster, store: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("bam")
    command = [str(script), *words, "--store", store, *NO_MLFLOW, "--executor", "ray", "--address", cluster.address]
    return subprocess.run(command, env=cluster.env(), capture_output=True, text=True)


def groups(cluster: Cluster, what: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.cluster.groups", what, cluster.address, str(folder)]
    return subprocess.Popen(command, env=cluster.env(), stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_experts_on_both_nodes_over_s3_are_byte_identical_to_one_process(
    cluster: Cluster, s3_server: S3Server, finished: Place, empty: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.set_recipe(merged(empty.recipe_dict(), FEWER))
    local = empty.run()
    assert local.status == 0, local.err
    store = s3_server.uri("two-nodes")
    done = bam(cluster, store, "run", str(empty.recipe), "--json")
    assert done.returncode == 0, done.stderr

    use(s3_server, monkeypatch)
    there = ArtifactStore(store)
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    for stage in (*TRAINED, "evaluate"):
        record = there.record(stage, stages[stage]["key"])
        assert record is not None
        ours = empty.record(stage)
        assert [(output.path, output.sha256) for output in record.outputs] == [
            (output["path"], output["sha256"]) for output in ours["outputs"]
        ], stage
    nodes = {expert: ran_on(there, expert, stages[expert]["key"]) for expert in ("expert.code", "expert.law")}
    assert nodes["expert.code"].isdisjoint(nodes["expert.law"]), "side by side: a node has room for one of them"

    again = bam(cluster, store, "run", str(empty.recipe), "--json")
    assert {stage["action"] for stage in json.loads(again.stdout)["stages"]} == {"reuse"}


def ran_on(store: ArtifactStore, stage: str, key: str) -> set[str]:
    record = store.record(stage, key)
    assert record is not None
    return {place["node"] for place in record.provenance["ran_on"]}


def test_a_stage_that_no_node_can_hold_fails_before_anything_runs(
    cluster: Cluster, s3_server: S3Server, empty: Place
) -> None:
    done = bam(
        cluster, s3_server.uri("no-room"), "run", str(empty.recipe), "--set", "runtime.expert.cpus=2", "--keep-going"
    )
    assert done.returncode == 2
    assert "expert.code: a worker group of 1 x 2 CPU can never fit: the cluster has 1 CPU, 1 CPU" in done.stderr
    assert "set runtime.*.cpus to 1 (the largest node's), or add a node with 2 CPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_elastic_group_shrinks_and_grows_and_computes_the_same(cluster: Cluster, tmp_path: Path) -> None:
    process = groups(cluster, "elastic", tmp_path)
    _, shrinks, grows = GATES
    until_saved(process, tmp_path, shrinks - 1)
    cluster.nodes.pop().kill()
    until_saved(process, tmp_path, grows - 1)
    cluster.add_node("third", cpus=1)
    done = answer(process)
    assert done["driver"] == "head"
    assert {step: done["sizes"][step] for step in GATES} == GATES
    assert done["total"] == sum(row + step for step in range(STEPS) for row in range(ROWS))
    assert done["workers"] == 2


def until_saved(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    while not list(folder.glob(f"training/elastic/step-{step:08d}")):
        assert process.poll() is None
        time.sleep(LOOK_EVERY_S)


def test_packed_on_one_node_spread_over_two(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node("wide", cpus=2)
    done = answer(groups(cluster, "placed", tmp_path))
    assert [done["names"][node] for node in done["pack"]] == ["wide", "wide"]
    assert len(set(done["spread"])) == 2
