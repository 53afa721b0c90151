"""`data.<domain>`: what its text became is in `stats.json`, step by step where a recipe leaves something out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click import unstyle

from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.errors import InvalidInput
from bam_core.graph.stage import Resources
from bam_core.protocols import StageContext
from infra.sources import TextSources
from pipelines.cli.text_stats import stats_text
from pipelines.stages import data, tokenizer

SOURCES = TextSources()
ROWS = [
    {"q": f"question {n % 40} of many", "a": f"answer {n % 40} " * 6, "lang": "en" if n % 3 else "de"}
    for n in range(120)
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"q": "", "a": "", "lang": "en"}]))
    return str(path)


def context(folder: Path, source: dict[str, Any], **facts: Any) -> StageContext:
    """As `pipelines.texts` makes it: the config has no paths."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(train_bpe(["answer question of many 0 1 2"], 300))
    (folder / "out").mkdir(exist_ok=True)

    def known(spec: dict[str, Any]) -> dict[str, Any]:
        made = {name: value for name, value in spec.items() if name != "path"}
        return made | ({"sources": list(map(known, spec["sources"]))} if "sources" in spec else {})

    config = {
        "domain": "law",
        "seq_len": 16,
        "source": known(source) | {"digest": SOURCES.digest(source)},
        "valid_frac": 0.1,
        "max_bytes": None,
    }
    return StageContext(
        stage="data.law",
        key="k",
        config=config | facts,
        runtime={"source": source},
        resources=Resources(),
        inputs={"tokenizer": folder / "tokenizer"},
        records={},
        out=folder / "out",
        trainer=None,  # type: ignore[arg-type]
        sources=SOURCES,
        history=list,
    )


def stats(made: StageContext) -> dict[str, Any]:
    data.run(made)
    found: dict[str, Any] = json.loads((made.out / "stats.json").read_text())
    return found


def test_a_plain_text_has_the_statistics_that_it_always_had(tmp_path, file):
    found = stats(context(tmp_path, {"kind": "jsonl", "path": file, "column": "a"}))
    assert list(found) == ["duplicates_dropped", "train", "valid"]
    assert found["duplicates_dropped"] == 80
    assert found["train"]["documents"] + found["valid"]["documents"] in (40, 41)


def test_each_step_says_what_it_left_out(tmp_path, file):
    source = {"kind": "jsonl", "path": file, "template": "{q}\n{a}", "filter": {"lang": {"in": ["en"]}}, "min_chars": 5}
    found = stats(context(tmp_path, source, dedup={"minhash": 0.8}, max_bytes=2000))
    assert [step["name"] for step in found["steps"]] == ["read: jsonl", "copies", "near copies", "size"]
    first, copies, near, size = found["steps"]
    assert first == {"name": "read: jsonl", "dropped": {"filter.lang": 40, "min_chars": 1}, "kept": 80}
    assert copies == {"name": "copies", "dropped": {"empty": 0, "copies": 40}, "kept": 40}
    assert copies["kept"] - near["dropped"]["near copies"] == near["kept"]
    assert near["kept"] - size["dropped"]["max_bytes"] == size["kept"]
    shown = unstyle(stats_text(found))
    assert "filter.lang 40, min_chars 1" in shown
    assert shown.splitlines()[-2].startswith("train")


def test_copies_that_are_kept_are_reported(tmp_path, file):
    found = stats(context(tmp_path, {"kind": "jsonl", "path": file, "column": "a"}, dedup="none"))
    assert (found["duplicates_dropped"], found["duplicates_kept"]) == (0, 80)
    assert found["train"]["documents"] > 80


def test_several_sources_each_have_their_step_and_their_share(tmp_path, file):
    math = {"kind": "generated-math", "documents": 60, "seed": 0}
    source = {"kind": "several", "sources": [{"kind": "jsonl", "path": file, "column": "a", "max_documents": 30}, math]}
    found = stats(context(tmp_path, source, shares=[0.5, 0.5]))
    assert [step["name"] for step in found["steps"]] == ["read 0: jsonl", "read 1: generated-math", "copies", "size"]
    assert found["steps"][0]["stopped_by"] == "max_documents"
    assert found["steps"][-1]["dropped"]["shares"] > 0
    assert "stopped by max_documents" in unstyle(stats_text(found))


def test_a_mistake_in_one_of_several_is_at_its_key(tmp_path, file):
    source = {"kind": "several", "sources": [{"kind": "jsonl", "path": file, "column": "a"}] * 2}
    made = context(tmp_path, source)
    with open(file, "a") as more:
        more.write("no json\n")
    with pytest.raises(InvalidInput) as caught:
        data.run(made)
    assert [problem.path for problem in caught.value.problems] == ["domains.law.source.0.path"]
    assert caught.value.problems[0].value == f"{file}:122"


def test_the_tokenizer_learns_from_the_text_that_is_trained_on(tmp_path, file):
    """The same documents: what a filter leaves out shapes no vocabulary."""
    source = {"kind": "jsonl", "path": file, "column": "q", "filter": {"lang": {"in": ["de"]}}}
    made = context(tmp_path, source)
    facts = {"kind": "bpe", "vocab_size": 280, "domains": {"law": made.config}}
    tokenizer.run(StageContext(**{**vars(made), "config": facts, "runtime": {"sources": {"law": source}}}))
    parts = data.split_text(made, source, made.config)
    expected = train_bpe((document.text for document in parts.train), 280)
    assert (made.out / "tokenizer.json").read_text() == expected
    assert Tokenizer(expected).vocab_size == 280
