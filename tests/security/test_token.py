"""A cluster with a token: every port that it opens refuses whoever has none; only the figures of its nodes are open."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.cluster.kit import Cluster
from tests.e2e.kit import Place
from tests.security.sockets import Listener, family, listeners, rays
from tests.security.test_secrets import PLANTED, leaks

pytestmark = pytest.mark.ray
ON_A_CLUSTER = pytest.mark.long
"""Two nodes take half a minute to start; `make test` looks at the ports of the Ray that its tests share."""

CALLS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.InternalKVGcsService/InternalKVGet",
    "ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/Push",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.LogService/ListLogs",
    "ray.rpc.RayletDriver/Init",
)
"""One of each service: a server answers those that it does not know with UNIMPLEMENTED, before any token."""
PAGES = {
    "/api/jobs/": None,
    "/api/v0/nodes": None,
    "/get_or_create_runtime_env": b"",  # of the agent that installs what a job asks for
    "/delete_runtime_env_if_possible": b"",
}
OPEN = ("ray::DashboardAgent", "dashboard.py", "monitor.py")
FIGURE = re.compile(r"#.*|[A-Za-z_:][\w:]*(\{.*\})? \S+( \d+)?")
PATIENCE_S = 10.0
BUSY = """
import pathlib, ray, sys, time
ray.init(sys.argv[1])
@ray.remote
def work(mark): import signal; mark.touch(); signal.pause()
mark = pathlib.Path(sys.argv[2])
doing = work.remote(mark)
while not mark.exists(): time.sleep(0.1)
print("up", flush=True)
ray.get(doing)
"""
JOB = b'{"entrypoint": "touch job-has-run"}'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start().add_node("second")
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def opened(cluster: Cluster) -> Iterator[set[Listener]]:
    """All that the cluster's nodes, a driver and its worker listen on, while they do."""
    command = [sys.executable, "-c", BUSY, cluster.address, str(cluster.folder / "up")]
    driver = subprocess.Popen(command, env=cluster.env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        assert "up" in driver.stdout.readline(), "a worker process, which has ports too"
        processes = [process for node in cluster.nodes for process in family(node.process.pid)]
        yield listeners([*processes, psutil.Process(driver.pid)])
    finally:
        driver.kill()
        driver.communicate()


@ON_A_CLUSTER
def test_every_part_of_ray_is_looked_at(opened: set[Listener]) -> None:
    for part in (
        "gcs_server",
        "raylet",
        "dashboard",
        "DashboardAgent",
        "RuntimeEnvAgent",
        "client.server",
        "ray.init(",
        "ray::work",
    ):
        assert any(part in one.process for one in opened), f"no socket of {part}: {opened}"


@ON_A_CLUSTER
@pytest.mark.parametrize("service", CALLS, ids=lambda call: call.split(".")[-1])
def test_no_call_is_answered_without_the_token(opened: set[Listener], service: str) -> None:
    answers = {one: call(one, service) for one in opened}
    assert grpc.StatusCode.OK not in answers.values()
    assert grpc.StatusCode.UNAUTHENTICATED in answers.values(), "nobody has this service"


@ON_A_CLUSTER
def test_every_port_asks_for_the_token_but_the_figures_for_prometheus(cluster: Cluster, opened: set[Listener]) -> None:
    """Ray leaves those open; they say how busy a node is, and take nothing."""
    for one in opened:
        if not asks(one):
            assert any(part in one.process for part in OPEN), one
            with urllib.request.urlopen(f"http://{_place(one)}/metrics", timeout=PATIENCE_S) as answer:
                figures = answer.read().decode()
            assert [line for line in figures.splitlines() if not FIGURE.fullmatch(line)] == []
            assert cluster.token not in figures


@ON_A_CLUSTER
def test_with_the_token_the_same_call_is_answered(cluster: Cluster, opened: set[Listener]) -> None:
    """Else a refusal would show nothing."""
    answers = [call(one, CALLS[0], token=cluster.token) for one in opened if "gcs_server" in one.process]
    assert answers == [grpc.StatusCode.OK]


@ON_A_CLUSTER
def test_the_jobs_interface_is_on_loopback_and_runs_nothing_without_the_token(
    cluster: Cluster, opened: set[Listener], tmp_path: Path
) -> None:
    boards = [one for one in opened if one.port == cluster.dashboard_port]
    assert boards
    assert all(one.is_loopback for one in boards)
    for token in (None, "0" * 64):
        assert cluster.get("/api/jobs/", token=token) in (401, 403)
    assert page(boards[0], "/api/jobs/", JOB) == 401
    assert cluster.get("/api/jobs/", token=cluster.token) == 200
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "list", "--address", cluster.jobs_url],
        env=cluster.env(),
        capture_output=True,
        text=True,
    )
    assert "touch job-has-run" not in done.stdout
    assert not list(cluster.folder.rglob("job-has-run"))


