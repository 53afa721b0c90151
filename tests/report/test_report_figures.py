"""The drawings show the inputs' figures where they should, in colours that can be told apart and read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from math import log, nan
from typing import Any

import pytest

from pipelines.report.curves import moving_mean, nice_ticks, training_panels
from pipelines.report.heatmaps import heat_maps
from pipelines.report.lineage_svg import layer_of, lineage_panel
from pipelines.report.svg import Panel, element, row_of, shortened, style_sheet
from tests.report.fakes import DOMAINS, fake_run


def found(panel: Panel, tag: str, class_: str) -> list[ET.Element]:
    """Elements of the panel that carry all of these classes."""
    wanted = set(class_.split())
    return [e for child in panel.children for e in child.iter(tag) if wanted <= set((e.get("class") or "").split())]


def points(line: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.get("points", "").split())]


def history(losses: list[float], every: int = 100) -> list[dict[str, float]]:
    return [{"step": i, "tokens": every * i, "loss": loss} for i, loss in enumerate(losses, 1)]


def only_history(**histories: list[dict[str, float]]) -> dict[str, Panel]:
    return training_panels(fake_run(training={name.replace("_", "."): h for name, h in histories.items()}))


def test_moving_mean_averages_neighbours_and_keeps_the_first():
    assert moving_mean([9.0, 3.0, 3.0, 6.0, 0.0], 1) == [9.0, 5.0, 4.0, 3.0, 3.0]
    assert moving_mean([1.0, 2.0], 0) == [1.0, 2.0]
    assert moving_mean([], 3) == []


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1e6, [0.0, 2e5, 4e5, 6e5, 8e5, 1e6]),
        (1.9, 8.3, [2.0, 4.0, 6.0, 8.0]),
        (2.11, 2.19, [2.12, 2.14, 2.16, 2.18]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float]):
    assert nice_ticks(low, high) == ticks


def test_curve_lies_where_its_losses_are():
    """Positions against the axis labels of the drawing itself: linear in tokens, logarithmic in loss."""
    panel = only_history(seed=history([8.0, 4.0, 2.0]))["training-branches"]
    labels = {e.text: e for e in found(panel, "text", "dim")}
    (line,) = found(panel, "polyline", "curve")
    (x1, y1), (x2, y2), (x3, y3) = points(line)
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2)  # each halving is one step down
    per_log = (y3 - y1) / log(4)
    assert float(labels["6"].get("y", "")) - 4 == pytest.approx(y1 + per_log * log(8 / 6), abs=0.2)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert float(labels["300"].get("x", "")) == pytest.approx(x3, abs=0.2)


def test_experts_branch_from_the_end_of_the_seed():
    panels = only_history(seed=history([4.0, 3.0]), expert_law=history([3.0, 2.0]), train_bam=history([3.0, 2.0]))
    seed, expert = found(panels["training-branches"], "polyline", "curve")
    (_, seed_end), (expert_start, _) = points(seed), points(expert)
    assert expert_start[0] > seed_end[0]
    mixture = found(panels["training-mixtures"], "polyline", "curve")
    assert len(mixture) == 1
    assert "training-balance" not in panels


def test_a_step_without_a_finite_loss_leaves_a_gap():
    panel = only_history(seed=history([4.0, 3.5, nan, 3.0, 2.9]))["training-branches"]
    assert [len(points(line)) for line in found(panel, "polyline", "curve")] == [2, 2]
    assert only_history(seed=history([nan, nan])) == {}
    assert only_history(seed=[]) == {}


def test_a_constant_curve_and_a_single_point_can_be_drawn():
    assert only_history(seed=history([3.0, 3.0]))["training-branches"]
    assert only_history(seed=history([3.0]))["training-branches"]


def test_long_histories_are_thinned_but_keep_their_end():
    losses = [3.0 - i / 5000 for i in range(5000)]
    panel = only_history(train_bam=history(losses))["training-mixtures"]
    raw, _ = (points(line) for line in found(panel, "polyline", "curve"))
    assert len(raw) <= 302
    short = only_history(train_bam=[history(losses)[0], history(losses)[-1]])["training-mixtures"]
    assert raw[-1] == points(found(short, "polyline", "curve")[-1])[-1]


def test_models_of_a_phase_differ_in_colour_and_their_names_do_not_overlap():
    for panel in training_panels(fake_run()).values():
        lines = [e for e in found(panel, "polyline", "curve") if "raw" not in (e.get("class") or "")]
        assert len({e.get("class") for e in lines}) == len(lines)
        names = [e for e in panel.children if e.tag == "text" and re.match(r"f\d", e.get("class", ""))]
        heights = sorted(float(e.get("y", "")) for e in names)
        assert len(names) == len(lines)
        ends = {str(e.get("class"))[-1]: points(e)[-1][1] for e in lines if "dash" not in str(e.get("class"))}
        labels = {str(e.get("class"))[1]: float(e.get("y", "")) for e in names}
        assert sorted(ends, key=ends.__getitem__) == sorted(ends, key=labels.__getitem__)
        assert all(b - a >= 13.9 for a, b in pairwise(heights))
        assert heights[-1] <= panel.height


def test_heat_map_shades_and_prints_each_figure():
    inputs = fake_run()
    for heat_map in heat_maps(inputs):
        figure = {"attention": "mean_gate", "ffn": "fraction"}[heat_map.router]
        for domain, panel in zip(DOMAINS, heat_map.panels, strict=True):
            shown = inputs.routing["models"][heat_map.model]["domains"][domain][heat_map.router]
            values = [value for row in shown[figure] for value in row]
            cells = found(panel, "rect", "cell")
            assert [float(e.get("fill-opacity", "")) for e in cells] == [round(v, 3) for v in values]
            assert [e.text for e in found(panel, "text", "mid")][4:] == [f"{100 * v:.0f}" for v in values]
            assert [e.text for e in found(panel, "text", "end")][2::2] == [f"{h:.2f}" for h in shown["entropy"]]


def test_heat_map_outlines_the_domains_own_expert():
    for panel, domain in zip(heat_maps(fake_run())[0].panels, DOMAINS, strict=True):
        (outline,) = found(panel, "rect", "own")
        heads = {e.text: e for e in found(panel, "text", "mid")}
        assert float(outline.get("x", "")) + 22.5 == pytest.approx(float(heads[domain].get("x", "")), abs=0.1)


def test_a_model_without_attention_experts_has_one_heat_map():
    assert [(m.model, m.router) for m in heat_maps(fake_run())] == [
        *(("mix.bam", "attention"), ("mix.bam", "ffn"), ("mix.btx", "ffn")),
        *(("train.bam", "attention"), ("train.bam", "ffn"), ("train.btx", "ffn")),
    ]


def graph(*edges: tuple[str, str], nodes: str = "") -> dict[str, Any]:
    names = dict.fromkeys([*nodes, *(name for edge in edges for name in edge)])
    ends = [({"stage": a, "key": a}, {"stage": b, "key": b}) for a, b in edges]
    return {
        "nodes": [{"stage": name, "key": name} for name in names],
        "edges": [{"from": start, "to": end, "role": "r"} for start, end in ends],
    }


def columns(panel: Panel) -> dict[str, float]:
    """Name of each node -> where its box starts."""
    return {e[1].text: float(e[0].get("x", "")) for e in found(panel, "g", "node")}


def test_lineage_puts_every_stage_right_of_its_inputs():
    lineage = fake_run().lineage
    panel = lineage_panel(lineage)
    where = columns(panel)
    assert len(where) == len(lineage["nodes"])
    for edge in lineage["edges"]:
        assert where[edge["from"]["stage"]] < where[edge["to"]["stage"]]
    assert max(where.values()) + 40 < panel.width


def test_lineage_boxes_do_not_overlap():
    panel = lineage_panel(fake_run().lineage)
    boxes = [tuple(float(e[0].get(k, "")) for k in ("x", "y", "width", "height")) for e in found(panel, "g", "node")]
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_lineage_draws_every_input_and_fades_those_that_others_imply():
    panel = lineage_panel(graph("ab", "bc", "ac", "cd", "ad", "ce", "de", "ae"))
    assert len(found(panel, "path", "edge")) == 8
    assert len(found(panel, "path", "edge implied")) == 2  # a-c and c-e; a-d and a-e pass over three layers and more
    assert len(found(panel, "path", "edge long")) == 2
    assert len(found(lineage_panel(fake_run().lineage), "path", "edge")) == len(fake_run().lineage["edges"])


def test_lineage_with_a_cycle_a_loop_or_a_lost_end_is_drawn():
    panel = lineage_panel(graph("ab", "bc", "cb", "cc", "ad"))
    assert set(columns(panel)) == set("abcd")
    lost = graph("ab", nodes="b")
    lost["nodes"] = lost["nodes"][:1]
    assert set(columns(lineage_panel(lost))) == {"b"}
    assert layer_of({("b", ""): [("c", "")], ("c", ""): [("b", "")], ("a", ""): []}) == {
        ("a", ""): 0,
        ("b", ""): 1,
        ("c", ""): 1,
    }
    assert lineage_panel({"nodes": [], "edges": []}) is None


def test_a_missing_artifact_is_marked():
    missing = graph("ab")
    missing["nodes"][0]["missing"] = True
    panel = lineage_panel(missing)
    assert [e[1].text for e in found(panel, "g", "node missing")] == ["a"]
    assert "not in the store" in (found(panel, "g", "inputs")[0][0].text or "")


def test_text_is_cut_to_its_room_and_panels_stand_side_by_side():
    assert shortened("general", 47) == "general"
    assert shortened("mathematics", 47) == "mathem…"
    one = Panel(100, 50, "one", (element("rect", width=100, height=50),))
    both = row_of([one, one], gap=10)
    assert (both.width, both.height) == (210, 50)
    assert [g.get("transform") for g in both.children] == ["translate(0 0)", "translate(110 0)"]


def palettes() -> list[dict[str, str]]:
    light, dark = style_sheet().split("@media", 1)
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in (light, dark)]
    assert schemes[0].keys() == schemes[1].keys()
    return schemes


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG 2.2, contrast ratio."""

    def luminance(colour: list[float]) -> float:
        red, green, blue = linear(colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


AA_TEXT = 4.5
"""WCAG 2.2, success criterion 1.4.3."""


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_and_curves_can_be_read(palette: dict[str, str]):
    paper, ink = rgb(palette["paper"]), rgb(palette["ink"])
    for name in ("ink", "dim", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(rgb(palette[name]), paper) >= AA_TEXT, name
    for name in ("tint", "mark"):
        assert contrast(ink, rgb(palette[name])) >= AA_TEXT
        assert contrast(rgb(palette["dim"]), rgb(palette[name])) >= AA_TEXT, name
    tint, heat = rgb(palette["tint"]), rgb(palette["heat"])
    for share in range(101):
        cell = [share / 100 * h + (1 - share / 100) * t for h, t in zip(heat, tint, strict=True)]
        assert contrast(ink, cell) >= AA_TEXT, share


VISION = {
    "trichromat": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanope": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deuteranope": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}
"""Linear RGB to what a reader sees (dichromats: Viénot, Brettel and Mollon, 1999)."""

APART = 15.0
"""CIE 1976 colour difference between any two series: several times what is just noticeable."""


def linear(colour: list[float]) -> list[float]:
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]


def lab(linear_rgb: list[float]) -> list[float]:
    """CIELAB (D65) of linear sRGB."""
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(m * v for m, v in zip(row, linear_rgb, strict=True)) for row in matrix]
    scaled = [max(0.0, v) / white for v, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True)]
    x, y, z = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in scaled]
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_series_can_be_told_apart_by_colour_blind_readers(palette: dict[str, str], vision: str):
    seen = {}
    for name in ("s0", "s1", "s2", "s3", "s4", "s5"):
        colour = linear(rgb(palette[name]))
        seen[name] = lab([sum(m * v for m, v in zip(row, colour, strict=True)) for row in VISION[vision]])
    for a, b in combinations(seen, 2):
        distance = sum((x - y) ** 2 for x, y in zip(seen[a], seen[b], strict=True)) ** 0.5
        assert distance > APART, (a, b)
