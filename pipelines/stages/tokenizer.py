"""`tokenizer`: one byte-level BPE over the text of the recipe's domains, or a file that the user brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bam_core.data.text import split
from bam_core.data.tokenize import Tokenizer, train_bpe
from bam_core.errors import UsageError
from bam_core.protocols import StageContext
from pipelines.stages.data import documents_of, require_planned_text


def run(context: StageContext) -> Mapping[str, Any]:
    target = context.out / "tokenizer.json"
    if context.config["kind"] == "file":
        target.write_bytes(Path(context.runtime["path"]).read_bytes())
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
        parts = split(documents_of(context, spec, facts), facts["valid_frac"], max_bytes=facts["max_bytes"])
        require_planned_text(context, spec, facts["source"]["digest"])
        yield from (document.text for document in parts.train)
