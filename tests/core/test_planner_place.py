"""List scheduling: against a simulation tick by tick, against the best of all orders, and the promises of the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bam_core.planner.place import Host, Job, critical_path, schedule

HOSTS = (Host("a", 2), Host("b", 1))


@st.composite
def dags(draw: st.DrawFn, most: int = 6, cpus: int = 2) -> list[Job]:
    jobs: list[Job] = []
    for number in range(draw(st.integers(1, most))):
        after = draw(st.sets(st.sampled_from([job.name for job in jobs]))) if jobs else set()
        took = float(draw(st.integers(1, 5)))
        names = ["a", "b"] if (asked := draw(st.integers(1, cpus))) == 1 else ["a"]
        jobs.append(Job(str(number), dict.fromkeys(names, took), tuple(sorted(after)), cpus=asked))
    return jobs


def ticked(jobs: list[Job], most: int) -> dict[str, float]:
    """When each starts, by looking at every whole second: jobs in order, the first host with room."""
    starts: dict[str, float] = {}
    on: dict[str, str] = {}
    for now in range(1000):
        ended = {name for name in starts if starts[name] + next(iter(_job(jobs, name).seconds.values())) <= now}
        for job in jobs:
            running = [name for name in starts if name not in ended]
            if job.name in starts or not set(job.after) <= ended or len(running) >= most:
                continue
            for host in HOSTS:
                used = sum(_job(jobs, name).cpus for name in running if on[name] == host.name)
                if host.name in job.seconds and used + job.cpus <= host.cpus:
                    starts[job.name], on[job.name] = float(now), host.name
                    break
    return starts


def _job(jobs: list[Job], name: str) -> Job:
    return next(job for job in jobs if job.name == name)


@settings(max_examples=60, deadline=None)
@given(jobs=dags(), most=st.integers(1, 4))
def test_is_what_a_look_at_every_second_finds(jobs: list[Job], most: int) -> None:
    placed = schedule(jobs, HOSTS, most)
    assert {p.name: p.start for p in placed} == pytest.approx(ticked(jobs, most))


@settings(max_examples=20, deadline=None)
@given(jobs=dags(most=5, cpus=1))
def test_is_no_worse_than_graham_allows_beside_the_best_order(jobs: list[Job]) -> None:
    """Within 2 - 1/m of the best on m like places; the best is that of some order of the jobs."""
    wall = max(p.end for p in schedule(jobs, HOSTS, 3))
    best = min(max(p.end for p in schedule(list(order), HOSTS, 3)) for order in permutations(jobs))
    assert critical_path(jobs)[0] - 1e-9 <= best <= wall <= (2 - 1 / 3) * best + 1e-9


@settings(max_examples=40, deadline=None)
@given(jobs=dags(), crowding=st.floats(1, 3))
def test_crowding_slows_and_never_reorders_a_chain(jobs: list[Job], crowding: float) -> None:
    crowded = [replace(host, crowding=crowding) for host in HOSTS]
    found = {p.name: p for p in schedule(jobs, crowded, 4)}
    for job in jobs:
        alone = next(iter(job.seconds.values()))
        assert alone - 1e-6 <= found[job.name].seconds <= crowding * alone + 1e-6
        assert all(found[name].end <= found[job.name].start + 1e-9 for name in job.after)


def test_two_side_by_side_share_their_slowness() -> None:
    """Both slow down until the shorter ends: 4 s at half speed, then the other's last 4 s alone."""
    jobs = [Job("short", {"a": 2.0}), Job("long", {"a": 6.0})]
    short, long = schedule(jobs, [Host("a", 2, crowding=2.0)], 2)
    assert (short.end, long.end) == pytest.approx((4.0, 8.0))


def test_memory_and_gpus_are_room_too() -> None:
    jobs = [Job("x", {"a": 1.0}, memory=6), Job("y", {"a": 1.0}, memory=6), Job("z", {"a": 1.0}, gpus=1, memory=1)]
    x, y, z = schedule(jobs, [Host("a", 8, gpus=1, memory=8)], 8)
    assert (x.start, y.start, z.start) == (0.0, 1.0, 0.0)


def test_a_group_spreads_over_nodes_and_takes_the_time_of_its_slowest_worker() -> None:
    (placed,) = schedule([Job("group", {"a": 1.0, "b": 3.0}, workers=3)], HOSTS, 1)
    assert placed.hosts == ("a", "a", "b")
    assert placed.end == pytest.approx(3.0)


def test_the_fastest_node_comes_first() -> None:
    jobs = [Job("x", {"a": 5.0, "b": 1.0})]
    assert schedule(jobs, HOSTS, 1)[0].hosts == ("b",)


def test_what_is_no_part_of_the_plan_is_done() -> None:
    assert schedule([Job("x", {"a": 1.0}, after=("made before",))], HOSTS, 1)[0].start == 0.0


def test_the_longest_chain() -> None:
    jobs = [Job("a", {"n": 1.0}), Job("b", {"n": 5.0, "m": 2.0}, ("a",)), Job("c", {"n": 2.5})]
    assert critical_path(jobs) == (3.0, ["a", "b"])
    assert critical_path([]) == (0.0, [])
