"""The Ray executor and trainer pass the suites of the local ones; then what only a cluster can show."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from executor_suite import ExecutorSuite, TrainerSuite, collect, count, meeting, stage

from bam_core.errors import UsageError
from bam_core.graph.stage import Resources
from bam_core.protocols import Executor, Trained, Trainer, TrainWorker

__all__ = ["meeting"]  # a fixture
pytestmark = pytest.mark.ray


@pytest.fixture
def executor(ray_cluster: None) -> Iterator[Executor]:
    from infra.ray_executor import RayExecutor

    executor = RayExecutor()
    yield executor
    executor.close()


class TestRayExecutor(ExecutorSuite):
    pass


class Located:
    """Inputs that are where they are on every worker."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self.inputs = dict(inputs)

    def __call__(self) -> dict[str, Path]:
        return self.inputs


def silent(step: int, metrics: Mapping[str, float]) -> None:
    pass


def count_and_die_once(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """As `count`, but the worker process is killed after step 3, once."""
    marker = Path(config["marker"])

    class Deadly:
        rank, world_size, inputs = worker.rank, worker.world_size, worker.inputs
        resume_dir, log = staticmethod(worker.resume_dir), staticmethod(worker.log)

        def save(self, step: int, write: Callable[[Path], None], **_: Any) -> None:
            worker.save(step, write)
            if step == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return count(Deadly(), config)  # type: ignore[arg-type]


def sum_of_ranks(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """The ranks really talk to each other."""
    import torch

    total = torch.tensor([float(worker.rank + 1)])
    torch.distributed.all_reduce(total)
    return Trained({"total": float(total), "threads": worker.threads}, write=lambda folder: None)


def kill_the_coordinator_once(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """What the stage's own process started goes with it; the one that repeats it is another process."""
    marker = Path(config["marker"])
    if not marker.exists():
        if worker.rank == 0:
            marker.touch()
            os.kill(config["coordinator"], signal.SIGKILL)
        threading.Event().wait()  # for its end
    return Trained({"coordinator": config["coordinator"]}, write=lambda folder: None)


def coordinate(folder: Path) -> tuple[int, int]:
    """A stage that trains with all the room there is. Returns its process and the one of which its workers know."""
    from infra.ray_train import RayTrainer

    config = {"marker": str(folder / "died"), "coordinator": os.getpid()}
    out = folder / f"out-{os.getpid()}"
    out.mkdir()
    trainer = RayTrainer(str(folder / "training" / "expert.law-0"), Located({}), silent, folder / "nowhere")
    result = trainer.fit(kill_the_coordinator_once, config, Resources(workers=2, cpus=1, trains=True), out)
    return os.getpid(), result["coordinator"]


def test_a_killed_coordinator_leaves_its_room_to_the_one_that_follows(executor: Executor, tmp_path: Path) -> None:
    executor.submit(stage("expert.law", workers=2, trains=True), coordinate, tmp_path)
    own, of_the_workers = collect(executor, 1)["expert.law"]
    assert own == of_the_workers
    assert len(list(tmp_path.glob("out-*"))) == 2


class TestRayTrainer(TrainerSuite):
    @pytest.fixture
    def new_trainer(self, ray_cluster: None, tmp_path: Path) -> Callable[[Mapping[str, Path]], Trainer]:
        from infra.ray_train import RayTrainer

        uri = str(tmp_path / "training" / "expert.law-0123456789ab")
        return lambda inputs: RayTrainer(uri, Located(inputs), silent, tmp_path / "nowhere")

    def test_a_killed_worker_resumes_from_its_checkpoint(
        self,
        new_trainer: Callable[[Mapping[str, Path]], Trainer],
        inputs: dict[str, Path],
        out: Path,
        tmp_path: Path,
    ) -> None:
        config = {"marker": str(tmp_path / "died")}
        result = new_trainer(inputs).fit(count_and_die_once, config, self.GROUP, out)
        # Ray registers a checkpoint when its controller has heard of it, and hears of the next one only then: a worker
        # that dies in the same instant may take two with it. Here each step makes one; in earnest minutes lie between.
        assert result["starts"] in ([0, 1], [0, 2], [0, 3])
        assert (out / "model" / "total.txt").read_text() == "from seed: 15"

    def test_two_workers_form_one_group(
        self, new_trainer: Callable[[Mapping[str, Path]], Trainer], inputs: dict[str, Path], out: Path
    ) -> None:
        result = new_trainer(inputs).fit(sum_of_ranks, {}, Resources(workers=2, cpus=1, trains=True), out)
        assert result == {"total": 3.0, "threads": 1}

    def test_a_group_that_can_never_fit_fails_at_once_with_the_arithmetic(
        self, new_trainer: Callable[[Mapping[str, Path]], Trainer], inputs: dict[str, Path], out: Path
    ) -> None:
        group = Resources(workers=3, cpus=64, trains=True)
        with pytest.raises(UsageError, match=r"3 x 64 CPU can never fit: the cluster has 2 CPU, room for 0"):
            new_trainer(inputs).fit(count, {}, group, out)
