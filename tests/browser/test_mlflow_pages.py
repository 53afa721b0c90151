"""MLflow's own pages in a real browser: what a run wrote is there for a person to see, and nothing on them fails."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infra.mlflow_ui import LANDING
from tests.browser.mlflow_site import DESKTOP, PHONE, TIMEOUT_MS, Site, see, site
from tests.e2e.kit import DOMAINS, MODELS, STAGES
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS

__all__ = ["site"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.long, MLFLOW_WARNINGS]  # two minutes together
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CURVES = (
    *("loss", "lr", "grad_norm", "load_balancing_loss", "z_loss", "tokens_per_s", "flops_per_s"),
    *("router/ffn_entropy", "router/attention_entropy", "router/ffn_max_load", "router/ffn_min_load"),
)
"""Of a mixture's training; a slash makes a group on MLflow's page."""


def links(page: Any, target: str) -> Any:
    return page.locator(f"a[href*='{target}']")


def test_the_landing_page_lists_our_experiment(site: Site) -> None:
    page = site.browser.new_page()
    page.goto(site.url + LANDING)
    see(page, "bam/tiny")
    page.close()


def test_stages_are_nested_under_the_pipelines_run(site: Site) -> None:
    with site.open("runs", width=2600) as page:
        row = page.get_by_role("row").filter(has_text=re.compile(r"tiny-\d+"))
        sync_api.expect(row).to_be_visible(timeout=TIMEOUT_MS)
        assert page.get_by_text("train.bam", exact=True).count() == 0
        row.get_by_role("button").first.click()
        see(page, *STAGES)


def test_a_training_shows_its_curves_in_groups(site: Site) -> None:
    with site.open(f"runs/{site.run_of('train.bam')}/model-metrics") as page:
        for group in (r"^router\s*\(4\)", r"^perplexity\s*\(3\)"):
            fold = page.get_by_role("button").filter(has_text=re.compile(group)).first
            sync_api.expect(fold).to_be_visible(timeout=TIMEOUT_MS)
        search = page.get_by_placeholder("Search metric charts")
        for name in CURVES:
            search.fill(name)
            drawn = page.get_by_text(f"train.bam ({name})", exact=True).first
            sync_api.expect(drawn).to_be_visible(timeout=TIMEOUT_MS)
        search.fill("loss")
        sync_api.expect(page.locator(".js-plotly-plot path.js-line").first).to_be_visible(timeout=TIMEOUT_MS)


def test_a_run_leads_to_its_parent_its_data_and_the_models_it_read_and_made(site: Site) -> None:
    with site.open(f"runs/{site.run_of('mix.bam')}", width=2600) as page:
        see(page, "About this run", "seed", "expert-law", "mix-bam", "Input", "Output", "Datasets", "bam.parent.seed")
        assert links(page, site.pipeline).count() > 0
        for stage in ("seed", "expert.law", "mix.bam"):
            assert links(page, site.model_of(stage)).count() > 0


def test_a_training_names_its_data(site: Site) -> None:
    with site.open(f"runs/{site.run_of('expert.law')}", width=2600) as page:
        see(page, "Datasets")
        sync_api.expect(page.get_by_text(re.compile(r"^data\.(law|general)")).first).to_be_visible(timeout=TIMEOUT_MS)


def test_models_are_listed_with_the_runs_that_made_them(site: Site) -> None:
    with site.open("models", width=2600) as page:
        see(page, "Ready", *MODELS, *(stage.replace(".", "-") for stage in MODELS))


def test_a_models_page_leads_to_its_run_and_to_its_parents(site: Site) -> None:
    seed = site.place.record("mix.bam")["inputs"]["seed"]
    with site.open(f"models/{site.model_of('mix.bam')}") as page:
        see(page, "mix-bam", "Ready", "Source run", *(f"perplexity/{domain}" for domain in DOMAINS))
        assert links(page, site.run_of("mix.bam")).count() > 0
        with page.expect_popup() as opened:
            page.get_by_role("link", name=f"seed@{seed['key'][:12]}").first.click()
        see(opened.value, site.model_of("seed"))
        opened.value.close()


def test_a_model_shows_its_card(site: Site) -> None:
    with site.open(f"models/{site.model_of('train.bam')}/artifacts") as page:
        page.get_by_text("MODEL_CARD.md", exact=True).first.click()
        heading = page.get_by_role("heading", name="train.bam", exact=True)
        sync_api.expect(heading).to_be_visible(timeout=TIMEOUT_MS)
        sync_api.expect(page.get_by_role("table").first).to_be_visible(timeout=TIMEOUT_MS)


def test_a_picture_is_drawn(site: Site) -> None:
    name = "figures/training-mixtures.svg"
    with site.open(f"runs/{site.run_of('report')}/artifacts/{name}") as page:
        see(page, name)
        picture = page.locator("img[src^='blob:']").first
        sync_api.expect(picture).to_be_visible(timeout=TIMEOUT_MS)
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 300


def test_a_table_is_shown_as_one(site: Site) -> None:
    with site.open(f"runs/{site.run_of('report')}/artifacts/tables/perplexity.csv") as page:
        see(page, "perplexity.general", "train.bam")


@pytest.mark.parametrize(("stage", "file"), [("report", "report.html"), ("train.bam", "lineage.html")])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_of_ours_open_inside_mlflow(site: Site, stage: str, file: str, width: int) -> None:
    """Its pane is narrow, on a phone most of all, and its frame lets no page reach out: scripts run all the same."""
    with site.open(f"runs/{site.run_of(stage)}/artifacts/{file}", width) as page:
        frame = page.frame_locator("iframe").first
        sync_api.expect(frame.locator("h1").first).to_be_attached(timeout=TIMEOUT_MS)
        [inner] = page.frames[1:]
        if file == "lineage.html":
            assert inner.evaluate("document.body.innerText").count("train.bam") > 1
        assert inner.evaluate("document.querySelectorAll('svg').length") > 0


@pytest.mark.parametrize(("stage", "file"), [("report", "report.html"), ("train.bam", "lineage.html")])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_of_ours_fit_the_screen_by_themselves(site: Site, stage: str, file: str, width: int) -> None:
    """As downloaded from MLflow and opened."""
    page = site.browser.new_page(viewport={"width": width, "height": 900})
    text = page.request.get(f"{site.url}/get-artifact?path={file}&run_uuid={site.run_of(stage)}").text()
    heard: list[str] = []
    page.on("console", lambda said: heard.append(said.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.set_content(text)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert heard == []
    page.close()
