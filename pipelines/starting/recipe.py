"""The recipe as a text, with a comment for each choice: why it is so, and what people change next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bam_core.graph.words import count, size
from pipelines.recipe.values import parse_count
from pipelines.recipe_text import comment, scalar, value
from pipelines.starting.choosing import BYTES_PER_TOKEN, HELD_OUT_TOKENS, MIXTURE_PASSES, PASSES, Chosen, Start
from pipelines.starting.found import Found

FITS = 100
"""Characters of a source on one line at most."""


def recipe_text(start: Start, chosen: Chosen, file: str) -> str:
    """file: as a person would type it."""
    parts = (
        _heading(start, file),
        _domains(start, chosen),
        _model(start, chosen),
        _phases(start, chosen),
        _variants(start),
        _evaluate(start),
        _runtime(start),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _heading(start: Start, file: str) -> Iterator[str]:
    yield from comment(
        f"Written by `bam init` from what it found in your files. All of it may be changed: `bam plan {file}` says "
        "what is wrong with it, or what would run. Paths are relative to the folder in which bam is started. "
        "docs/recipe.md has every key."
    )
    yield f"name: {scalar(start.name)}  # the pipeline's, and that of MLflow's experiment"
    yield "seed: 0  # all random choices; `seeds: [0, 1, 2]` in its place trains all three times, for intervals"


def _domains(start: Start, chosen: Chosen) -> Iterator[str]:
    yield from comment(
        "Each domain becomes an expert. The first is the general one, whose expert is the seed model itself. Next: "
        "`licence: CC-BY-4.0` in a source goes into model cards; `filter: {lang: en}` takes some rows only; `template: "
        '"{question}\\n{answer}"` makes a text of several columns; `dedup: minhash` also drops what is much alike.'
    )
    yield "domains:"
    for domain, found in start.domains.items():
        yield f"  {scalar(domain)}:  # {_found_words(found, start.n_bytes(domain))}"
        yield from _source(found)
        if domain in chosen.valid_frac:
            why = f"held out: more than the usual 0.05, so that it nears {count(HELD_OUT_TOKENS)} tokens"
            yield f"    valid_frac: {chosen.valid_frac[domain]}  # {why}"
        if domain in chosen.max_bytes:
            why = "room for what is trained on; without it all of the text is read into memory"
            yield f"    max_bytes: {_exact(chosen.max_bytes[domain])}  # {why}"
        if domain in chosen.own_tokens:
            yield f"    expert: {{tokens: {_exact(chosen.own_tokens[domain])}}}  # less text than others: fewer tokens"


def _found_words(found: Sequence[Found], n_bytes: int | None) -> str:
    n_files = sum(len(one.files) for one in found)
    files = [f"{n_files:,} file{'s' if n_files > 1 else ''}"] if n_files else []
    return ", ".join([*files, f"about {size(n_bytes)} of text" if n_bytes is not None else "of unknown size"])


def _source(found: Sequence[Found]) -> Iterator[str]:
    if len(found) == 1:
        yield from _one(found[0].source, "    source:", "      ")
        return
    yield "    source:  # several, as one text; `share: 0.8` in each says how much of the domain it is"
    for one in found:
        yield from _one(one.source, "      -", "        ")


def _one(source: Mapping[str, Any], before: str, indent: str) -> Iterator[str]:
    line = f"{before} {value(source)}"
    if len(line) <= FITS:
        yield line
        return
    lines = [f"{scalar(key)}: {value(one)}" for key, one in source.items() if not isinstance(one, list)]
    for key, one in source.items():
        if isinstance(one, list):
            lines += [f"{scalar(key)}:", *(f"  - {value(item)}" for item in one)]
    is_item = before.endswith("-")
    yield f"{before} {lines[0]}" if is_item else before
    yield from (f"{indent}{line}" for line in (lines[1:] if is_item else lines))


def _model(start: Start, chosen: Chosen) -> Iterator[str]:
    if start.seed is not None:
        yield from comment(f"Model and tokenizer are those of {start.seed.source}, under phases.seed below.")
        return
    yield from comment(
        "About an entry for each kB of general text, at most what suits the model. From the general text alone, so "
        "that a new domain later leaves tokenizer and seed as they are; without `domains` it learns from all of them."
    )
    yield f"tokenizer: {{kind: bpe, vocab_size: {chosen.vocab_size}, domains: [{scalar(start.general)}]}}"
    yield ""
    shape = start.shape
    words = f"`{start.size}`: {shape.words}. `bam plan` counts its parameters and FLOPs."
    if chosen.row < shape.row:
        words += f" max_seq_len is {chosen.row} as the smallest domain's held-out text fills few longer rows."
    yield from comment(words)
    keys = {"d_model": shape.d_model, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_ff": shape.d_ff}
    yield f"model: {value({**keys, 'max_seq_len': chosen.row})}"


def _phases(start: Start, chosen: Chosen) -> Iterator[str]:
    if start.tokens is None:
        why = (
            f"At most {PASSES} passes over the text (a token is about {BYTES_PER_TOKEN} bytes of it), about as "
            "often as text is worth reading; then as many as suit the model."
        )
    else:
        why = "As many as you asked for."
    yield from comment(
        f"tokens: {why} More of them help as long as the report's curves still fall. lr: a starting point; `tune:` "
        "searches a better one. batch_tokens is of all workers together."
    )
    yield "phases:"
    batch, shape = start.shape.batch_tokens, start.shape
    if start.seed is not None:
        seed = start.seed
        facts = f"{seed.family}, {count(seed.params)} parameters; as it is, without `tokens`"
        yield f"  seed: {{import: {scalar(seed.source)}}}  # {facts}"
    else:
        keys = f"tokens: {_exact(chosen.seed_tokens)}, batch_tokens: {batch}, lr: {shape.lr}"
        yield f"  seed: {{{keys}, data: {{{scalar(start.general)}: 1.0}}}}"
    keys = f"tokens: {_exact(chosen.expert_tokens)}, batch_tokens: {batch}, lr: {shape.lr_after}"
    yield from comment("Each expert: some general text keeps it from forgetting.", "  ")
    yield f"  expert: {{{keys}, data: {{own: 0.9, {scalar(start.general)}: 0.1}}}}"
    keys = f"tokens: {_exact(chosen.mixture_tokens)}, batch_tokens: {batch}, lr: {shape.lr_after}"
    most = f": at most {MIXTURE_PASSES} passes over the smallest" if start.tokens is None else ""
    yield from comment(f"Each variant below, equally much of every domain{most}.", "  ")
    yield f"  mixture: {{{keys}, data: uniform}}"
    if start.seed is not None and chosen.row < start.seed.context:
        yield f"  seq_len: {chosen.row}  # tokens of a row; the model reads {start.seed.context:,}"


def _variants(start: Start) -> Iterator[str]:
    yield from comment("How the experts become one model. docs/recipe.md has all ways; `bam plan` counts each.")
    yield "variants:"
    yield "  bam:  # attention and FFN experts: every token uses all of the attention experts, and the best FFN expert"
    yield "    attention: {routing: soft, kv: expert}  # kv: shared is cheaper"
    more = "  # top_k: 2 uses two for each token" if len(start.domains) > 2 else ""
    yield f"    ffn: {{top_k: 1}}{more}"
    yield "  btx:  # the baseline, to compare with: attention averaged, FFN experts alone"
    yield "    attention: merged"
    yield "    ffn: {top_k: 1}"
    yield "dense: true     # another baseline: the seed trained on what the mixture is trained on; false saves the time"
    yield "ensemble: true  # and another, which trains nothing: the experts' probabilities put together"


def _evaluate(start: Start) -> Iterator[str]:
    yield from comment(
        "Perplexity of every model on held-out text of every domain. Held-out text that is in training text too is "
        "found before anything is trained, and refused (max_overlap, allow_overlap)."
    )
    tokens = HELD_OUT_TOKENS if start.seed is None and start.size == "tiny" else 100_000
    yield f"evaluate: {{tokens: {count(tokens)}}}  # of each domain at most"


def _runtime(start: Start) -> Iterator[str]:
    yield from comment(
        "Where it runs: it may change at any time, and what is done is reused. Experts train side by side as far as "
        "there is room. " + ("For this machine's GPUs." if _on_gpu(start) else "With a GPU: `gpus: 1` in each.")
    )
    yield "runtime:"
    n = min(8, max(1, start.cpus))
    cpus = {"seed": n, "expert": max(1, n // max(1, len(start.domains) - 1)), "train": max(1, n // 2)}
    for group, cores in cpus.items():
        yield f"  {group}: {{workers: 1, cpus: 1, gpus: 1}}" if _on_gpu(start) else f"  {group}: {{cpus: {cores}}}"
    yield f"  micro_batch_rows: {start.shape.micro_batch_rows}  # rows in memory at once; fewer need less of it"


def _exact(number: int) -> str:
    """As people write it, where that is the same number."""
    shown = count(number)
    return shown if parse_count(shown) == number else str(number)


def _on_gpu(start: Start) -> bool:
    return start.gpus > 0 and (start.size != "tiny" or start.seed is not None)
