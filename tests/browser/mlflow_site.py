"""MLflow over a tiny finished pipeline, and a browser that writes down what goes wrong on its pages.

The pipeline is run once, tracked as `bam run` tracks it; its models take a second each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.mlflow_connect import artifact_root, default_tracking_uri
from infra.mlflow_ui import serve
from tests.e2e.kit import Place, recipe_dict, write_recipe, write_texts

DESKTOP, PHONE = 1500, 400
TIMEOUT_MS = 120_000
"""MLflow's pages are large scripts, and the machine may be busy."""
OF_MLFLOW = (
    r"Failed to load resource: .* 404 .*/ajax-api/2\.0/mlflow/users/current$",  # a server without logins has no users
    r"ResizeObserver loop completed with undelivered notifications",
)
"""Errors that MLflow 3.17 makes by itself."""


@dataclass
class Site:
    """experiment, pipeline: MLflow's ids. trouble: errors in the console and uncaught ones, of the page now open."""

    url: str
    place: Place
    browser: Any
    experiment: str
    pipeline: str
    trouble: list[str] = field(default_factory=list)

    def run_of(self, stage: str) -> str:
        return str(self.place.record(stage)["mlflow"]["run_id"])

    def model_of(self, stage: str) -> str:
        return str(self.place.record(stage)["mlflow"]["model_id"])

    @contextmanager
    def open(self, where: str, width: int = DESKTOP) -> Iterator[Any]:
        """A page of the experiment, loaded anew; it must be left without any trouble but MLflow's own."""
        page = self.browser.new_page(viewport={"width": width, "height": 1000})
        page.set_default_timeout(TIMEOUT_MS)
        self.trouble.clear()
        page.on("console", lambda said: said.type == "error" and self._hear(f"{said.text} {said.location['url']}"))
        page.on("pageerror", lambda error: self._hear(str(error)))
        try:
            page.goto(f"{self.url}/#/experiments/{self.experiment}/{where}?workflowType=machine_learning")
            yield page
        finally:
            page.close()
        assert not self.trouble, f"{where}: {self.trouble}"

    def _hear(self, error: str) -> None:
        if not any(re.search(known, error) for known in OF_MLFLOW):
            self.trouble.append(error)


def see(place: Any, *texts: str) -> None:
    """Wait for each of the texts to be visible on a page or in a frame."""
    from playwright.sync_api import expect

    for text in texts:
        expect(place.get_by_text(text, exact=True).first).to_be_visible(timeout=TIMEOUT_MS)


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Site]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("tracked")
    write_texts(folder / "texts")
    place = Place(write_recipe(folder / "tiny.yaml", recipe_dict(folder / "texts")), folder / "store")
    answer = place.run(tracking=())
    assert answer.status == 0, answer.err
    uri = default_tracking_uri(str(place.store))
    assert uri is not None
    trained = MlflowClient(uri).get_run(place.record("train.bam")["mlflow"]["run_id"])
    with serve(uri, artifact_root(uri), port=0) as url:
        yield Site(url, place, browser, trained.info.experiment_id, trained.data.tags["mlflow.parentRunId"])
