"""What a run needs beside itself, broken: the tracking server, the object store, the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from infra.storage import Storage
from tests.cluster.kit import free_port
from tests.e2e.kit import STAGES
from tests.faults.drivers import in_the_middle
from tests.faults.lab import LOOK_EVERY_S, Lab, Program, Running
from tests.infra.s3_kit import S3Server, use


class MlflowServer:
    """`mlflow server` on a SQLite file: what it knew is there when it is started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        folder.mkdir()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        words = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--port", str(self._port)]
        words += ["--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1"]
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "mlflow", "server", *words]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def send(self, number: int) -> None:
        """To all of its processes."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()


def with_mlflow(lab: Lab) -> MlflowServer:
    server = MlflowServer(lab.folder / "mlflow")
    lab.cleanup.append(server.kill)
    lab.tracking, lab.is_of_services = ("--tracking-uri", server.uri), True
    return server


def mlflow_down(lab: Lab) -> None:
    """Killed while a stage trains; the run goes on, and later the view is filled in."""
    server = with_mlflow(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.kill()
    lab.go()
    _ends_with_one_warning(lab, process)
    server.start()
    _require_whole_view(lab)


def mlflow_slow(lab: Lab) -> None:
    """It takes connections and never answers."""
    server = with_mlflow(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.send(signal.SIGSTOP)
    lab.go()
    _ends_with_one_warning(lab, process)
    server.send(signal.SIGCONT)
    _require_whole_view(lab)


def mlflow_restarted(lab: Lab) -> None:
    server = with_mlflow(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.kill()
    server.start()
    lab.go()
    lab.must_end_well(process)
    assert "unavailable" not in process.out + process.err, process.out + process.err
    _require_whole_view(lab)


def _ends_with_one_warning(lab: Lab, process: Running) -> None:
    """Of the stages, and one of the driver, which notices when it closes its own run."""
    lab.must_end_well(process)
    said = (process.out + process.err).count("is unavailable, so this run goes on untracked")
    assert said in (1, 2), process.out + process.err


def _require_whole_view(lab: Lab) -> None:
    """After a sync each stage has one run, and it is finished."""
    words = ["lineage", "sync", "--store", lab.uri, *lab.tracking]
    sync = Program(lab.folder / "sync", tuple(words), lab.program_env())
    lab.programs.append(sync)
    lab.must_end_well(sync)
    from mlflow import MlflowClient

    client = MlflowClient(lab.tracking[1])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [(run.info.run_name, run.info.status) for run in client.search_runs(experiments)]
    for stage in STAGES:
        assert [status for name, status in found if name == stage] == ["FINISHED"], (stage, found)


def with_s3(lab: Lab) -> S3Server:
    """The lab's store, moved to an S3 server of its own."""
    server, lab.is_of_services = S3Server.start(), True
    lab.cleanup.append(server.stop)
    lab.env |= server.env() | {"XDG_CACHE_HOME": str(lab.folder / "cache")}
    patch = pytest.MonkeyPatch()
    lab.cleanup.append(patch.undo)
    use(server, patch)
    patch.setenv("XDG_CACHE_HOME", lab.env["XDG_CACHE_HOME"])
    lab.uri = server.uri("bam")
    storage = Storage(lab.uri)
    for file in lab.place.store.rglob("*"):
        if file.is_file():
            storage.put(file, file.relative_to(lab.place.store).as_posix())
    server.clear()
    return server


def store_away_for_20_s(lab: Lab) -> None:
    server = with_s3(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.offline(20)
    lab.go()
    lab.must_end_well(process)


def store_away_for_good(lab: Lab) -> None:
    """The run ends and says what to look at; when the store is back, the same command continues."""
    server = with_s3(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.offline()
    lab.go()
    lab.must_end(process, 1)
    assert lab.uri in process.err
    server.clear()
    lab.again()


def upload_answered_500(lab: Lab) -> None:
    _upload_fails(lab, "500", times=2)


def upload_told_to_slow_down(lab: Lab) -> None:
    _upload_fails(lab, "503", times=2)


def upload_cut(lab: Lab) -> None:
    _upload_fails(lab, "cut", times=2)


def upload_whose_answer_is_lost(lab: Lab) -> None:
    _upload_fails(lab, "lost", times=1)


def _upload_fails(lab: Lab, kind: str, times: int) -> None:
    server = with_s3(lab)
    process, _ = in_the_middle(lab)
    lab.strikes()
    server.fail(kind, "PUT|POST", "expert.code/.*model.safetensors", times=times)  # type: ignore[arg-type]
    server.fail(kind, "PUT|POST", "expert.code/.*record.json", times=1)  # type: ignore[arg-type]
    lab.go()
    lab.must_end_well(process)
    assert sum(request["fault"] == kind for request in server.requests()) == times + 1


IN_SMALL_FILE_SYSTEM = """
mount -t tmpfs -o size=$1 none "$2" || exit 77
shift; store=$1; shift; kept=$1; shift
cp -r "$kept"/. "$store"
"$@"
[ $? = 1 ] || exit 78
cp -r "$store"/. "$kept"
touch "$store"-ended
while [ ! -e "$store"-go ]; do sleep 0.1; done
mount -o remount,size=64m "$store"
"$@" || exit 79
cp -r "$store"/. "$kept"
"""
"""The same command twice: in a file system of a given size, then with room. What it makes is copied out."""


def disk_full(lab: Lab) -> None:
    """A small file system of the run's own has no room for an expert's next checkpoint."""
    if shutil.which("unshare") is None:
        pytest.skip("needs `unshare` to mount a file system of its own")
    kept, mounted = str(lab.place.store), str(lab.folder / "mounted")
    Path(mounted).mkdir()
    shell = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_SMALL_FILE_SYSTEM, "sh")
    lab.uri = mounted
    process = lab.start(forked=False, before=(*shell, "700k", mounted, kept))
    lab.uri = kept
    while process.is_alive and not Path(f"{mounted}-ended").exists():
        time.sleep(LOOK_EVERY_S)
    if not process.is_alive and process.end() in (1, 77):
        pytest.skip(f"no file system of its own here: {process.err[-300:]}")
    lab.strikes()
    Path(f"{mounted}-go").touch()
    lab.must_end_well(process)
    assert "No space left on device" in process.err
    assert "nothing committed is lost" in process.err
