"""Which clusters cannot use a local store, and which addresses are none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import UsageError
from infra import ray_join
from infra.ray_join import join, require_shared


def node(host: str, address: str = "10.0.0.1", *, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": host, "NodeManagerHostname": host, "NodeManagerAddress": address, "Alive": alive}


def never(path: str, nodes: Any) -> list[str]:
    raise AssertionError("no node need be asked")


@pytest.mark.parametrize(
    "nodes", [[node("a")], [node("a"), node("a")], [node("a"), node("b", "10.0.0.2", alive=False)]]
)
def test_one_machine_sees_its_own_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(ray_join, "nodes_without", never)
    require_shared(str(tmp_path), nodes)


def test_a_folder_that_a_node_cannot_see_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = tmp_path / "not" / "there" / "yet"
    asked = []

    def blind(path: str, nodes: Any) -> list[str]:
        asked.append((Path(path).parent, Path(path).is_file()))
        return ["b"]

    monkeypatch.setattr(ray_join, "nodes_without", blind)
    with pytest.raises(
        UsageError, match=r"1 of the cluster's 2 nodes cannot see \(b\); give one that all can"
    ) as raised:
        require_shared(str(store), [node("a"), node("b", "10.0.0.2")])
    assert raised.value.exit_code == 2
    assert asked == [(tmp_path, True)]
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_of_several_machines_is_fine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_join, "nodes_without", lambda path, nodes: [])
    require_shared(str(tmp_path), [node("a"), node("b")])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "Ray Client is not supported"),
        ("head", "must read http://HOST:8265"),
        ("head:port", "must read http://HOST:8265"),
        ("127.0.0.1:9", "nothing answers there"),
    ],
)
def test_an_address_that_cannot_be_joined(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        join(address, verbose=False)


def test_another_version_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.3\n    Python: 3.9.1\n")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UsageError, match=r"was started with: Ray: 2\.9\.3 Python: 3\.9\.1; install the same on both"):
        join("auto", verbose=False)


def test_only_the_native_log_of_a_refused_token_is_kept_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(**options: Any) -> None:
        os.write(2, b"[2026-01-01 00:00:00,000 W 1 1] gcs_client.cc:210: Unauthenticated: InvalidAuthToken: missing\n")
        os.write(2, b"a line of another library\n")
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UsageError, match="refuses this token"):
        join("auto", verbose=False)
    assert capfd.readouterr().err == "a line of another library\n"
