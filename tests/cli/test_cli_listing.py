"""`bam ls` with its filters, and `bam get` of a folder by an MLflow model's id."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import click
import pytest

from infra.store import ArtifactStore
from pipelines.cli.units import AGE, SIZE
from tests.infra.house_kit import key_of, make, name, node


@pytest.fixture
def store(here):
    """A young seed, an older expert, and a dense model that failed."""
    store = ArtifactStore(str(here / "bam_store"))
    seed = make(store, "seed", 1, [], ended=time.time() - 60)
    make(store, "expert.law", 1, [seed], ended=time.time() - 3 * 86400)
    store.attempt_dir("dense", key_of("dense"), 1)
    store.close_attempt("dense", key_of("dense"), 1, {"message": "no room"})
    return store


def stages(bam, *words):
    return [row["stage"] for row in json.loads(bam("ls", *words, "--json").out)]


def test_filters(bam, store):
    n_bytes = {record.stage: sum(output.size for output in record.outputs) for record in store.records()}
    assert n_bytes["expert.law"] > n_bytes["seed"]
    assert stages(bam) == ["dense", "expert.law", "seed"]
    assert stages(bam, "--state", "failed") == ["dense"]
    assert stages(bam, "--state", "failed", "--state", "done") == ["dense", "expert.law", "seed"]
    assert stages(bam, "--older-than", "2d") == ["expert.law"]
    assert stages(bam, "--older-than", "30s") == ["expert.law", "seed"]
    assert stages(bam, "--larger-than", str(n_bytes["seed"])) == ["expert.law"]
    assert stages(bam, "e*", "--larger-than", "1G") == []
    assert bam("ls", "--larger-than", "1G").out == "nothing is like that\n"


def test_order(bam, store):
    assert stages(bam, "--sort", "age") == ["dense", "seed", "expert.law"]
    assert stages(bam, "--sort", "size") == ["expert.law", "seed", "dense"]


def test_the_last_line_sums_up(bam, store):
    n_bytes = sum(output.size for record in store.records() for output in record.outputs)
    assert bam("ls").out.splitlines()[-1] == f"3 artifacts, {n_bytes} B (1 failed)"
    assert bam("ls", "seed").out.splitlines()[-1].startswith("1 artifact, ")


@pytest.mark.parametrize("words", [["--older-than", "x"], ["--larger-than", "5 apples"], ["--state", "odd"]])
def test_bad_filters_are_named(bam, store, words):
    done = bam("ls", *words)
    assert done.status == 2
    assert words[1] in done.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800), ("1w", 604800)],
)
def test_ages(text, seconds):
    assert AGE.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("7", 7), ("7b", 7), ("2k", 2048), ("2KiB", 2048), ("1.5M", 1572864), ("1 gb", 2**30), ("1T", 2**40)],
)
def test_sizes(text, n_bytes):
    assert SIZE.convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["", "-1", "1x", "nan", "inf", "1e3", "1 2", "k", "1ib"])
def test_what_is_neither(text):
    for kind in (AGE, SIZE):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


def test_get_a_folder_by_the_models_id(bam, store, here):
    [record] = store.records("seed")
    with store.scratch("seed", record.key) as out:
        for output in record.outputs:
            (out / output.path).parent.mkdir(exist_ok=True)
            (out / output.path).write_bytes((store.localize(record) / output.path).read_bytes())
        store.commit(out, replace(record, mlflow={"model_id": "m-0123456789abcdef"}))
    done = bam("get", "m-0123456789abcdef:train", "copy", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["artifact"] == store.artifact_uri(*node("seed"))
    assert [path.relative_to(here / "copy").as_posix() for path in (here / "copy").rglob("*")] == ["00000.arrow"]
    assert bam("get", "m-0123456789abcdef:train/", "slash").status == 0
    assert bam("get", "m-0123456789abcdef").status == 0
    assert (here / name("seed").replace("@", "-") / "model.safetensors").is_file()
