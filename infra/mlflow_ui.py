"""MLflow's own pages over a store's database: a child process with one worker, for as long as it is used."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bam_core.errors import BamError, UsageError
from infra import mlflow_runs as runs
from infra.mlflow_connect import ENVIRONMENT, absolute_tracking_uri, connect, sqlite_file
from infra.mlflow_pages import RUNS_AND_MODELS, run_address

LANDING = f"/#/experiments?{RUNS_AND_MODELS}"
"""What to open after the address: runs and models, not MLflow's pages for language-model applications."""
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 10


@dataclass(frozen=True)
class LastRun:
    """The run of a pipeline that started last. page: the part of its address after the host."""

    name: str
    page: str


def last_run(tracking_uri: str) -> LastRun | None:
    """None when there is none, or MLflow does not answer: then its own pages say so."""
    try:
        client = connect(tracking_uri)
        of_pipelines = (
            f"tags.`{runs.RUN}` IS NOT NULL and tags.`{runs.PARENT_RUN}` IS NULL and tags.`{runs.KEY}` IS NULL"
        )
        newest = ["attributes.start_time DESC"]
        experiments = runs.experiment_ids(client)
        found = client.search_runs(experiments, of_pipelines, order_by=newest, max_results=1) if experiments else []
    except Exception:  # of any kind
        return None
    if not found:
        return None
    info = found[0].info
    return LastRun(info.run_name, f"/{run_address(info.experiment_id, info.run_id)}")


@contextmanager
def serve(
    tracking_uri: str, artifact_root: Path | str | None, host: str = "127.0.0.1", port: int = 5000
) -> Iterator[str]:
    """Yield the address of MLflow's pages. port: 0 for any free one.

    A tracking URI that is already a server is yielded as it is. Raises UsageError when nothing was tracked
    yet or the port is taken, BamError when the server does not start.
    """
    if tracking_uri.startswith(("http://", "https://")):
        yield tracking_uri
        return
    file = sqlite_file(tracking_uri)
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: nothing was tracked here yet; `bam run RECIPE` makes it")
    port = _free_port(host, port)
    with tempfile.TemporaryFile() as output:
        server = _start(absolute_tracking_uri(tracking_uri), artifact_root, host, port, output)
        try:
            _await_health(server, host, port, output)
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            _stop(server)


def _free_port(host: str, port: int) -> int:
    """Reserve nothing, but fail in words: another server's pages must not pass for ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"{host}:{port}: {error.strerror}; give another --port") from error
        return int(probe.getsockname()[1])


def _start(
    tracking_uri: str, artifact_root: Path | str | None, host: str, port: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if artifact_root is not None:
        command += ["--artifacts-destination", str(artifact_root)]
    # Runs of language-model judges need a second server; nothing of ours does.
    environment = {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that its workers can be stopped with it, and Ctrl-C reaches us first
    )


def _await_health(server: subprocess.Popen[bytes], host: str, port: int, output: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_healthy(host, port):
        if server.poll() is not None or time.monotonic() > deadline:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise BamError("the MLflow server did not start:\n  " + "\n  ".join(lines[-8:] or ["it said nothing"]))
        time.sleep(0.2)


def _is_healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
