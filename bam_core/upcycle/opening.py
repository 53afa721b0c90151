"""Open what a recipe or `bam check` names: a model's folder, or an adapter's with the base that it is merged into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bam_core.hf import Imported, read_checkpoint
from bam_core.upcycle.adapter import Adapter, is_adapter, read_adapter
from bam_core.upcycle.adapter_merge import adapted
from bam_core.upcycle.vocabulary import Vocabulary, read_vocabulary

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Opened:
    """imported: of an adapter, its base with the adapter merged in. vocabulary: its own, or for an adapter that brings
    none its base's; None where there is no tokenizer.json."""

    imported: Imported
    adapter: Adapter | None
    vocabulary: Vocabulary | None


def open_checkpoint(folder: Path, base: Opened | None = None) -> Opened:
    """Open a folder; names, shapes and tokenizer are read, values are not. base: what an adapter is merged into.

    Raises InvalidInput with every problem.
    """
    own = folder / TOKENIZER
    if base is not None and is_adapter(folder):
        adapter = read_adapter(folder)
        vocabulary = read_vocabulary(own) if own.is_file() else base.vocabulary
        return Opened(adapted(base.imported, adapter), adapter, vocabulary)
    imported = read_checkpoint(folder)
    return Opened(imported, None, read_vocabulary(own) if imported.tokenizer is not None else None)
