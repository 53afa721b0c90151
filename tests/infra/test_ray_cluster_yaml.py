"""ray_cluster.yaml is what `ray up` accepts, with this project's versions and only what it promises open."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def ray_schema() -> dict[str, Any]:
    return json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def test_has_the_schema_that_ray_ships(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, ray_schema())


def test_schema_would_see_a_misspelt_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        jsonschema.validate(cluster | {"idle_timeout_minuts": 5}, ray_schema())


def test_ray_fills_it_in_and_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(cluster)
    validate_config(filled)
    assert filled["available_node_types"]["head"]["max_workers"] == 0


def test_installs_the_versions_of_this_project(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(
        re.fullmatch(r"(\w+)(?:\[.*\])?==(.+)", line).groups() for line in project["dependencies"] if "==" in line
    )
    install = next(command for command in cluster["setup_commands"] if "pip install" in command)
    for package in ("ray", "torch", "mlflow"):
        assert re.search(rf'"{package}(\[[a-z,]+\])?==(\S+)"', install)[2] == wanted[package]
    images = [cluster["docker"]["image"], cluster["available_node_types"]["gpu_worker"]["docker"]["worker_image"]]
    assert all(image.startswith(f"rayproject/ray:{wanted['ray']}-py311") for image in images)


def test_every_node_wants_the_token_and_sends_no_statistics(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env RAY_USAGE_STATS_ENABLED=0" in options
    assert "~/.ray/auth_token" in cluster["file_mounts"].values()
    starts = [c for part in ("head", "worker") for c in cluster[f"{part}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("--disable-usage-stats" in command for command in starts)


def test_the_head_trains_nothing_and_its_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}
    start = next(command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert "--num-cpus=0" in start.split()
    assert "--dashboard-host=127.0.0.1" in start.split()


def test_workers_are_spot_nodes_with_and_without_a_gpu(cluster: dict[str, Any]) -> None:
    found = workers(cluster)
    assert {"GPU" in node["resources"] for node in found.values()} == {True, False}
    assert all(node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for node in found.values())
