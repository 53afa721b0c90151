"""`bam submit`, `jobs`, `logs`, `stop` before a stand-in for the cluster: what is sent, printed and answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from bam_core.errors import UsageError
from infra.ray_jobs import Job
from pipelines.cli.app import Session
from pipelines.cli.options import continuing
from pipelines.recipe import load_recipe
from pipelines.wiring import jobs as wiring_jobs

ADDRESS = "http://127.0.0.1:8265"
ON = ("--address", ADDRESS)


@dataclass
class FakeCluster:
    """ends: how each new job ends, as (status, exit code). Its log is `log`."""

    ends: list[tuple[str, int | None]] = field(default_factory=list)
    found: dict[str, Job] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    log: str = "seed  starts\nseed  done\n"
    interrupt: bool = False

    def submit(
        self, job_id: str, entrypoint: str, package: Path, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> bool:
        if job_id in self.found:
            return False
        with ZipFile(package) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}
        self.sent.append({"id": job_id, "entrypoint": entrypoint, "env": env, "metadata": metadata})
        self.found[job_id] = Job(job_id, "RUNNING", entrypoint, 1e9, None, "", None, metadata)
        return True

    def jobs(self) -> list[Job]:
        return list(self.found.values())

    def job(self, job_id: str) -> Job:
        if job_id not in self.found:
            raise UsageError(f"{ADDRESS} has no job {job_id!r}")
        return self.found[job_id]

    def logs(self, job_id: str) -> str:
        return self.log

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        write(self.log)
        if self.interrupt:
            raise KeyboardInterrupt
        if not self.found[job_id].is_ended:
            status, code = self.ends.pop(0) if self.ends else ("SUCCEEDED", 0)
            self.end(job_id, status, code)
        return self.found[job_id]

    def stop(self, job_id: str) -> Job:
        if not self.job(job_id).is_ended:
            self.end(job_id, "STOPPED", None)
        return self.found[job_id]

    def end(self, job_id: str, status: str, code: int | None) -> None:
        self.found[job_id] = replace(self.found[job_id], status=status, driver_exit_code=code, ended=1e9 + 5)


@pytest.fixture
def cluster(monkeypatch):
    fake = FakeCluster()
    monkeypatch.setattr(wiring_jobs, "RayJobs", lambda address, verbose: fake)
    for name in wiring_jobs.TRAVELS:
        monkeypatch.delenv(name, raising=False)
    return fake


def ids(cluster: FakeCluster) -> list[str]:
    return [request["id"] for request in cluster.sent]


def test_a_submission_is_followed_and_its_exit_status_is_the_jobs(bam, cluster):
    done = bam("submit", "quickstart", *ON)
    assert done.status == 0
    [name] = ids(cluster)
    assert name.startswith("bam-quickstart-")
    assert len(name.rpartition("-")[2]) == 12
    first, *log, last = done.out.splitlines()
    assert first.startswith(f"submitted {name} (")
    assert log == cluster.log.splitlines()
    assert last == f"{name}: SUCCEEDED in 5.0s"


@pytest.mark.parametrize(("end", "status"), [(("FAILED", 1), 1), (("FAILED", 3), 3), (("STOPPED", None), 130)])
def test_a_job_that_does_not_end_well(bam, cluster, end, status):
    cluster.ends = [end]
    assert bam("submit", "quickstart", *ON).status == status


def test_the_same_submission_twice_runs_once(bam, cluster):
    assert bam("submit", "quickstart", *ON).status == 0
    done = bam("submit", "quickstart", *ON)
    assert done.status == 0
    assert len(cluster.sent) == 1
    assert "has run already and ended well; --again runs it again. Its log:" in done.out
    assert "seed  done" in done.out
    assert bam("submit", "quickstart", "--again", *ON).status == 0
    assert ids(cluster)[1] == ids(cluster)[0] + "-2"


def test_a_running_one_is_followed_not_started_again(bam, cluster):
    assert bam("submit", "quickstart", "--detach", *ON).status == 0
    done = bam("submit", "quickstart", "--again", *ON)
    assert "is RUNNING: not submitted again" in done.out
    assert (done.status, len(cluster.sent)) == (0, 1)


def test_a_failed_one_is_continued_under_the_next_id(bam, cluster):
    cluster.ends = [("FAILED", 1), ("STOPPED", None)]
    assert [bam("submit", "quickstart", *ON).status for _ in range(4)] == [1, 130, 0, 0]
    first = ids(cluster)[0]
    assert ids(cluster) == [first, f"{first}-2", f"{first}-3"]


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "seed=1"),
        ("--only", "seed"),
        ("--force", "seed"),
        ("--store", "elsewhere"),
        ("--tracking-uri", "http://mlflow:5000"),
        ("--max-parallel", "2"),
    ],
)
def test_another_run_is_another_job(bam, cluster, options):
    bam("submit", "quickstart", *ON)
    bam("submit", "quickstart", *options, *ON)
    assert len(set(ids(cluster))) == 2


def test_a_changed_text_or_changed_code_is_another_job(bam, cluster, here, monkeypatch):
    text = here / "own.txt"
    text.write_text("one two three\n")
    own = ("--set", "domains.law.source={kind: text, path: own.txt}")
    bam("submit", "quickstart", *own, *ON)
    bam("submit", "quickstart", *own, *ON)
    assert len(ids(cluster)) == 1
    text.write_text("one two three four\n")
    bam("submit", "quickstart", *own, *ON)
    assert len(set(ids(cluster))) == 2
    original = wiring_jobs.job_package
    monkeypatch.setattr(wiring_jobs, "job_package", lambda files: original({**files, "infra/new.py": b"x = 1\n"}))
    bam("submit", "quickstart", *own, *ON)
    assert len(set(ids(cluster))) == 3


def test_what_is_sent_is_the_whole_recipe_and_the_command(bam, cluster, here):
    (here / "own.txt").write_text("one two three\n")
    options = ("--set", "seed=7", "--set", "domains.law.source={kind: text, path: own.txt}", "--only", "expert.*")
    bam("submit", "quickstart", *options, "--max-parallel", "3", "--fail-fast", *ON)
    [request] = cluster.sent
    sent = cluster.files["recipe.yaml"]
    assert yaml.safe_load(sent)["seed"] == 7
    assert yaml.safe_load(sent)["domains"]["law"]["source"]["path"] == str(here / "own.txt")
    (here / "sent.yaml").write_bytes(sent)
    sets = [word for word in options if "=" in word]
    assert load_recipe(str(here / "sent.yaml")).model == load_recipe("quickstart", sets).model
    words = "python start.py run recipe.yaml --only 'expert.*' --max-parallel 3 --fail-fast"
    assert request["entrypoint"] == f"{words} --store {here / 'bam_store'} --address auto --executor ray"
    assert "start.py" in cluster.files


def test_run_and_stage_with_an_http_address_are_jobs(bam, cluster, here):
    assert bam("run", "quickstart", "--until", "seed", *ON).status == 0
    assert bam("submit", "quickstart", "--until", "seed", *ON).status == 0
    assert len(cluster.sent) == 1  # the same run
    assert bam("stage", "expert.law", "quickstart", "--input", "seed=seed@latest", "--with-deps", *ON).status == 0
    words = "start.py stage expert.law recipe.yaml --input seed=seed@latest --with-deps --store"
    assert words in cluster.sent[1]["entrypoint"]


def test_ray_address_may_hold_it(bam, cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ADDRESS)
    assert bam("run", "quickstart").status == 0
    assert len(cluster.sent) == 1


def test_a_dry_run_asks_no_cluster(bam, cluster):
    done = bam("run", "quickstart", "--dry-run", "--json", *ON)
    assert done.status == 0
    assert not cluster.sent


def test_settings_travel_and_secrets_do_not(bam, cluster, monkeypatch):
    planted = "hunter2hunter2"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, planted)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setattr("sys.argv", ["bam", "submit", "quickstart", "--set", f"domains.law.source.token={planted}"])
    bam("submit", "quickstart", *ON)
    [request] = cluster.sent
    assert request["env"]["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert planted not in json.dumps(request, default=dict)
    provenance = json.loads(request["env"]["BAM_PROVENANCE"])
    assert {"git_commit", "dirty_diff_sha256", "argv", "user", "host"} <= provenance.keys()
    assert not {"packages", "python"} & provenance.keys()  # of where it runs
    assert request["metadata"]["recipe"] == "quickstart"


@pytest.mark.parametrize("option", ["--store", "--tracking-uri"])
def test_a_password_in_a_place_is_refused(bam, cluster, option):
    done = bam("submit", "quickstart", option, "s3://me:hunter2@bucket/x", *ON)
    assert done.status == 2
    assert f"{option} s3://***@bucket/x: its password or query would be seen" in done.err
    assert "hunter2" not in done.out + done.err
    assert not cluster.sent


def test_a_misspelt_stage_is_told_before_anything_is_sent(bam, cluster):
    done = bam("submit", "quickstart", "--only", "expert.lawn", *ON)
    assert done.status == 2
    assert "did you mean 'expert.law'?" in done.err
    assert bam("stage", "sead", "quickstart", *ON).status == 2
    assert not cluster.sent


def test_whether_an_adopted_expert_is_there_is_for_the_job_to_say(bam, cluster):
    """Its store may be the cluster's own."""
    adopted = ("--set", "domains.law.expert=law-by-other-team")
    assert bam("submit", "quickstart", *adopted, "--only", "adopted.law-by-other-team", *ON).status == 0
    assert len(cluster.sent) == 1
    assert bam("submit", "quickstart", *adopted, "--only", "expert.law", *ON).status == 2


