"""`bam submit` and its kin on a real head with a token: the command line in processes of its own, as people use it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kit import Cluster, interrupt
from tests.e2e.kit import NO_MLFLOW, Place, recipe_dict, write_recipe, write_texts

pytestmark = [pytest.mark.long, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
BAM = (sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())")
PLANTED = "hunter2hunter2hunter2"
LOOK_EVERY_S = 0.2
ENDLESS = "phases.seed.tokens=1000M"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("c")).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_texts(tmp_path / "texts")
    return Place(write_recipe(tmp_path / "tiny.yaml", recipe_dict(tmp_path / "texts")), tmp_path / "store")


class Bam:
    """Command lines on one place and one cluster."""

    def __init__(self, place: Place, cluster: Cluster) -> None:
        self.place, self.cluster = place, cluster

    def start(self, *words: str, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
        address = ("--address", self.cluster.jobs_url)
        return subprocess.Popen(
            [*BAM, *self.place.words(*words, executor="ray"), *address],
            env={**self.cluster.env(), **env},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, **how: Any) -> tuple[int, str, str]:
        process = self.start(*words, **how)
        out, err = process.communicate()
        return process.returncode, out, err

    def submit(self, *words: str, **how: Any) -> tuple[int, str, str]:
        return self("submit", str(self.place.recipe), *words, **how)

    def jobs(self) -> list[dict[str, Any]]:
        """Of this place, the newest first."""
        found = json.loads(self("jobs", "--json")[1])
        return [job for job in found if str(self.place.store) in job["entrypoint"]]


@pytest.fixture
def bam(place: Place, cluster: Cluster) -> Bam:
    return Bam(place, cluster)


def test_the_jobs_page_wants_the_token(cluster: Cluster) -> None:
    assert cluster.get("/api/jobs/") == 401
    assert cluster.get("/api/jobs/", token="0" * 64) == 403
    assert cluster.get("/api/jobs/", token=cluster.token) == 200


def test_two_submissions_at_once_run_once(bam: Bam, place: Place, cluster: Cluster) -> None:
    words = ("submit", str(place.recipe), "--until", "data.law", "--json")
    both = [bam.start(*words, AWS_SECRET_ACCESS_KEY=PLANTED, AWS_REGION="eu-west-1") for _ in range(2)]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    one, two = (json.loads(out) for out, _ in ended)
    assert one["job"] == two["job"]
    assert {one["is_new"], two["is_new"]} == {True, False}
    assert len(bam.jobs()) == 1
    assert place.attempts()["tokenizer"] == 1

    for _, err in ended:  # each has followed it to its true end
        assert re.search(r"data\.law +done in", err), err
        assert re.search(r"^done in .*: 2 done$", err, re.MULTILINE), err
    log = bam("logs", one["job"])[1]
    assert log.rstrip("\n") in ended[0][1]

    request = urllib.request.Request(
        f"{cluster.jobs_url}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(request) as answer:
        shown = answer.read().decode()
    assert "eu-west-1" in shown
    assert PLANTED not in shown
    assert cluster.token not in shown

    provenance = place.record("tokenizer")["provenance"]
    assert provenance["git_commit"] == one["commit"]
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert provenance["git_commit"] == (git.stdout.strip() or None)
    assert provenance["argv"][1:3] == ["submit", str(place.recipe)]

    status, out, _ = bam.submit("--until", "data.law")
    assert status == 0
    assert "has run already and ended well" in out
    status, out, _ = bam("stage", "tokenizer", str(place.recipe))
    assert status == 0
    assert "1 reused" in out


def test_the_code_that_was_sent_is_what_runs(bam: Bam, place: Place, tmp_path: Path) -> None:
    """Not what is installed on the cluster: also in the processes of stages."""
    for package in ("bam_core", "infra", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    stage = tmp_path / "code" / "pipelines" / "stages" / "tokenizer.py"
    stage.write_text(stage.read_text().replace('{"vocab_size":', '{"sent": 1, "vocab_size":'))
    status, out, err = bam.submit("--only", "tokenizer", cwd=tmp_path / "code")
    assert status == 0, out + err
    assert place.record("tokenizer")["metrics"]["sent"] == 1


def test_a_failing_job_gives_its_status_and_the_next_submission_continues(bam: Bam, place: Place) -> None:
    status, out, _ = bam.submit("--only", "seed")  # what it reads was never made
    assert status == 1
    assert "blocked" in out or "seed" in out
    again = re.search(r"continue with\n +(bam submit .*)", out)
    assert again, out
    assert f"bam submit {place.recipe} --only seed" in again[1]
    assert bam.submit("--only", "seed")[0] == 1
    first, second = (job["job"] for job in reversed(bam.jobs()))
    assert second == f"{first}-2"


def test_ctrl_c_detaches_and_stop_ends_in_order(bam: Bam, place: Place) -> None:
    follower = bam.start("submit", str(place.recipe), "--until", "seed", "--set", ENDLESS)
    while not place.attempts()["seed"] or not list(place.store.glob("artifacts/seed/*/attempts/*/progress.json")):
        assert follower.poll() is None, follower.communicate()
        time.sleep(LOOK_EVERY_S)
    [head] = bam.cluster.nodes
    assert head.named("start.py")
    assert head.named("ray::RayTrainWorker")
    interrupt(follower)
    _, err = follower.communicate()
    assert follower.returncode == 130
    [job] = bam.jobs()
    assert f"bam logs {job['job']} --follow" in err
    assert job["status"] == "RUNNING"

    status, out, err = bam("stop", job["job"])
    assert status == 0, err
    assert "STOPPED" in out
    assert bam("logs", job["job"], "--follow")[0] == 130
    assert place.is_done("tokenizer")
    assert not place.is_done("seed")
    # Nothing of it runs on, and nobody has to wait for its lease.
    assert place.plan("--until", "seed", "--set", ENDLESS).actions()["seed"] == "run"
    assert not head.named("start.py")
    while head.named("ray::RayTrainWorker"):  # it ends by itself; the test's own time limit is the bound
        time.sleep(LOOK_EVERY_S)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}, "the cluster refuses this token"),
        ({"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"}, "the cluster wants a token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN_PATH is set but file cannot be opened"),
    ],
)
def test_a_refused_token_is_told_in_words(bam: Bam, env: dict[str, str], words: str) -> None:
    status, out, err = bam.submit(**env)
    assert status == 2, out + err
    assert words in err
    assert "Traceback" not in err


def test_a_token_that_lies_about_is_shown_without_being_asked_for(bam: Bam) -> None:
    """Where a token is, `RAY_AUTH_MODE` need not be set, which Ray's own client wants."""
    env = bam.cluster.env()
    del env["RAY_AUTH_MODE"]
    command = [*BAM, "jobs", "--address", bam.cluster.jobs_url]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_such_python_there(bam: Bam) -> None:
    status, out, err = bam.submit("--until", "tokenizer", "--python", "no-such-python")
    assert status == 2, out + err
    assert "the cluster cannot run 'no-such-python'" in err


