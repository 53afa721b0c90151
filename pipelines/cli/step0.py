"""What a mixture was at step 0, for `bam show mix.<variant>`: tables that keep within the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

import click

from pipelines.cli import text

NOT_KNOWN = "-"

FIGURES = {
    "attention_gate_sum": "attn gates",
    "ffn_shrink": "FFN shrink",
    "attention_accuracy": "attn acc.",
    "ffn_accuracy": "FFN acc.",
    "attention_condition": "attn cond.",
    "ffn_condition": "FFN cond.",
}

LEGEND = (
    "gates: sum of a token's gates. FFN shrink: the factor they put on the FFN branch, before any gain. acc.: share "
    "of held-out tokens that the router scores highest for their own domain's expert; chance is 1 / experts. cond.: "
    "above 5 it tells some experts apart far worse than others. from X: distance of the residual stream from X's own "
    "expert, on X's text; 0 is the expert itself."
)


def step0_text(report: Mapping[str, Any], width: int) -> str:
    """Layers, perplexities and warnings of `receipt.step0` of a `mix.json`, in lines of at most `width` columns."""
    layers = _layers(report.get("layers", ()), width)
    legend = click.style(fill(LEGEND, width), dim=True) if layers else ""
    shared = fill(shared_words(report["shared"]), width) if report.get("shared") else ""
    parts = [layers, legend, shared, _perplexities(report, width), *_warnings(report, width)]
    return "\n\n".join(part for part in parts if part)


def shared_words(found: Mapping[str, Any]) -> str:
    """What was measured of the router of what experts share."""
    return (
        f"the router of what experts share: {_share(found.get('accuracy'))} of held-out tokens are given most to their "
        f"own domain's model, which has {_share(found.get('own'))} of their mix on average; condition "
        f"{_figure(found.get('condition'))}"
    )


def within(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table of numbers, cut into several below each other where it is too wide; each has the first column."""
    return text.table(headers, rows, right=range(1, len(headers)), width=width)


def _layers(layers: Sequence[Mapping[str, Any]], width: int) -> str:
    """A row per layer: its gates and routers, then the distance from each domain's own expert."""
    if not layers:
        return ""
    known = [name for name in FIGURES if any(layer.get(name) is not None for layer in layers)]
    domains = dict.fromkeys(domain for layer in layers for domain in layer.get("distance") or ())
    rows = []
    for number, layer in enumerate(layers):
        figures = [(_share if name.endswith("accuracy") else _figure)(layer.get(name)) for name in known]
        distance = layer.get("distance") or {}
        rows.append([str(number), *figures, *(_figure(distance.get(domain)) for domain in domains)])
    headers = ["layer", *(FIGURES[name] for name in known), *(f"from {domain}" for domain in domains)]
    return within(headers, rows, width)


def _perplexities(report: Mapping[str, Any], width: int) -> str:
    """Models by domains; the best of each column is bold."""
    perplexity: Mapping[str, Mapping[str, Any]] = report.get("perplexity", {})
    if not perplexity:
        return ""
    columns = list(dict.fromkeys(column for found in perplexity.values() for column in found))
    best = {
        column: min((f[column] for f in perplexity.values() if f.get(column) is not None), default=None)
        for column in columns
    }
    rows = []
    for name, found in perplexity.items():
        shown = f"{name} (seed)" if name == report.get("seed") else name
        values = [found.get(column) for column in columns]
        marked = [value is not None and value == best[c] for c, value in zip(columns, values, strict=True)]
        cells = [click.style(_perplexity(v), bold=m or None) for v, m in zip(values, marked, strict=True)]
        rows.append([shown, *cells])
    return within(["perplexity", *columns], rows, width)


def _warnings(report: Mapping[str, Any], width: int) -> Iterator[str]:
    for warning in report.get("warnings", ()):
        first, _, rest = fill(f"warning: {warning}", width).partition(":")
        yield f"{click.style(first, fg='yellow')}:{rest}"


def _figure(value: Any) -> str:
    return NOT_KNOWN if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _share(value: Any) -> str:
    return NOT_KNOWN if value is None else f"{100 * value:.0f}%"


def _perplexity(value: Any) -> str:
    return NOT_KNOWN if value is None else f"{value:.2f}" if value < 10_000 else f"{value:.3g}"
