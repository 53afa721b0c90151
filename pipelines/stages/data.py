"""`data.<domain>`: a domain's text, deduplicated, split, tokenised and packed into Arrow shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bam_core.data.discover import CLUSTERS_FILE, of_cluster
from bam_core.data.packing import pack
from bam_core.data.shards import write_shards
from bam_core.data.text import size_bytes, split
from bam_core.data.tokenize import Tokenizer
from bam_core.errors import BamError, InvalidInput
from bam_core.protocols import Document, StageContext

DOCUMENTS_PER_BATCH = 256
"""Tokenised at a time, by as many threads as the machine has."""


def run(context: StageContext) -> Mapping[str, Any]:
    config = context.config
    seq_len = config["seq_len"]
    tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer.json")
    documents = documents_of(context, context.runtime["source"], config)
    try:
        parts = split(documents, config["valid_frac"], config["max_bytes"])
    except InvalidInput as error:  # of the source, or of what is made of it
        here = f"domains.{config['domain']}{'.source' if error.where == 'source' else ''}"
        raise InvalidInput("recipe", [problem.under(here) for problem in error.problems]) from error
    require_planned_text(context, context.runtime["source"], config["source"]["digest"])
    stats: dict[str, Any] = {"duplicates_dropped": parts.n_duplicates}
    for name, documents in (("train", parts.train), ("valid", parts.valid)):
        rows = pack(_tokenised(documents, tokenizer), seq_len, tokenizer.eos_id, tokenizer.token_bytes)
        try:
            n_rows = write_shards(context.out / name, rows)
        except InvalidInput as error:
            where = f"domains.{config['domain']}"
            raise InvalidInput("recipe", [problem.under(f"{where}.{name}") for problem in error.problems]) from error
        stats[name] = {
            "documents": len(documents),
            "bytes": size_bytes(documents),
            "rows": n_rows,
            "tokens": n_rows * seq_len,
        }
    (context.out / "stats.json").write_text(json.dumps(stats, indent=1) + "\n")
    return {f"{name}_{what}": stats[name][what] for name in ("train", "valid") for what in ("documents", "tokens")}


def documents_of(context: StageContext, source: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Document]:
    """A domain's documents: all of a source, or those of one cluster. facts: what defines the domain's text."""
    documents, cluster = context.sources.read(source), facts.get("cluster")
    if cluster is None:
        return documents
    return of_cluster(context.inputs[f"discover.{cluster['of']}"] / CLUSTERS_FILE, cluster["index"], documents)


def require_planned_text(context: StageContext, source: Mapping[str, Any], digest: str) -> None:
    """Raises BamError if the text is not the one that the key names: it changed after the plan, or differs here."""
    if context.sources.digest(source) != digest:
        raise BamError(f"the text of {source['kind']} {source.get('path', '')} changed since the plan; run again")


def _tokenised(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Sequence[int]]:
    for start in range(0, len(documents), DOCUMENTS_PER_BATCH):
        yield from tokenizer.encode_batch(
            [document.text for document in documents[start : start + DOCUMENTS_PER_BATCH]]
        )
