"""`bam gc`, `pin`, `unpin`, `pins`, `runs` over a store with three runs made by hand."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from bam_core.graph.pins import Pin
from infra.store import ArtifactStore
from tests.infra.house_kit import CHAIN, MADE, a_run, key_of, make, name, node, require_whole, three_runs

WHY = '{"model": "law", "version": 1, "digest": "d", "aliases": ["champion"]}'


@pytest.fixture
def store(here):
    store = ArtifactStore(str(here / "bam_store"))
    three_runs(store)
    return store


def gone(answer):
    return {f"{item['stage']}@{item['key']}" for item in answer["goes"] if item["kind"] == "artifact"}


def test_gc_is_dry_by_default_and_says_what_and_why(bam, store):
    done = bam("gc")
    assert done.status == 0
    for words in (name("train.bam", 1), "last in run quick-1", "newest run of quick", "`bam gc --apply`"):
        assert words in done.out
    assert "6 artifacts would go" in done.out
    assert "4 artifacts" in done.out.splitlines()[-1]
    assert len(store.artifacts()) == 10


def test_gc_apply_removes_and_says_so(bam, store):
    done = bam("gc", "--apply")
    assert done.status == 0
    assert done.out.splitlines()[-1].startswith("removed 6 artifacts, ")
    assert name("train.bam", 1) in done.out
    assert store.artifacts() == sorted([node("seed"), *(node(stage, 3) for stage in CHAIN[1:])])
    require_whole(store)
    assert "nothing was removed; 4 artifacts" in bam("gc", "--apply").out
    assert "nothing would go" in bam("gc").out


def test_gc_json_is_one_value_and_its_progress_goes_elsewhere(bam, store):
    answer = json.loads(bam("gc", "--json").out)
    assert (answer["applied"], answer["freed_bytes"], answer["blocked"]) == (False, 0, [])
    assert gone(answer) == {name(stage, version) for stage in CHAIN[1:] for version in (1, 2)}
    assert answer["goes_bytes"] == sum(item["size_bytes"] for item in answer["goes"]) > 0
    [seed] = [item for item in answer["stays"] if item["stage"] == "seed"]
    assert seed["why"] == ["newest run of quick"]
    done = bam("gc", "--apply", "--json")
    applied = json.loads(done.out)
    assert applied["freed_bytes"] == answer["goes_bytes"]
    assert all(item["removed"] for item in applied["goes"])
    assert name("mix.bam", 1) in done.err


def test_gc_keeps_what_it_is_told_to(bam, store):
    assert gone(json.loads(bam("gc", "--keep-last", "2", "--json").out)) == {name(stage, 1) for stage in CHAIN[1:]}
    kept = json.loads(bam("gc", "--keep-run", "quick-1", "--json").out)
    assert gone(kept) == {name(stage, 2) for stage in CHAIN[1:]}
    days = (time.time() - MADE) / 86400
    assert gone(json.loads(bam("gc", "--min-age", f"{int(days) + 1}d", "--json").out)) == set()
    assert bam("pin", "mix.bam@" + node("mix.bam", 1)[1]).status == 0
    assert name("expert.law", 1) not in gone(json.loads(bam("gc", "--json").out))


def test_gc_names_what_keeps_each_thing(bam, store):
    store.pins.write(Pin("registry-law-1", "train.bam", key_of("train.bam", 1), WHY, MADE))
    store.runs.write(replace(a_run(2, status="running"), name="now", started=MADE))
    lease = store.acquire("train.bam", key_of("train.bam", 2), "host:1 now")
    try:
        short, long = bam("gc").out, bam("gc", "-v").out
    finally:
        lease.release()
    for words in (
        "pinned as registry-law-1: registered as law version 1 (champion)",
        "ancestor of " + name("train.bam", 1),
        "being made by host:1 now",
        "nothing would go",
    ):
        assert words in short
    assert "being made by host:1 now; in run now, which is running" in long
    assert name("expert.law", 1) in long


def test_gc_removes_nothing_where_it_cannot_know(bam, store):
    lease = store.acquire("edit.x", "f" * 64, "host:1 edit.x-1")
    try:
        dry, applied = bam("gc"), bam("gc", "--apply")
    finally:
        lease.release()
    assert dry.status == 0
    assert "nothing may go now: edit.x@ffffffffffff is being made by host:1 edit.x-1" in dry.out
    assert applied.status == 1
    assert "nothing was removed" in applied.err
    assert len(store.records()) == 10
    store.storage.write_atomic("pins/odd.json", b"{")
    assert "pins/odd.json cannot be read" in bam("gc", "--apply").err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gc", "--keep-run", "quick-9"], "did you mean 'quick-"),
        (["gc", "--min-age", "soon"], "30m, 2d or 0"),
        (["gc", "--min-age", "-1h"], "30m, 2d or 0"),
        (["gc", "--keep-last", "-1"], "x>=0"),
        (["pin", "train.bam", "--name", "../x"], "at most 200 letters"),
        (["pin", "train.bamm"], "did you mean 'train.bam'?"),
        (["pin", "--why", "because"], "needs a REF"),
        (["unpin", "bets"], "did you mean 'best'?"),
        (["unpin", "../best"], "cannot be a pin's name"),
        (["unpin", "registry-law-1"], "law version 1 (champion)"),
        (["pin", "mix.bam", "--name", "best"], "pins seed@"),
        (["runs", "quik"], "did you mean 'quick'?"),
    ],
)
def test_bad_input_is_named(bam, store, argv, words):
    store.pins.write(Pin("best", "seed", key_of("seed"), "", MADE))
    if "registry-law-1" in argv:
        store.pins.write(Pin("registry-law-1", "train.bam", key_of("train.bam", 1), WHY, MADE))
    before = store.storage.files("")
    done = bam(*argv)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert store.storage.files("") == before


def test_pin_and_unpin(bam, store):
    made = json.loads(bam("pin", "train.bam", "--why", "the best yet", "--json").out)
    assert made["name"] == "train.bam-" + node("train.bam", 3)[1]
    assert (made["stage"], made["key"], made["why"]) == ("train.bam", key_of("train.bam", 3), "the best yet")
    assert bam("pin", "seed", "--name", "base").status == 0
    assert bam("pin", "seed", "--name", "base", "--why", "now with a reason").status == 0
    for words in ("base", name("seed"), "now with a reason", "the best yet"):
        assert words in bam("pins").out
    assert json.loads(bam("pin", "--json").out) == json.loads(bam("pins", "--json").out)
    assert bam("unpin", "base").out == "base: no longer pinned\n"
    assert [pin.name for pin in store.pins.all()] == [made["name"]]
    store.pins.write(Pin("registry-law-1", "train.bam", key_of("train.bam", 1), WHY, MADE))
    assert bam("unpin", "registry-law-1", "--force").status == 0


def test_a_pin_on_what_is_just_being_removed_is_refused(bam, store, monkeypatch):
    """The collector looked at the pins before this one was there."""
    write = type(store.pins).write

    def removing(pins, pin):
        write(pins, pin)
        store.storage.remove(f"artifacts/mix.bam/{node('mix.bam', 1)[1]}/record.json")

    monkeypatch.setattr(type(store.pins), "write", removing)
    done = bam("pin", "mix.bam@" + node("mix.bam", 1)[1])
    assert done.status == 2
    assert "was being removed" in done.err
    assert store.pins.all() == []


def test_runs(bam, store):
    planned = a_run(1).stages
    failed = replace(
        a_run(3, status="failed"),
        name="other-4",
        pipeline="other",
        started=MADE + 100,
        ended=MADE + 160,
        stages={
            "seed": planned["seed"],
            "dense": replace(planned["train.bam"], key=key_of("dense", 4)),
            "evaluate": replace(planned["train.bam"], key=key_of("evaluate", 4)),
            "train.bam": replace(planned["train.bam"], key=key_of("train.bam", 3)),
        },
    )
    store.runs.write(failed)
    store.attempt_dir("dense", key_of("dense", 4), 1)
    store.close_attempt("dense", key_of("dense", 4), 1, {"message": "no room"})
    store.runs.write(replace(a_run(9, status="running"), name="quick-5", started=MADE + 200))
    rows = json.loads(bam("runs", "--json").out)
    counts = {row["name"]: (row["status"], row["made"], row["reused"], row["failed"], row["left"]) for row in rows}
    assert counts == {
        "quick-5": ("stopped", 0, 1, 0, 3),
        "other-4": ("failed", 0, 2, 1, 1),
        "quick-3": ("done", 3, 1, 0, 0),
        "quick-2": ("done", 3, 1, 0, 0),
        "quick-1": ("done", 4, 0, 0, 0),
    }
    assert [row["name"] for row in rows] == list(counts)
    assert {row["name"]: row["seconds"] for row in rows}["other-4"] == 60
    assert [row["name"] for row in json.loads(bam("runs", "other", "--json").out)] == ["other-4"]
    lease = store.acquire("mix.bam", key_of("mix.bam", 9), "host:1 quick-5")
    try:
        shown = bam("runs").out
    finally:
        lease.release()
    line = next(line for line in shown.splitlines() if line.startswith("quick-5"))
    assert "running" in line
    # What was made again later by another run was not made by this one.
    make(store, "evaluate", 4, [], ended=MADE + 999)
    answer = {row["name"]: row for row in json.loads(bam("runs", "--json").out)}
    assert (answer["other-4"]["failed"], answer["other-4"]["left"]) == (1, 1)


def test_of_an_empty_store(bam, here):
    assert bam("gc").out == "nothing would go; 0 artifacts (0 B) stay\n"
    assert bam("gc", "--apply").out == "nothing was removed; 0 artifacts (0 B) stay\n"
    assert bam("pins").out == "nothing is pinned\n"
    assert bam("runs").out == "no run on record\n"
    assert list(here.iterdir()) == []
