"""`lineage` and `diff` over a store with the quickstart's records, twice, with another share of one domain."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bam_core.graph import diff
from bam_core.graph.adopted import adopted_config, adopted_stage
from bam_core.graph.key import Change, stage_key, stage_payload
from bam_core.graph.record import Output, Record, artifact_digest
from infra.store import ArtifactStore
from pipelines import wiring
from tests.lineage_kit import of, quickstart

FIRST, SECOND = (f"phases.seed.data={{general: {a}, law: {b}}}" for a, b in ((0.9, 0.1), (0.8, 0.2)))


@pytest.fixture
def first(here: Path) -> list[Record]:
    return committed(here, quickstart(FIRST))


@pytest.fixture
def second(here: Path) -> list[Record]:
    return committed(here, quickstart(SECOND))


def committed(here: Path, records: list[Record]) -> list[Record]:
    """Records alone: no command here reads an output."""
    store = ArtifactStore(str(here / "bam_store"))
    for record in records:
        place = f"artifacts/{record.stage}/{record.key[:12]}/record.json"
        store.storage.write_atomic(place, json.dumps(record.to_json()).encode())
    return records


def test_every_format(bam, first):
    answer = json.loads(bam("lineage", "train.bam", "--format", "json").out)
    assert json.loads(bam("lineage", "train.bam", "--json").out) == answer
    assert len(answer["nodes"]) == 15
    assert bam("lineage", "train.bam").out.splitlines()[2] == "made from"
    assert bam("lineage", "tokenizer", "--down", "--format", "mermaid").out.count("expert.law") >= 1
    assert bam("lineage", "train.bam", "--format", "html").out.lower().startswith("<!doctype html>")
    events = [json.loads(line) for line in bam("lineage", "train.bam", "--format", "openlineage").out.splitlines()]
    assert {event["outputs"][0]["namespace"] for event in events} == {str(Path.cwd() / "bam_store")}


@pytest.mark.parametrize("columns", [60, 100])
def test_the_tree_fits_the_terminal(bam, first, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = bam("lineage", "report").out.splitlines()
    assert columns - 20 < max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("name", "start"), [("l.html", "<!doctype"), ("l.json", "{"), ("l.mmd", "flowchart"), ("l.jsonl", '{"eventType"')]
)
def test_out_writes_the_format_that_the_files_name_says(bam, first, here, name, start):
    done = bam("lineage", "train.bam", "--out", name)
    assert done.status == 0
    assert (here / name).read_text().startswith(start)
    assert "15 nodes" in done.out
    assert not list(here.glob(".*.part"))


def test_format_wins_over_the_files_name(bam, first, here):
    bam("lineage", "train.bam", "-o", "page.txt", "--format", "html")
    assert (here / "page.txt").read_text().startswith("<!doctype")
    answer = json.loads(bam("lineage", "train.bam", "-o", "page.html", "--json").out)
    assert answer["format"] == "html"


@pytest.mark.parametrize("file", ["no/such/folder/l.html", ".", "x" * 300])
def test_a_file_that_cannot_be_written(bam, first, here, file):
    done = bam("lineage", "train.bam", "--out", file)
    assert done.status == 2
    assert "cannot be written" in done.err
    assert not list(here.glob("*.html"))


def test_a_page_is_not_for_a_terminal(bam, first, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = bam("lineage", "train.bam", "--format", "html")
    assert done.status == 2
    assert "--out lineage.html" in done.err


def test_ref_that_names_none_or_several(bam, first, second):
    assert "did you mean 'train.bam'" in bam("lineage", "train.bem").err
    several = bam("lineage", "seed@")
    assert several.status == 2
    assert all(of(made, "seed").key[:12] in several.err for made in (first, second))


def test_a_circle_in_the_records_is_named(bam, here):
    records = quickstart()
    seed, tokenizer = of(records, "seed"), of(records, "tokenizer")
    tokenizer = Record(**{**vars(tokenizer), "inputs": {"seed": seed.ref}})
    committed(here, [*records, tokenizer])
    done = bam("lineage", "train.bam")
    assert done.status == 2
    assert f"tokenizer@{tokenizer.key[:12]} -> seed@{seed.key[:12]}" in done.err


def test_a_missing_ancestor_is_named(bam, first, here):
    seed = of(first, "seed")
    (here / "bam_store" / "artifacts" / "seed" / seed.key[:12] / "record.json").unlink()
    assert f"seed@{seed.key[:12]} (missing)" in bam("lineage", "train.bam").out


def test_from_mlflow_asks_mlflow(bam, first, monkeypatch):
    graph = wiring.lineage("seed", wiring.Settings("./bam_store"), "up")
    asked = SimpleNamespace()

    def stand_in(ref, settings, direction):
        asked.ref, asked.direction = ref, direction
        return graph

    monkeypatch.setattr(wiring, "lineage_from_mlflow", stand_in, raising=False)
    assert json.loads(bam("lineage", "train.bam", "--from-mlflow", "--down", "--json").out) == json.loads(
        json.dumps(graph.to_json())
    )
    assert (asked.ref, asked.direction) == ("train.bam", "down")


# --- diff -------------------------------------------------------------------------------------------------------------


def refs(*pipelines: list[Record], stage: str = "train.bam") -> list[str]:
    return [f"{stage}@{of(records, stage).key[:12]}" for records in pipelines]


def test_diff_names_the_share_first_and_then_what_follows(bam, first, second):
    done = bam("diff", *refs(first, second))
    lines = done.out.splitlines()
    assert done.status == 0
    assert lines[0] == f"{' -> '.join(refs(first, second))}: 1 cause"
    assert lines[2].startswith("1. seed@")
    assert lines[3:6] == [
        "   config: phase.shares.general 0.9 -> 0.8",
        "   config: phase.shares.law 0.1 -> 0.2",
        "   so expert.code, expert.law, expert.math, mix.bam, train.bam differ too",
    ]


def test_diff_says_what_plan_says(bam, first, second):
    """`bam plan` of the second recipe over the first one's store would run the seed for the same words."""
    answer = json.loads(bam("diff", *refs(first, second), "--json").out)
    words = [change["words"] for change in answer["causes"][0]["changes"]]
    assert words == ["phase.shares.general 0.9 -> 0.8", "phase.shares.law 0.1 -> 0.2"]


