"""A lineage graph in every form that it is asked for. Pure: text out, with every name escaped for where it goes."""

from __future__ import annotations

import json
from collections.abc import Callable

from bam_core.graph.lineage import Graph
from bam_core.graph.lineage_html import to_html
from bam_core.graph.lineage_mermaid import to_mermaid
from bam_core.graph.lineage_openlineage import to_openlineage
from bam_core.graph.lineage_text import to_text

__all__ = ["RENDERERS", "SUFFIXES", "to_html", "to_json", "to_mermaid", "to_openlineage", "to_text"]


def to_json(graph: Graph) -> str:
    return json.dumps(graph.to_json(), indent=1)


RENDERERS: dict[str, Callable[[Graph, str, int], str]] = {
    "text": lambda graph, _, columns: to_text(graph, columns),
    "json": lambda graph, *_: to_json(graph),
    "mermaid": lambda graph, *_: to_mermaid(graph),
    "html": lambda graph, *_: to_html(graph),
    "openlineage": lambda graph, store, _: to_openlineage(graph, store),
}
"""Format -> of (graph, URI of the store, columns of a terminal)."""

SUFFIXES = {
    ".txt": "text",
    ".json": "json",
    ".mmd": "mermaid",
    ".html": "html",
    ".htm": "html",
    ".jsonl": "openlineage",
}
"""What a file's name says of its format."""
