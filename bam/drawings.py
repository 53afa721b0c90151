"""Drawings that notebooks show: the report's own SVG, with its colours for light and dark."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape

from bam.words import Named, in_words
from bam_core.errors import InvalidInput, Problem, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from bam_core.data.rows import TextRows
    from bam_core.nn.lm import LM


@dataclass(frozen=True)
class Figure:
    """svg: a whole file."""

    name: str
    svg: str = field(repr=False)

    @property
    def base64(self) -> str:
        return b64encode(self.svg.encode()).decode()

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self.svg, encoding="utf-8")


class Figures(Named[Figure]):
    """Drawings by name; a notebook shows all of them."""

    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> Figure:
        if name not in self._figures:
            raise UsageError(f"no figure {name!r}: {nearest(name, self._figures)}")
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"<bam.Figures {', '.join(self)}>"

    def _repr_html_(self) -> str:
        """As images of their own: their style sheets are no part of the page."""
        return "".join(
            f'<p><img alt="{escape(name)}" src="data:image/svg+xml;base64,{figure.base64}"></p>'
            for name, figure in self._figures.items()
        )


def plot_routing(model: LM, rows: Mapping[str, TextRows | Tensor], name: str = "mixture") -> Figures:
    """Where a mixture sends what: the report's heat maps, of some rows of each domain.

    rows: domain -> rows of one token more than are predicted, as `TextRows` or tokens_BT. Raises InvalidInput for a
    dense model.
    """
    with in_words():
        import torch

        from bam_core.data.rows import TextRows
        from bam_core.evaluate.routing import RoutingSums
        from pipelines.report import ReportInputs
        from pipelines.report.heatmaps import heat_maps
        from pipelines.stages.evaluate import routing_entry

        if not model.config.is_mixture:
            raise InvalidInput("model", [Problem("experts", [], "has none: a dense model has no router")])
        sums = {}
        for domain, part in rows.items():
            tokens_BT = torch.from_numpy(part.tokens_BT) if isinstance(part, TextRows) else part
            sums[domain] = RoutingSums(model.config)
            with torch.no_grad():
                sums[domain].add(model(tokens_BT[:, :-1]).routing)
        routing = {"models": {name: routing_entry(model.config, sums)}}
        maps = heat_maps(ReportInputs(name, {"models": {}}, routing, domains=list(rows)))
        return Figures({found.router: Figure(found.router, found.figure().standalone()) for found in maps})
