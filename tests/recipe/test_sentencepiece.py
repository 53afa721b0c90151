"""A sentencepiece model becomes a `tokenizer.json` that gives sentencepiece's own ids, and keeps every text."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest

from bam_core.data.tokenize import Tokenizer
from bam_core.errors import InvalidInput, UsageError
from pipelines.stages.sentencepiece_model import tokenizer_json

spm = pytest.importorskip("sentencepiece")
pytest.importorskip("transformers")

KEEPING = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", **KEEPING},
    "unigram": {"model_type": "unigram", **KEEPING},
    "no space in front": {"model_type": "bpe", "add_dummy_prefix": False, **KEEPING},
    "own symbols": {"model_type": "bpe", "user_defined_symbols": ["<|user|>"], "add_dummy_prefix": False, **KEEPING},
}
WORDS = ["the", "cat", " ", "  ", "\n", "é", "東", "🙂", "x", ".", "mat,", "</s>", "<s>", "<0x41>", "<unk>", "\t"]


def trained(path: Path, **options: Any) -> Path:
    made, text = io.BytesIO(), [f"the cat sat on the mat {n}, naïve café <x/>\n" for n in range(200)]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        vocab_size=340,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path.write_bytes(made.getvalue())
    return path


@pytest.mark.parametrize("name", MODELS)
def test_it_gives_the_ids_of_sentencepiece_and_loses_nothing(tmp_path, name):
    path = trained(tmp_path / "m.model", **MODELS[name])
    own, theirs = Tokenizer(tokenizer_json(path)), spm.SentencePieceProcessor(model_file=str(path))
    assert own.vocab_size == theirs.get_piece_size()
    chosen, prefix = random.Random(0), MODELS[name].get("add_dummy_prefix", True)
    words = [*WORDS, *(["<|user|>"] if name == "own symbols" else [])]
    for _ in range(300):
        text = "".join(chosen.choice(words) for _ in range(chosen.randint(1, 12)))
        (ids,) = own.encode_batch([text])
        assert ids == theirs.encode(text), repr(text)
        assert own.decode(ids) == text
        assert own.token_bytes[ids].sum() == len(text.encode()) + prefix
        assert own.eos_id not in ids


def test_a_model_that_loses_text_is_refused_with_an_example(tmp_path):
    definition = tokenizer_json(trained(tmp_path / "m.model", model_type="unigram"))
    with pytest.raises(InvalidInput, match=r"do not keep every byte of the text; this one gives 'naïve"):
        Tokenizer(definition)


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.model").write_text("no model")
    for path in (tmp_path / "a.model", tmp_path / "none.model"):
        with pytest.raises(UsageError, match=f"tokenizer.path: {path}: is no sentencepiece model"):
            tokenizer_json(path)
