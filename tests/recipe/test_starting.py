"""The recipe that `bam init` writes: whatever people name their domains and files, the recipe's reader takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bam_core.errors import InvalidInput, UsageError
from pipelines.recipe import Recipe, recipe_from
from pipelines.recipe.document import parse
from pipelines.recipe_text import comment, scalar, value
from pipelines.starting.choosing import BYTES_PER_TOKEN, FEWEST_BATCHES, PASSES, Chosen, Start, choose
from pipelines.starting.found import Found
from pipelines.starting.recipe import recipe_text
from pipelines.starting.sizes import SIZES

KB, MB, GB = 10**3, 10**6, 10**9
LIKE_OTHER_THINGS = ["true", "null", "no", "1_000", "1e5", "0", "2024-01-01", "0x1f", "n", "_", "5-", "_-"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,20}", fullmatch=True).filter(lambda name: name not in ("own", "uniform"))
SIZES_OF_TEXT = st.none() | st.integers(3000, 10**13)


def found(n_bytes: int | None = MB, path: str = "a.txt", kind: str = "text", **keys: str) -> Found:
    return Found({"kind": kind, "path": path, **keys}, (path,), {}, n_bytes)


def start(*sizes: int | None, **changes: object) -> Start:
    return replace(Start("mine", {f"d{i}": [found(size)] for i, size in enumerate(sizes)}), **changes)


def read(text: str) -> Recipe:
    document, problems = parse(text, "mine.yaml")
    assert not problems
    return recipe_from(document, "mine.yaml")


def written(begun: Start) -> tuple[Recipe, Chosen, str]:
    chosen = choose(begun)
    text = recipe_text(begun, chosen, "mine.yaml")
    return read(text), chosen, text


@given(TEXTS)
@example("~")
@example(".5")
@example("\u2028\x85\ufeff\x7f")
@example("\U0001f642 \U000e0001")
@example("- a: b # c")
def test_any_text_comes_back_as_it_was(text):
    for line in (f"a: {scalar(text)}", f"{{a: {scalar(text)}, b: c}}", f"a:\n  - {scalar(text)}"):
        document, problems = parse(line, "")
        assert not problems
        assert text in (document["a"], document["a"][0])
    assert parse(f"{scalar(text)}: 1", "")[0] == {text: 1}


@settings(max_examples=30)
@given(
    st.dictionaries(
        TEXTS, TEXTS | st.integers(-(10**17), 10**17) | st.booleans() | st.lists(TEXTS, max_size=3), max_size=4
    )
)
def test_any_mapping_comes_back_as_it_was(mapping):
    keys = {key: one for key, one in mapping.items() if key != "<<"}
    assert parse(f"a: {value(keys)}", "")[0] == {"a": keys}


@given(st.text(max_size=300))
def test_a_comment_is_none_of_the_recipe(text):
    encodable = text.encode(errors="replace").decode()
    lines = list(comment(encodable, "  "))
    assert parse("\n".join([*lines, "a: 1"]), "")[0] == {"a": 1}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(NAMES, TEXTS, SIZES_OF_TEXT), min_size=2, max_size=5, unique_by=lambda domain: domain[0]),
    st.sampled_from(list(SIZES)),
    st.none() | st.integers(131_072, 10**12),
    st.integers(0, 2),
)
@example([(name, name, MB) for name in LIKE_OTHER_THINGS], "tiny", None, 0)
def test_what_is_written_is_a_recipe_that_says_what_was_found(domains, size, tokens, gpus):
    given_texts = {name: [found(n_bytes, path, "jsonl", column=path)] for name, path, n_bytes in domains}
    recipe, chosen, _ = written(Start("mine", given_texts, size, tokens, cpus=3, gpus=gpus))
    assert list(recipe.domains) == list(given_texts)
    for name, [one] in given_texts.items():
        assert (recipe.domains[name].source.path, recipe.domains[name].source.column) == (one.source["path"],) * 2
    assert (recipe.tokenizer.domains, recipe.model.max_seq_len) == ([domains[0][0]], chosen.row)
    assert recipe.phases.seed.data == {domains[0][0]: 1.0}
    assert set(recipe.variants) == {"bam", "btx"}
    assert recipe.phases.seed.tokens == chosen.seed_tokens


@pytest.mark.parametrize("size", SIZES)
def test_with_much_text_a_model_gets_all_that_suits_it(size):
    recipe, chosen, text = written(start(100 * GB, 100 * GB, None, size=size))
    shape = SIZES[size]
    assert (recipe.model.d_model, recipe.model.max_seq_len) == (shape.d_model, shape.row)
    assert recipe.tokenizer.vocab_size == shape.vocab_size
    assert [recipe.phases.seed.tokens, recipe.phases.expert.tokens] == [shape.tokens, shape.tokens // 2]
    assert not chosen.notes
    assert not chosen.own_tokens
    assert "unknown size" in text
    for domain in recipe.domains.values():  # all of the text would be in memory
        assert shape.tokens < domain.max_bytes < 100 * shape.tokens


def test_with_little_text_there_is_less_of_everything_and_a_word_of_it():
    recipe, chosen, text = written(start(700 * KB, 30 * KB, 10 * MB))
    assert recipe.tokenizer.vocab_size == 512
    assert recipe.phases.seed.tokens == int(PASSES * 700 * KB / BYTES_PER_TOKEN) // 10_000 * 10_000
    assert [domain.valid_frac for domain in recipe.domains.values()] == [0.1, 0.2, 0.05]
    assert recipe.phases.expert.tokens == 1_000_000
    assert recipe.domains["d1"].expert.tokens == FEWEST_BATCHES * 4096 // 10_000 * 10_000
    assert recipe.domains["d1"].valid_frac * 30 * KB / BYTES_PER_TOKEN >= recipe.model.max_seq_len
    assert [note.split(":")[0] for note in chosen.notes] == ["d1"]
    assert "less text than others" in text


def test_a_person_may_want_more():
    recipe, _, text = written(start(MB, MB, tokens=30_000_000))
    assert (recipe.phases.seed.tokens, recipe.phases.mixture.tokens) == (30_000_000, 15_000_000)
    assert "As many as you asked for." in text


def test_fewer_tokens_than_a_batch_are_refused():
    with pytest.raises(InvalidInput, match="4095: must be at least one batch, 4096"):
        choose(start(MB, MB, tokens=4095))
    assert written(start(MB, MB, tokens=4097))[0].phases.mixture.tokens == 4096


def test_too_little_text_is_refused_for_all_domains_at_once():
    with pytest.raises(InvalidInput) as caught:
        choose(start(300, MB, 2000))
    assert [(p.path, p.value) for p in caught.value.problems] == [("domains.d0", 300), ("domains.d2", 2000)]
    assert "2.2 KiB at the very least" in str(caught.value)
    assert choose(start(2240, MB)).row == 32


def test_long_lists_of_paths_and_several_sources_are_read_back():
    paths = [f"a folder: with/a long name of {i}.jsonl" for i in range(9)]
    one = Found({"kind": "jsonl", "path": paths, "column": "body"}, tuple(paths), {}, MB)
    recipe, _, text = written(Start("mine", {"a": [one], "b": [one, found()]}))
    assert recipe.domains["a"].source.path == paths
    assert [(s.kind, s.path) for s in recipe.domains["b"].source] == [("jsonl", paths), ("text", "a.txt")]
    assert max(map(len, text.splitlines())) <= 120


def test_the_column_is_taken_or_asked_for():
    rows = Found({"kind": "jsonl", "path": "a"}, ("a",), {"title": 10, "abstract": 20})
    assert rows.usual_column is None
    assert rows.with_column("abstract") == Found({"kind": "jsonl", "path": "a", "column": "abstract"}, ("a",), {}, 20)
    with pytest.raises(UsageError, match="PATH:COLUMN: title, abstract"):
        rows.with_column(None)
    with pytest.raises(UsageError, match="did you mean 'abstract'"):
        rows.with_column("abstrct")
    with pytest.raises(UsageError, match="those with text: title, abstract"):
        rows.with_column("zzz")
    assert replace(rows, columns={"text": 5, "title": 1}).with_column(None).source == rows.source
    assert replace(rows, columns={"body": 5}).with_column(None).source["column"] == "body"
    with pytest.raises(UsageError, match="has no columns"):
        found().with_column("text")
