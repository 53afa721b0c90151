"""A lineage as a Mermaid flowchart, which GitHub and MLflow's notes draw."""

from __future__ import annotations

from bam_core.graph.key import key12
from bam_core.graph.lineage import SOURCE, Graph, Node
from bam_core.graph.words import clip

_LONGEST = 80


def to_mermaid(graph: Graph) -> str:
    ids = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR", *(f'  {ids[node.id]}["{_escaped(_label(node))}"]' for node in graph.nodes)]
    for edge in graph.edges:
        arrow = "-.->" if edge.replaced else "-->"
        label = "" if edge.role in (edge.parent[0], SOURCE) else f'|"{_escaped(clip(edge.role, _LONGEST))}"|'
        lines.append(f"  {ids[edge.parent]} {arrow}{label} {ids[edge.child]}")
    lines.append(f"  style {ids[graph.root]} stroke-width:3px")
    lines += [f"  style {ids[node.id]} stroke-dasharray:5 4" for node in graph.nodes if node.missing or node.store]
    return "\n".join(lines)


def _label(node: Node) -> str:
    place = f" ({clip(node.store, _LONGEST)})" if node.store else ""
    return f"{clip(node.stage, _LONGEST)}@{key12(node.key)}" + " (missing)" * node.missing + place


def _escaped(text: str) -> str:
    """Mermaid's own escapes: everything that could end a label or start markup becomes `#code;`."""
    return "".join(char if char.isalnum() or char in " .@_-()" else f"#{ord(char)};" for char in text)
