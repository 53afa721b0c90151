"""`lineage.html` in a real browser: it can be walked, searched and read, at a desk and on a phone, day and night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bam_core.graph.lineage import lineage
from bam_core.graph.lineage_render import to_html
from tests.lineage_kit import HOSTILE, hostile, many, of, quickstart

pytestmark = pytest.mark.browser

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lineage")
    records, strange, bush = quickstart(), hostile(), many(300)
    (folder / "train.html").write_text(to_html(lineage(records, of(records, "train.bam").key)))
    (folder / "report.html").write_text(to_html(lineage(records, of(records, "report").key)))
    (folder / "hostile.html").write_text(to_html(lineage(strange, strange[-1].key)))
    (folder / "many.html").write_text(to_html(lineage(bush, bush[0].key, "down")))
    return folder


@pytest.fixture
def opened(browser: Any, pages: Path) -> Iterator[Any]:
    """Opens a page; afterwards, it must have asked for nothing and complained of nothing."""
    heard: list[str] = []
    contexts = []

    def open_page(name: str, size: dict[str, int] = DESK, fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        url = (pages / name).as_uri()
        page.on("request", lambda request: None if request.url.startswith(url) else heard.append(request.url))
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(url + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []


def box(page: Any, stage: str) -> Any:
    return page.locator(f'#drawing .box[aria-label^="{stage},"], #drawing .box[aria-label="{stage}"]')


def heading(page: Any) -> str:
    return page.locator("#panel h2").inner_text()


def place(page: Any, stage: str) -> tuple[float, float, float]:
    found = box(page, stage).bounding_box()
    return found["x"], found["y"], found["width"]


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["train.html", "report.html", "hostile.html", "many.html"])
def test_nothing_is_wider_than_the_screen(opened: Any, name: str, size: dict[str, int]) -> None:
    page = opened(name, size)
    page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
    for n in range(min(8, page.locator("#drawing .box").count())):
        page.evaluate("n => choose(n)", n)
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        ends = "[...document.querySelectorAll('#panel *')].map(e => e.getBoundingClientRect().right)"
        assert max(page.evaluate(ends)) <= size["width"]


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_click_opens_the_record(opened: Any, size: dict[str, int]) -> None:
    page = opened("train.html", size)
    assert heading(page) == "train.bam"
    page.locator("#fit").click()
    box(page, "expert.law").click()
    assert heading(page) == "expert.law"
    text = page.locator("#panel").inner_text()
    for shown in ("c0ffee", "node-a, node-b (2 workers)", "10.1 MiB", "phase.lr", "0.0015", "quickstart-1", "400,000"):
        assert shown in text
    assert page.locator("#drawing .box.on").count() == 1
    assert page.locator("#drawing .edge.on").count() == 4


def test_a_tap_opens_the_record_on_a_phone_and_it_is_on_the_screen(opened: Any) -> None:
    page = opened("train.html", PHONE, has_touch=True, is_mobile=True)
    page.locator("#fit").tap()
    box(page, "seed").tap()
    assert heading(page) == "seed"
    assert page.locator("#panel h2").bounding_box()["y"] < PHONE["height"]


def test_links_lead_to_inputs_and_on(opened: Any) -> None:
    page = opened("train.html")
    page.locator("#panel .links button", has_text="mix.bam@").first.click()
    assert heading(page) == "mix.bam"
    page.locator("#panel .links button", has_text="expert.law@").first.click()
    assert heading(page) == "expert.law"
    x, _, w = place(page, "expert.law")
    frame = page.locator("#drawing").bounding_box()
    assert frame["x"] <= x <= frame["x"] + frame["width"] - w
    assert "expert.law%40" in page.evaluate("location.hash")


def test_an_address_with_a_name_opens_at_that_artifact(opened: Any) -> None:
    law = of(quickstart(), "expert.law")
    page = opened("train.html", fragment=f"#expert.law%40{law.key[:12]}")
    assert heading(page) == "expert.law"
    assert page.locator("#drawing .box.on").count() == 1


def test_keys_alone_reach_everything(opened: Any) -> None:
    page = opened("train.html")
    page.locator("#search").focus()
    for name in ("out", "in", "fit"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    width = place(page, "mix.bam")[2]
    page.locator("#in").press("Enter")
    assert place(page, "mix.bam")[2] > width * 1.2
    page.locator("#out").press("Space")
    assert place(page, "mix.bam")[2] == pytest.approx(width, abs=4)  # the frame of what is chosen is thicker
    box(page, "mix.bam").focus()
    page.keyboard.press("Enter")
    assert heading(page) == "mix.bam"
    page.keyboard.press("ArrowRight")
    assert heading(page) == "train.bam"
    page.keyboard.press("ArrowLeft")
    assert heading(page) == "mix.bam"
    page.keyboard.press("+")
    assert place(page, "mix.bam")[2] > width * 1.2
    page.keyboard.press("0")
    assert place(page, "mix.bam")[2] == pytest.approx(width, abs=4)  # the frame of what is chosen is thicker


def test_the_mouse_moves_and_zooms_and_a_drag_chooses_nothing(opened: Any) -> None:
    page = opened("train.html")
    x, y, w = place(page, "seed")
    page.mouse.move(x + 20, y + 20)
    page.mouse.down()
    page.mouse.move(x + 60, y + 50, steps=4)
    page.mouse.up()
    assert place(page, "seed")[:2] == (pytest.approx(x + 40, abs=6), pytest.approx(y + 30, abs=6))
    assert heading(page) == "train.bam"
    page.mouse.wheel(0, -300)
    page.wait_for_function("w => document.querySelector('.box').getBoundingClientRect().width > w", arg=w)


def test_two_fingers_zoom(opened: Any) -> None:
    page = opened("train.html", PHONE, has_touch=True, is_mobile=True)
    before = place(page, "seed")[2]
    frame = page.locator("#drawing").bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    session = page.context.new_cdp_session(page)

    def fingers(kind: str, apart: float) -> None:
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points if kind != "touchEnd" else []})

    fingers("touchStart", 20)
    for apart in (30, 40, 50, 60):
        fingers("touchMove", apart)
    fingers("touchEnd", 60)
    assert place(page, "seed")[2] == pytest.approx(before * 3, rel=0.2)


def test_search_marks_and_walks_through_what_it_finds(opened: Any) -> None:
    page = opened("report.html")
    page.locator("#search").fill("EXPERT.")
    assert page.locator("#hits").inner_text() == "3 found"
    assert page.locator("#drawing .box.hit").count() == 3
    found = set()
    for _ in range(3):
        page.locator("#search").press("Enter")
        found.add(heading(page))
    assert found == {"expert.code", "expert.law", "expert.math"}
    page.locator("#search").fill("nothing of this name")
    assert page.locator("#hits").inner_text() == "0 found"


def test_hostile_names_are_read_as_they_are(opened: Any) -> None:
    page = opened("hostile.html")
    shown = set()
    for n in range(page.locator("#drawing .box").count()):
        page.evaluate("n => choose(n)", n)
        shown.add(page.locator("#panel h2").text_content())
    assert set(HOSTILE) <= shown
    assert page.locator("#panel img, #drawing img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_night(opened: Any, scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG AA) of what is read on what it stands on."""
    page = opened("train.html", color_scheme=scheme)
    page.evaluate("mark(null)")
    pairs = page.evaluate(
        """() => {
        const style = (query, name) => getComputedStyle(document.querySelector(query))[name];
        const panel = style('.panel', 'backgroundColor'), paper = style('body', 'backgroundColor');
        return [
          [style('.box text', 'fill'), style('.box .frame', 'fill')],
          [style('.box .small', 'fill'), style('.box .frame', 'fill')],
          [style('h1', 'color'), paper], [style('header p', 'color'), paper], [style('.legend', 'color'), paper],
          [style('.panel th', 'color'), panel], [style('.links button', 'color'), panel],
          [style('.hash', 'color'), panel],
        ];
    }"""
    )
    for ink, paper in pairs:
        assert contrast(ink, paper) >= 4.5, (ink, paper)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        values = [int(value) / 255 for value in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_without_javascript_the_drawing_and_the_tree_are_there(opened: Any) -> None:
    page = opened("train.html", java_script_enabled=False)
    assert page.locator("#drawing .box").count() == 15
    page.locator(".tree summary").click()
    assert "made from" in page.locator(".tree pre").inner_text()
