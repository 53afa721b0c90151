"""What every executor and every trainer does, as test classes to inherit.

`ExecutorSuite` asks for the fixture `executor`; `TrainerSuite` for `new_trainer`, a function (inputs) ->
Trainer that works for the same artifact each time. Import the fixture `meeting` too.

Tasks and loops are module-level functions, since they may be sent to other processes. They meet over a
socket, so that "side by side" is shown without a clock.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import InvalidInput, Problem, TrainingDiverged, UsageError
from bam_core.graph.stage import Resources, Stage
from bam_core.protocols import Executor, Trained, Trainer, TrainWorker

PATIENCE_S = 120.0
"""Ends a test whose task never ends; no test takes this long."""


def stage(name: str, **resources: Any) -> Stage:
    return Stage(name, "f", 1, {}, resources=Resources(**resources))


def add(a: int, b: int) -> int:
    return a + b


def refuse(word: str) -> None:
    raise UsageError(f"no {word}")


def refuse_all(path: str) -> None:
    raise InvalidInput("recipe", [Problem(path, 3, "must be even")])


def divide(a: int) -> float:
    return a / 0


def say_and_wait(port: int, word: str) -> str:
    """Say the word to the test, and end with what it answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(word.encode() + b"\n")
        return connection.makefile().readline().strip()


class Meeting:
    """The test's end of `say_and_wait`."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE_S)
        self.port: int = self._server.getsockname()[1]
        self._waiting: dict[str, socket.socket] = {}

    def hear(self) -> str:
        connection, _ = self._server.accept()
        word = connection.makefile().readline().strip()
        self._waiting[word] = connection
        return word

    def answer(self, word: str, answer: str) -> None:
        with self._waiting.pop(word) as connection:
            connection.sendall(answer.encode() + b"\n")

    def close(self) -> None:
        for connection in (self._server, *self._waiting.values()):
            connection.close()


@pytest.fixture
def meeting() -> Any:
    meeting = Meeting()
    yield meeting
    meeting.close()


def collect(executor: Executor, n_tasks: int) -> dict[str, Any]:
    """Wait for `n_tasks`; each must end once."""
    results: dict[str, Any] = {}
    while len(results) < n_tasks:
        ended = executor.wait(PATIENCE_S)
        assert ended, "a task was lost"
        for name, result in ended:
            assert name not in results, f"{name} ended twice"
            results[name] = result
    return results


class ExecutorSuite:
    def test_a_result_comes_with_its_stages_name(self, executor: Executor) -> None:
        executor.submit(stage("expert.law"), add, 2, 3)
        assert collect(executor, 1) == {"expert.law": 5}

    def test_each_task_ends_once(self, executor: Executor) -> None:
        names = [f"s{i}" for i in range(8)]
        for i, name in enumerate(names):
            executor.submit(stage(name, trains=True), add, i, 100)
        assert collect(executor, 8) == {name: i + 100 for i, name in enumerate(names)}

    def test_an_exception_is_a_result(self, executor: Executor) -> None:
        executor.submit(stage("a", trains=True), refuse, "way")
        executor.submit(stage("b", trains=True), divide, 1)
        executor.submit(stage("c", trains=True), refuse_all, "model.d_model")
        results = collect(executor, 3)
        assert isinstance(results["a"], UsageError)
        assert str(results["a"]) == "no way"
        assert isinstance(results["b"], ZeroDivisionError)
        assert isinstance(results["c"], InvalidInput)
        assert results["c"].problems == (Problem("model.d_model", 3, "must be even"),)

    def test_a_failure_leaves_the_others_alone(self, executor: Executor, meeting: Meeting) -> None:
        executor.submit(stage("long", trains=True), say_and_wait, meeting.port, "long")
        assert meeting.hear() == "long"
        executor.submit(stage("bad", trains=True), refuse, "way")
        assert list(collect(executor, 1)) == ["bad"]
        meeting.answer("long", "go on")
        assert collect(executor, 1) == {"long": "go on"}

    def test_tasks_run_side_by_side_and_end_in_any_order(self, executor: Executor, meeting: Meeting) -> None:
        for word in ("one", "two"):
            executor.submit(stage(word, trains=True), say_and_wait, meeting.port, word)
        assert {meeting.hear(), meeting.hear()} == {"one", "two"}
        assert executor.wait(0.0) == []
        meeting.answer("two", "second")
        assert collect(executor, 1) == {"two": "second"}
        meeting.answer("one", "first")
        assert collect(executor, 1) == {"one": "first"}

    def test_waiting_for_nothing_returns_at_once(self, executor: Executor) -> None:
        assert executor.wait(PATIENCE_S) == []
        executor.submit(stage("a"), add, 1, 1)
        collect(executor, 1)
        assert executor.wait(PATIENCE_S) == []


STEPS = 5


def count(worker: TrainWorker, config: Mapping[str, Any]) -> Trained:
    """Adds up its steps; fails at `config["fail_at"]` unless the file `config["repaired"]` is there."""
    resumed = worker.resume_dir()
    state = {"total": 0, "step": 0, "starts": []}
    if resumed is not None:
        state = json.loads((resumed / "state.json").read_text())
    state["starts"].append(state["step"])

    def write(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "state.json").write_text(json.dumps(state))

    for step in range(state["step"] + 1, STEPS + 1):
        if step == config.get("fail_at") and not Path(config["repaired"]).exists():
            raise TrainingDiverged(f"diverged at step {step}")
        state["total"], state["step"] = state["total"] + step, step
        worker.log(step, {"total": float(state["total"])})
        worker.save(step, write)
    result = {"rank": worker.rank, "world_size": worker.world_size, **state}
    return Trained(result, write=lambda folder: _write_output(worker, folder, state["total"]))


def _write_output(worker: TrainWorker, folder: Path, total: int) -> None:
    seed = (worker.inputs["seed"] / "seed.txt").read_text()
    (folder / "model").mkdir()
    (folder / "model" / "total.txt").write_text(f"{seed} {total}")


class TrainerSuite:
    GROUP = Resources(workers=1, cpus=1, trains=True)

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> dict[str, Path]:
        (tmp_path / "seed").mkdir()
        (tmp_path / "seed" / "seed.txt").write_text("from seed:")
        return {"seed": tmp_path / "seed"}

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        (tmp_path / "out").mkdir()
        return tmp_path / "out"

    def test_result_and_output(
        self, new_trainer: Callable[[Mapping[str, Path]], Trainer], inputs: dict[str, Path], out: Path
    ) -> None:
        result = new_trainer(inputs).fit(count, {}, self.GROUP, out)
        assert result == {"rank": 0, "world_size": 1, "total": 15, "step": STEPS, "starts": [0]}
        assert [path.relative_to(out).as_posix() for path in out.rglob("*.*")] == ["model/total.txt"]
        assert (out / "model" / "total.txt").read_text() == "from seed: 15"

    def test_a_failure_of_ours_is_raised_and_the_next_call_resumes(
        self,
        new_trainer: Callable[[Mapping[str, Path]], Trainer],
        inputs: dict[str, Path],
        out: Path,
        tmp_path: Path,
    ) -> None:
        config = {"fail_at": 4, "repaired": str(tmp_path / "repaired")}
        with pytest.raises(TrainingDiverged, match="diverged at step 4"):
            new_trainer(inputs).fit(count, config, self.GROUP, out)
        assert list(out.iterdir()) == []
        (tmp_path / "repaired").touch()
        result = new_trainer(inputs).fit(count, config, self.GROUP, out)
        assert result["starts"] == [0, 3]
        assert (out / "model" / "total.txt").read_text() == "from seed: 15"
