"""Tasks of `evaluate`: what the stage leaves, what identifies a task file, and how the report shows it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bam_core.errors import BamError, InvalidInput
from bam_core.graph.stage import Resources
from bam_core.protocols import StageContext
from infra.sources import TextSources
from pipelines import bam
from pipelines.recipe import load_recipe
from pipelines.report.build import build_report
from pipelines.report.tasks_table import CHANCE, long_table, task_tables, tasks_words
from pipelines.stages.downstream import BY_ITEM, score_tasks
from pipelines.wiring.task_texts import read_tasks, task_digests
from tests.report.fakes import fake_run
from tests.task_kit import TOKENIZER, choice, lines, program, question, tiny_model

MAKERS = {"cases": choice, "sums": question, "functions": program}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    for name, make in MAKERS.items():
        (tmp_path / f"{name}.jsonl").write_bytes(lines([make(number) for number in range(4)]))
    return {path.stem: path for path in tmp_path.iterdir()}


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def context(files: dict[str, Path], out: Path, **changes: Any) -> StageContext:
    out.mkdir(exist_ok=True)
    asked = {"limit": None, "execute": False, "new_tokens": 4} | changes
    named = {digest_of(files[name]): files[name] for name in MAKERS}
    return StageContext(
        stage="evaluate",
        key="k",
        config={"tasks": [{"digest": digest} | asked for digest in sorted(named)]},
        runtime={"tasks": {digest: {"path": str(path)} for digest, path in named.items()}},
        resources=Resources(),
        inputs={},
        records={},
        out=out,
        trainer=None,  # type: ignore[arg-type]
        sources=TextSources(),
        history=list,
    )


def test_every_model_has_its_figures_and_its_items(files: dict[str, Path], tmp_path: Path):
    stage = context(files, tmp_path / "out")
    found = {
        name: score_tasks(stage, name, tiny_model(seed=i), files["tokenizer"]) for i, name in enumerate(("a", "b"))
    }
    assert [list(tasks) for tasks in found.values()] == [["cases", "functions", "sums"]] * 2
    assert found["a"]["cases"]["figures"]["margin"] != found["b"]["cases"]["figures"]["margin"]
    rows = pq.read_table(stage.out / BY_ITEM).to_pylist()
    places = [(model, task, f"{MAKERS[task](n)['id']}") for model in "ab" for task in found["a"] for n in range(4)]
    assert [(row["model"], row["task"], row["id"]) for row in rows] == places
    for model, tasks in found.items():
        for task, score in tasks.items():
            own = [row for row in rows if (row["model"], row["task"]) == (model, task)]
            nats, n_bytes = sum(row["nll"] for row in own), sum(row["bytes"] for row in own)
            assert score["figures"]["bits_per_byte"]["value"] == pytest.approx(nats / 0.6931471805599453 / n_bytes)
            right = {"cases": "acc", "sums": "exact_match"}.get(task)
            if right:
                assert score["figures"][right]["value"] == sum(row["correct"] for row in own) / 4
            else:
                assert [row["correct"] for row in own] == [None] * 4  # code was not run
            assert all((row["margin"] is None) == (task != "cases") for row in own)


def test_the_same_tasks_leave_the_same_bytes(files: dict[str, Path], tmp_path: Path):
    for out in ("first", "second"):
        stage = context(files, tmp_path / out)
        for name in ("a", "b"):
            score_tasks(stage, name, tiny_model(), files["tokenizer"])
    assert (tmp_path / "first" / BY_ITEM).read_bytes() == (tmp_path / "second" / BY_ITEM).read_bytes()


def test_limit_and_code_on_request(files: dict[str, Path], tmp_path: Path):
    found = score_tasks(context(files, tmp_path / "out", limit=2, execute=True), "a", tiny_model(), files["tokenizer"])
    assert {score["items"] for score in found.values()} == {2}
    assert found["functions"]["figures"]["pass_at_1"]["value"] == 0.0


def test_without_tasks_there_is_nothing(files: dict[str, Path], tmp_path: Path):
    stage = context(files, tmp_path / "out")
    none = StageContext(**{**vars(stage), "config": {}})
    assert score_tasks(none, "a", tiny_model(), files["tokenizer"]) == {}
    assert list(stage.out.iterdir()) == []


def test_a_file_that_changed_since_the_plan_is_refused(files: dict[str, Path], tmp_path: Path):
    stage = context(files, tmp_path / "out")
    files["sums"].write_bytes(lines([question(9)]))
    with pytest.raises(BamError, match=r"sums\.jsonl changed since the plan"):
        score_tasks(stage, "a", tiny_model(), files["tokenizer"])


def evaluate_of(files: dict[str, Path], *names: str, more: str = "") -> Any:
    tasks = ", ".join(f"{{path: {files[name]}{more}}}" for name in names)
    recipe = load_recipe("quickstart", [f"evaluate.tasks=[{tasks}]"])
    digests, problems = task_digests(recipe, TextSources())
    assert problems == []
    return bam.build(recipe, dict.fromkeys([*recipe.domains, "tokenizer"], "x") | digests)["evaluate"]


def test_a_task_is_its_content_not_its_place_or_turn(files: dict[str, Path], tmp_path: Path):
    one = evaluate_of(files, "cases", "sums")
    moved = {"cases": tmp_path / "elsewhere.jsonl", "sums": files["sums"]}
    moved["cases"].write_bytes(files["cases"].read_bytes())
    other = evaluate_of(moved, "sums", "cases")
    assert one.config == other.config
    assert one.runtime != other.runtime
    assert {entry["digest"] for entry in one.config["tasks"]} == {digest_of(files[name]) for name in ("cases", "sums")}
    assert evaluate_of(files, "cases", "sums", more=", limit: 3").config != one.config
    assert evaluate_of(files, "cases", "sums", more=", execute: true").config != one.config
    assert "tasks" not in evaluate_of(files).config
    files["cases"].write_bytes(files["cases"].read_bytes() + lines([choice(9)]))
    assert evaluate_of(files, "cases", "sums").config != one.config


def test_the_plan_tells_all_faults_of_all_files(files: dict[str, Path]):
    files["sums"].write_bytes(lines([question(0), question(0)]) + b"\xff\n")
    files["functions"].write_bytes(files["cases"].read_bytes())
    paths = [str(files[name]) for name in ("sums", "cases", "functions")] + [str(files["cases"].parent / "no.jsonl")]
    recipe = load_recipe("quickstart", [f"evaluate.tasks={json.dumps(paths)}"])
    digests, problems = task_digests(recipe, TextSources())
    assert set(digests) == {"evaluate.tasks.1", "evaluate.tasks.2"}
    assert [problem.path for problem in problems] == [
        f"{files['sums']}:2",
        f"{files['sums']}:3",
        "evaluate.tasks.2",
        "evaluate.tasks.3.path",
    ]
    assert "is task 'cases'" in str(problems[2])
    with pytest.raises(InvalidInput) as raised:
        read_tasks(paths)
    assert len(raised.value.problems) == 4
    assert read_tasks(paths[1:2])[0].name == "cases"


def figure(value: float, stderr: float | None = 0.02) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "items": 40}


def reported() -> dict[str, Any]:
    def score(shift: float) -> dict[str, Any]:
        mc = {"acc": figure(0.25 + shift), "acc_norm": figure(0.3), "margin_per_byte": figure(-0.31 + shift)}
        own = {"items": 40, "prompts_cut": 3}
        return {
            "cases": own | {"domain": "law", "kind": "mc", "chance": 0.25, "figures": mc},
            "sums": own
            | {
                "domain": "math",
                "kind": "gen",
                "chance": None,
                "figures": {
                    "exact_match": figure(0.05),
                    "bits_per_byte": figure(3.1),
                    "solution_bits_per_byte": figure(2.5, None),
                },
            },
        }

    return {"models": {"train.bam": score(0.1), "seed": score(0.0)}}


def test_tables_show_each_figure_with_its_error_and_what_a_guess_gets():
    inputs = fake_run(tasks=reported())
    tables = dict(task_tables(inputs))
    accuracy = tables["Accuracy"]
    assert [column.key for column in accuracy.columns] == ["model", "cases"]
    assert [list(row.values()) for row in accuracy.rows] == [
        ["seed", "25.0% ± 2.0%"],
        ["train.bam", "35.0% ± 2.0%"],
        [CHANCE, "25.0%"],
    ]
    assert tables["Bits per byte of the answer"].rows[0] == {"model": "seed", "sums": "2.500"}
    assert tables["Likelihood margin, nats per byte"].rows[0]["cases"] == "\u22120.310 ± 0.020"
    assert tables["Right answers generated"].rows[0]["sums"] == "5.0% ± 2.0%"
    assert tasks_words(inputs)[0] == "cases (law): 40 items; 3 longer than the model reads, and cut on the left."
    rows = list(csv.DictReader(io.StringIO(long_table(inputs).csv())))
    assert len(rows) == 12
    assert rows[0] == {
        "model": "seed", "task": "cases", "domain": "law", "kind": "mc", "figure": "acc",
        "value": "0.25", "stderr": "0.02", "items": "40", "chance": "0.25",
    }  # fmt: skip


def test_the_page_has_a_section_of_tasks_only_if_there_are_some(tmp_path: Path):
    build_report(fake_run(tasks=reported()), tmp_path / "with")
    build_report(fake_run(tasks={"models": {}}), tmp_path / "without")
    page, bare = ((tmp_path / name / "report.html").read_text() for name in ("with", "without"))
    assert re.search(r'<section id="tasks">.*25\.0% ± 2\.0%.*</section>', page, re.DOTALL)
    assert 'href="#tasks"' in page
    assert "tasks" not in bare
    assert (tmp_path / "with/tables/tasks.csv").is_file()
    assert not (tmp_path / "without/tables/tasks.csv").exists()


def test_names_of_tasks_are_shown_as_text(tmp_path: Path):
    tasks = reported()
    tasks["models"]["seed"]["<b>x</b>"] = tasks["models"]["seed"].pop("cases")
    build_report(fake_run(tasks=tasks), tmp_path)
    assert "<b>x</b>" not in (tmp_path / "report.html").read_text()
