"""MLflow's own pages in a real browser: what the tracker wrote is really there for a person to see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.mlflow_ui import LANDING, serve
from tests.infra.mlflow_pipeline import MLFLOW_WARNINGS, MODELS, TinyPipeline, fresh_tracker, key_of

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path"),
    MLFLOW_WARNINGS,
]
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

TIMEOUT_MS = 90_000
"""MLflow's pages are large scripts, and the machine may be busy."""


@dataclass
class Site:
    """MLflow over a played pipeline, and a page of a browser on it."""

    url: str
    page: Any
    pipeline: TinyPipeline
    experiment: str
    shots: Path

    def open(self, place: str) -> Any:
        self.page.goto(f"{self.url}/#/experiments/{self.experiment}/{place}?workflowType=machine_learning")
        return self.page

    def see(self, *texts: str) -> None:
        for text in texts:
            sync_api.expect(self.page.get_by_text(text, exact=True).first).to_be_visible(timeout=TIMEOUT_MS)

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"), full_page=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    store = tmp_path_factory.mktemp("store")
    tracker = fresh_tracker(store)
    pipeline = TinyPipeline(store)
    handle = pipeline.play(tracker)
    shots = tmp_path_factory.mktemp("shots")
    with serve(tracker.tracking_uri, store / "mlflow", port=0) as url, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 2600, "height": 1400})
        page.set_default_timeout(TIMEOUT_MS)
        yield Site(url, page, pipeline, handle["experiment_id"], shots)
        browser.close()


def test_the_landing_page_lists_our_experiment(site: Site) -> None:
    site.page.goto(site.url + LANDING)
    site.see("bam/tiny")
    site.shoot("landing")


def test_stages_are_nested_under_the_pipelines_run(site: Site) -> None:
    page = site.open("runs")
    site.see("tiny-1")
    assert page.get_by_text("train.bam", exact=True).count() == 0
    page.get_by_role("row").filter(has_text="tiny-1").get_by_role("button").first.click()
    site.see(*site.pipeline.records)
    site.shoot("runs")


def test_a_run_shows_its_parent_and_the_models_it_read_and_made(site: Site) -> None:
    page = site.open(f"runs/{site.pipeline.records['mix.bam'].mlflow['run_id']}")
    site.see("tiny-1", "seed", "expert-law", "mix-bam", "Input", "Output")
    site.shoot("run")
    for stage in ("seed", "expert.law", "mix.bam"):
        model_id = site.pipeline.records[stage].mlflow["model_id"]
        assert page.locator(f"a[href*='{model_id}']").count() > 0


def test_a_run_shows_its_data(site: Site) -> None:
    site.open(f"runs/{site.pipeline.records['expert.law'].mlflow['run_id']}")
    site.see("data.law", "data.general")
    site.shoot("run-data")


def test_models_are_listed_with_the_runs_that_made_them(site: Site) -> None:
    site.open("models")
    site.see("Ready", *MODELS, *(stage.replace(".", "-") for stage in MODELS))
    site.shoot("models")


def test_a_models_page_leads_to_its_run_and_to_its_parents(site: Site) -> None:
    records = site.pipeline.records
    page = site.open(f"models/{records['mix.bam'].mlflow['model_id']}")
    site.see("mix-bam", "Ready", "perplexity/law")
    site.shoot("model")
    assert page.locator(f"a[href*='{records['mix.bam'].mlflow['run_id']}']").count() > 0
    with page.expect_popup() as opened:
        page.get_by_role("link", name=f"seed@{key_of('seed')[:12]}").click()
    seed = opened.value.get_by_text(records["seed"].mlflow["model_id"], exact=True)
    sync_api.expect(seed.first).to_be_visible(timeout=TIMEOUT_MS)


def test_the_report_opens_inside_mlflow(site: Site) -> None:
    page = site.open(f"runs/{site.pipeline.records['report'].mlflow['run_id']}/artifacts/report.html")
    frame = page.frame_locator("iframe").first
    sync_api.expect(frame.get_by_role("heading", name="Report")).to_be_visible(timeout=TIMEOUT_MS)
    site.shoot("report")
