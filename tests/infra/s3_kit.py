"""A real S3 server in a process of its own (moto's), with faults on demand and a switch that takes it off the network.

    server = S3Server.start()                          # or the fixtures `s3_server` and `s3`
    server.env()                                       # what a process needs to find it
    server.fail("lost", "PUT", "record.json")          # the next such request is carried out, its answer never comes
    server.offline(20)                                 # refuses every connection for 20 s
    server.stop()

Run as a script it is that process: it prints its two ports, and ends when its standard input does. One port speaks
S3; the other takes rules (JSON over HTTP), so that any process that knows `server.control` may set them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

HOST, BUCKET = "127.0.0.1", "bam"
WRITES = "PUT|POST|DELETE"
Kind = Literal["500", "503", "403", "cut", "lost", "half", "slow"]
"""500, 503 (SlowDown), 403 (AccessDenied): answered so, nothing done. cut: the connection, nothing done. lost: done,
then cut. half: done, and half of the answer's body sent. slow: done after `seconds`."""

_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


@dataclass
class Rule:
    """Holds for requests whose method and path (`/bucket/key?query`) match: lets `after` pass, then meets `times`."""

    kind: Kind
    method: str = ".*"
    path: str = ""
    after: int = 0
    times: int | None = 1
    seconds: float = 1.0


@dataclass(frozen=True)
class S3Server:
    """url: of the S3 endpoint. control: of the rules."""

    url: str
    control: str
    process: subprocess.Popen[str] = field(repr=False)
    bucket: str = BUCKET

    @classmethod
    def start(cls) -> S3Server:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        port, control = process.stdout.readline().split()
        server = cls(f"http://{HOST}:{port}", f"http://{HOST}:{control}", process)
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/{server.bucket}", method="PUT")).close()
        return server

    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "bam-tests",
            "AWS_SECRET_ACCESS_KEY": "bam-tests-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def fail(
        self,
        kind: Kind,
        method: str = ".*",
        path: str = "",
        *,
        after: int = 0,
        times: int | None = 1,
        seconds: float = 1.0,
    ) -> None:
        """method, path: regular expressions, the first matched whole, the second anywhere. times: None for always."""
        self._tell("fail", asdict(Rule(kind, method, path, after, times, seconds)))

    def read_only(self) -> None:
        """As with credentials that may read and not write."""
        self.fail("403", WRITES, times=None)

    def clear(self) -> None:
        """Forget every rule and the list of requests, and be reachable."""
        self._tell("clear", {})

    def offline(self, seconds: float | None = None) -> None:
        """Refuse connections and cut those that are open; after `seconds`, or at `clear`, be back with all data."""
        self._tell("offline", {"seconds": seconds})

    def requests(self) -> list[dict[str, Any]]:
        """Since `clear`: {method, path, sent (bytes of the request's body), fault (a rule's kind, or "")}."""
        found: list[dict[str, Any]] = self._tell("requests", {})
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _tell(self, what: str, data: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.control}/{what}", json.dumps(data).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    server = S3Server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The module's server without rules, found by this process and its children."""
    use(s3_server, monkeypatch)
    s3_server.clear()
    yield s3_server
    s3_server.clear()


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # keyed by arguments: one of another server's environment would be found


# ---- the process


class Faults:
    """WSGI middleware: the rules, in the order in which they came, before moto's S3."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = threading.Lock()
        self.rules: list[Rule] = []
        self.seen: list[dict[str, Any]] = []
        self.away = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"] + (f"?{query}" if (query := environ.get("QUERY_STRING")) else "")
        sent = int(environ.get("CONTENT_LENGTH") or 0)
        rule = self._rule(environ["REQUEST_METHOD"], path, sent)
        kind = "cut" if self.away else rule.kind if rule else ""
        if kind in _CODES:
            environ["wsgi.input"].read(sent)  # a connection closed with an unread body would be reset
            body = f"<Error><Code>{_CODES[kind]}</Code><Message>as the test asked</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(f"{kind} {_CODES[kind]}", headers)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        if kind == "cut":
            _cut(environ)
        if kind == "slow" and rule:
            time.sleep(rule.seconds)
        answer = self.app(environ, start_response)
        if kind == "lost":
            b"".join(answer)
            _cut(environ)
        return _half(answer, environ) if kind == "half" else answer

    def _rule(self, method: str, path: str, sent: int) -> Rule | None:
        with self.lock:
            for rule in self.rules:
                if not (re.fullmatch(rule.method, method) and re.search(rule.path, path)):
                    continue
                if rule.after > 0:
                    rule.after -= 1
                elif rule.times is None or rule.times > 0:
                    rule.times = None if rule.times is None else rule.times - 1
                    self.seen.append({"method": method, "path": path, "sent": sent, "fault": rule.kind})
                    return rule
            self.seen.append({"method": method, "path": path, "sent": sent, "fault": ""})
            return None


def _cut(environ: dict[str, Any]) -> None:
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _half(answer: Iterable[bytes], environ: dict[str, Any]) -> Iterator[bytes]:
    body = b"".join(answer)
    yield body[: len(body) // 2]
    _cut(environ)


class Listener:
    """moto's S3 on one port, which can stop listening and begin again."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

        self.faults = Faults(DomainDispatcherApplication(create_backend_app))
        self._handler = MotoRequestHandler
        self._timer: threading.Timer | None = None
        self.port = 0
        self.listen()

    def listen(self) -> None:
        from werkzeug.serving import make_server

        self.faults.away = False
        self._server = make_server(HOST, self.port, self.faults, threaded=True, request_handler=self._handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def leave(self, seconds: float | None) -> None:
        self.back()
        self.faults.away = True
        self._server.shutdown()
        self._server.server_close()
        if seconds is not None:
            self._timer = threading.Timer(seconds, self.listen)
            self._timer.start()

    def back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        if self.faults.away:
            self.listen()


def _serve() -> None:
    listener = Listener()
    faults = listener.faults

    class Control(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"fail": fail, "clear": clear, "offline": offline, "requests": requests}[self.path[1:]](data)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def fail(data: dict[str, Any]) -> None:
        with faults.lock:
            faults.rules.append(Rule(**data))

    def clear(data: dict[str, Any]) -> None:
        listener.back()
        with faults.lock:
            faults.rules.clear()
            faults.seen.clear()

    def offline(data: dict[str, Any]) -> None:
        listener.leave(data["seconds"])

    def requests(data: dict[str, Any]) -> list[dict[str, Any]]:
        with faults.lock:
            return list(faults.seen)

    control = ThreadingHTTPServer((HOST, 0), Control)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    print(listener.port, control.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # whose files have the names of packages' modules
    _serve()
