"""`kill -9` and ctrl-C: the same command continues, and what it ends with is what an undisturbed run ends with."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable

import pytest

from tests.e2e.kit import STAGES, Place
from tests.faults.processes import KillPoint, Process

KILL_POINTS = {
    "outputs of the tokenizer moved, no record": KillPoint("os.rename", "tokenizer/*/record.json"),
    "one of two shards moved": KillPoint("os.rename", "data.code/*/valid/00000.arrow"),
    "the lease of the seed taken, nothing else": KillPoint("os.mkdir", "seed/*/attempts/0001"),
    "a checkpoint's tensors moved, its facts not": KillPoint("os.rename", "seed-*/*/saving-*/state.json"),
    "a checkpoint written, not named": KillPoint("os.rename", "seed-*/*/step-000005"),
    "an old checkpoint half removed": KillPoint("os.remove", "state.*", n=2),  # rmtree's names are relative
    "the seed recorded, its checkpoints still there": KillPoint("shutil.rmtree", "training/seed-*"),
    "an expert after its second checkpoint": KillPoint("os.rename", "expert.code-*/*/step-000015"),
    "an expert recorded, its lease not given back": KillPoint("os.remove", "expert.law/*/lease.json"),
    "the mixture in its scratch folder": KillPoint("os.rename", "mix.bam/*/MODEL_CARD.md"),
    "the mixture's weights not moved yet": KillPoint("os.rename", "mix.bam/*/model.safetensors"),
    "live figures of a mixture being written": KillPoint("os.rename", "train.bam/*/attempts/*/progress.json"),
    "perplexity.json moved, routing.json not": KillPoint("os.rename", "evaluate/*/routing.json"),
    "the report all but recorded": KillPoint("os.rename", "report/*/record.json"),
}


def require_as_undisturbed(place: Place, finished: Place) -> None:
    """All bytes but the report's, which shows how long each stage took."""
    assert place.perplexity() == finished.perplexity()
    for stage in STAGES[:-1]:
        assert place.record(stage)["outputs"] == finished.record(stage)["outputs"], stage


def require_nothing_damaged(place: Place) -> None:
    answer = place.bam("ls", "--json")
    assert "damaged" not in {row["state"] for row in answer.json}, answer.out


def test_killed_at_every_kind_of_place_in_turn_it_ends_in_the_same_bytes(empty: Place, finished: Place) -> None:
    """One store, one command; each process is killed a little further on."""
    for name, point in KILL_POINTS.items():
        process = Process(empty, "run", str(empty.recipe), kill=point)
        assert process.end() == -signal.SIGKILL, f"never came to: {name}\n{process.out}"
        require_nothing_damaged(empty)
    answer = empty.run()
    assert answer.status == 0, answer.err
    require_as_undisturbed(empty, finished)
    assert {stage for stage, n in empty.attempts().items() if n > 1} == {
        "tokenizer", "data.code", "seed", "expert.code", "mix.bam", "train.bam", "evaluate", "report",
    }, "what was done was never made again"  # fmt: skip
    assert not list(empty.store.rglob("scratch-*"))


def test_an_expert_continues_from_its_checkpoint(up_to: Callable[..., Place], finished: Place) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    at_third = KillPoint("os.rename", "expert.code-*/*/step-000015")
    assert Process(place, "run", str(place.recipe), kill=at_third).end() == -signal.SIGKILL
    assert sorted(path.name for path in place.store.glob("training/*/*/step-*")) == ["step-000005", "step-000010"]

    # Had it begun anew, it would write the fifth step's checkpoint again.
    again = KillPoint("os.rename", "step-000005")
    assert Process(place, "run", str(place.recipe), "--until", "expert.code", kill=again).end() == 0
    assert place.record("expert.code")["outputs"] == finished.record("expert.code")["outputs"]
    assert place.record("expert.code")["attempt"] == 2


def test_force_makes_it_again_even_if_an_earlier_run_left_its_checkpoints(up_to: Callable[..., Place]) -> None:
    """And a forced run that is killed continues from its own."""
    place = up_to("tokenizer", "data.*", "seed")
    words = ("run", str(place.recipe), "--only", "expert.code")
    left = KillPoint("shutil.rmtree", "training/expert.code-*")
    assert Process(place, *words, kill=left).end() == -signal.SIGKILL
    assert place.is_done("expert.code")

    tenth, fifth = (KillPoint("os.rename", f"step-0000{step}") for step in ("10", "05"))
    assert Process(place, *words, "--force", "expert.code", kill=tenth).end() == -signal.SIGKILL, "it did not train"
    assert Process(place, *words, "--force", "expert.code", kill=fifth).end() == 0, "it began anew"
    assert place.record("expert.code")["attempt"] == 3


def test_the_driver_killed_from_outside_in_the_middle_of_an_expert(empty: Place, finished: Place) -> None:
    process = Process(empty, "run", str(empty.recipe), "--set", "runtime.checkpoint_steps=1")
    process.until(empty.store, "training/expert.code-*/*/step-*")
    process.send(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    assert not empty.is_done("expert.code")
    answer = empty.run("--set", "runtime.checkpoint_steps=1")
    assert answer.status == 0, answer.err
    require_as_undisturbed(empty, finished)


def test_ctrl_c_ends_at_once_with_130_and_the_command_that_continues(
    up_to: Callable[..., Place], finished: Place
) -> None:
    place = up_to("tokenizer", "data.*", "seed")
    process = Process(place, "run", str(place.recipe), "--set", "runtime.checkpoint_steps=1", "--json")
    process.until(place.store, "training/expert.code-*/*/step-*")
    process.send(signal.SIGINT)
    assert process.end() == 130
    assert "Traceback" not in process.err
    assert "interrupted" in process.err
    value = json.loads(process.out)
    states = {stage["stage"]: stage["status"] for stage in value["stages"]}
    assert (value["status"], states["seed"], states["evaluate"]) == ("interrupted", "reused", "pending")
    command = process.err.splitlines()[-1].split()
    assert command[:3] == ["bam", "run", str(place.recipe)]
    answer = place.bam(*command[1 : command.index("--store")], "--json")
    assert answer.status == 0, answer.err
    require_as_undisturbed(place, finished)


@pytest.mark.long
@pytest.mark.parametrize("salt", range(6))
def test_killed_at_random_changes_of_files_it_ends_in_the_same_bytes(empty: Place, finished: Place, salt: int) -> None:
    chance = random.Random(salt)
    events = ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree", "os.link")
    for _ in range(20):
        point = KillPoint(chance.choice(events), "*", n=chance.randint(1, 40))
        status = Process(empty, "run", str(empty.recipe), kill=point).end()
        require_nothing_damaged(empty)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert empty.run().status == 0
    require_as_undisturbed(empty, finished)
