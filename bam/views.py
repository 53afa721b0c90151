"""A lineage and a difference, as a terminal and a notebook show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bam.drawings import Figure
from bam.words import html_table
from bam_core.errors import UsageError, nearest
from bam_core.graph.key import key12

if TYPE_CHECKING:
    import pandas as pd

    from bam_core.graph.diff import Cause
    from bam_core.graph.diff import Difference as Found
    from bam_core.graph.lineage import Graph, Node

COLUMNS = 120


class Lineage(Sequence["Node"]):
    """The artifacts behind one, or made from one, parents first. graph: nodes and edges, as `bam lineage` has them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __len__(self) -> int:
        return len(self.graph.nodes)

    def __getitem__(self, index: Any) -> Any:
        return self.graph.nodes[index]

    def to(self, form: str, columns: int = COLUMNS) -> str:
        """As `text`, `json`, `mermaid` or `html`."""
        from bam_core.graph.lineage_render import RENDERERS

        if form not in RENDERERS:
            raise UsageError(f"form {form!r}: {nearest(form, RENDERERS)}")
        return RENDERERS[form](self.graph, "", columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """In the form that the file's name says: .html, .mmd, .json, .txt."""
        from bam_core.graph.lineage_render import SUFFIXES

        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise UsageError(f"{path}: its name must end in one of {', '.join(SUFFIXES)}")
        Path(path).write_text(self.to(SUFFIXES[suffix]) + "\n", encoding="utf-8")

    def frame(self) -> pd.DataFrame:
        """A row for each artifact."""
        import pandas as pd

        columns = ("stage", "key", "digest", "seconds", "tokens", "flops", "git_commit", "dirty", "missing")
        return pd.DataFrame([{name: getattr(node, name) for name in columns} for node in self.graph.nodes])

    def __repr__(self) -> str:
        return click.unstyle(self.to("text"))

    def figure(self) -> Figure:
        """The report's drawing of it."""
        from pipelines.report.lineage_svg import lineage_panel

        panel = lineage_panel(self.graph.to_json())
        assert panel is not None, "a lineage has its root at least"
        return Figure("lineage", panel.standalone())

    def _repr_svg_(self) -> str:
        return self.figure().svg


class Difference(Sequence["Cause"]):
    """Why two artifacts differ: the causes, the earliest first. found: all of it, as `bam diff` has it."""

    def __init__(self, found: Found) -> None:
        self.found = found

    @property
    def is_empty(self) -> bool:
        """Whether both were made from the same and are the same bytes."""
        return self.found.is_empty

    def __len__(self) -> int:
        return len(self.found.causes)

    def __getitem__(self, index: Any) -> Any:
        return self.found.causes[index]

    def __repr__(self) -> str:
        from pipelines.cli.comparing import difference_lines

        return click.unstyle("\n".join(difference_lines(self.found, COLUMNS)))

    def _repr_html_(self) -> str:
        rows = [
            [f"{cause.left[0]}@{key12(cause.left[1])}", f"{cause.right[0]}@{key12(cause.right[1])}", cause.kind, change]
            for cause in self
            for change in (list(map(str, cause.changes)) or [", ".join(cause.files)])
        ]
        return html_table(["left", "right", "cause", "what"], rows) if rows else "<p>identical</p>"
