"""Provenance names the code that ran, and no secret."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from bam_core.errors import UsageError
from infra import provenance
from infra.provenance import capture, mask_argv, mask_text, mask_values


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed checkout that holds a `bam_core`, with us imported from it."""
    package = tmp_path / "bam_core"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("WIDTH = 8\n")
    (tmp_path / ".gitignore").write_text(".venv/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.delenv(provenance.OVERRIDE, raising=False)
    monkeypatch.setattr(provenance.bam_core, "__file__", str(package / "__init__.py"))
    return tmp_path


def test_a_clean_checkout(checkout: Path) -> None:
    found = capture(["bam", "run", "quickstart"])
    assert found["git_commit"] == git(checkout, "rev-parse", "HEAD")
    assert found["dirty"] is False
    assert found["dirty_diff_sha256"] is None
    assert found["argv"] == ["bam", "run", "quickstart"]
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"].startswith("2.")
    assert found["user"]
    assert found["host"]
    assert json.loads(json.dumps(found)) == found


def test_edits_and_new_modules_have_a_digest_of_their_own(checkout: Path) -> None:
    digests = []
    for path, text in (
        ("model.py", "WIDTH = 9\n"),
        ("model.py", "WIDTH = 10\n"),
        ("new.py", "A = 1\n"),
        ("new.py", "A = 2\n"),
    ):
        (checkout / "bam_core" / path).write_text(text)
        found = capture([])
        assert found["dirty"] is True
        digests.append(found["dirty_diff_sha256"])
    assert len(set(digests)) == 4
    assert capture([])["dirty_diff_sha256"] == digests[-1]


def test_data_lying_about_is_no_change(checkout: Path) -> None:
    (checkout / "bam_store").mkdir()
    (checkout / "bam_store" / "rows.arrow").write_text("rows")
    assert capture([])["dirty"] is False


def test_capturing_writes_nothing(checkout: Path) -> None:
    index = (checkout / ".git" / "index").read_bytes()
    (checkout / "bam_core" / "model.py").touch()
    capture([])
    assert (checkout / ".git" / "index").read_bytes() == index


def test_an_install_inside_some_checkout_is_not_that_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / ".venv" / "bam_core"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(provenance.bam_core, "__file__", str(installed / "__init__.py"))
    assert capture([])["git_commit"] is None


def test_no_checkout_and_no_git(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing here"))
    found = capture([])
    assert [found[name] for name in ("git_commit", "dirty", "dirty_diff_sha256")] == [None, None, None]


def test_what_the_submitter_captured_wins(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"git_commit": "a" * 40, "dirty": True, "argv": ["bam", "submit", "quickstart"]}
    monkeypatch.setenv(provenance.OVERRIDE, json.dumps(given))
    found = capture(["driver.py"])
    assert {name: found[name] for name in given} == given
    assert found["dirty_diff_sha256"] is None
    assert found["python"] == platform.python_version()


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_malformed_override_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.OVERRIDE, text)
    with pytest.raises(UsageError, match="BAM_PROVENANCE"):
        capture([])


@pytest.mark.parametrize(
    ("argv", "masked"),
    [
        (["--hub-token", "hf_x", "run"], ["--hub-token", "***", "run"]),
        (["--hub-token=hf_x"], ["--hub-token=***"]),
        (["--password", "--odd"], ["--password", "***"]),
        (["HF_TOKEN=hf_x", "--set", "runtime.api_key=k"], ["HF_TOKEN=***", "--set", "runtime.api_key=***"]),
        (["--set", "phases.seed.tokens=2M", "--set", "tokenizer.vocab_size=64"],) * 2,
        (["--max-new-tokens", "5"],) * 2,
        (["--tracking-uri=http://ada:pw@host:5000/a"], ["--tracking-uri=http://***@host:5000/a"]),
        (["s3://bucket/a?X-Amz-Signature=abc"], ["s3://bucket/a?***"]),
        (["data/??.txt", "mail@host", "s3://bucket/a@b"],) * 2,
    ],
)
def test_secrets_on_a_command_line(argv: list[str], masked: list[str]) -> None:
    assert mask_argv(argv) == masked


def test_secrets_inside_text_and_values() -> None:
    assert mask_text("GET 'https://ada:pw@host/a?b=c' failed") == "GET 'https://***@host/a?***' failed"
    value = {"a": [{"secret_access_key": "k", "n_tokens": 3}], "url": "http://a:b@c", "token": None}
    assert mask_values(value) == {
        "a": [{"secret_access_key": "***", "n_tokens": 3}],
        "url": "http://***@c",
        "token": None,
    }
