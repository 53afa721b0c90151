"""Text as people bring it, from the recipe to what `bam show` tells: packed, filtered, of several sources, alike."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import Place, lines_of, merged


def brought(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """`law` is a packed table and a folder that `datasets` opens, and nearly all of it is there twice."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = place.recipe.parent / "texts"
    lines = [" ".join(pair) for pair in zip(lines_of("law"), lines_of("law", salt=1), strict=True)]
    rows = [{"head": f"Notice {n}", "body": line, "ok": n % 4 > 0} for n, line in enumerate(lines)]
    packed = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "law.jsonl.gz").write_bytes(gzip.compress(packed.encode(), mtime=0))
    (folder / "hub").mkdir()
    (folder / "hub" / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"{line} too"}) + "\n" for line in lines[:60])
    )
    table = {"template": "{head}: {body}", "filter": {"ok": True}, "max_chars": 400}
    source = [
        {"kind": "jsonl", "path": [str(folder / "law.jsonl.gz")], **table},
        {"kind": "hf", "path": str(folder / "hub"), "max_documents": 50},
    ]
    law = place.recipe_dict()["domains"]["law"] | {"source": source, "dedup": "minhash", "dedup_threshold": 0.6}
    place.set_recipe(merged(place.recipe_dict(), {"domains": {"law": None}}))
    place.set_recipe(merged(place.recipe_dict(), {"domains": {"law": law}}))
    return law


def test_brought_text_is_read_reported_and_read_again_by_those_who_verify(empty, monkeypatch, tmp_path):
    law = brought(empty, monkeypatch, tmp_path)
    answer = empty.run("--until", "data.law")
    assert answer.status == 0, answer.err
    stats = json.loads((empty.artifact("data.law") / "stats.json").read_text())
    assert [step["name"] for step in stats["steps"]] == ["read 0: jsonl", "read 1: hf", "copies", "near copies"]
    assert stats["steps"][0]["dropped"] == {"filter.ok": 60}
    assert stats["steps"][1]["kept"] == 50
    assert stats["steps"][3]["dropped"]["near copies"] > 20
    shown = empty.bam("show", "data.law")
    assert "filter.ok 60" in shown.out
    assert empty.bam("show", "data.law", "--json").json["text"] == stats
    assert empty.bam("verify", "data.law", "--deep", "--sources").status == 0

    streamed = [law["source"][0], {**law["source"][1], "streaming": True}]
    empty.set_recipe(merged(empty.recipe_dict(), {"domains": {"law": law | {"source": streamed}}}))
    assert empty.plan("--until", "data.law").actions()["data.law"] == "reuse"
    (empty.recipe.parent / "texts" / "hub" / "train.jsonl").write_text('{"text": "other"}\n')
    assert empty.plan("--until", "data.law").actions()["data.law"] == "run"
    assert empty.bam("verify", "data.law", "--deep", "--sources").status == 1


def test_a_mistake_in_one_of_several_sources_is_told_by_the_plan(empty, monkeypatch, tmp_path):
    law = brought(empty, monkeypatch, tmp_path)
    wrong = [{**law["source"][0], "template": "{head}: {text}"}, {**law["source"][1], "path": "./nowhere"}]
    empty.set_recipe(merged(empty.recipe_dict(), {"domains": {"law": law | {"source": wrong}}}))
    told = empty.plan()
    assert told.status == 2
    assert "domains.law.source.0.template" in told.err
    assert "has no field 'text'; it has head, body, ok" in told.err
    assert "domains.law.source.1.path: './nowhere': is no folder" in told.err
