"""Stages as Ray tasks. Coordinators of training ask for no CPU: their worker groups do (see `ray_train`).

On a laptop an embedded Ray is started and dies with this process; `address` joins a cluster instead. Ray places and
restarts work; it holds nothing that a rerun needs.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray._private import ray_constants

from bam_core.errors import ExecutorLost
from bam_core.graph.stage import Stage
from infra import ray_env
from infra.ray_head import HeadWatch
from infra.ray_join import join, require_shared
from infra.ray_room import cluster_nodes, nodes_that_may_come, require_room

OBJECT_STORE_BYTES = 100 * 1024**2
"""Stages pass URIs, never weights, so the object store stays near Ray's minimum (75 MiB)."""
MOST_STAGES_AT_ONCE = 16
"""Each stage that trains costs two processes besides its workers."""


def start_ray(address: str | None, n_cpus: int, verbose: bool) -> None:
    """Join the cluster at `address`, or start an embedded one with `n_cpus` logical CPUs. Idempotent.

    Raises UsageError if the cluster cannot be joined.
    """
    if ray.is_initialized():
        return
    common: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address:
        join(address, verbose=verbose, runtime_env={"env_vars": ray_env.for_workers()}, **common)
    else:  # its processes inherit this environment; one of their own would cost each of them a start from nothing
        _keep_to_loopback()
        ray.init(
            num_cpus=n_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",  # nothing of it is for other machines
            **common,
        )


def _keep_to_loopback() -> None:
    """Ray looks at the environment when it is imported, which may have been before this was asked of it."""
    for name, value in ray_env.LOOPBACK.items():
        if os.environ.setdefault(name, value) == value:
            ray_constants.ENABLE_RAY_CLUSTER = False


def describe_cluster(address: str, verbose: bool) -> list[dict[str, float]]:
    """What each node of a cluster has. Raises UsageError as `start_ray`."""
    start_ray(address, 0, verbose)
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RayExecutor:
    """Runs each stage as one Ray task; a lost node's task is run again elsewhere and resumes from its checkpoint."""

    def __init__(self, address: str | None = None, n_cpus: int | None = None, verbose: bool = False) -> None:
        self._is_lost = False
        self._owns_ray = not ray.is_initialized()
        start_ray(address, n_cpus or available_cpus(), verbose)
        self._stages: dict[ray.ObjectRef[Any], str] = {}
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        self.capacity = min(MOST_STAGES_AT_ONCE, max(1, int(ray.cluster_resources().get("CPU", 1))))

    def require_room(self, stages: Iterable[Stage]) -> None:
        """Raises UsageError, before anything has run, for a stage that this cluster can never hold."""
        nodes, coming = cluster_nodes(), nodes_that_may_come()
        for stage in stages:
            require_room(stage.resources, nodes, coming, stage.name)

    def require_shared(self, store_uri: str) -> None:
        """Raises UsageError, before anything has run, if a node cannot see this local folder."""
        require_shared(store_uri, ray.nodes())

    def submit(self, stage: Stage, task: Callable[..., Any], *args: Any) -> None:
        self._require_head()
        n_cpus, n_gpus = (0, 0) if stage.resources.trains else (stage.resources.cpus, stage.resources.gpus)
        # A stage that computes has a process to itself, whose memory goes back when it ends. One that trains only
        # coordinates, and the next one is spared the seconds that the imports take.
        once = ray.remote(max_calls=0 if stage.resources.trains else 1)(task)
        remote = once.options(name=stage.name, num_cpus=n_cpus, num_gpus=n_gpus, max_retries=2)
        self._stages[remote.remote(*args)] = stage.name

    def wait(self, timeout_s: float) -> Sequence[tuple[str, Any]]:
        if not self._stages:
            return []
        self._require_head()
        ended, _ = ray.wait(list(self._stages), num_returns=1, timeout=timeout_s)
        return [(self._stages.pop(ref), _result(ref)) for ref in ended]

    def close(self) -> None:
        """Stop what still runs. An embedded Ray ends with it; a cluster stays."""
        if self._is_lost:
            return
        for ref in self._stages:
            ray.cancel(ref, force=True)
        self._stages.clear()
        if self._owns_ray:
            ray.shutdown()

    def _require_head(self) -> None:
        try:
            self._head.require()
        except ExecutorLost as error:
            self._is_lost = True
            # At its exit Ray would wait for the head; the last registered is the first to run.
            atexit.register(os._exit, error.exit_code)
            raise


def _result(ref: ray.ObjectRef[Any]) -> Any:
    """The task's value, or its own exception rather than Ray's wrapping of it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return error.cause if error.cause is not None else error
    except ray.exceptions.RayError as error:
        return error
