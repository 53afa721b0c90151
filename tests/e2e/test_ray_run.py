"""Where stages run is no part of a result: Ray and one process give the same bytes, and each continues the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import Place, executed, merged

pytestmark = pytest.mark.ray

SMALLER = {"domains": {"law": None}, "variants": {"btx": None}, "dense": False}
"""Few trainings: Ray costs many seconds for each."""
RESULTS = {"evaluate", "routing", "report"}


@pytest.fixture
def smaller(up_to: Callable[..., Place]) -> Place:
    """With the tokenizer and the data there, since these are no trainings."""
    place = up_to("tokenizer", "data.general", "data.code")
    place.set_recipe(merged(place.recipe_dict(), SMALLER))
    return place


@pytest.fixture
def undisturbed(smaller: Place) -> Place:
    """The same recipe in one process and another store."""
    local = Place(smaller.recipe, smaller.recipe.parent / "local")
    answer = local.run()
    assert answer.status == 0, answer.err
    return local


def require_same_bytes(place: Place, undisturbed: Place) -> None:
    for stage in ("seed", "expert.code", "mix.bam", "train.bam", "evaluate"):
        assert place.record(stage)["outputs"] == undisturbed.record(stage)["outputs"], stage
    assert place.perplexity() == undisturbed.perplexity()


def test_ray_gives_the_same_bytes_as_one_process(ray_cluster: None, smaller: Place, undisturbed: Place) -> None:
    assert smaller.run("--until", "seed").status == 0
    before = smaller.attempts()
    answer = smaller.run(executor="ray")
    assert answer.status == 0, answer.err
    assert executed(before, smaller.attempts()) == {"overlap", "expert.code", "mix.bam", "train.bam", *RESULTS}
    require_same_bytes(smaller, undisturbed)
    log = (smaller.artifact("train.bam") / "attempts" / "0001" / "log.txt").read_text()
    assert "Traceback" not in log
    assert not list((smaller.store / "training").glob("*"))
    assert set(smaller.run().actions().values()) == {"reuse"}, "whichever executor looks"


@pytest.mark.long
def test_an_expert_that_diverges_on_ray_fails_at_once_in_its_own_words(
    ray_cluster: None, up_to: Callable[..., Place]
) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    answer = place.run("--until", "expert.law", "--set", "domains.law.expert.lr=1e6", executor="ray")
    assert answer.status == 1
    error = json.loads((place.artifact("expert.law") / "attempts" / "0001" / "error.json").read_text())
    assert error["type"] == "TrainingDiverged"
    assert f"bam: expert.law: {error['message']}\n" in answer.err
    assert "Traceback" not in answer.err
    assert "ray" not in answer.err.replace("--executor ray", "").lower()


@pytest.fixture
def driver(smaller: Place) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `bam run` on an embedded Ray of its own; all that is left of it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    words = smaller.words("run", str(smaller.recipe), "--set", "runtime.checkpoint_steps=1", executor="ray")

    def start() -> subprocess.Popen[bytes]:
        with (smaller.recipe.parent / f"driver-{len(started)}.txt").open("wb") as output:
            script = Path(sys.executable).with_name("bam")
            started.append(
                subprocess.Popen([script, *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            )
        return started[-1]

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


def in_the_middle_of_an_expert(place: Place, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    while not list(place.store.glob("training/expert.code-*/*/step-*")):
        with pytest.raises(subprocess.TimeoutExpired):  # it must still run
            process.wait(0.01)
    return process


@pytest.mark.long
def test_the_driver_killed_in_the_middle_of_an_expert_on_ray(
    smaller: Place, undisturbed: Place, driver: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = in_the_middle_of_an_expert(smaller, driver())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not smaller.is_done("expert.code")

    assert driver().wait() == 0, (smaller.recipe.parent / "driver-1.txt").read_text()
    require_same_bytes(smaller, undisturbed)
    assert smaller.record("seed")["attempt"] == 1
    assert smaller.record("expert.code")["attempt"] == 2


@pytest.mark.long
def test_ctrl_c_on_ray_ends_with_130_and_the_command_that_continues(
    smaller: Place, undisturbed: Place, driver: Callable[[], subprocess.Popen[bytes]]
) -> None:
    assert smaller.run("--until", "seed").status == 0
    process = in_the_middle_of_an_expert(smaller, driver())
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    text = (smaller.recipe.parent / "driver-0.txt").read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].split()[:3] == ["bam", "run", str(smaller.recipe)]
    assert smaller.run().status == 0
    require_same_bytes(smaller, undisturbed)
