"""Loopback only: what a run on the embedded Ray, its training group and `bam ui` listen on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kit import Place, merged
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, fresh_tracker
from tests.security.sockets import Listener, family, listeners, rays

LOOK_EVERY_S = 0.1
SCRIPT = Path(sys.executable).with_name("bam")
TWO_WORKERS = {"runtime": {"seed": {"workers": 2}}}


def watched(words: list[str | Path], ends_itself: bool = True) -> tuple[set[Listener], str]:
    """Every listening socket of the command's processes while it runs, and its output.

    ends_itself: else it is ended as soon as something listens.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    seen: set[Listener] = set()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        while ends_itself or not seen:
            seen |= listeners(family(run.pid))
            try:
                run.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
            break
        else:
            run.send_signal(signal.SIGINT)
        output, _ = run.communicate()
    assert not ends_itself or run.returncode == 0, output
    return seen, output


@pytest.mark.ray
def test_the_embedded_ray_listens_on_loopback_only(ray_cluster: None) -> None:
    found = rays()
    for part in ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent"):
        assert any(part in one.process for one in found), f"saw no socket of {part}: {found}"
    assert [one for one in found if not one.is_loopback] == []


@pytest.mark.ray
@pytest.mark.long
def test_a_run_and_its_training_group_listen_on_loopback_only(up_to: Callable[..., Place]) -> None:
    place = up_to("tokenizer", "data.*")
    place.set_recipe(merged(place.recipe_dict(), TWO_WORKERS))
    seen, _ = watched([SCRIPT, *place.words("run", str(place.recipe), "--until", "seed", executor="ray")])
    for part in ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent", "RayTrainWorker"):
        assert any(part in one.process for one in seen), f"saw no socket of {part}: {seen}"
    assert [one for one in seen if not one.is_loopback] == []


@MLFLOW_WARNINGS
def test_the_pages_of_mlflow_are_on_loopback(tmp_path: Path) -> None:
    fresh_tracker(tmp_path)
    seen, output = watched([SCRIPT, "ui", "--store", tmp_path, "--port", "0"], ends_itself=False)
    assert seen, output
    assert [one for one in seen if not one.is_loopback] == []
