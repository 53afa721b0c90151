"""`data.<domain>`: a domain's text, deduplicated, split, tokenised and packed into Arrow shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from bam_core.data.discover import CLUSTERS_FILE, of_cluster
from bam_core.data.packing import pack
from bam_core.data.shards import write_shards
from bam_core.data.text import Choice, Split, size_bytes, split
from bam_core.data.tokenize import Tokenizer
from bam_core.data.words import encoded
from bam_core.errors import BamError, InvalidInput
from bam_core.protocols import Document, StageContext, Tally

SAYS_WHICH = {"kind", "digest", "column", "split", "revision", "name", "documents", "seed", "options"}
"""Keys of a source that leave nothing out of it."""


def run(context: StageContext) -> Mapping[str, Any]:
    config = context.config
    seq_len = config["seq_len"]
    tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer.json")
    tally = Tally()
    try:
        parts = split_text(context, context.runtime["source"], config, tally)
    except InvalidInput as error:  # of the source, or of what is made of it
        here = f"domains.{config['domain']}{'.source' if error.where == 'source' else ''}"
        raise InvalidInput("recipe", [problem.under(here) for problem in error.problems]) from error
    require_planned_text(context, context.runtime["source"], config["source"]["digest"])
    valid = _held_out(context) if "valid" in config else parts.valid
    keeps_copies = config.get("dedup") == "none"
    stats: dict[str, Any] = {"duplicates_dropped": 0 if keeps_copies else parts.n_duplicates}
    stats |= {"duplicates_kept": parts.n_duplicates} if keeps_copies else {}
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
    if leaves_out(config):
        stats["steps"] = [*_read_steps(context.runtime["source"], tally), *(asdict(step) for step in parts.steps)]
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


def split_text(
    context: StageContext, source: Mapping[str, Any], facts: Mapping[str, Any], tally: Tally | None = None
) -> Split:
    """A domain's documents, chosen and divided. facts: what defines the domain's text."""
    copies, shares = facts.get("dedup"), facts.get("shares")
    choice = Choice(
        near=copies["minhash"] if isinstance(copies, Mapping) else None,
        keep_copies=copies == "none",
        shares=tuple(shares) if shares else None,
    )
    return split(documents_of(context, source, facts, tally), facts["valid_frac"], facts.get("max_bytes"), choice)


def leaves_out(facts: Mapping[str, Any]) -> bool:
    """Whether a text is more than its source with each document once: then its statistics say what each step did."""
    return "dedup" in facts or not facts["source"].keys() <= SAYS_WHICH


def _read_steps(source: Mapping[str, Any], tally: Tally) -> Iterator[dict[str, Any]]:
    """One of each source that was read, in the words of `bam_core.data.text.Step`."""
    each = zip(source["sources"], tally.parts, strict=True) if "sources" in source else [(source, tally)]
    for number, (one, read) in enumerate(each):
        place = f" {number}" if "sources" in source else ""
        stopped = {"stopped_by": read.stopped} if read.stopped else {}
        yield {"name": f"read{place}: {one['kind']}", "dropped": dict(read.dropped), "kept": read.kept} | stopped


def documents_of(
    context: StageContext, source: Mapping[str, Any], facts: Mapping[str, Any], tally: Tally | None = None
) -> Iterator[Document]:
    """All documents of a source, or those of one cluster."""
    documents, cluster = context.sources.read(source, tally), facts.get("cluster")
    if cluster is None:
        return documents
    return of_cluster(context.inputs[f"discover.{cluster['of']}"] / CLUSTERS_FILE, cluster["index"], documents)


def require_planned_text(context: StageContext, source: Mapping[str, Any], digest: str) -> None:
    """Raises BamError if the text is not the one that the key names: it changed after the plan, or differs here."""
    if context.sources.digest(source) != digest:
        raise BamError(f"the text of {source['kind']} {source.get('path', '')} changed since the plan; run again")
