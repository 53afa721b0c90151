"""One vocabulary for models with tokenizers of their own: which token has which id, and whose rows it gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.errors import InvalidInput
from bam_core.upcycle.vocabulary import (
    OWN_ROW,
    Rule,
    Vocabulary,
    common_definition,
    common_vocabulary,
    read_vocabulary,
    relation,
    vocabulary_of,
    vocabulary_problems,
)
from bam_core.upcycle.vocabulary_rows import CommonRows

TRAINED = train_bpe(["the river walks under the bridge in the morning"] * 3, 270)


def table(ids: Mapping[str, int], special: Mapping[str, int] | None = None) -> Vocabulary:
    """A tokenizer of whole words, some of which are special."""
    added = [
        {"id": index, "content": token, "special": True, "single_word": False}
        | {"lstrip": False, "rstrip": False, "normalized": False}
        for token, index in (special or {}).items()
    ]
    model = {"type": "WordLevel", "vocab": dict(ids), "unk_token": "a"}
    pre = {"type": "Whitespace"}
    return vocabulary_of(json.dumps({"model": model, "added_tokens": added, "pre_tokenizer": pre, "normalizer": None}))


SEED = table({"a": 0, "b": 1, "c": 2}, {"<s>": 3})


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (table({"a": 0, "b": 1, "c": 2}, {"<s>": 3}), "identical"),
        (table({"a": 0, "b": 1, "c": 3}, {"<s>": 2}), "reordered"),
        (table({"a": 0, "b": 1, "c": 2, "d": 4}, {"<s>": 3}), "superset"),
        (table({"a": 0, "b": 1}, {"<s>": 3}), "subset"),
        (table({"a": 0, "x": 1}, {"<s>": 3}), "different"),
    ],
)
def test_what_a_vocabulary_is_to_the_seeds(other: Vocabulary, found: str) -> None:
    assert relation(SEED, other) == found
    refused = list(vocabulary_problems(SEED, 4, {"code": (other, 5 if found == "superset" else 4)}, "refuse"))
    assert [problem.path for problem in refused] == ([] if found == "identical" else ["code"])
    for rule in ("union", "seed"):
        assert not list(vocabulary_problems(SEED, 4, {"code": (other, 5)}, rule))


def test_equal_tokens_that_are_cut_otherwise_are_refused() -> None:
    definition = json.loads(SEED.text) | {"normalizer": {"type": "Lowercase"}}
    other = vocabulary_of(json.dumps(definition))
    assert relation(SEED, other) == "identical"
    [problem] = vocabulary_problems(SEED, 4, {"code": (other, 4)}, "refuse")
    assert "cuts text in another way" in problem.expected
    # What versions of the library leave out means nothing, nor do padding and truncation.
    written = {"padding": {"length": 4}, "model": definition["model"] | {"ignore": None}}
    same = vocabulary_of(json.dumps(json.loads(SEED.text) | written))
    assert not list(vocabulary_problems(SEED, 4, {"code": (same, 4)}, "refuse"))


def test_padding_of_the_embedding_needs_a_rule() -> None:
    same = {"code": (SEED, 8)}
    assert [problem.path for problem in vocabulary_problems(SEED, 4, same, "refuse")] == ["code"]
    assert not list(vocabulary_problems(SEED, 4, same, "seed"))
    [problem] = vocabulary_problems(SEED, 3, {}, "refuse")
    assert "the model has rows for 3 tokens" in problem.expected


def rows_of(size: int, salt: float) -> Tensor:
    return torch.arange(size)[:, None] + torch.tensor([salt])


class Held:
    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = {name.replace("_", "."): tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


def test_union_gives_unknown_tokens_the_mean_of_those_who_know_them() -> None:
    code = table({"c": 0, "a": 1, "new": 2}, {"<s>": 3})
    law = table({"a": 0, "b": 1, "c": 2, "new": 3}, {"<s>": 4, "<law>": 5})
    known = {"seed": (SEED, 6), "code": (code, 4), "law": (law, 6)}
    common = common_vocabulary(known, "union")
    # The seed's rows 4 and 5 stand for no token: the new ones come there.
    assert (common.size, common.added) == (6, {"new": 4, "<law>": 5})
    tensors = {name: Held(embed_weight=rows_of(rows, salt), norm_weight=torch.ones(2))
               for salt, (name, (_, rows)) in zip((0.0, 100.0, 200.0), known.items(), strict=True)}  # fmt: skip
    made = {name: CommonRows(name, common.rows[name], tensors) for name in known}
    first = {name: rows.get("embed.weight").sum(1).tolist() for name, rows in made.items()}
    assert first["seed"] == [0, 1, 2, 3, (102 + 203) / 2, 205]
    assert first["code"] == [101, (1 + 201) / 2, 100, 103, 102, 205]
    assert first["law"] == [200, 201, 202, 204, 203, 205]
    assert made["code"].shape("embed.weight") == (6, 1)
    assert made["code"].get("norm.weight") is tensors["code"].get("norm.weight")


def test_seed_keeps_the_seeds_tokens_and_rows() -> None:
    code = table({"c": 0, "a": 1, "new": 2}, {"<s>": 3})
    law = table({"b": 0, "a": 1})  # knows what the code's does not, and is not asked
    common = common_vocabulary({"seed": (SEED, 5), "code": (code, 4), "law": (law, 2)}, "seed")
    assert (common.size, common.added) == (5, {})
    assert common.rows["seed"].as_they_are
    assert common.rows["code"].own == [1, OWN_ROW, 0, 3, OWN_ROW]
    assert common.rows["code"].others == {1: (("seed", 1),), 4: (("seed", 4),)}


@given(
    st.lists(
        st.permutations("abcdefgh").flatmap(lambda order: st.integers(1, 8).map(lambda n: order[:n])),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["union", "seed"]),
)
def test_every_token_keeps_its_meaning(orders: list[list[str]], rule: Rule) -> None:
    """A row that was a token's is that token's, in each model that knew it; and every row comes from somewhere."""
    known = {f"m{n}": (table({t: i for i, t in enumerate(order)}), len(order)) for n, order in enumerate(orders)}
    common = common_vocabulary(known, rule)
    tokens = set(orders[0]).union(*orders) if rule == "union" else set(orders[0])
    assert common.ids.keys() == tokens
    assert sorted(common.ids.values()) == list(range(common.size))
    for name, (vocabulary, _) in known.items():
        rows = common.rows[name]
        for token, index in common.ids.items():
            if token in vocabulary.ids:
                assert rows.own[index] == vocabulary.ids[token]
            else:
                assert rows.own[index] == OWN_ROW
                assert all(known[other][0].ids[token] == row for other, row in rows.others[index])
                assert rows.others[index]


def test_the_common_tokenizer_is_the_seeds_with_the_new_tokens(tmp_path: Path) -> None:
    definition = json.loads(TRAINED)
    end = definition["added_tokens"][0]
    size = max(definition["model"]["vocab"].values()) + 1
    definition["added_tokens"] += [end | {"id": size, "content": "<|im_start|>"}]
    definition["model"]["vocab"] |= {"whole": size + 1}
    seed, other = vocabulary_of(TRAINED), vocabulary_of(json.dumps(definition))
    common = common_vocabulary({"seed": (seed, size), "chat": (other, size + 2)}, "union")
    text = common_definition({"seed": seed, "chat": other}, common)
    made = tokenizers.Tokenizer.from_str(text)
    assert made.get_vocab(with_added_tokens=True) == dict(common.ids) == dict(other.ids)
    plain = tokenizers.Tokenizer.from_str(TRAINED)
    assert made.encode("the river").ids == plain.encode("the river").ids
    assert made.encode("<|im_start|>the").ids == [size, *plain.encode("the").ids]
    (tmp_path / "tokenizer.json").write_text(text)
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size == size + 2
    assert read_vocabulary(tmp_path / "tokenizer.json").ids == dict(common.ids)
    unchanged = common_vocabulary({"seed": (seed, size)}, "union")
    assert common_definition({"seed": seed}, unchanged) == TRAINED


def test_a_list_of_probabilities_takes_no_more_tokens() -> None:
    pieces = json.dumps({"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []})
    [problem] = vocabulary_problems(vocabulary_of(pieces), 2, {"code": (SEED, 4)}, "union")
    assert problem.remedy == "say vocabulary: seed"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"model": {"vocab": {"a": 0, "b": 0}}}', '{"model": {"vocab": {"a": "x"}}}', "version https://git-lfs.github.com/spec/v1"]
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        vocabulary_of(text)
