"""The examples run, and what they print is what they are there to show."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.e2e.kit import NO_MLFLOW

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    "upcycle": "norm.weight: mean",
    "route": "<bam.Figures ffn>",
    "extract": "as they went in: 17 tensors",
    "perplexity": "bits per byte",
}
NOTEBOOKS = ("parts", "pipeline")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script as a person would, in this process, which has torch already."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_MLFLOW[1])
        monkeypatch.delenv("BAM_STORE", raising=False)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHOWN, "pipeline", "compare"}
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in listed for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")])


@pytest.mark.parametrize("name", SHOWN)
def test_parts_by_themselves(name: str, run: Callable[..., str], tmp_path: Path) -> None:
    said = run(name, tmp_path / "figure.svg")
    assert SHOWN[name] in said
    assert (tmp_path / "figure.svg").exists() == (name == "route")


def test_pipelines(run: Callable[..., str], tmp_path: Path) -> None:
    """One store: what the first has made, the second reuses."""
    said = run("pipeline", tmp_path / "store")
    assert "13 stages: 13 run" in said
    assert "done in" in said
    said = run("compare", tmp_path / "store")
    assert "lr 0.0015: made 0 of 13 stages" in said
    assert "lr 0.003: made 5 of 13 stages" in said


def test_the_short_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES.parent / "docs" / "python.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "upcycle_models" in block]
    exec(compile(code, "docs/python.md", "exec"), {})
    assert "'law': {'max_abs_diff'" in capsys.readouterr().out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_has_its_outputs_and_no_machines_name(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    assert not [place for place in ("/tmp/", "/home/", "/root/", "site-packages") if place in text]


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_executes_and_shows_the_same_kinds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and figures follow from the Python that is installed; what kind of output each cell has does not."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_MLFLOW[1])
    kept = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    fresh = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}).execute()

    def kinds(notebook: nbformat.NotebookNode) -> list[list[list[str]]]:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return [[[output.output_type, *sorted(output.get("data", {}))] for output in cell.outputs] for cell in cells]

    assert kinds(fresh) == kinds(kept)
