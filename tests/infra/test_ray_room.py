"""A group that a cluster can never hold is refused with the arithmetic; anything that may fit one day may wait."""

from __future__ import annotations

import pytest

from bam_core.errors import UsageError
from bam_core.graph.stage import Resources
from infra.ray_room import _has_no_autoscaler, require_room

GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "group"),
    [
        ([{"CPU": 4.0}], Resources(2, 2)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], Resources(2, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], Resources(2, 1, 1)),
        ([{"CPU": 2.0}], Resources(1, 2, max_workers=4)),  # the fewest of an elastic group do
        ([{}, {"CPU": 4.0}], Resources(1, 4)),  # a head that gives nothing
    ],
)
def test_a_group_that_fits(nodes: list[dict[str, float]], group: Resources) -> None:
    require_room(group, nodes)


@pytest.mark.parametrize(
    ("nodes", "group", "words"),
    [
        (
            [{"CPU": 3.0}, {"CPU": 3.0}],  # 6 CPUs, but one worker of 2 on each
            Resources(3, 2),
            "a worker group of 3 x 2 CPU can never fit: the cluster has 3 CPU, 3 CPU, room for 2 such worker(s); "
            "lower runtime.*.workers to 2, ask for less per worker, or add nodes",
        ),
        (
            [{"CPU": 8.0}, {}],
            Resources(1, 1, 1),
            "a worker group of 1 x 1 CPU and 1 GPU can never fit: the cluster has 8 CPU and 0 GPU, 0 CPU and 0 GPU, "
            "room for 0 such worker(s); set runtime.*.gpus to 0 (the largest node's), or add a node with 1 GPU",
        ),
        (
            [{"CPU": 2.0}, {"CPU": 4.0}],
            Resources(2, 64, max_workers=8),
            "a worker group of at least 2 x 64 CPU can never fit: the cluster has 2 CPU, 4 CPU, "
            "room for 0 such worker(s); set runtime.*.cpus to 4 (the largest node's), or add a node with 64 CPU",
        ),
        (
            [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 16.0}],
            Resources(1, 8, 1),
            "a worker group of 1 x 8 CPU and 1 GPU can never fit: the cluster has 1 CPU and 4 GPU, 16 CPU and 0 GPU, "
            "room for 0 such worker(s); no node has all of it together: ask for less per worker, or add a larger node",
        ),
        (
            [],
            Resources(1, 1),
            "a worker group of 1 x 1 CPU can never fit: the cluster has no node, room for 0 such worker(s); "
            "set runtime.*.cpus to 0 (the largest node's), or add a node with 1 CPU",
        ),
    ],
)
def test_a_group_that_can_never_fit(nodes: list[dict[str, float]], group: Resources, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        require_room(group, nodes)
    assert str(refused.value) == words


def test_the_stage_is_named() -> None:
    with pytest.raises(UsageError, match=r"^expert\.law: a worker group"):
        require_room(Resources(1, 2), [{"CPU": 1.0}], (), "expert.law")


def test_nodes_that_an_autoscaler_adds_count() -> None:
    group = Resources(2, 8, 1)
    require_room(group, [{}], [GPU_NODE, GPU_NODE])
    require_room(group, [{}], None)  # an autoscaler that does not say what it has
    with pytest.raises(UsageError, match=r"an autoscaler can add 8 CPU and 1 GPU, room for 1 such worker"):
        require_room(group, [{}], [GPU_NODE])


@pytest.mark.parametrize(
    ("report", "has_none"),
    [
        ({}, True),
        ({"active_nodes": {"node_14c829b98089": 1, "node_36aa785d9125": 1}}, True),  # `ray start`, no cluster file
        ({"active_nodes": {"head": 1}}, False),  # `ray up ray_cluster.yaml`, before any worker is there
    ],
)
def test_a_monitor_without_a_cluster_file_is_no_autoscaler(report: dict[str, dict[str, int]], has_none: bool) -> None:
    assert _has_no_autoscaler(report) == has_none
