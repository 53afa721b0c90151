"""How many workers a group may have now: counted from what the nodes have free, and asked of nobody.

Ray Train asks a coordinator, a detached actor that is bound to the node where the first run of the cluster started.
Once that node is lost it never comes back, and an elastic group waits for its answer for ever (seen with Ray 2.60).
What an autoscaler has to start it sees in the placement groups that wait; for more than its fewest workers an elastic
group starts no node, it takes the room that is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.config import ScalingConfig


def scaling_policy(config: ScalingConfig) -> FixedPolicy | ElasticPolicy:
    return ElasticPolicy(config) if config.elasticity_enabled else FixedPolicy(config)


class _AsksNobody:
    holds: Mapping[str, int] = {}
    """Workers of the group on each node: what they have is free to the group that takes their place."""

    def after_controller_start(self, train_run_context: Any) -> None: ...
    def _maybe_send_resource_request(self) -> None: ...
    def _cancel_resource_request(self) -> None: ...


class FixedPolicy(_AsksNobody, FixedScalingPolicy):
    pass


class ElasticPolicy(_AsksNobody, ElasticScalingPolicy):
    def _get_reserved_resources(self) -> dict[str, dict[str, float]]:
        each = self.scaling_config._resources_per_worker_not_none
        alive = (node["NodeID"] for node in ray.nodes() if node["Alive"])
        return room(available_resources_per_node(), alive, self.holds, each)


def room(
    free: Mapping[str, Mapping[str, float]], alive: Iterable[str], holds: Mapping[str, int], each: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Node -> what a new group could have there, of the resources that a worker asks for."""
    return {
        node: {unit: free.get(node, {}).get(unit, 0.0) + holds.get(node, 0) * n for unit, n in each.items()}
        for node in alive
    }


def nodes_of(workers: Iterable[Any]) -> Mapping[str, int]:
    return Counter(worker.metadata.node_id for worker in workers)
