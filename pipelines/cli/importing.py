"""`bam import`: models of other people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import INTERRUPTED
from bam_core.graph.key import key12
from pipelines.cli import text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from bam_core.config import ModelConfig
    from pipelines.wiring import ImportedModel, Looked

STATUS = {"done": 0, "failed": 1, "interrupted": INTERRUPTED}


@click.command(
    "import",
    cls=Command,
    examples=(
        "bam import ORG/NAME --dry-run",
        "bam import ./my-model base --dtype bf16",
    ),
)
@click.argument("source", metavar="DIR_OR_HUB_ID")
@click.argument("name", required=False)
@click.option("--revision", metavar="REV", help="Of a model of the hub: a branch, tag or commit. [main]")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="Store the weights so. [as they are]")
@click.option(
    "--ignore-code", is_flag=True, help="The folder brings code (auto_map): read it as transformers' own class."
)
@click.option("--replace", is_flag=True, help="NAME is another model already: from now on it is this one.")
@click.option("--dry-run", is_flag=True, help="Only look, at every value too.")
@with_session
def import_model(
    session: Session,
    source: str,
    name: str | None,
    revision: str | None,
    dtype: str | None,
    ignore_code: bool,
    replace: bool,
    dry_run: bool,
) -> int:
    """Take a dense model of a public family as imported.NAME.

    DIR_OR_HUB_ID is a folder with config.json and *.safetensors, or an id of the Hugging Face hub such as ORG/NAME.
    Llama, Mistral, Qwen2, Qwen3, OLMo2, Gemma2, Cohere, Cohere2, GPT-NeoX, StableLM, Phi and Falcon are known. No code
    of it is run and no pickle opened; what cannot be expressed is refused, field by field."""
    from pipelines import wiring

    if dry_run:
        looked = wiring.look_at_model(source, revision, ignore_code=ignore_code, values=True)
        session.answer({"status": "checked", **as_json(looked)}, lambda: f"{as_text(looked)}\n\nit can be imported")
        return 0
    from pipelines.cli.display import open_display

    display = open_display(session.progress_stream())
    try:
        made = wiring.import_model(
            source,
            name,
            session.settings(),
            display,
            revision=revision,
            dtype=dtype,
            ignore_code=ignore_code,
            replace=replace,
        )
    finally:
        display.close()
    [stage] = made.result.stages
    value = {"status": made.result.status, **asdict(stage), **as_json(made.looked)}
    is_plain = not ignore_code and dtype is None
    session.answer(value, lambda: f"\n{as_text(made.looked)}\n\n{_made_text(made, is_plain=is_plain)}")
    if stage.error:
        click.echo(f"bam: {stage.error}", err=True)
    return STATUS[made.result.status]


def as_json(looked: Looked) -> dict[str, Any]:
    return {
        "source": looked.shown,
        "digest": looked.digest,
        "family": looked.family,
        "params": looked.params,
        "dtype": looked.dtype,
        "config": looked.config.to_json(),
        "tensors": dict(looked.names),
        "tokenizer": looked.tokenizer,
        "licence": looked.licence,
        "notes": list(looked.notes),
    }


def as_text(looked: Looked) -> str:
    """What it is, and what becomes what."""
    config = looked.config
    family = looked.family if looked.architecture is None else f"{looked.family} ({looked.architecture})"
    files = f"{_many(looked.n_files, 'file')} of {text.size(looked.size_bytes)}"
    rows = [
        ["from", looked.shown],
        ["family", family],
        ["parameters", f"{text.count(looked.params)}, stored as {looked.dtype}"],
        ["layers", ", ".join(_layers(config))],
        ["attention", ", ".join(_attention(config))],
        ["positions", ", ".join(_positions(config))],
        ["FFN", f"{'gated ' if config.gated else ''}{config.activation}, width {config.d_ff:,}"],
        ["vocabulary", ", ".join(_vocabulary(config))],
        ["tensors", f"{looked.n_theirs} in {files}, as {looked.n_ours} of ours"],
        ["tokenizer", looked.tokenizer or "none: text needs one"],
        ["licence", looked.licence or "its README states none"],
        *(["note", note] for note in looked.notes if looked.tokenizer or note != "no tokenizer"),
    ]
    parts = [text.table(["model", ""], rows)]
    if looked.names:
        parts.append(text.table(["theirs", "ours"], [[theirs, ours] for theirs, ours in looked.names.items()]))
    return "\n\n".join(parts)


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _layers(config: ModelConfig) -> Iterator[str]:
    yield f"{config.n_layers}, {config.residual}, width {config.d_model:,}"
    n_norms = " (two)" if config.parallel_norms == 2 else ""
    yield {"rms": "RMS norm", "layer": "layer norm"}[config.norm] + f" {config.norms}{n_norms}"
    if biases := [part for part in ("qkv", "o", "norm", "ffn", "head") if getattr(config, f"{part}_bias")]:
        yield f"biases of {', '.join(biases)}"
    if config.is_mixture:
        yield f"a mixture of {', '.join(config.experts)}"


def _attention(config: ModelConfig) -> Iterator[str]:
    yield f"{_many(config.n_heads, 'head')} of {config.head_dim}, {config.n_kv_heads} of keys and values"
    if config.qk_norm:
        yield f"norms of queries and keys over {'each head' if config.qk_norm_over == 'head' else 'all heads'}"
    if config.window is not None:
        without = f" but in {_many(len(config.global_layers), 'layer')}" if config.global_layers else ""
        yield f"a window of {config.window:,}{without}"
    if config.attention_scale is not None:
        yield f"scores times {config.attention_scale:.4g}"
    if config.attention_softcap is not None:
        yield f"scores capped at {config.attention_softcap:g}"


def _positions(config: ModelConfig) -> Iterator[str]:
    part = "" if config.rotary_frac == 1 else f" of {config.rotary_frac:.0%} of channels"
    yield f"up to {config.max_seq_len:,}, rotary{part}, base {config.rope_theta:,.0f}"
    if config.rope_scaling is not None:
        yield f"{config.rope_scaling.kind} scaling by {config.rope_scaling.factor:g}"
    if config.unrotated_layers:
        yield f"none in {_many(len(config.unrotated_layers), 'layer')}"


def _vocabulary(config: ModelConfig) -> Iterator[str]:
    yield f"{config.vocab_size:,}, {'the embedding is the head' if config.tie_embeddings else 'a head of its own'}"
    if config.embed_scale != 1:
        yield f"embeddings times {config.embed_scale:.4g}"
    if config.logit_scale != 1:
        yield f"logits times {config.logit_scale:.4g}"
    if config.logit_softcap is not None:
        yield f"logits capped at {config.logit_softcap:g}"


def _made_text(made: ImportedModel, *, is_plain: bool) -> str:
    """is_plain: a recipe that imports the source itself gets the same model."""
    if made.record is None:
        return f"{made.stage}: {made.result.status}"
    [stage] = made.result.stages
    place, model = made.looked.place, stage.artifact
    if "id" in place and is_plain:
        model = f"{place['id']}, revision: {place['revision']}"
    lines = [
        f"{made.stage}@{key12(made.key)}: {'there already' if stage.status == 'reused' else 'made'}, {stage.artifact}",
        f"  in a recipe: phases.seed: {{import: {model}}}, or domains.DOMAIN.expert likewise",
        f"  here: bam show {made.stage}" + (f", bam generate {made.stage} PROMPT" if made.looked.tokenizer else ""),
    ]
    return "\n".join(lines)


COMMANDS = (import_model,)
