"""The report's section on experts: what each is for, what the routers know, and who had no work in training."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.formats import file_name
from pipelines.report.inputs import ReportInputs
from pipelines.report.routing_knock_out import KnockOut, knock_out_findings, knock_out_table, knock_outs
from pipelines.report.routing_layers import Layers, collapse_findings, layer_findings, layers_table, routing_layers
from pipelines.report.svg import Panel
from pipelines.report.tables import Table


@dataclass(frozen=True)
class Routed:
    """What the section shows; all of it empty for a report without it."""

    knock_outs: list[KnockOut]
    layers: list[Layers]
    hurts: list[Markup]
    knows: list[Markup]
    collapses: list[Markup]
    tables: tuple[Table, ...]

    def __bool__(self) -> bool:
        return bool(self.knock_outs or self.layers or self.collapses)

    @property
    def has_agreement(self) -> bool:
        return any(item.agrees for item in self.layers)

    def figures(self) -> list[tuple[str, Panel]]:
        """(file name without suffix, drawing); two models may have one name once made safe."""
        matrices = [(f"knock-out-{file_name(item.model)}", item.figure()) for item in self.knock_outs]
        return matrices + [(f"routers-{file_name(item.model)}", item.figure()) for item in self.layers]


def routed(inputs: ReportInputs) -> Routed:
    return Routed(
        knock_outs(inputs),
        routing_layers(inputs),
        knock_out_findings(inputs),
        layer_findings(inputs),
        collapse_findings(inputs),
        (knock_out_table(inputs), layers_table(inputs)),
    )
