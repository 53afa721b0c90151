"""How the shares of the domains changed while a model trained: a panel for each such training, and one long table."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipelines.report.curves import BOTTOM, HEIGHT, LEFT, N_COLOURS, TOP, WIDTH, nice_ticks, spread
from pipelines.report.formats import is_number, tick
from pipelines.report.inputs import Json, ReportInputs, in_order
from pipelines.report.svg import CHAR, Panel, element, shortened
from pipelines.report.tables import Column, Table

COLUMNS = ("model", "step", "domain", "share", "loss")


def data_path_panels(inputs: ReportInputs) -> dict[str, Panel]:
    """Model -> its panel."""
    return {model: _panel(model, path, _n_steps(inputs, model), domains) for model, path, domains in _paths(inputs)}


def data_path_table(inputs: ReportInputs) -> Table:
    """loss: on text that is kept from training, where it was measured."""
    rows = (
        {"model": model, "step": part["step"], "domain": domain, "share": share, "loss": part["losses"].get(domain)}
        for model, path, domains in _paths(inputs)
        for part in path
        for domain in domains
        if is_number(share := part["shares"].get(domain))
    )
    return Table("data_path", tuple(Column(name, name) for name in COLUMNS), tuple(rows))


def _paths(inputs: ReportInputs) -> Iterator[tuple[str, Sequence[Json], list[str]]]:
    """(model, path, its domains in the order of the report)."""
    for model in in_order(inputs.data_paths, inputs.domain_names):
        path = inputs.data_paths[model]
        found = dict.fromkeys(domain for part in path for domain in part["shares"])
        listed = [domain for domain in inputs.domain_names if domain in found]
        yield model, path, listed + [domain for domain in found if domain not in listed]


def _n_steps(inputs: ReportInputs, model: str) -> int:
    return max((row["step"] for row in inputs.training.get(model, ()) if is_number(row.get("step"))), default=0)


def _panel(model: str, path: Sequence[Json], n_steps: int, domains: Sequence[str]) -> Panel:
    """Shares that follow losses stay from one update to the next; those of a plan are joined by lines."""
    title = f"{model}: share of each domain"
    jumps = any(part["losses"] for part in path)
    end = max(n_steps, path[-1]["step"] + 1)
    right = WIDTH - min(120.0, 10 + CHAR * max(map(len, domains)))
    top = max(share for part in path for share in part["shares"].values())
    axes = _Axes(end, max(top, 1e-6), right)
    children = [element("text", title, x=0, y=14, class_="title"), *axes.draw()]
    for place, domain in enumerate(domains):
        points = list(_points(path, domain, end, jumps))
        look = f"s{place % N_COLOURS + 1}" + (" dash" if place >= N_COLOURS else "")
        drawn = " ".join(f"{axes.x(step):.1f},{axes.y(share):.1f}" for step, share in points)
        name = element("title", f"{domain}: from {points[0][1]:.1%} to {points[-1][1]:.1%}")
        children.append(element("g", name, element("polyline", class_=f"curve {look}", points=drawn)))
    children += _labels(path[-1]["shares"], domains, axes)
    ends = ", ".join(
        f"{domain} from {path[0]['shares'].get(domain, 0):.1%} to {path[-1]['shares'].get(domain, 0):.1%}"
        for domain in domains
    )
    return Panel(WIDTH, HEIGHT, f"{title}. {ends}.", tuple(children))


def _points(path: Sequence[Json], domain: str, end: int, jumps: bool) -> Iterator[tuple[float, float]]:
    for part, after in zip(path, [*(part["step"] for part in path[1:]), end], strict=True):
        share = part["shares"].get(domain, 0.0)
        yield part["step"], share
        if jumps or after == end:
            yield after, share


class _Axes:
    """Steps across, shares from 0 up."""

    def __init__(self, end: int, top: float, right: float) -> None:
        self._end, self._top, self.right = end, top, right

    def x(self, step: float) -> float:
        return LEFT + step / self._end * (self.right - LEFT)

    def y(self, share: float) -> float:
        return HEIGHT - BOTTOM - share / (1.05 * self._top) * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> Iterator[ET.Element]:
        for share in nice_ticks(0, self._top):
            y = self.y(share)
            yield element("line", class_="grid", x1=LEFT, x2=self.right, y1=y, y2=y)
            yield element("text", f"{share:.4g}", class_="dim small end", x=LEFT - 7, y=y + 4)
        for step in nice_ticks(0, self._end, 4):
            yield element("text", tick(step), class_="dim small mid", x=self.x(step), y=HEIGHT - BOTTOM + 16)
        yield element("line", class_="axis", x1=LEFT, x2=self.right, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM)
        yield element("text", "steps", class_="dim small end", x=self.right, y=HEIGHT - BOTTOM + 32)


def _labels(shares: Mapping[str, float], domains: Sequence[str], axes: _Axes) -> Iterable[ET.Element]:
    heights = spread([axes.y(shares.get(domain, 0.0)) + 4 for domain in domains])
    for place, (domain, y) in enumerate(zip(domains, heights, strict=True)):
        name = shortened(domain, WIDTH - axes.right - 6)
        yield element("text", name, class_=f"f{place % N_COLOURS + 1}", x=axes.right + 6, y=y)