@ON_A_CLUSTER
def test_bam_without_the_token_says_what_is_missing(cluster: Cluster, tmp_path: Path) -> None:
    environment = cluster.env(with_token=False) | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [Path(sys.executable).with_name("bam"), "jobs", "--address", cluster.jobs_url],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_part_of_the_embedded_ray_asks_for_one_too(ray_cluster: None) -> None:
    """Other users of this machine reach its loopback."""
    found = rays()
    assert any("gcs_server" in one.process for one in found)
    assert [one for one in found if not asks(one) and not any(part in one.process for part in OPEN)] == []


def asks(one: Listener) -> bool:
    """Whether some call or page of this port is refused for want of a token."""
    if any(call(one, name) is grpc.StatusCode.UNAUTHENTICATED for name in CALLS):
        return True
    return any(page(one, path, data) in (401, 403) for path, data in PAGES.items())


def call(one: Listener, name: str, token: str | None = None) -> grpc.StatusCode:
    sent = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(_place(one), options=[("grpc.enable_retries", 0)]) as channel:
        try:
            channel.unary_unary(f"/{name}")(b"", timeout=PATIENCE_S, metadata=sent)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def page(one: Listener, path: str, data: bytes | None = None) -> int:
    """The HTTP status; 0 for a port that does not speak HTTP."""
    try:
        with urllib.request.urlopen(f"http://{_place(one)}{path}", data=data, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, http.client.HTTPException):
        return 0


def _place(one: Listener) -> str:
    host = one.host.removeprefix("::ffff:")
    return f"{'127.0.0.1' if host in ('::', '0.0.0.0') else host}:{one.port}"


@ON_A_CLUSTER
def test_a_submitted_job_tells_the_cluster_no_secret(cluster: Cluster, up_to: Callable[..., Place]) -> None:
    """Whoever may list jobs sees their command, metadata and environment."""
    place = up_to("tokenizer", "data.*")
    environment = cluster.env() | PLANTED | {"RAY_AUTH_TOKEN": cluster.token}
    secrets = {*PLANTED.values(), cluster.token} - {PLANTED["RAY_AUTH_TOKEN"]}
    words = ["submit", place.recipe, "--until", "data.law", "--store", place.store, "--address", cluster.jobs_url]
    done = subprocess.run(
        [Path(sys.executable).with_name("bam"), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    asked = urllib.request.Request(
        f"{cluster.jobs_url}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(asked) as answer:
        told = answer.read().decode()
    assert "data.law" in told
    assert [secret for secret in secrets if secret in told + done.stdout + done.stderr] == []
    assert leaks(cluster.folder / "head", tuple(secrets)) == []


@ON_A_CLUSTER
def test_the_token_is_in_no_command_line_and_nobody_elses_to_read(cluster: Cluster) -> None:
    for node in cluster.nodes:
        for process in node.processes():
            assert cluster.token not in " ".join(process.cmdline())
    assert cluster.token_file.stat().st_mode & 0o077 == 0
