"""The key that signs is in no record, log, MLflow entry, error or output, and no record that was forged passes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from bam_core.graph.record import record_checksum
from infra.provenance import HIDDEN, mask_argv, mask_text, names_secret
from infra.signing import write_keys
from pipelines.wiring.jobs import TRAVELS
from tests.e2e.kit import Place
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS
from tests.security.test_secrets import leaks

pytestmark = MLFLOW_WARNINGS


@pytest.fixture
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Far from the store, which is searched for it."""
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder / "key")
    return folder / "key"


def forms_of(key: Path) -> tuple[str, ...]:
    """In which it could be found: a line of the file, and the bare secret as text."""
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    raw = private.private_bytes_raw()  # type: ignore[union-attr]
    return key.read_text().splitlines()[1], raw.hex(), base64.b64encode(raw).decode().rstrip("=")


def test_a_run_signs_what_it_makes_and_leaves_no_key(empty: Place, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLflow's database in the store, and the key in the environment as text."""
    monkeypatch.setenv("BAM_SIGNING_KEY", key.read_text())
    monkeypatch.setenv("BAM_TRUSTED_KEYS", f"{key}.pub")
    answer = empty.run("-v", "--until", "seed", tracking=())
    assert answer.status == 0, answer.err
    found = empty.bam("verify", "seed", "--deep", "--json", tracking=())
    assert found.status == 0, found.out
    assert all(checked["signed_by"] for checked in found.json["artifacts"])
    for words in (("show", "seed"), ("ls",), ("lineage", "seed")):
        shown = empty.bam(*words, tracking=())
        assert [form for form in forms_of(key) if form in shown.out + shown.err] == []
    assert leaks(empty.store, forms_of(key)) == []


def test_the_name_of_the_variable_hides_its_value(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names_secret("BAM_SIGNING_KEY")
    assert not names_secret("BAM_TRUSTED_KEYS")
    assert "BAM_SIGNING_KEY" not in TRAVELS
    assert mask_argv(["--signing-key", "x", "signing_key=y"]) == ["--signing-key", HIDDEN, f"signing_key={HIDDEN}"]
    monkeypatch.setenv("BAM_SIGNING_KEY", key.read_text())
    body = key.read_text().splitlines()[1]
    assert body not in mask_text(f"whole: {key.read_text()} and one line: {body}")


@pytest.mark.parametrize("value", ["planted-key-5d1f0c6b", "-----BEGIN PRIVATE KEY-----\nplanted-key-5d1f\n"])
def test_a_key_that_is_none_ends_a_run_before_it_starts(
    empty: Place, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAM_SIGNING_KEY", value)
    answer = empty.run()
    assert (answer.status, answer.err.startswith("bam: BAM_SIGNING_KEY: ")) == (2, True)
    assert "planted" not in answer.out + answer.err
    assert not empty.store.exists()
    assert empty.bam("ls").status == 0, "who makes nothing needs no key"


def test_a_forged_record_with_a_checksum_that_holds_is_named(
    up_to: Callable[..., Place], key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can write to the store, and has no key."""
    place = up_to("tokenizer", "data.*")
    monkeypatch.setenv("BAM_SIGNING_KEY", str(key))
    assert place.run("--until", "seed").status == 0
    assert place.bam("verify", "seed").status == 0
    file = place.artifact("seed") / "record.json"
    record = json.loads(file.read_text()) | {"metrics": {"loss": 0.001}}
    file.write_text(json.dumps(record | {"checksum": record_checksum(record)}))
    answer = place.bam("verify", "seed", "--json")
    assert answer.status == 1
    assert answer.json["faults"][0].startswith("its record was altered since it was signed")

    monkeypatch.setenv("BAM_TRUSTED_KEYS", f"{key}.pub")
    (place.artifact("seed") / "record.sig.json").unlink()
    answer = place.bam("verify", "seed", "--deep", "--json")
    unsigned = {checked["stage"]: checked["faults"] for checked in answer.json["artifacts"]}
    assert all(faults == ["its record is not signed"] for faults in unsigned.values()), unsigned


@pytest.mark.long
@pytest.mark.ray
def test_a_run_on_ray_signs_and_leaves_no_key_in_rays_own_logs(up_to: Callable[..., Place], key: Path) -> None:
    """The stages run in processes of their own, which have the environment of the one that started Ray."""
    place = up_to("tokenizer", "data.*")
    folder = Path(tempfile.mkdtemp(prefix="r"))  # short: a socket's path has 107 characters
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"BAM_SIGNING_KEY": key.read_text(), "RAY_TMPDIR": str(folder)}
    words = place.words("run", str(place.recipe), "--until", "seed", "-v", tracking=(), executor="ray")
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("bam"), *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert list(folder.rglob("*.out"))
        assert leaks(folder, forms_of(key)) == []
    finally:
        shutil.rmtree(folder)
    assert [form for form in forms_of(key) if form in done.stdout + done.stderr] == []
    assert leaks(place.store, forms_of(key)) == []
    answer = place.bam("verify", "seed", "--json")
    assert answer.json["signed_by"]
