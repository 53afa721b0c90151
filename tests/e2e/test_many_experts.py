"""Two dozen experts in one run on two cores: a few groups at once, processes bounded, all done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.e2e.kit import GENERAL, Place, lines_of, merged, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.long]

N_EXPERTS, AT_ONCE = 24, 3
DOMAINS = tuple(f"law{i}" for i in range(N_EXPERTS))
NEVER_MORE = 3 * AT_ONCE + 8
"""A coordinator, a meeting point and a worker for each group; a few that are idle, or that Ray starts ahead."""


def with_many_experts(place: Place) -> None:
    """The tiny recipe with two dozen domains of a few steps each."""
    texts, domains = place.recipe.parent / "texts", {}
    for i, domain in enumerate(DOMAINS):
        write_jsonl(texts / f"{domain}.jsonl", lines_of("law", n_lines=40, salt=i))
        domains[domain] = {"source": {"kind": "jsonl", "path": str(texts / f"{domain}.jsonl")}, "valid_frac": 0.1}
    recipe = merged(place.recipe_dict(), {"domains": {"code": None, "law": None}})
    phase = {"batch_tokens": 64, "lr": 1e-3, "tokens": 2 * 64}
    phases = {"seed": phase | {"data": {GENERAL: 1.0}}, "expert": phase | {"data": {"own": 0.9, GENERAL: 0.1}}}
    place.set_recipe(merged(recipe, {"domains": domains, "phases": phases, "runtime": {"max_parallel": AT_ONCE}}))


@contextmanager
def most_processes() -> Iterator[dict[str, int]]:
    """Of this process's Ray, while the context lasts: workers of groups, and all that run tasks or actors."""
    most, ended = {"groups": 0, "all": 0}, threading.Event()

    def look() -> None:
        while not ended.is_set():
            names = [name for child in psutil.Process().children(recursive=True) if "ray::" in (name := title(child))]
            most["groups"] = max(most["groups"], sum("RayTrainWorker" in name for name in names))
            most["all"] = max(most["all"], len(names))
            time.sleep(0.2)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_two_dozen_experts(ray_cluster: None, empty: Place) -> None:
    with_many_experts(empty)
    data = empty.run("--until", "data.*")
    assert data.status == 0, data.err
    with most_processes() as most:
        answer = empty.run("--until", "expert.*", executor="ray")
    assert answer.status == 0, answer.err
    assert all(empty.is_done(f"expert.{domain}") for domain in DOMAINS)
    assert 1 < most["groups"] <= AT_ONCE
    assert most["all"] <= NEVER_MORE
