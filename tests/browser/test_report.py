"""The report, and two runs compared, in a real browser: no request, nothing wider than the screen, tables that sort."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import build_report
from pipelines.report.pair import Pair, chances, pair_page
from tests.browser.test_lineage_page import contrast
from tests.report.fakes import fake_run
from tests.report.pair_fakes import run_a, run_b

pytestmark = pytest.mark.browser

STEP0 = "figures/step0-mix.bam.svg"
WIDTHS = {"wide": 1200, "tablet": 760, "phone": 390}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    build_report(fake_run(), folder)
    return folder


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose mixtures have 16 FFN experts and whose distances are of 12 domains."""
    inputs = deepcopy(fake_run())
    for model in inputs.routing["models"].values():
        model["ffn_experts"] = [f"{expert}/{i + 1}" for expert in model["experts"] for i in range(4)]
        for domain in model["domains"].values():
            domain["ffn"] |= {name: [[1 / 16] * 16] * 4 for name in ("fraction", "mean_gate")}
    for mix in inputs.mixes.values():
        for layer in mix["receipt"]["step0"]["layers"]:
            layer["distance"] = {f"domain{i}": i / 10 for i in range(12)}
    folder = tmp_path_factory.mktemp("many_experts")
    build_report(inputs, folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one page, in a folder as a report's is."""
    folder = tmp_path_factory.mktemp("pair")
    both = Pair(run_a(), run_b())
    (folder / "report.html").write_text(pair_page(both, chances(both)), encoding="utf-8")
    return folder


def opened(browser: Any, path: Path, width: int = 1200, **options: Any) -> tuple[Any, list[str]]:
    """The page, and everything it asked for or complained of, itself left out."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    heard: list[str] = []
    page.on("request", lambda request: heard.append(request.url))
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(path.as_uri())
    heard.remove(path.as_uri())
    return page, heard


@pytest.mark.parametrize("name", ["report.html", "figures/lineage.svg", "figures/routing-train.bam-ffn.svg", STEP0])
def test_asks_for_nothing_and_complains_of_nothing(browser: Any, report: Path, name: str):
    page, heard = opened(browser, report / name)
    assert heard == []
    page.close()


def test_a_page_of_two_runs_asks_for_nothing_and_complains_of_nothing(browser: Any, pair: Path):
    page, heard = opened(browser, pair / "report.html")
    assert heard == []
    page.close()


@pytest.mark.parametrize("name", ["report", "many_experts", "pair"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_only_tables_the_lineage_and_wide_maps_scroll_sideways(
    browser: Any, request: pytest.FixtureRequest, name: str, width: int
):
    page, _ = opened(browser, request.getfixturevalue(name) / "report.html", width)
    page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre')"
        " && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    page.close()


def test_the_perplexity_table_fits_a_desktop(browser: Any, report: Path):
    page, _ = opened(browser, report / "report.html")
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#perplexity .scroll'))")
    page.close()


@pytest.mark.parametrize("name", ["report", "many_experts"])
def test_small_print_stays_readable_on_a_phone(browser: Any, request: pytest.FixtureRequest, name: str):
    """Figures shrink with the screen; their text must not fall below 9 px (the lineage and wide maps scroll)."""
    page, _ = opened(browser, request.getfixturevalue(name) / "report.html", WIDTHS["phone"])
    page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
    sizes = page.evaluate(
        "[...document.querySelectorAll('#training text, #step0 text, #routing text')].filter(e => e.checkVisibility())"
        ".map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert len(sizes) > 100
    assert min(sizes) >= 9
    page.close()


COLOURS = """() => {
    const style = e => getComputedStyle(e);
    return {
        page: style(document.body).backgroundColor, ink: style(document.body).color,
        label: style(document.querySelector('svg text.title')).fill,
        first: style(document.querySelector('tbody th')).backgroundColor,
    };
}"""


@pytest.mark.parametrize(
    ("scheme", "media", "paper", "ink"),
    [
        ("light", "screen", "rgb(255, 255, 255)", "rgb(27, 29, 32)"),
        ("dark", "screen", "rgb(20, 22, 24)", "rgb(232, 234, 236)"),
        ("dark", "print", "rgb(255, 255, 255)", "rgb(27, 29, 32)"),
    ],
)
def test_follows_the_readers_colours_but_prints_on_white(
    browser: Any, report: Path, scheme: str, media: str, paper: str, ink: str
):
    page, _ = opened(browser, report / "report.html", color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    assert page.evaluate(COLOURS) == {"page": paper, "ink": ink, "label": ink, "first": paper}
    page.close()


def test_pointing_at_a_stage_shows_all_its_inputs(browser: Any, report: Path):
    page, _ = opened(browser, report / "report.html")
    hidden = (
        "[...document.querySelectorAll('#lineage .edge.long')].filter(e => getComputedStyle(e).opacity === '0').length"
    )
    before = page.evaluate(hidden)
    page.locator("#lineage svg .node text", has_text="evaluate").hover(force=True)
    assert 0 <= page.evaluate(hidden) < before
    page.close()


def test_every_section_can_be_reached_with_the_keyboard(browser: Any, report: Path):
    page, _ = opened(browser, report / "report.html")
    links = page.locator("nav a")
    for i in range(links.count()):
        target = links.nth(i).get_attribute("href")
        links.nth(i).focus()
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == target
        assert page.locator(target).count() == 1
    page.close()


def test_prints_every_heat_map(browser: Any, report: Path):
    """What is folded away on the screen is on paper."""
    page, _ = opened(browser, report / "report.html")
    maps = "[...document.querySelectorAll('#routing details svg, #step0 details svg')]"
    visible = f"{maps}.every(found => found.checkVisibility({{contentVisibilityAuto: true}}))"
    assert page.evaluate(visible) is False
    page.emulate_media(media="print")
    page.wait_for_function(visible)  # the style takes effect with a later frame; fails if it never does
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


TABLE = "#perplexity table"


def column(page: Any, place: int) -> list[str]:
    read = "([table, n]) => [...document.querySelector(table).tBodies[0].rows].map(row => row.cells[n].textContent)"
    return [str(text).removesuffix(" (best)") for text in page.evaluate(read, [TABLE, place])]


def direction(page: Any) -> list[str | None]:
    return page.evaluate(f"[...document.querySelectorAll('{TABLE} th[scope=col]')].map(e => e.ariaSort)")


def test_a_click_sorts_by_a_column_and_a_third_one_undoes_it(browser: Any, report: Path):
    page, heard = opened(browser, report / "report.html")
    head = page.locator(f"{TABLE} th button", has_text="general").first
    as_it_was, models = column(page, 1), column(page, 0)
    head.click()
    assert column(page, 1) == sorted(as_it_was, key=float)
    assert direction(page)[1] == "ascending"
    assert dict(zip(column(page, 0), column(page, 1), strict=True)) == dict(zip(models, as_it_was, strict=True))
    head.click()
    assert column(page, 1) == sorted(as_it_was, key=float, reverse=True)
    assert direction(page)[1] == "descending"
    page.locator(f"{TABLE} th button", has_text="model").first.click()
    assert column(page, 0) == sorted(models)
    assert direction(page)[:2] == ["ascending", None], "one column at a time"
    for _ in range(2):
        page.locator(f"{TABLE} th button", has_text="model").first.click()
    assert (column(page, 0), set(direction(page))) == (models, {None})
    assert heard == []
    page.close()


def test_keys_alone_sort(browser: Any, report: Path):
    page, _ = opened(browser, report / "report.html")
    as_it_was = column(page, 5)
    page.locator(f"{TABLE} th button").nth(4).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert column(page, 5) == sorted(as_it_was, key=float)
    page.keyboard.press("Space")
    assert column(page, 5) == sorted(as_it_was, key=float, reverse=True)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()


def test_numbers_are_sorted_as_numbers_and_what_is_missing_comes_last(browser: Any, report: Path):
    """Shown as 2.00M and 512, and a dash in the rows of what is not trained."""
    page, _ = opened(browser, report / "report.html")
    tokens = page.locator("#cost th button", has_text="tokens").first
    for order in ("ascending", "descending"):
        tokens.click()
        found = page.evaluate(
            "[...document.querySelector('#cost table').tBodies[0].rows].map(row => row.cells[2].dataset.order)"
        )
        numbers = [float(text) for text in found if text]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert set(found[len(numbers) :]) == {""}
        assert len(numbers) > 5
    page.close()


def test_sorting_moves_nothing_on_the_page(browser: Any, report: Path):
    page, _ = opened(browser, report / "report.html")
    size = f"(e => [e.offsetWidth, e.offsetHeight])(document.querySelector('{TABLE}'))"
    before = page.evaluate(size)
    page.locator(f"{TABLE} th button").nth(2).click()
    assert page.evaluate(size) == pytest.approx(before, abs=1)
    page.close()


@pytest.mark.parametrize("name", ["report", "pair"])
def test_without_javascript_and_on_paper_the_heads_are_text(browser: Any, request: pytest.FixtureRequest, name: str):
    path = request.getfixturevalue(name) / "report.html"
    page, _ = opened(browser, path, java_script_enabled=False)
    assert page.locator("th button").count() == 0
    assert page.locator(f"{TABLE} thead th").first.inner_text() == "model"
    page.close()
    page, _ = opened(browser, path)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('th button'), '::after').display") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('th button')).display") == "contents"
    page.close()


def test_a_table_of_facts_is_not_sorted(browser: Any, pair: Path):
    page, _ = opened(browser, pair / "report.html")
    assert page.locator("#runs th button").count() == 0
    assert page.locator("#recipes th button").count() == 3
    page.close()


@pytest.mark.parametrize("name", ["report", "pair"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_heads_captions_and_notes_stand_out(browser: Any, request: pytest.FixtureRequest, name: str, scheme: str):
    """Contrast of at least 4.5 (WCAG AA) to the paper."""
    page, _ = opened(browser, request.getfixturevalue(name) / "report.html", color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for what in ("th button", "figcaption", ".note", ".lead", "nav a"):
        ink = page.evaluate(f"getComputedStyle(document.querySelector('{what}')).color")
        assert contrast(ink, paper) >= 4.5, what
    page.close()


@pytest.mark.parametrize("name", ["report", "pair"])
def test_no_label_of_a_figure_is_cut_off(browser: Any, request: pytest.FixtureRequest, name: str):
    page, _ = opened(browser, request.getfixturevalue(name) / "report.html")
    page.evaluate("document.querySelectorAll('details').forEach(found => { found.open = true; })")
    cut = page.evaluate(
        """[...document.querySelectorAll('svg.figure text')].filter(text => {
            const label = text.getBoundingClientRect(), box = text.closest('svg').getBoundingClientRect();
            return label.left < box.left - 1 || label.right > box.right + 1 || label.bottom > box.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert cut == []
    page.close()
