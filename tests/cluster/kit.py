"""A Ray cluster of several raylets on this machine: own ports, own folders, a token, ended by its own process ids.

`ray stop` would end every Ray process of the host, so it is never used.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 100 * 1024**2
LOOK_EVERY_S = 0.1


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Node:
    """One raylet (the head's node has the cluster's own processes too). name: as `ray.nodes()` calls it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        """The node's own processes, the youngest last."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def named(self, words: str) -> list[psutil.Process]:
        """Those with `words` in their command line: `raylet`, `gcs_server`, `ray::TrainController` ..."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """kill -9 of all of it, as when a machine loses power."""
        doomed = self.processes()
        self.process.kill()
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(doomed)


@dataclass
class Cluster:
    """folder: short (a socket's path has 107 characters). cpus: of the head's node."""

    folder: Path
    cpus: int = 2
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[Node] = field(default_factory=list)
    extra_env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port, self.dashboard_port = free_port(), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token_file = self.folder / "token"
        self.token_file.write_text(self.token)
        self.token_file.chmod(0o600)

    @property
    def address(self) -> str:
        """For `ray.init` and `bam run --address`."""
        return f"{HOST}:{self.port}"

    @property
    def jobs_url(self) -> str:
        """For `bam submit --address`."""
        return f"http://{HOST}:{self.dashboard_port}"

    def env(self, *, with_token: bool = True) -> dict[str, str]:
        """The environment of a process that uses this cluster: no address, no token of another one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_TOKEN_PATH": str(self.token_file)} if with_token else {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        ours = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path, "OMP_NUM_THREADS": "1"}
        return {**kept, **ours, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", **token, **self.extra_env}

    def start(self) -> Cluster:
        self._add(
            "head",
            "--head",
            f"--port={self.port}",
            f"--dashboard-port={self.dashboard_port}",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            f"--ray-client-server-port={free_port()}",
            cpus=self.cpus,
        )
        self._until_it_answers()
        return self

    def add_node(self, name: str, cpus: int = 1) -> Node:
        node = self._add(name, f"--address={self.address}", cpus=cpus)
        while sum(n["Alive"] for n in self.describe()) < len(self.nodes):
            assert node.process.poll() is None, node.log.read_text()
            time.sleep(LOOK_EVERY_S)
        return node

    def describe(self) -> list[dict[str, Any]]:
        """`ray.nodes()`, asked by a process of its own: this one may have a Ray already."""
        code = f"import ray, json; ray.init({self.address!r}, log_to_driver=False, logging_level='ERROR'); "
        code += "print(json.dumps(ray.nodes(), default=str))"
        done = subprocess.run([sys.executable, "-c", code], env=self.env(), capture_output=True, text=True, check=True)
        nodes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return nodes

    def get(self, path: str, *, token: str | None = None) -> int:
        """The HTTP status of a page of the dashboard. token: none unless given."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.jobs_url + path, headers=headers)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (urllib.error.URLError, ConnectionError):
            return 0

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self.nodes.clear()

    def _add(self, name: str, *words: str, cpus: int) -> Node:
        log = self.folder / f"{name}.log"
        folder = self.folder / name
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--num-cpus={cpus}",
            f"--node-ip-address={HOST}",
            f"--node-name={name}",
            "--disable-usage-stats",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",
            *words,
        ]
        if "--head" in words:
            command.append(f"--temp-dir={folder}")
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=self.env(), stdout=output, stderr=subprocess.STDOUT)
        self.nodes.append(Node(name, process, log))
        return self.nodes[-1]

    def _until_it_answers(self) -> None:
        while self.get("/api/version", token=self.token) != 200:
            assert self.nodes[0].process.poll() is None, self.nodes[0].log.read_text()
            time.sleep(LOOK_EVERY_S)


def interrupt(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGINT)