def test_a_wrong_recipe_is_told_before_anything_is_sent(bam, cluster):
    done = bam("submit", "quickstart", "--set", "model.n_layerz=3", *ON)
    assert (done.status, cluster.sent) == (2, [])
    assert "n_layerz" in done.err


@pytest.mark.parametrize("command", [("submit", "quickstart"), ("jobs",), ("logs", "x"), ("stop", "x")])
def test_a_missing_address_is_told(bam, cluster, command):
    done = bam(*command)
    assert done.status == 2
    assert "--address is missing: give http://HOST:8265" in done.err


def test_local_executor_and_a_job_contradict(bam, cluster):
    done = bam("submit", "quickstart", "--executor", "local", *ON)
    assert done.status == 2
    assert "--executor local runs in this process" in done.err


def test_ctrl_c_detaches_with_the_command_that_follows_again(bam, cluster):
    cluster.interrupt = True
    done = bam("submit", "quickstart", *ON)
    [name] = ids(cluster)
    assert done.status == 130
    assert f"bam: detached; {name} runs on\n  bam logs {name} --follow --address {ADDRESS}" in done.err
    assert cluster.found[name].status == "RUNNING"
    cluster.interrupt = False
    assert bam("logs", name, "--follow", *ON).status == 0


def test_json_alone_is_on_stdout(bam, cluster):
    done = bam("submit", "quickstart", "--json", *ON)
    answer = json.loads(done.out)
    assert answer["job"] == ids(cluster)[0]
    assert (answer["status"], answer["exit_status"], answer["is_new"]) == ("SUCCEEDED", 0, True)
    assert 0 < answer["package_bytes"] < 1 << 20
    assert "seed  done" in done.err
    assert json.loads(bam("submit", "quickstart", "--json", *ON).out)["is_new"] is False
    [listed] = json.loads(bam("jobs", "--json", *ON).out)
    assert listed["job"] == answer["job"]
    assert json.loads(bam("logs", answer["job"], "--json", *ON).out)["log"] == cluster.log
    assert json.loads(bam("stop", answer["job"], "--json", *ON).out)["status"] == "SUCCEEDED"


