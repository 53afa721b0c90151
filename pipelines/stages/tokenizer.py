"""`tokenizer`: one byte-level BPE over the text of the recipe's domains, a file that the user brings, or that of the
imported seed, with the tokens that the imported experts add to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.errors import BamError, UsageError
from bam_core.protocols import StageContext
from bam_core.upcycle.vocabulary import (
    Rule,
    Vocabulary,
    common_definition,
    common_vocabulary,
    read_vocabulary,
    vocabulary_of,
)
from pipelines.stages.data import require_planned_text, split_text
from pipelines.stages.sentencepiece_model import tokenizer_json

TOKENIZER = "tokenizer.json"


def run(context: StageContext) -> Mapping[str, Any]:
    target = context.out / TOKENIZER
    if context.config["kind"] == "file":
        target.write_bytes(Path(context.runtime["path"]).read_bytes())
    elif context.config["kind"] == "sentencepiece":
        target.write_text(tokenizer_json(Path(context.runtime["path"])), encoding="utf-8")
    elif context.config["kind"] == "import":
        target.write_text(_imported(context), encoding="utf-8")
    else:
        target.write_text(train_bpe(_texts(context), context.config["vocab_size"]), encoding="utf-8")
    vocab_size = Tokenizer.load(target).vocab_size
    if vocab_size > context.config["vocab_size"]:
        raise UsageError(
            f"tokenizer.vocab_size: {context.config['vocab_size']}: the tokenizer has {vocab_size} entries; "
            "use at least that"
        )
    return {"vocab_size": vocab_size}


def _texts(context: StageContext) -> Iterator[str]:
    """Training documents only: held-out text shapes nothing, not even the vocabulary."""
    for domain, spec in context.runtime["sources"].items():
        facts = context.config["domains"][domain]
        parts = split_text(context, spec, facts)
        require_planned_text(context, spec, facts["source"]["digest"])
        yield from (document.text for document in parts.train)


def _imported(context: StageContext) -> str:
    """The text of the common tokenizer.json. Raises BamError if it is not the one that was planned."""
    folders = {name: context.sources.folder(place) for name, place in context.runtime["places"].items()}
    first = next(iter(folders.values()))
    files = {name: folder if (folder / TOKENIZER).is_file() else first for name, folder in folders.items()}
    found = {name: read_vocabulary(folder / TOKENIZER) for name, folder in files.items()}
    rule: Rule = context.runtime["rule"] if len(found) > 1 else "seed"
    text = common_definition(found, common_vocabulary({name: (v, v.size) for name, v in found.items()}, rule))
    if hashlib.sha256(text.encode()).hexdigest() != context.config["digest"]:
        raise BamError("a tokenizer of the imported checkpoints changed since the plan; run again")
    _require_same_end(next(iter(found.values())), text)
    return text


def _require_same_end(seed: Vocabulary, text: str) -> None:
    """Raises UsageError if another token would end documents than the one that the seed knows for it."""
    made, own = Tokenizer(text), Tokenizer(seed.text)
    if made.eos_id != own.eos_id:
        added = next(token for token, index in vocabulary_of(text).ids.items() if index == made.eos_id)
        raise UsageError(
            f"vocabulary: union: documents would end with {added!r}, which an expert adds and the seed does not know; "
            "say vocabulary: seed"
        )