def test_diff_of_the_same(bam, first):
    done = bam("diff", "train.bam", "train.bam", "--exit-code")
    assert done.status == 0
    assert "identical" in done.out


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--exit-code",), 1), (("--exit-code", "--json"), 1)])
def test_exit_status(bam, first, second, options, status):
    assert bam("diff", *refs(first, second), *options).status == status


def test_diff_of_variants_and_of_unknown_refs(bam, first):
    done = bam("diff", "train.bam", "train.btx")
    assert "1. mix.bam@" in done.out
    assert "variant.attention" in done.out
    assert bam("diff", "train.bam", "train.nothing").status == 2


def test_long_values_are_clipped_to_the_terminal(bam, first, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    other = committed(here, quickstart(FIRST, law="another text"))
    done = bam("diff", *refs(first, other))
    assert "source.digest changed" in done.out
    assert max(map(len, done.out.splitlines())) <= 60


def test_other_bytes_are_told_with_what_made_them(bam, first, monkeypatch):
    """Two stores have the same key with other bytes; one store's command shows it only after such a rebuild."""
    seed = of(first, "seed")
    found = diff.Difference(
        ("train.bam", "a" * 64),
        ("train.bam", "a" * 64),
        causes=(
            diff.Cause(
                ("seed", seed.key),
                ("seed", seed.key),
                diff.BYTES,
                (Change(("provenance", "packages", "torch"), "2.13.0", "2.14.0\x1b[2J"),),
                ("model.safetensors",),
                (("train.bam", "a" * 64),),
            ),
            diff.Cause(("mix.bam", "1" * 64), ("mix.bam", "2" * 64), diff.UNKNOWN),
        ),
        follows=((("train.bam", "a" * 64), ("train.bam", "a" * 64)),),
    )
    monkeypatch.setattr(wiring, "compare", lambda *_: found)
    monkeypatch.setenv("COLUMNS", "120")
    out = bam("diff", "a", "b").out
    assert "the same key and the same inputs, but other bytes\n   files: model.safetensors\n" in out
    assert "made with: packages.torch changed" in out
    assert "cannot be told any more" in out
    assert "\x1b" not in out


def test_lineage_goes_on_into_the_store_of_an_adopted_expert(bam, here):
    theirs = quickstart()
    law, seed = of(theirs, "expert.law"), of(theirs, "seed")
    behind = [made.to_json() for made in theirs if made.stage in ("data.law", "data.general", "tokenizer")]
    document = {"store": "s3://theirs/bam", "record": law.to_json(), "ancestors": behind}
    data = json.dumps(document).encode()
    stage = adopted_stage(adopted_config("law", law), 1)
    payload = stage_payload(stage, {"seed": seed.key})
    outputs = (Output("origin.json", len(data), hashlib.sha256(data).hexdigest()),)
    adopted = replace(
        seed,
        stage=stage.name,
        key=stage_key(payload),
        payload=payload,
        inputs={"seed": seed.ref},
        outputs=outputs,
        digest=artifact_digest(outputs),
        provenance={"adopted_from": "s3://theirs/bam"},
    )
    committed(here, [seed, adopted])
    folder = here / "bam_store" / "artifacts" / stage.name / adopted.key[:12]
    (folder / "origin.json").write_bytes(data)
    words = bam("lineage", "adopted.law").out
    assert f"origin: expert.law@{law.key[:12]} (in s3://theirs/bam)" in words
    assert "data.law@" in words
    assert "source.law@" in words
    assert f"seed@{seed.key[:12]} (" not in words, "ours, and there"
    (folder / "origin.json").write_bytes(data.replace(b"400000", b"999999"))
    assert f"expert.law@{law.key[:12]} (missing, in s3://theirs/bam)" in bam("lineage", "adopted.law").out
