"""`discover.<name>` and the domains that are its clusters: who gets which document, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bam_core.data.shards import ShardedRows
from bam_core.data.tokenize import SMALLEST_VOCABULARY, Tokenizer, train_bpe
from bam_core.errors import BamError, InvalidInput
from bam_core.graph.stage import Resources
from bam_core.protocols import StageContext
from infra.sources import TextSources
from pipelines.stages import data, discover, tokenizer

WORDS = {
    "sea": "wave tide sail reef salt foam gull mast keel surf deck buoy",
    "law": "writ plea jury bail oath deed lien tort fine suit code clause",
}
EVERY_WORD = {word for words in WORDS.values() for word in words.split()}
OPTIONS = {"n": 2, "balance": "bytes", "features": 100, "dims": 10, "seed": 0}


def sentences(kind: str, n: int = 30) -> list[str]:
    words = WORDS[kind].split()
    return [" ".join(words[(number * 5 + step * (1 + number % 3)) % 12] for step in range(9)) for number in range(n)]


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    """Two kinds in turn, some copies, an empty document."""
    documents = [text for pair in zip(sentences("sea"), sentences("law"), strict=True) for text in pair]
    lines = [json.dumps({"text": text}) for text in [" ", *documents, documents[0].upper()]]
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    return {"kind": "jsonl", "path": str(tmp_path / "web.jsonl"), "column": "text"}


def context(
    stage: str, out: Path, config: Mapping[str, Any], runtime: Mapping[str, Any], inputs: Mapping[str, Path]
) -> StageContext:
    out.mkdir()
    return StageContext(
        stage,
        "k" * 64,
        config,
        runtime,
        Resources(),
        inputs,
        {},
        out,
        None,
        TextSources(),
        list,  # type: ignore
    )


def facts(source: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    digest = TextSources().digest(source)
    return {"source": {"kind": "jsonl", "column": "text", "digest": digest}, **more}


def discovered(tmp_path: Path, source: Mapping[str, Any], **options: Any) -> tuple[Path, Mapping[str, Any]]:
    config = {"domains": {"web": facts(source)}} | OPTIONS | options
    out = tmp_path / "discover.web"
    return out, discover.run(context("discover.web", out, config, {"source": source}, {}))


def kinds_of(words: Iterable[str]) -> set[str]:
    return {kind for kind, its in WORDS.items() if set(words) & set(its.split())}


def test_clusters_and_what_is_told_of_them(tmp_path, source):
    out, metrics = discovered(tmp_path, source)
    told = json.loads((out / "clusters.json").read_text())
    assert (told["n"], told["balance"], told["empty_dropped"]) == (2, "bytes", 1)
    assert metrics["documents"] == told["documents"] == sum(cluster["documents"] for cluster in told["clusters"])
    table = pq.read_table(out / "clusters.parquet").to_pydict()
    assert 0 not in table["document"]
    assert max(table["document"]) <= 60
    assert sorted(sorted(kinds_of(cluster["terms"])) for cluster in told["clusters"]) == [["law"], ["sea"]]
    assert metrics["silhouette"] == told["silhouette"] > 0


def test_a_domain_has_the_documents_of_its_cluster_and_the_tokenizer_too(tmp_path, source):
    out, _ = discovered(tmp_path, source)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(train_bpe([], SMALLEST_VOCABULARY))
    reader = Tokenizer.load(tmp_path / "tokenizer" / "tokenizer.json")
    found = {}
    for index in range(2):
        text = facts(source, valid_frac=0.2, max_bytes=None, cluster={"of": "web", "index": index})
        inputs = {"tokenizer": tmp_path / "tokenizer", "discover.web": out}
        made = tmp_path / f"data.{index}"
        data.run(context(f"data.{index}", made, {"domain": "x", "seq_len": 16} | text, {"source": source}, inputs))
        rows = [ShardedRows(made / part) for part in ("train", "valid")]
        read = [reader.decode(its[[row]][0, 1:].tolist()) for its in rows for row in range(len(its))]
        found[index] = {word for row in read for word in row.split()} & EVERY_WORD
        config = {"kind": "bpe", "vocab_size": 300, "domains": {"x": text}}
        learnt = context("tokenizer", tmp_path / f"bpe{index}", config, {"sources": {"x": source}}, inputs)
        tokenizer.run(learnt)
        vocabulary = json.loads((learnt.out / "tokenizer.json").read_text())["model"]["vocab"]
        learnt_words = {token.strip("Ġ") for token in vocabulary} & EVERY_WORD
        assert kinds_of(learnt_words) == kinds_of(found[index]), "the tokenizer read another cluster"
    assert sorted(map(sorted, map(kinds_of, found.values()))) == [["law"], ["sea"]]


def test_text_that_changed_since_the_plan_is_refused(tmp_path, source):
    config = {"domains": {"web": facts(source)}} | OPTIONS
    Path(source["path"]).write_text(Path(source["path"]).read_text() + '\n{"text": "one more"}')
    with pytest.raises(BamError, match="changed since the plan; run again"):
        discover.run(context("discover.web", tmp_path / "out", config, {"source": source}, {}))


def test_too_few_documents_are_named_with_their_number(tmp_path, source):
    Path(source["path"]).write_text('{"text": "one"}\n{"text": "ONE "}\n')
    with pytest.raises(InvalidInput, match=r"discover\.web\.documents: 1: cannot be divided into 2 clusters"):
        discovered(tmp_path, source)


def test_a_domain_with_too_little_text_is_named(tmp_path, source):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(train_bpe([], SMALLEST_VOCABULARY))
    config = {"domain": "law", "seq_len": 16} | facts(source, valid_frac=0.2, max_bytes=1)
    made = context("data.law", tmp_path / "out", config, {"source": source}, {"tokenizer": tmp_path / "tokenizer"})
    with pytest.raises(InvalidInput, match=r"domains\.law\.documents: 1: must hold enough text"):
        data.run(made)
    Path(source["path"]).write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(InvalidInput, match=r"domains\.law\.source\.column: 'text': .*web\.jsonl:2 has no such column"):
        data.run(context("data.law", tmp_path / "again", config, made.runtime, made.inputs))
