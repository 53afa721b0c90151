"""Sources of a recipe: their keys, several of them, what enters a key of an artifact; a sentencepiece tokenizer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from recipes import spoiled

from bam_core.errors import InvalidInput
from bam_core.graph.key import pipeline_keys
from bam_core.graph.stage import Pipeline
from pipelines import bam
from pipelines.recipe import Recipe, recipe_from

FILE = {"kind": "jsonl", "path": "a.jsonl"}
SEVERAL = [{**FILE, "share": 0.7, "licence": "MIT"}, {"kind": "python-docs", "share": 0.3}]


def with_code(source: Any, **domain: Any) -> Recipe:
    changes = {f"domains.code.{key}": value for key, value in domain.items()}
    return recipe_from(spoiled({"domains.code.source": source, **changes}), "here")


def pipeline(recipe: Recipe) -> Pipeline:
    return bam.build(recipe, {text: text * 8 for text in (*recipe.texts, "tokenizer")})


def key(source: Any, **domain: Any) -> str:
    return pipeline_keys(pipeline(with_code(source, **domain)))["data.code"]


def problems(source: Any, **domain: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        with_code(source, **domain)
    return {problem.path.removeprefix("domains.code."): problem.expected for problem in caught.value.problems}


def test_what_is_not_said_is_not_in_a_key():
    config = pipeline(with_code(FILE))["data.code"].config
    assert config["source"] == {"kind": "jsonl", "column": "text", "digest": "code" * 8}
    assert config.keys() == {"domain", "seq_len", "source", "valid_frac", "max_bytes"}


def test_where_text_lies_and_how_it_is_fetched_is_in_no_key():
    assert key(FILE) == key({**FILE, "path": ["b.jsonl", "s3://c/*.gz"]})
    hub = {"kind": "hf", "path": "owner/name"}
    assert key(hub) == key({**hub, "streaming": True})
    assert with_code({**hub, "streaming": True}).source("code")["streaming"] is True
    assert key(SEVERAL) == key([{**SEVERAL[0], "path": "elsewhere", "licence": "CC0-1.0"}, SEVERAL[1]])


def test_equal_meanings_have_equal_keys_and_others_have_not():
    same = [{"lang": "en"}, {"lang": ["en"]}, {"lang": {"equals": "en"}}]
    assert len({key({**FILE, "filter": filters}) for filters in same}) == 1
    assert key(FILE, dedup="exact", dedup_threshold=0.9) == key(FILE)
    others = [
        *({**FILE, **more} for more in ({}, {"filter": same[0]}, {"template": "{a}"}, {"min_chars": 2})),
        *({**FILE, "max_documents": 5, **more} for more in ({}, {"sample": 0}, {"sample": 1})),
        SEVERAL,
        [{**one, "share": 0.5} for one in SEVERAL],
        [{name: value for name, value in one.items() if name != "share"} for one in SEVERAL],
    ]
    choices = [{"dedup": "none"}, {"dedup": "minhash"}, {"dedup": "minhash", "dedup_threshold": 0.9}]
    keys = [key(source) for source in others] + [key(FILE, **choice) for choice in choices]
    assert len(set(keys)) == len(keys)


def test_several_sources_are_one_text_with_the_licences_of_all():
    recipe = with_code(SEVERAL)
    assert recipe.licence("code") == "MIT; PSF-2.0"
    assert recipe.source("code") == {
        "kind": "several",
        "sources": [{"kind": "jsonl", "path": "a.jsonl", "column": "text"}, {"kind": "python-docs"}],
    }
    assert pipeline(recipe)["data.code"].config["shares"] == [0.7, 0.3]
    assert recipe_from(recipe.to_json(), "again").to_json() == recipe.to_json()


def test_a_template_stands_in_the_place_of_the_column():
    recipe = with_code({**FILE, "template": "{a}"})
    assert "column" not in recipe.source("code")
    assert recipe_from(recipe.to_json(), "again").source("code") == recipe.source("code")


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ({**FILE, "path": []}, "source.path", "must not be empty"),
        ({**FILE, "path": ["a", 3]}, "source.path", "or a list of them"),
        ({**FILE, "template": "{q"}, "source.template", "names no field"),
        ({**FILE, "template": "{q}", "column": "a"}, "source.column", "both say what the text is"),
        ({**FILE, "filter": {"a": {"mim": 1}}}, "source.filter.a.mim", "is not a known key"),
        ({**FILE, "sample": 1}, "source.sample", "max_documents"),
        ({**FILE, "share": 0.5}, "source.share", "is the only one"),
        ({"kind": "text", "path": "a", "filter": {"a": 1}}, "source.filter", "a file of text is one document"),
        ({"kind": "generated-math", "max_documents": 3}, "source.max_documents", "is not a known key"),
        ([], "source", "must name at least one source"),
        ([FILE, {"kind": "cluster", "of": "x", "index": 0}], "source.1.kind", "must be one of"),
        ([FILE, {"kind": "text"}], "source.1.path", "is missing"),
        ([FILE, {**FILE, "licence": "a\nb"}], "source.1.licence", "must be one line"),
        ([SEVERAL[0], FILE], "source", "some have a share and others (1, from 0) have none"),
        ([SEVERAL[0], {**FILE, "share": 0.2}], "source", "must sum to 1"),
        ([{**FILE, "share": 1.0}, {**FILE, "share": 0}], "source", "must be above 0"),
    ],
)
def test_a_source_that_cannot_be_meant_is_named(source, path, expected):
    found = problems(source)
    assert list(found) == [path]
    assert expected in found[path]


def test_a_mistake_in_one_of_several_hides_no_other():
    found = problems([{"kind": "hf"}, {**FILE, "colunm": "x"}, {**FILE, "min_chars": -1}], dedup="fuzzy")
    assert found.keys() == {"source.0.path", "source.1.colunm", "source.2.min_chars", "dedup"}


def test_held_out_text_may_be_of_several_sources_without_shares():
    assert with_code(FILE, valid=[FILE, FILE]).valid_source("code")["kind"] == "several"
    assert list(problems(FILE, valid=SEVERAL)) == ["valid"]
    assert list(problems(FILE, valid={"kind": "jsonl"})) == ["valid.path"]
    assert list(problems(FILE, dedup_threshold=0)) == ["dedup_threshold"]


# sentencepiece


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spm = pytest.importorskip("sentencepiece")
    made, text = io.BytesIO(), [f"the cat sat on mat {n}, naïve café\n" for n in range(200)]
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=made, vocab_size=300, model_type="bpe", minloglevel=2, **options
    )
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(made.getvalue())
    return path


def with_tokenizer(path: Path) -> Recipe:
    return recipe_from(spoiled({"tokenizer": {"kind": "sentencepiece", "path": str(path)}}), "here")


def test_a_sentencepiece_model_is_counted_and_known_by_its_content(model):
    recipe = with_tokenizer(model)
    assert recipe.dense_config().vocab_size == 300
    stage = pipeline(recipe)["tokenizer"]
    assert stage.config == {"kind": "sentencepiece", "vocab_size": 300, "digest": "tokenizer" * 8}
    assert stage.runtime == {"path": str(model)}


def test_what_is_no_sentencepiece_model_is_named(tmp_path, model, monkeypatch):
    (tmp_path / "a.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    cases = {tmp_path / "a.model": "is no such model", tmp_path / "none.model": "cannot be read: No such file"}
    for path, expected in cases.items():
        with pytest.raises(InvalidInput, match=expected):
            with_tokenizer(path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(InvalidInput, match=r"\[sentencepiece\]"):
        with_tokenizer(model)
