"""The report of a run: one page for people, its tables as CSV, its figures as SVG.

A pure function of what other stages left: no clock, no network, no randomness. Equal inputs give equal bytes.
Reading order: inputs, build, tables, findings, pages, then the drawings (svg, curves, heatmaps, lineage_svg). Two runs
beside each other: `pair`.
"""

from pipelines.report.build import build_report
from pipelines.report.inputs import ReportInputs

__all__ = ["ReportInputs", "build_report"]
