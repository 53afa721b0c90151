"""The local executor and trainer: the suites that the Ray ones pass too, and what is only theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from executor_suite import ExecutorSuite, Meeting, TrainerSuite, collect, count, meeting, say_and_wait, stage

from bam_core.errors import UsageError
from bam_core.graph.stage import Resources
from bam_core.protocols import Executor, Trained, Trainer, TrainWorker
from infra.local_executor import LocalExecutor, LocalTrainer

__all__ = ["meeting"]  # a fixture
ROOT = Path(__file__).parents[2]


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = LocalExecutor()
    yield executor
    executor.close()


class TestLocalExecutor(ExecutorSuite):
    pass


def stop_process() -> None:
    raise SystemExit(3)


def test_a_task_that_asks_the_process_to_stop_is_not_lost(executor: Executor) -> None:
    executor.submit(stage("a"), stop_process)
    assert isinstance(collect(executor, 1)["a"], SystemExit)


def test_closing_does_not_wait_for_what_still_runs(meeting: Meeting) -> None:
    executor = LocalExecutor()
    executor.submit(stage("a"), say_and_wait, meeting.port, "a")
    meeting.hear()
    executor.close()
    meeting.answer("a", "late")
    assert collect(executor, 1) == {"a": "late"}


ENDS_WITH_A_TASK_IN_TORCH = """
import sys, threading
import torch
from bam_core.graph.stage import Stage
from infra.local_executor import LocalExecutor

started = threading.Event()

def train():
    weights = torch.randn(64, 64, requires_grad=True)
    while True:
        (weights @ weights).sum().backward()
        started.set()

executor = LocalExecutor()
executor.submit(Stage("seed", "seed", 1, {}, {}), train)
started.wait()
executor.close()
print("the last words")
sys.exit(130)
"""


def test_a_process_that_leaves_a_training_ends_with_its_status_and_words() -> None:
    """Not by an abort of torch, whose thread finds no interpreter any more."""
    code = [sys.executable, "-c", ENDS_WITH_A_TASK_IN_TORCH]
    ended = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "the last words\n", "")


class TestLocalTrainer(TrainerSuite):
    @pytest.fixture
    def new_trainer(self, tmp_path: Path) -> Callable[[Mapping[str, Path]], Trainer]:
        return lambda inputs: LocalTrainer(tmp_path / "training", inputs)

    def test_the_newest_checkpoints_are_kept(self, inputs: dict[str, Path], out: Path, tmp_path: Path) -> None:
        root = tmp_path / "training"
        LocalTrainer(root, inputs).fit(count, {}, self.GROUP, out)
        assert sorted(path.name for path in root.iterdir()) == ["step-000004", "step-000005"]
        assert json.loads((root / "step-000005" / "state.json").read_text())["total"] == 15

    def test_figures_are_logged_and_a_log_that_fails_stops_nothing(
        self, inputs: dict[str, Path], out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen = []

        def log(step: int, metrics: Mapping[str, Any]) -> None:
            seen.append((step, dict(metrics)))
            if step == 2:
                raise OSError("no space")

        LocalTrainer(tmp_path / "training", inputs, log).fit(count, {}, self.GROUP, out)
        assert seen == [
            (1, {"total": 1.0}),
            (2, {"total": 3.0}),
            (3, {"total": 6.0}),
            (4, {"total": 10.0}),
            (5, {"total": 15.0}),
        ]
        assert [record.getMessage() for record in caplog.records] == ["live figures of step 2 are lost"]

    def test_more_than_one_worker_is_refused(self, tmp_path: Path, out: Path) -> None:
        with pytest.raises(UsageError, match=r"2 workers: .* use Ray, or set workers: 1"):
            LocalTrainer(tmp_path / "training").fit(count, {}, Resources(workers=2), out)
        assert not (tmp_path / "training").exists()


def save_half(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    def write(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise KeyboardInterrupt

    worker.save(2, write)
    raise AssertionError("not reached")


def tell_resume(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    resumed = worker.resume_dir()
    found = {"resumed": resumed and resumed.name, "device": worker.device, "threads": worker.threads}
    return Trained(found, write=lambda folder: None)


@pytest.mark.parametrize("saved", [[], ["step-000001"], ["step-999999", "step-1000000"]])
def test_a_checkpoint_that_was_not_finished_is_never_resumed_from(tmp_path: Path, saved: list[str]) -> None:
    root, group = tmp_path / "training", Resources(cpus=3)
    for name in saved:
        (root / name).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        LocalTrainer(root).fit(save_half, {}, group, tmp_path)
    result = LocalTrainer(root).fit(tell_resume, {}, group, tmp_path)
    assert result == {"resumed": saved[-1] if saved else None, "device": "cpu", "threads": 3}
    assert sorted(path.name for path in root.iterdir()) == sorted(saved)


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    def save(text: str) -> Callable[[TrainWorker, Mapping[str, Any]], Trained]:
        def loop(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
            worker.save(7, lambda folder: (folder / "model").write_text(text) and None)
            return Trained({}, write=lambda folder: None)

        return loop

    for text in ("first", "second"):
        LocalTrainer(tmp_path / "training").fit(save(text), {}, Resources(), tmp_path)
    assert (tmp_path / "training" / "step-000007" / "model").read_text() == "second"
