"""Ray Train's controller, run in the process that asked for the worker group.

Ray gives each run an actor for its controller, one that frees the group's room if the first is killed, and one for data
sets: processes that import all of Ray Train before a worker starts. Here the same controller runs where `fit` is
called, and room is freed by name: the placement group is called after the run, and whoever runs it next, as when Ray
repeats a stage whose process was killed, first frees what the last one left. Ray frees the rest when the job ends.

Rests on private parts of Ray Train 2.60, to which the project is pinned; `tests/infra/test_ray.py` holds it to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import ray
import ray.util
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from infra.ray_elastic import ElasticPolicy, FixedPolicy, nodes_of, scaling_policy

NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)
"""Each starts an actor, thus a process; the second one for Ray's data sets, of which there are none."""
QUEUED_AT_MOST_S = 30 * 24 * 3600.0
"""A group of a fixed size keeps its place in the queue; Ray's 60 s would put it at the end again and again."""
RECOUNT_AFTER_S = 10.0
"""An elastic group that has not got the room it counted, since another one took it, counts again."""
LOOK_FOR_ROOM_S = 1.0
"""How often an elastic group without room for its fewest looks again; Ray itself would ask without a pause."""


def free_room(run: str) -> None:
    """End what is left of a run of this job whose process was killed: its workers, and the room that they had."""
    with suppress(ValueError):  # there is none
        ray.util.remove_placement_group(ray.util.get_placement_group(_room_of(run)))


def _room_of(run: str) -> str:
    """The name of its placement group; a job's names are its own."""
    return f"bam-{run}"


class InProcessTrainer(DataParallelTrainer):
    """A `DataParallelTrainer` whose `fit` starts the workers and nothing else."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, NOT_NEEDED)]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        # Ray names the classes of its older trainers here, to a type checker only.
        failures = _FailuresWithoutProgress(cast(FailureConfig, self.run_config.failure_config))
        policy = scaling_policy(cast(ScalingConfig, self.scaling_config))
        parts |= {"scaling_policy": policy, "failure_policy": failures}
        controller = _Controller(**parts)
        failures.newest = lambda: controller._checkpoint_manager.latest_checkpoint_result
        try:
            asyncio.run(controller.run())  # type: ignore[no-untyped-call]  # Ray's
        finally:
            if (group := controller.get_worker_group()) is not None:  # interrupted
                group.shutdown()
        return controller.get_result()


class _FailuresWithoutProgress(DefaultFailurePolicy):
    """`max_failures` in a row without a new checkpoint end a run: a long one may lose any number of workers."""

    newest: Callable[[], object] = staticmethod(lambda: None)
    _seen: object = None

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if (newest := self.newest()) is not self._seen:
            self._seen, self._worker_group_failures = newest, 0
        return super().make_decision(training_failed_error)


class _Group(WorkerGroup):
    def __init__(self, train_run_context: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(train_run_context, *args, **kwargs)
        is_elastic = train_run_context.scaling_config.elasticity_enabled
        self._worker_group_start_timeout_s = RECOUNT_AFTER_S if is_elastic else QUEUED_AT_MOST_S

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        run = self._train_run_context.run_config.name
        assert run is not None, "a run without a name: whoever runs it next could not free its room"
        free_room(run)
        group = ray.util.placement_group(
            bundles=[worker_group_context.resources_per_worker] * worker_group_context.num_workers,
            strategy=worker_group_context.placement_strategy,
            name=_room_of(run),
        )
        return DefaultPlacementGroupHandle(group)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        """As Ray's, but that the workers get no handle of a controller: it is no actor."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[i] for name, values in train_context_args.items()},
                )
                for i, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        """The job's own: another one would need another process than those that Ray has ready."""
        return dict(custom_runtime_env)


class _Controller(TrainController):
    worker_group_cls = _Group
    _scaling_policy: FixedPolicy | ElasticPolicy

    def _start_worker_group(self, *args: Any, **kwargs: Any) -> None:
        self._scaling_policy.holds = {}
        super()._start_worker_group(*args, **kwargs)
        assert self._worker_group is not None, "a group that was started is there"
        self._scaling_policy.holds = nodes_of(self._worker_group.get_workers())

    async def _run_control_loop_iteration(self) -> None:
        await super()._run_control_loop_iteration()  # type: ignore[no-untyped-call]  # Ray's
        if isinstance(self.get_state(), InitializingState | RestartingState | ReschedulingState):
            await asyncio.sleep(LOOK_FOR_ROOM_S if self._scaling_policy.scaling_config.elasticity_enabled else 0)
