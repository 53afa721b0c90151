"""`ls`, `show`, `tree`, `get`, `verify` over a store with a few real artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bam_core.graph.record import Record, artifact_digest
from infra.store import ArtifactStore

KEYS = {"tokenizer": "a" * 64, "data.law": "b" * 64, "seed": "c" * 64, "expert.law": "d" * 64}


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """tokenizer -> data.law, seed -> expert.law, each with two files."""
    store = ArtifactStore(str(here / "bam_store"))
    make(store, "tokenizer")
    make(store, "data.law", "tokenizer")
    make(store, "seed", "tokenizer", "data.law")
    make(store, "expert.law", "seed", "data.law")
    return store


def make(store: ArtifactStore, stage: str, *parents: str) -> Record:
    known = {record.stage: record for record in store.records()}
    with store.scratch(stage, KEYS[stage]) as out:
        (out / "sub").mkdir()
        (out / "config.json").write_text(f'{{"stage": "{stage}"}}')
        (out / "sub" / "00000.arrow").write_bytes(b"x" * 2000)
        outputs = store.hash_outputs(out)
        record = Record(
            stage=stage,
            key=KEYS[stage],
            payload={"config": {"lr": 0.001}},
            inputs={parent: known[parent].ref for parent in parents},
            outputs=outputs,
            digest=artifact_digest(outputs),
            metrics={"loss": 2.5, "tokens": 1_000_000},
            provenance={"git_commit": "f" * 40, "argv": ["bam", "run"]},
            started=1_700_000_000.0 + len(known),
            ended=1_700_000_003.5 + len(known),
            attempt=1,
        )
        store.commit(out, record)
    return record


def output(store: ArtifactStore, stage: str, path: str) -> Path:
    return store.localize(store.records(stage)[0]) / path


def test_ls_shows_every_artifact_with_its_state(bam, store):
    failed = store.next_attempt("dense", "e" * 64)
    store.attempt_dir("dense", "e" * 64, failed)
    store.close_attempt("dense", "e" * 64, failed, {"message": "no room\nat all"})
    store.attempt_dir("report", "9" * 64, 1)
    output(store, "seed", "config.json").write_text("{}")
    lease = store.acquire("evaluate", "f" * 64, "somebody")
    try:
        rows = {row["stage"]: row for row in json.loads(bam("ls", "--json").out)}
        words = bam("ls").out
    finally:
        lease.release()
    states = {stage: row["state"] for stage, row in rows.items()}
    assert states == {
        "tokenizer": "done",
        "data.law": "done",
        "seed": "damaged",
        "expert.law": "done",
        "dense": "failed",
        "evaluate": "running",
        "report": "missing",
    }
    assert rows["data.law"]["key"] == KEYS["data.law"]
    assert rows["data.law"]["size_bytes"] == 2000 + len('{"stage": "data.law"}')
    assert rows["data.law"]["seconds"] == 3.5
    assert rows["data.law"]["metrics"] == {"loss": 2.5, "tokens": 1_000_000}
    assert "no room" in words
    assert "at all" not in words
    assert "loss 2.5  tokens 1M" in words


def test_ls_of_some_and_of_none(bam, store, tmp_path):
    assert {row["stage"] for row in json.loads(bam("ls", "expert.*", "--json").out)} == {"expert.law"}
    empty = bam("ls", "--store", str(tmp_path / "none"))
    assert (empty.status, empty.out) == (0, "nothing yet\n")
    assert not (tmp_path / "none").exists()
    assert json.loads(bam("ls", "--json", "--store", str(tmp_path / "none")).out) == []


def test_show_is_the_whole_record(bam, store):
    (record,) = store.records("expert.law")
    answer = json.loads(bam("show", "expert.law", "--json").out)
    assert answer.pop("artifact") == store.artifact_uri("expert.law", KEYS["expert.law"])
    assert answer == record.to_json()
    words = bam("show", "expert.law@dddd").out
    for part in (
        KEYS["expert.law"],
        record.digest,
        "seed@cccccccccccc",
        "sub/00000.arrow",
        "2.0 KiB",
        '"lr": 0.001',
        "f" * 40,
    ):
        assert part in words


def test_tree_opens_each_artifact_once(bam, store):
    shown = [line.split("@")[0].rstrip() for line in bam("tree", "expert.law").out.splitlines()]
    assert shown == [
        "expert.law",
        "├─ data.law",
        "│  └─ tokenizer",
        "└─ seed",
        "   ├─ data.law",
        "   └─ tokenizer",
    ]
    tree = json.loads(bam("tree", "expert.law", "--json").out)
    law, seed = tree["inputs"]
    assert (law["stage"], law["as_above"], seed["inputs"][0]["as_above"]) == ("data.law", False, True)
    assert seed["inputs"][0]["inputs"] == []
    (store.localize(store.records("seed")[0]) / "record.json").unlink()
    assert "seed @cccccccccccc  gone from the store" in bam("tree", "expert.law").out


def test_get_a_file_a_folder_and_everything(bam, store, here):
    assert bam("get", "seed:config.json").status == 0
    assert (here / "config.json").read_text() == '{"stage": "seed"}'
    assert bam("get", "seed:config.json", "copy.json").status == 0
    assert (here / "copy.json").is_file()
    assert bam("get", "seed:sub", "folder").status == 0
    assert [path.name for path in (here / "folder").iterdir()] == ["00000.arrow"]
    done = bam("get", "seed@latest", "--json")
    folder = here / "seed-cccccccccccc"
    assert json.loads(done.out)["dest"] == folder.name
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "config.json",
        "sub/00000.arrow",
    ]
    (here / "there").mkdir()
    bam("get", "seed:config.json", "there")
    assert (here / "there" / "config.json").is_file()


def test_get_to_standard_output(store, capfdbinary):
    from pipelines.cli import main

    assert main(["get", "data.law:config.json", "-"]) == 0
    assert capfdbinary.readouterr().out == b'{"stage": "data.law"}'


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["seed:confg.json"], "did you mean 'config.json'?"),
        (["seed:../record.json"], "has no output"),
        (["seed:/etc/passwd"], "has no output"),
        (["seed", "-"], "only one file"),
        (["seed:config.json", "bam_store/artifacts/seed/cccccccccccc/config.json"], "exists already"),
        (["seed:config.json", "/dev/null/x"], "cannot be written"),
        (["sede"], "did you mean 'seed'?"),
        (["seed@dd"], "names no artifact"),
    ],
)
def test_get_refuses(bam, store, here, argv, words):
    before = sorted(here.rglob("*"))
    done = bam("get", *argv)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert sorted(here.rglob("*")) == before


def test_get_never_hands_out_damaged_bytes(bam, store, here):
    output(store, "seed", "config.json").write_text('{"stage": "SEED"}')
    done = bam("get", "seed:config.json")
    assert done.status == 1
    assert "sha256" in done.err
    assert not (here / "config.json").exists()


def test_verify(bam, store):
    assert bam("verify", "seed").out == "seed@cccccccccccc: 2 files are as recorded\n"
    output(store, "seed", "config.json").write_text('{"stage": "SEED"}')
    output(store, "seed", "sub/00000.arrow").unlink()
    done = bam("verify", "seed", "--json")
    answer = json.loads(done.out)
    assert (done.status, answer["ok"]) == (1, False)
    assert [fault.split()[1] for fault in answer["faults"]] == ["config.json", "sub/00000.arrow"]


def test_lineage_in_every_format(bam, store):
    answer = json.loads(bam("lineage", "expert.law", "--format", "json").out)
    assert {node["stage"] for node in answer["nodes"]} >= {"tokenizer", "data.law", "seed", "expert.law"}
    assert json.loads(bam("lineage", "expert.law", "--json").out) == answer
    assert "seed" in bam("lineage", "expert.law").out
    assert bam("lineage", "tokenizer", "--down", "--format", "mermaid").out.count("expert.law") >= 1
    assert bam("lineage", "expert.law", "--format", "html").out.lower().startswith("<!doctype html>")
