"""Ray Train v2 behind the `Trainer` port: one worker group for one artifact.

The run's name holds the artifact's key, so a rerun finds its own checkpoints and no other's (Ray resumes by name,
silently). A BamError of the loop is returned from the workers, not raised: Ray would retry what can only fail again.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.result import Result

from bam_core import errors
from bam_core.graph.stage import Resources
from bam_core.protocols import Metrics, Place, TrainLoop
from infra.devices import device_name
from infra.logs import capture_output
from infra.process_group import process_group
from infra.ray_controller import InProcessTrainer
from infra.ray_room import cluster_nodes, nodes_that_may_come, require_room
from infra.ray_snapshot import require_own_checkpoints
from infra.storage import ray_storage

RESULT_FILE, OUTPUT_FOLDER = "result.json", "output"
MAX_WORKER_FAILURES = 3
"""In a row, without a new checkpoint."""
LOOK_FOR_ROOM_S = 60.0
"""How often an elastic group looks for room to grow. To grow costs what was trained since the newest checkpoint."""


@dataclass(frozen=True)
class RayTrainer:
    """training_uri: where this artifact's checkpoints live; its last part is the run's name.

    locate: gives each worker local folders of the stage's inputs. log: publishes rank 0's live figures.
    log_dir: where the workers' output goes, if that folder exists where they run. callbacks: of Ray Train, called
    where `fit` is.
    """

    training_uri: str
    locate: Callable[[], Mapping[str, Path]]
    log: Callable[[int, Metrics], None]
    log_dir: Path
    workers: list[Place] = field(default_factory=list)
    callbacks: Sequence[ray.train.UserCallback] = ()

    def fit(self, loop: TrainLoop, config: Mapping[str, Any], group: Resources, out: Path) -> Mapping[str, Any]:
        """Run the loop on `group`. Raises UsageError, with the arithmetic, if no node can ever hold the group."""
        require_room(group, cluster_nodes(), nodes_that_may_come())
        require_own_checkpoints(self.training_uri)
        filesystem, parent, name = ray_storage(self.training_uri)
        run_config: Any = RunConfig(  # the trainer's types ask for the class of Ray's older trainers
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(self.callbacks),
        )
        trainer = InProcessTrainer(
            _worker,
            train_loop_config={
                "trainer": replace(self, callbacks=()),
                "loop": loop,
                "config": config,
                "cpus": group.cpus,
            },
            scaling_config=ScalingConfig(
                num_workers=(group.workers, group.max_workers) if group.max_workers else group.workers,
                use_gpu=group.gpus > 0,
                resources_per_worker={"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {}),
                placement_strategy=group.placement.upper(),
                elastic_resize_monitor_interval_s=LOOK_FOR_ROOM_S,
            ),
            run_config=run_config,
        )
        result = cast(Result, trainer.fit())
        returned: Any = result.return_value
        if isinstance(returned, errors.BamError):
            raise returned
        self.workers[:] = returned["workers"]
        assert result.checkpoint is not None, "every worker reports its end with a checkpoint"
        with result.checkpoint.as_directory() as folder:
            shutil.copytree(Path(folder) / OUTPUT_FOLDER, out, dirs_exist_ok=True)
        result_of_loop: Mapping[str, Any] = returned["result"]
        return result_of_loop


class _RayWorker:
    """`TrainWorker` inside a Ray Train worker process."""

    def __init__(self, trainer: RayTrainer, cpus: int) -> None:
        from ray.train.torch import get_device  # imports torch, which the stage's own process does without

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device, self.threads = str(get_device()), cpus
        self.inputs = trainer.locate()
        self._log = trainer.log
        self._is_remote = ray_storage(trainer.training_uri)[0] is not None
        self._uploaded = threading.Event()
        self._uploaded.set()

    def resume_dir(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        local = Path(checkpoint.path)
        return local if local.is_dir() else Path(checkpoint.to_directory())

    def save(
        self, step: int, write: Callable[[Path], None], *, metrics: Metrics | None = None, sharded: bool = False
    ) -> None:
        self._report(f"step-{step:08d}", write, metrics or {}, sharded or self.rank == 0, beside=self._is_remote)

    def finish(self, write: Callable[[Path], None]) -> None:
        self._report("finished", write, {}, self.rank == 0, beside=False)

    def log(self, step: int, metrics: Metrics) -> None:
        if self.rank == 0:
            self._log(step, metrics)

    def _report(
        self, name: str, write: Callable[[Path], None], metrics: Metrics, writes: bool, *, beside: bool
    ) -> None:
        """A barrier: every rank reports, and brings the files that it wrote.

        beside: they are uploaded beside the training that goes on, one checkpoint at a time: a slow network cannot
        fill the disk, and a failed upload ends this worker as it would have here.
        """
        if not writes:
            ray.train.report(dict(metrics), checkpoint_dir_name=name)
            return
        self._uploaded.wait()
        self._uploaded.clear()
        storage = ray.train.get_context().get_storage()
        folder = Path(tempfile.mkdtemp(prefix="bam-checkpoint-"))

        def upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                kept: ray.train.Checkpoint = storage.persist_current_checkpoint(checkpoint, name)
                return kept
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                self._uploaded.set()

        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        mode = ray.train.CheckpointUploadMode.ASYNC if beside else ray.train.CheckpointUploadMode.SYNC
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )


def _worker(setup: dict[str, Any]) -> dict[str, Any] | errors.BamError:
    """What runs in each worker process. Returns the loop's result and where each rank ran."""
    trainer: RayTrainer = setup["trainer"]
    worker = _RayWorker(trainer, setup["cpus"])
    log_file = trainer.log_dir / f"worker-{worker.rank}.txt"
    with ExitStack() as stack:
        if trainer.log_dir.is_dir():
            stack.enter_context(capture_output(log_file))
        newest = worker.resume_dir()
        if newest is not None and (newest / RESULT_FILE).exists():
            finished: dict[str, Any] = json.loads((newest / RESULT_FILE).read_text())
            return finished
        gather = stack.enter_context(process_group(worker.rank, worker.world_size, worker.device))
        workers = gather({"rank": worker.rank, **place()})
        try:
            trained = setup["loop"](worker, setup["config"])
        except errors.BamError as error:
            return error
        ended = {"result": dict(trained.result), "workers": workers}

        def write(folder: Path) -> None:
            (folder / OUTPUT_FOLDER).mkdir()
            trained.write(folder / OUTPUT_FOLDER)
            (folder / RESULT_FILE).write_text(json.dumps(ended))

        worker.finish(write)
        return ended


def place() -> Place:
    """Where this process runs."""
    node = ray.get_runtime_context().get_node_id()
    return {"host": socket.gethostname(), "node": node, "device": device_name()}