def test_jobs_logs_and_stop_for_people(bam, cluster):
    assert bam("jobs", *ON).out == "no jobs\n"
    bam("submit", "quickstart", "--detach", *ON)
    [name] = ids(cluster)
    assert name in bam("jobs", *ON).out
    assert bam("logs", name, *ON).out == cluster.log
    stopped = bam("stop", name, *ON)
    assert stopped.out == f"{name}: STOPPED; what is done is kept, and the same submission continues\n"
    assert bam("stop", name, *ON).out == f"{name}: STOPPED; has ended before\n"
    assert bam("logs", name, "--follow", *ON).status == 130


def test_a_job_that_cannot_start_says_why(bam, cluster):
    cluster.ends, cluster.log = [("FAILED", 127)], "sh: 1: python3.99: not found\n"
    done = bam("submit", "quickstart", "--python", "python3.99", *ON)
    assert done.status == 2
    assert "the cluster cannot run 'python3.99'; give --python PROGRAM" in done.err


def test_a_failed_job_names_the_command_that_its_submitter_types(bam, cluster, monkeypatch):
    bam("submit", "quickstart", "--set", "seed=3", "--force", "seed", "--force", "dense", *ON)
    monkeypatch.setenv(wiring_jobs.CONTINUES, cluster.sent[0]["env"][wiring_jobs.CONTINUES])
    left = {"--set": (), "--force": ["dense"]}  # as the job knows: `seed` is made
    again = continuing("run", ["recipe.yaml"], left, Session(typed={"address": "auto"}))
    assert again == f"bam submit quickstart --set seed=3 --address {ADDRESS} --force dense"
