"""`data.<domain>`: a domain's text, deduplicated, split, tokenised and packed into Arrow shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bam_core.data.discover import CLUSTERS_FILE, of_cluster
from bam_core.data.packing import pack
from bam_core.data.shards import write_shards
from bam_core.data.text import size_bytes, split
from bam_core.data.tokenize import Tokenizer
from bam_core.data.words import encoded
from bam_core.errors import BamError, InvalidInput
from bam_core.protocols import Document, StageContext


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
    valid = _held_out(context) if "valid" in config else parts.valid
    stats: dict[str, Any] = {"duplicates_dropped": parts.n_duplicates}
    for name, documents in (("train", parts.train), ("valid", valid)):
        ids = encoded((document.text for document in documents), tokenizer)
        rows = pack(ids, seq_len, tokenizer.eos_id, tokenizer.token_bytes)
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


def _held_out(context: StageContext) -> tuple[Document, ...]:
    """All of a held-out text of its own, each document once."""
    source = context.runtime["valid"]
    try:
        found = split(context.sources.read(source), None)
    except InvalidInput as error:
        here = f"domains.{context.config['domain']}.valid"
        raise InvalidInput("recipe", [problem.under(here) for problem in error.problems]) from error
    require_planned_text(context, source, context.config["valid"]["digest"])
    return found.train


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
