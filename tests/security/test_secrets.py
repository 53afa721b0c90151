"""Secrets of the environment and of URLs are in no record, log, MLflow entry, error or output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.provenance import HIDDEN, mask_text
from infra.sources import TextSources
from tests.e2e.kit import Place
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS

pytestmark = MLFLOW_WARNINGS

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-5d1f0c6b",
    "AWS_SESSION_TOKEN": "planted-session-71aa3e",
    "HF_TOKEN": "planted-hf-0b9c2d7e",
    "RAY_AUTH_TOKEN": "planted-ray-f3a8c1d2e4b59687f3a8c1d2e4b59687",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-44e0",
    "MLFLOW_TRACKING_TOKEN": "planted-bearer-9c1d",
}
IN_URLS = ("planted-user-1c", "planted-pass-2d", "planted-query-3e")
USER, PASSWORD, QUERY = IN_URLS


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return (*PLANTED.values(), *IN_URLS)


def url(scheme: str, place: str) -> str:
    return f"{scheme}://{USER}:{PASSWORD}@{place}?signature={QUERY}"


def leaks(root: Path, secrets: tuple[str, ...]) -> list[str]:
    """Every file below that has one of the secrets in it, binary ones too."""
    return [
        f"{file.relative_to(root)}: {secret}"
        for file in sorted(root.rglob("*"))
        if file.is_file()
        for secret in secrets
        if secret.encode() in file.read_bytes()
    ]


def test_the_search_finds_what_it_looks_for(tmp_path: Path, secrets: tuple[str, ...]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "log.txt").write_bytes(b"\xff\x00" + secrets[0].encode() + b"\n")
    assert leaks(tmp_path, secrets) == [f"sub/log.txt: {secrets[0]}"]


def test_a_whole_run_leaves_none(empty: Place, secrets: tuple[str, ...]) -> None:
    """With MLflow's database in the store, where its parameters, tags and artifacts are."""
    answer = empty.run("-v", tracking=())
    assert answer.status == 0, answer.err
    for words in (("show", "seed"), ("lineage", "report"), ("ls",)):
        answer = empty.bam(*words, tracking=())
        assert [secret for secret in secrets if secret in answer.out + answer.err] == []
    assert (empty.store / "mlflow.db").is_file()
    assert leaks(empty.store, secrets) == []


def test_a_tracking_server_with_a_password_leaves_none(
    up_to: Callable[..., Place], secrets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = up_to("tokenizer")
    where = url("http", "127.0.0.1:9/mlflow")
    words = ["bam", *place.words("run", str(place.recipe), tracking=("--tracking-uri", where))]
    monkeypatch.setattr(sys, "argv", words)  # what the record keeps
    answer = place.run("--until", "data.law", tracking=("--tracking-uri", where))
    assert answer.status == 0, answer.err
    assert f"{HIDDEN}@127.0.0.1:9" in json.dumps(place.record("data.law")["provenance"]["argv"])
    assert [secret for secret in secrets if secret in answer.out + answer.err] == []
    assert leaks(place.store, secrets) == []


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "--store", url("memory", "bucket/store")],
        ["ls", "--store", url("s3", "bucket/store")],
        ["ls", "--store", url("nothing", "bucket/store")],
        ["run", url("https", "127.0.0.1:9/recipe.yaml")],
        ["run", "quickstart", "--set", url("a.b=http", "127.0.0.1:9")],
        ["run", "quickstart", "--address", url("ray", "127.0.0.1:9")],
        ["jobs", "--address", url("http", "127.0.0.1:9")],
    ],
    ids=lambda words: " ".join(words[:1] + [word.partition(":")[0] for word in words if "://" in word]),
)
def test_errors_about_urls_hide_who_and_how(
    words: list[str], secrets: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: some of these start Ray or a server."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = subprocess.run(
        [Path(sys.executable).with_name("bam"), *words], cwd=here, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert [secret for secret in secrets if secret in done.stdout + done.stderr] == []
    assert leaks(here, secrets) == []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_an_error_of_a_library_is_kept_without_the_secrets_in_it(
    up_to: Callable[..., Place], secrets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a stage's exception says is written to error.json and MLflow, and printed."""

    def fail(self: TextSources, *words: object, **named: object) -> Iterator[str]:
        raise OSError(f"401 for {url('https', 'hub/x')}, headers {{'Authorization': 'Bearer {PLANTED['HF_TOKEN']}'}}")

    monkeypatch.setattr(TextSources, "read", fail)
    place = up_to("tokenizer")
    answer = place.run("--until", "data.law", tracking=())
    assert answer.status == 1
    assert f"401 for https://{HIDDEN}@hub/x" in answer.err
    assert [secret for secret in secrets if secret in answer.out + answer.err] == []
    error = json.loads(next(place.store.glob("artifacts/data.law/*/attempts/0001/error.json")).read_text())
    assert error["type"] == "OSError"
    assert HIDDEN in error["message"]
    assert leaks(place.store, secrets) == []


def test_paths_and_short_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/.ray/auth_token")
    monkeypatch.setenv("MY_PASSWORD", "the")
    assert mask_text("the file /home/me/.ray/auth_token") == "the file /home/me/.ray/auth_token"


@pytest.mark.ray
def test_a_run_on_ray_leaves_none_not_in_rays_own_logs_either(
    up_to: Callable[..., Place], secrets: tuple[str, ...]
) -> None:
    place = up_to("tokenizer", "data.*")
    folder = Path(tempfile.mkdtemp(prefix="r"))  # short: a socket's path has 107 characters
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= PLANTED | {"RAY_TMPDIR": str(folder)}
    words = place.words("run", str(place.recipe), "--until", "seed", "-v", tracking=(), executor="ray")
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("bam"), *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert list(folder.rglob("*.out"))
        assert leaks(folder, secrets) == []
    finally:
        shutil.rmtree(folder)
    assert [secret for secret in secrets if secret in done.stdout + done.stderr] == []
    assert leaks(place.store, secrets) == []