def test_a_node_joins_by_the_heads_address_or_is_told_why_not(bam: Bam, place: Place, cluster: Cluster) -> None:
    def doctor(address: str, **env: str) -> tuple[int, str]:
        words = ("doctor", "--store", str(place.store), *NO_MLFLOW, "--address", address, "--json")
        command, env = [*BAM, *words], {**cluster.env(), **env}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "InvalidAuthToken" not in done.stderr  # of Ray's native log
        [check] = [check for check in json.loads(done.stdout) if check["name"] == "cluster"]
        return check["ok"], check["detail"]

    assert doctor(cluster.address) == (True, f"{cluster.address}: 1 node(s), 2 CPU, 0 GPU")
    is_ok, detail = doctor(cluster.jobs_url)
    assert is_ok
    assert "Ray 2." in detail
    is_ok, detail = doctor(cluster.address, RAY_AUTH_TOKEN_PATH="", RAY_AUTH_TOKEN="0" * 64)
    assert not is_ok
    assert "refuses this token" in detail
    is_ok, detail = doctor("127.0.0.1:9")
    assert not is_ok
    assert "nothing answers there" in detail


SEES = """
import json, sys, ray
from infra.ray_join import nodes_without, require_shared
from infra.ray_executor import start_ray
address, store = sys.argv[1:]
start_ray(address, 0, False)
nodes = ray.nodes()
elsewhere = [dict(node, NodeManagerHostname=f"host-{i}") for i, node in enumerate(nodes * 2)]
require_shared(store, elsewhere)
print(json.dumps([nodes_without(store + "/../tiny.yaml", nodes), nodes_without(store + "/not-there", elsewhere)]))
"""


def test_each_node_is_asked_whether_it_sees_the_store(cluster: Cluster, place: Place) -> None:
    place.store.mkdir()
    command = [sys.executable, "-c", SEES, cluster.address, str(place.store)]
    done = subprocess.run(command, env=cluster.env(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sees_all, sees_none = json.loads(done.stdout.splitlines()[-1])
    assert sees_all == []
    assert sees_none == ["host-0", "host-1"]
    assert list(place.store.iterdir()) == []  # the probe is gone
