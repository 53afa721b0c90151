"""`bam doctor` with planted faults: each is found, named and given a remedy, and hides nothing else."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.wiring import checkup
from tests.cli.conftest import Bam

Usage = namedtuple("Usage", "total used free")
NAMES = {"python", "torch", "ray", "mlflow", "pyarrow", "gpu", "shared memory", "temporary files", "store", "disk"}
FAST = ("--tracking-uri", "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking MLflow takes seconds; the tests of tracking undo this."""
    monkeypatch.setattr(checkup, "connect", lambda uri: SimpleNamespace(search_experiments=lambda max_results: []))
    for name in ("TMPDIR", "RAY_TMPDIR", "BAM_SIGNING_KEY", "BAM_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)


def examined(bam: Bam, *argv: str) -> dict[str, dict[str, object]]:
    done = bam("doctor", *(argv or FAST), "--json")
    checks = {check["name"]: check for check in json.loads(done.out)}
    assert done.status == (0 if all(check["ok"] for check in checks.values()) else 1)
    assert checks.keys() >= NAMES
    return checks


def fault(bam: Bam, name: str, *argv: str) -> str:
    """What is said of a check that fails; the others' answers are there too."""
    check = examined(bam, *argv)[name]
    assert not check["ok"]
    assert check["remedy"]
    return f"{check['detail']} ({check['remedy']})"


def test_what_is_well_is_said_to_be(bam: Bam, here: Path) -> None:
    checks = examined(bam)
    for name in ("python", "torch", "ray", "mlflow", "store", "keys", "mlflow tracking"):
        assert checks[name]["ok"], checks[name]
    assert checks["ray"]["detail"] == metadata.version("ray")
    assert checks["store"]["detail"] == f"{here / 'bam_store'}: writable, 0 artifacts"
    assert list(here.iterdir()) == []


def test_another_python(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "sys", SimpleNamespace(version_info=(3, 13, 1), platform=sys.platform))
    assert fault(bam, "python") == "3.13.1 (bam is tested on Python 3.11: make a venv of it)"


def test_packages_that_are_missing_or_of_another_version(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"ray": "2.9.0", "transformers": "4.0.0", "psutil": None}
    required = ["torch==2.13.0", "ray[default,train]==2.60.0", "mlflow", "pyarrow", "psutil", "pyyaml"]
    required += [
        'transformers==5.23.0 ; extra == "serve"',
        'lm_eval==0.4.13; extra == "lm-eval"',
        'bam[s3]; extra == "dev"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: required)

    def version(name: str) -> str:
        found = {"torch": "2.13.0+cpu", "mlflow": "1", "pyarrow": "1", "pyyaml": "6"} | there
        if found.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return str(found[name])

    monkeypatch.setattr(metadata, "version", version)
    checks = examined(bam)
    assert checks["torch"]["ok"]
    assert checks["ray"]["detail"] == "2.9.0, and bam is tested with 2.60.0"
    assert checks["ray"]["remedy"] == "pip install 'ray[default,train]==2.60.0'"
    assert checks["psutil"]["detail"] == "is not installed"
    assert checks["transformers"]["remedy"] == "pip install 'transformers==5.23.0'"
    assert not {"lm_eval", "pyyaml", "bam"} & checks.keys()


def test_the_code_alone_as_in_a_job(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bam(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", no_bam)
    assert examined(bam)["torch"]["ok"]


@pytest.mark.parametrize(("line", "cuda"), [("cuda: Optional[str] = None", None), ("cuda = '13.0'", "13.0")])
def test_what_torch_was_built_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, cuda: str | None) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = None\n")
    monkeypatch.setattr(checkup, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert checkup._cuda_of_torch() == cuda


def test_a_gpu_that_torch_cannot_use(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(checkup, "nvidia_gpus", lambda: 2)
    monkeypatch.setattr(checkup, "_cuda_of_torch", lambda: None)
    assert "2 of NVIDIA, and torch is a build for processors (pip install" in fault(bam, "gpu")
    monkeypatch.setattr(checkup, "_cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "built with CUDA 13.0, can use none (`nvidia-smi` must answer" in fault(bam, "gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert examined(bam)["gpu"]["ok"]
    monkeypatch.setattr(checkup, "nvidia_gpus", lambda: 0)
    assert examined(bam)["gpu"]["detail"] == "none: everything runs on the processor"


@pytest.mark.parametrize(
    ("free", "name", "says"),
    [
        (2**31 - 1, "disk", "2.0 GiB free (the quickstart needs about 1 GiB: `bam gc`"),
        (2**20, "temporary files", "/tmp: 1.0 MiB free (Ray wants 512 MiB"),
        (2**20, "shared memory", "--shm-size"),
    ],
)
def test_disks_that_are_nearly_full(bam: Bam, monkeypatch: pytest.MonkeyPatch, free: int, name: str, says: str) -> None:
    if name == "shared memory" and not Path("/dev/shm").is_dir():
        pytest.skip("no shared memory here")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**40, 2**40 - free, free))
    assert says in fault(bam, name)


def test_a_folder_for_temporary_files_that_ray_cannot_use(
    bam: Bam, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(here / "none"))
    assert "none: is no folder (make it" in fault(bam, "temporary files")
    long = here / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert "characters too long for the sockets of Ray (set RAY_TMPDIR to a short path" in fault(bam, "temporary files")


def test_a_store_that_cannot_be_written(bam: Bam, here: Path) -> None:
    (here / "file").write_text("no folder")
    assert "get the right to write there, or give another --store" in fault(
        bam, "store", "--store", "file/store", *FAST
    )
    for uri in ("nowhere://bucket/bam", "s3:/bucket/bam"):
        checks = examined(bam, "--store", uri)
        assert not checks["store"]["ok"]
        assert not checks["mlflow tracking"]["ok"]
    done = bam("doctor", "--store", "s3:/bucket/bam")
    assert done.status == 1
    assert "did you mean s3://bucket/bam?" in done.out
    assert "Traceback" not in done.err


def test_a_tracking_server_that_does_not_answer(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = fault(bam, "mlflow tracking", "--tracking-uri", "http://me:secret@127.0.0.1:9")
    assert "Is the server up?" in said
    assert "secret" not in said
    assert "must be http://HOST:PORT" in fault(bam, "mlflow tracking", "--tracking-uri", "ftp://host/x")


def test_a_tracking_database_that_is_none(bam: Bam, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    (here / "bam_store").mkdir()
    (here / "bam_store" / "mlflow.db").write_text("this is no database, whatever its name says" * 9)
    said = fault(bam, "mlflow tracking", "--store", str(here / "bam_store"))
    assert "mlflow.db away and `bam lineage sync` makes it anew" in said


def test_keys_that_are_none(bam: Bam, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAM_SIGNING_KEY", str(here / "no.pem"))
    assert "BAM_SIGNING_KEY" in fault(bam, "keys")
    monkeypatch.delenv("BAM_SIGNING_KEY")
    monkeypatch.setenv("BAM_TRUSTED_KEYS", "")
    assert "names no key" in fault(bam, "keys")


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_cluster_that_wants_a_token(bam: Bam, refusing: str) -> None:
    said = fault(bam, "cluster", "--address", refusing, *FAST)
    assert refusing in said
    assert "token" in said


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:9", "no Ray cluster answers"),
        ("127.0.0.1:9", "nothing answers there"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("somewhere", "must read http://HOST:8265"),
    ],
)
def test_a_cluster_that_does_not_answer(bam: Bam, address: str, says: str) -> None:
    assert says in fault(bam, "cluster", "--address", address, *FAST)


def test_a_check_that_breaks_hides_no_other(bam: Bam, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("of a library\nwith more lines")

    monkeypatch.setattr(checkup, "nvidia_gpus", broken)
    assert fault(bam, "gpu").startswith("of a library (")
