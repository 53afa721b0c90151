"""Whether a cluster can ever hold a worker group: where it cannot, Ray would queue the group for ever, without a word.

What is free at the moment does not matter (a group waits for that), and neither does what another stage asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bam_core.errors import UsageError
from bam_core.graph.stage import Resources

Node = Mapping[str, float]


def require_room(group: Resources, nodes: Sequence[Node], coming: Sequence[Node] | None = (), who: str = "") -> None:
    """Raises UsageError, with the arithmetic, if the fewest workers of `group` fit on no nodes of this cluster.

    nodes: what each one has, busy or not. coming: what an autoscaler may add; None where it may add it knows what.
    who: the stage, for the message.
    """
    asked = {"CPU": group.cpus, "GPU": group.gpus}
    if coming is None or sum(_fits(asked, node) for node in (*nodes, *coming)) >= group.workers:
        return
    rooms = [_fits(asked, node) for node in (*nodes, *coming)]
    each = " and ".join(f"{n} {unit}" for unit, n in asked.items() if n)
    fewest = f"at least {group.workers}" if group.max_workers else f"{group.workers}"
    sizes = ", ".join(_size(node, asked) for node in nodes) or "no node"
    later = f"; an autoscaler can add {', '.join(_size(node, asked) for node in coming)}" if coming else ""
    raise UsageError(
        f"{f'{who}: ' if who else ''}a worker group of {fewest} x {each} can never fit: "
        f"the cluster has {sizes}{later}, room for {sum(rooms)} such worker(s); {_remedy(asked, nodes, coming, rooms)}"
    )


def room_for(group: Resources, nodes: Sequence[Node]) -> int:
    """How many such groups the nodes hold at once, were they idle."""
    asked = {"CPU": group.cpus, "GPU": group.gpus}
    return sum(_fits(asked, node) for node in nodes) // group.workers


def _fits(asked: Mapping[str, int], node: Node) -> int:
    """How many workers an idle node holds; one that asks for nothing fits any number of times."""
    return min((int(node.get(unit, 0) // n) for unit, n in asked.items() if n), default=10**9)


def _size(node: Node, asked: Mapping[str, int]) -> str:
    return " and ".join(f"{node.get(unit, 0):g} {unit}" for unit, n in asked.items() if n)


def _remedy(asked: Mapping[str, int], nodes: Sequence[Node], coming: Sequence[Node], rooms: Sequence[int]) -> str:
    if sum(rooms):
        return f"lower runtime.*.workers to {sum(rooms)}, ask for less per worker, or add nodes"
    for unit, n in asked.items():
        largest = max((int(node.get(unit, 0)) for node in (*nodes, *coming)), default=0)
        if largest < n:
            return f"set runtime.*.{unit.lower()}s to {largest} (the largest node's), or add a node with {n} {unit}"
    return "no node has all of it together: ask for less per worker, or add a larger node"


def cluster_nodes() -> list[Node]:
    """What the nodes of the cluster that this process has joined have, busy or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def nodes_that_may_come() -> list[Node] | None:
    """What an autoscaler may add to the cluster: nothing without one; None if it does not say what."""
    from ray._private.state import state
    from ray.experimental.internal_kv import _internal_kv_get

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = config.node_group_configs
        if any(group.max_count < 0 for group in groups):
            return None
        return [dict(group.resources) for group in groups for _ in range(group.max_count)]
    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    return [] if _has_no_autoscaler(status.get("autoscaler_report") or {}) else None


def _has_no_autoscaler(report: Mapping[str, Any]) -> bool:
    """Every head runs a monitor; without a cluster file it knows no types of node and calls each by its own id."""
    return all(name.startswith("node_") for name in report.get("active_nodes", {}))
