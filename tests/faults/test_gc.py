"""`bam gc --apply` killed at any point, and beside a run: what stays is whole, and the next call goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bam_core.graph.holdings import Policy, node_of
from bam_core.graph.pins import Pin
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from infra.housekeeping import Housekeeping
from infra.run_files import RunFiles
from infra.store import ArtifactStore
from tests.e2e.kit import STAGES, Place
from tests.faults.processes import Process
from tests.infra.house_kit import CHAIN, a_run, key_of, make, node, require_whole, three_runs

CHANGES = ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.link")
"""What Python audits of a removal and of a lease's files."""


def sweep(folder: Path) -> None:
    store = ArtifactStore(str(folder))
    for _ in Housekeeping(store, Policy(min_age_s=0), lambda: time.time() + 10).apply():
        pass


def forked(work: Callable[[], None], kill_at: int) -> int:
    """`work` in a process of its own, which is killed before its n-th change of a file. Returns its status."""
    pid = os.fork()
    if pid == 0:
        left = kill_at

        def hook(event: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_killed_at_every_change_it_loses_nothing_that_stays_and_goes_on(tmp_path: Path) -> None:
    prepared, undisturbed = tmp_path / "prepared", tmp_path / "undisturbed"
    store = ArtifactStore(str(prepared))
    three_runs(store, [1, 2])
    store.pins.write(Pin("best", "expert.law", key_of("expert.law", 1), "", 1.0))
    (store.training_dir("train.bam", key_of("train.bam", 1)) / "step-000005").mkdir(parents=True)
    (store.training_dir("train.bam", key_of("train.bam", 1)) / "step-000005" / "state.json").write_text("{}")
    shutil.copytree(prepared, undisturbed)
    sweep(undisturbed)
    stays = {record.stage + record.key for record in ArtifactStore(str(undisturbed)).records()}
    assert len(stays) == 5

    kill_at = 0
    while True:
        kill_at += 1
        folder = tmp_path / "store"
        shutil.copytree(prepared, folder)
        status = forked(lambda folder=folder: sweep(folder), kill_at)  # type: ignore[misc]
        left = ArtifactStore(str(folder))
        require_whole(left)
        assert stays <= {record.stage + record.key for record in left.records()}
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"killed at {kill_at}"
        sweep(folder)
        assert names(folder) == names(undisturbed), f"killed at {kill_at}"
        shutil.rmtree(folder)
    assert kill_at > 30, "a removal is of many steps"


def test_beside_a_run_it_takes_nothing_that_the_run_uses(up_to: Callable[..., Place], finished: Place) -> None:
    """From the moment that the run is on record; what it reuses is on no other run's record here."""
    place = up_to("tokenizer", "data.*", "seed", "expert.code")
    shutil.rmtree(place.store / "runs", ignore_errors=True)
    store = ArtifactStore(str(place.store))
    make(store, "dense", 7, [])
    process = Process(place, "run", str(place.recipe))
    process.until(place.store, "runs/*.json")
    n_sweeps = 0
    while process.is_alive:
        sweep(place.store)
        n_sweeps += 1
    assert process.end() == 0, process.err
    assert n_sweeps > 3
    assert node("dense", 7) not in store.artifacts()
    assert place.perplexity() == finished.perplexity()
    assert set(place.attempts().values()) == {1}
    assert {record.stage for record in store.records()} == set(STAGES)
    require_whole(store)


def test_while_others_make_and_take_artifacts_nothing_that_is_used_is_lost(tmp_path: Path) -> None:
    """Runs as short as they can be, each on record before it starts, against a collector that never rests."""
    store = ArtifactStore(str(tmp_path))
    three_runs(store, [1])
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                sweep(tmp_path)
        finally:
            os._exit(1)
    try:
        for version in range(2, 12):
            _run_by_hand(store, version)
            require_made(store, version)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sweep(tmp_path)
    require_whole(store)
    assert set(store.artifacts()) == {node("seed"), *(node(stage, 11) for stage in CHAIN[1:])}


def _run_by_hand(store: ArtifactStore, version: int) -> None:
    run = a_run(version, status="running")
    store.runs.write(run)
    made: list[Record] = []
    for stage, planned in run.stages.items():
        if stage == "seed":
            found = store.record(stage, planned.key)
            assert found is not None, "what the run is to reuse was taken from it"
            made = [found]
            continue
        lease = store.acquire(stage, planned.key, f"host:1 {run.name}")
        try:
            made = [make(store, stage, version, made, ended=time.time())]
        finally:
            lease.release()
    store.runs.write(a_run(version))


def require_made(store: ArtifactStore, version: int) -> None:
    there = {node_of(record.stage, record.key) for record in store.records()}
    assert {node(stage, version) for stage in CHAIN[1:]} <= there


def test_what_goes_before_a_run_is_on_record_is_made_again(
    up_to: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = up_to("tokenizer", "data.*")
    write, swept = RunFiles.write, []

    def sweep_first(runs: RunFiles, run: Run) -> None:
        if not swept:
            swept.append(run.name)
            shutil.rmtree(place.artifact("data.general"))
        write(runs, run)

    monkeypatch.setattr(RunFiles, "write", sweep_first)
    answer = place.run("--until", "seed")
    assert answer.status == 0, answer.err
    assert answer.actions()["data.general"] == "run"
    assert swept[0] not in {run.name for run in ArtifactStore(str(place.store)).runs.all()}, "it never started"
