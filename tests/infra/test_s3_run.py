"""Whole runs with texts and store on S3, through faults of single requests: the bytes of an undisturbed local run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3_kit import S3Server
from s3_training import DIES_AT, WEIGHTS

from infra.storage import Storage
from infra.store import ArtifactStore
from tests.e2e.fixtures import empty, finished
from tests.e2e.kit import Place, merged

__all__ = ["empty", "finished"]  # fixtures

RAY_ENV = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


@pytest.fixture
def uri(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3.uri(tmp_path.name)


@dataclass(frozen=True)
class Elsewhere(Place):
    """uri: of the store that `bam` gets instead."""

    uri: str

    def words(self, *words: str, **settings: Any) -> tuple[str, ...]:
        return tuple(self.uri if word == str(self.store) else word for word in super().words(*words, **settings))


def move_texts(place: Place, uri: str) -> None:
    """Put the recipe's texts on S3 beside the store."""
    recipe, storage = place.recipe_dict(), Storage(uri)
    for domain, settings in recipe["domains"].items():
        file = Path(settings["source"]["path"])
        storage.write_atomic(f"texts/{file.name}", file.read_bytes())
        source = {"source": {"path": f"{uri}/texts/{file.name}"}}
        recipe = merged(recipe, {"domains": {domain: source}})
    place.set_recipe(recipe)


def sprinkle(s3: S3Server, path: str) -> None:
    """Of the requests below `path`, every so many go wrong, each kind in its turn."""
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        for number, kind in enumerate(("500", "lost", "503", "cut", "half")):
            s3.fail(kind, method, path, after=3 + 5 * number, times=2)


def digests(place: Place) -> dict[str, str]:
    records = [json.loads(path.read_text()) for path in place.store.glob("artifacts/*/*/record.json")]
    return {record["stage"]: record["digest"] for record in records}


def test_a_run_on_s3_ends_with_the_bytes_of_a_local_one(
    finished: Place, empty: Place, s3: S3Server, uri: str, tmp_path: Path
) -> None:
    move_texts(empty, uri)
    sprinkle(s3, "/store/")
    store = ArtifactStore(f"{uri}/store")
    there = set(Path.cwd().iterdir())
    answer = Elsewhere(empty.recipe, empty.store, store.uri).run()
    assert answer.status == 0, answer.err
    assert {request["fault"] for request in s3.requests()} >= {"500", "lost", "503", "cut", "half"}
    # The report names where its artifacts lie, so its bytes are another store's own.
    same = {record.stage: record.digest for record in store.records() if record.stage != "report"}
    assert same == {stage: digest for stage, digest in digests(finished).items() if stage != "report"}
    left = [name for name in store.storage.sizes("") if name.startswith("training/") or "/lease" in name]
    assert left == []
    assert set(Path.cwd().iterdir()) == there
    assert not any((tmp_path / "cache").glob("bam/training/*/*/*"))
    assert not any((tmp_path / "cache").rglob("attempts/0*"))
    again = Elsewhere(empty.recipe, empty.store, store.uri).run()
    assert set(again.actions().values()) == {"reuse"}, again.err


@pytest.mark.long
@pytest.mark.ray
def test_ray_trains_through_faults_of_its_uploads(
    finished: Place, empty: Place, s3: S3Server, uri: str, tmp_path: Path
) -> None:
    """Checkpoints and Ray's own state go to S3 while requests fail; no worker is restarted for that."""
    sprinkle(s3, "/training/")
    place = Elsewhere(empty.recipe, empty.store, f"{uri}/store")
    words = place.words("run", str(empty.recipe), "--until", "seed", "--json", executor="ray")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        env=os.environ | RAY_ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    store = ArtifactStore(f"{uri}/store")
    [seed] = store.records("seed")
    assert seed.digest == digests(finished)["seed"]
    assert seed.attempt == 1
    kinds = [request["fault"] for request in s3.requests() if request["fault"]]
    assert set(kinds) >= {"500", "lost", "503", "cut"}, kinds
    assert [name for name in store.storage.sizes("") if name.startswith("training/")] == []


@pytest.mark.long
@pytest.mark.ray
def test_a_worker_that_dies_is_replaced_by_one_that_resumes_from_s3(s3: S3Server, uri: str, tmp_path: Path) -> None:
    """Uploads go on beside the training, one at a time: at most the last one is not there yet when a worker dies."""
    sprinkle(s3, "/training/")
    here, temporary = Path(__file__).parent, tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(here / "s3_training.py"), f"{uri}/training/run", str(tmp_path)],
        env=os.environ
        | RAY_ENV
        | {
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]),
            "TMPDIR": str(temporary),
            "RAY_TMPDIR": tempfile.gettempdir(),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["resumed_from"] in (DIES_AT - 2, DIES_AT - 1)
    assert result["bytes"] == len(WEIGHTS)
    assert len([request for request in s3.requests() if request["fault"]]) > 10
    kept = {path.split("/")[0] for path in Storage(f"{uri}/training/run").sizes("") if path.endswith("weights")}
    assert len(kept) <= 2
    assert len(list(temporary.glob("bam-checkpoint-*"))) <= 1, "of the worker that died"
