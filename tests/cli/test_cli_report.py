"""`bam report A B` over a store with runs of every end: the page, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bam_core.graph.record import Record
from bam_core.graph.runs import Run, RunStage
from infra.store import ArtifactStore
from tests.cli.conftest import Bam
from tests.infra.model_store import file_of, made

A, B = "tiny-20261101-101500-aaaaaa", "tiny-20261102-101500-bbbbbb"
UNDONE, EMPTY, OTHER = "tiny-20261103-101500-cccccc", "tiny-20261104-101500-dddddd", "else-20261105-101500-eeeeee"


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """A and B are done and share their seed; UNDONE has no evaluation, EMPTY nothing, OTHER models of its own."""
    store = ArtifactStore(str(here / "bam_store"))
    data = made(store, "data.law", {}, rows)
    seed = made(store, "seed", {"data.law": data}, lambda out: history(out, 3.0))
    found = {}
    for name, lr, loss in ((A, 1e-3, 2.5), (B, 2e-3, 2.25), (UNDONE, 3e-3, 2.0)):
        trained = made(store, "train.bam", {"seed": seed}, lambda out, loss=loss: history(out, loss), {"lr": lr})
        parts = {"data.law": data, "seed": seed, "train.bam": trained}
        if name != UNDONE:
            judged = {"data.law": data, "seed": seed, "train.bam": trained}
            parts["evaluate"] = made(store, "evaluate", judged, lambda out, loss=loss: scores(out, loss))
        found[name] = parts
        planned = (*parts, "evaluate")
        store.runs.write(run(name, parts, planned, lr, "done" if name != UNDONE else "interrupted"))
    store.runs.write(run(EMPTY, {}, ("seed", "evaluate"), 4e-3, "failed"))
    other = made(store, "expert.math", {"data.law": data}, lambda out: history(out, 2.0))
    store.runs.write(run(OTHER, {"expert.math": other}, ("expert.math",), 1e-3, "done", "else"))
    return store


def run(name: str, parts: dict[str, Record], planned: Any, lr: float, status: Any, recipe: str = "tiny") -> Run:
    stages = {stage: RunStage(parts[stage].key if stage in parts else "0" * 64, "run", {}) for stage in planned}
    whole = {"name": recipe, "seeds": [0], "domains": {"law": {}}, "phases": {"mixture": {"lr": lr}}}
    return Run(name, recipe, status, 1.793e9 + lr, 1.793e9 + 60, whole, stages, {})


def rows(out: Path) -> None:
    for part in ("train", "valid"):
        (out / part).mkdir()
        (out / part / "00000.arrow").write_bytes(part.encode())


def history(out: Path, end: float) -> None:
    points = [{"step": i, "tokens": 64 * i, "loss": end + 1 / i} for i in range(1, 9)]
    (out / "training.json").write_text(json.dumps({"history": points}))


def scores(out: Path, loss: float) -> None:
    def model(perplexity: float) -> dict[str, Any]:
        return {"domains": {"law": {"perplexity": perplexity}}, "average_perplexity": perplexity, "seeds": [0]}

    (out / "perplexity.json").write_text(json.dumps({"models": {"seed": model(20.0), "train.bam": model(4 * loss)}}))


def test_writes_one_page_and_says_what_it_found(store: ArtifactStore, bam: Bam, here: Path) -> None:
    before = set(here.rglob("*"))
    ended = bam("report", A, B)
    assert (ended.status, ended.err) == (0, "")
    assert {path.name for path in here.rglob("*")} - {path.name for path in before} == {"report-aaaaaa-bbbbbb.html"}
    page = (here / "report-aaaaaa-bbbbbb.html").read_text()
    assert "phases.<wbr>mixture.<wbr>lr" in page
    assert "−10.0%" in page  # noqa: RUF001 - as a person reads it
    said = " ".join(ended.out.split())
    for words in (
        f"A: {A} B: {B}",
        "1 key of their recipes differs.",
        "seed is one and the same artifact in both runs.",
        "the best of A is train.bam (10.00) and the best of B is train.bam (9.00)",
        "the page: report-aaaaaa-bbbbbb.html",
    ):
        assert words in said


def test_as_json(store: ArtifactStore, bam: Bam, here: Path) -> None:
    answer = json.loads(bam("report", A, B, "--out", "compared.html", "--json").out)
    assert (here / answer["file"]).name == "compared.html"
    assert answer["recipe"] == [{"key": "phases.mixture.lr", "a": 0.001, "b": 0.002}]
    seed, trained = answer["models"]
    assert seed == {"model": "seed", "a": 20.0, "b": 20.0, "difference": 0.0, "word": None, "same_artifact": True}
    assert (trained["model"], trained["difference"]) == ("train.bam", pytest.approx(-0.1))
    assert (answer["only_a"], answer["only_b"]) == ([], [])


def test_a_run_without_its_evaluation_is_compared_with_a_note(store: ArtifactStore, bam: Bam, here: Path) -> None:
    ended = bam("report", A, UNDONE, "-o", "page.html")
    assert (ended.status, ended.err) == (0, "")
    note = "B is not finished (interrupted): 1 of its 4 stages are not made."
    assert note in " ".join(ended.out.split())
    assert note in (here / "page.html").read_text()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((A, A), "is named twice"),
        ((A, A[:-1]), f"did you mean '{A}'?"),
        ((A, "tiny"), f"tiny: is a recipe; name one of its runs, such as {EMPTY}"),
        ((A, EMPTY), f"{EMPTY}: no model of it is there (its status is failed)"),
        ((A, OTHER), f"no model in common, so there is nothing to compare: {A} has seed, train.bam; {OTHER} has"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    store: ArtifactStore, bam: Bam, here: Path, names: tuple[str, str], words: str
) -> None:
    ended = bam("report", *names)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
    assert list(here.glob("*.html")) == []


def test_a_damaged_history_is_named(store: ArtifactStore, bam: Bam) -> None:
    [record, *_] = store.records("train.bam")
    file_of(store, record, "training.json").write_text("{}")
    ended = bam("report", A, B)
    assert ended.status == 1
    assert "train.bam@" in ended.err
    assert "training.json is not as recorded" in ended.err


def test_a_file_that_cannot_be_written_is_named(store: ArtifactStore, bam: Bam) -> None:
    ended = bam("report", A, B, "--out", "nowhere/page.html")
    assert (ended.status, ended.out) == (2, "")
    assert "--out nowhere/page.html: cannot be written" in ended.err


def test_runs_are_completed(store: ArtifactStore, bam: Bam) -> None:
    from click.shell_completion import ShellComplete

    from pipelines.cli import app, completing

    bam("--help")
    found = ShellComplete(app.bam, {}, "bam", completing.VARIABLE).get_completions(["report", A], "tiny-2026110")
    assert [item.value for item in found] == [A, B, UNDONE, EMPTY]
