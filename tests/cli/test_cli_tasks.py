"""`bam tasks` and `bam lm-eval` on a model of a store."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bam_core.checkpoint import load_model, write_model
from bam_core.data.tokenize import Tokenizer
from bam_core.evaluate.task_files import read_task
from bam_core.evaluate.tasks import score_task
from bam_core.graph.record import Record, artifact_digest
from infra.store import ArtifactStore
from pipelines.wiring import scoring
from tests.task_kit import TOKENIZER, choice, lines, program, question, tiny_model

KEY = "a" * 64
HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """Holds `seed`, a model, and `tokenizer`, which is none."""
    (here / "tokenizer.json").write_text(TOKENIZER)
    for name, rows in {"cases": [choice(n) for n in range(4)], "sums": [question(n) for n in range(3)]}.items():
        (here / f"{name}.jsonl").write_bytes(lines(rows))
    (here / "functions.jsonl").write_bytes(lines([program(1)]))
    store, model = ArtifactStore(str(here / "bam_store")), tiny_model()
    for stage in ("seed", "tokenizer"):
        with store.scratch(stage, KEY) as out:
            if stage == "seed":
                tensors = ((name, tensor.float()) for name, tensor in model.state_dict().items())
                write_model(out, model.config, tensors, tokenizer=here / "tokenizer.json", card="")
            else:
                (out / "tokenizer.json").write_text(TOKENIZER)
            outputs = store.hash_outputs(out)
            record = Record(stage, KEY, {}, {}, outputs, artifact_digest(outputs), {}, {}, 1.0, 2.0, 1)
            store.commit(out, record)
    return store


def test_json_is_what_the_runner_says(bam, store: ArtifactStore, here: Path):
    ended = bam(
        "tasks", "seed", "cases.jsonl", "sums.jsonl", "--new-tokens", "4", "--limit", "2", "--dtype", "fp64", "--json"
    )
    answer = json.loads(ended.out)
    assert answer["model"] == f"seed@{KEY[:12]}"
    folder = store.localize(store.records("seed")[0])
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    for name in ("cases", "sums"):
        task = read_task((here / f"{name}.jsonl").read_bytes(), name).first(2)
        model = load_model(folder).double()
        assert answer["tasks"][name] == score_task(model, tokenizer, task, new_tokens=4).to_json()


def test_people_get_a_table(bam, store: ArtifactStore):
    rows = [line.split() for line in bam("tasks", "seed", "cases.jsonl").out.splitlines()]
    assert rows[0] == [f"seed@{KEY[:12]}"]
    found = {row[1]: row for row in rows if row and row[0] == "cases"}
    assert list(found) == ["acc", "acc_norm", "acc_bytes", "margin", "margin_per_byte", "bits_per_byte"]
    assert found["acc"][-2:] == ["4", "0.2500"]
    assert found["margin"][-1] == "4"


def test_code_is_run_with_execute_only(bam, store: ArtifactStore):
    found = []
    for more in ([], ["--execute"]):
        answer = json.loads(bam("tasks", "seed", "functions.jsonl", "--new-tokens", "2", *more, "--json").out)
        found.append("pass_at_1" in answer["tasks"]["functions"]["figures"])
    assert found == [False, True]


def test_what_is_wrong_is_said(bam, store: ArtifactStore, here: Path):
    (here / "bad.jsonl").write_bytes(lines([choice(0), choice(1, answer=4), choice(0)]))
    ended = bam("tasks", "seed", "bad.jsonl", "nowhere.jsonl", "cases.jsonl", "cases.jsonl")
    assert (ended.status, ended.out) == (2, "")
    for words in ("bad.jsonl:2", "bad.jsonl:3", "nowhere.jsonl", "is task 'cases'"):
        assert words in ended.err
    assert "makes no model" in bam("tasks", "tokenizer", "cases.jsonl").err
    assert bam("tasks", "seed").status == 2
    assert bam("tasks", "seed", "cases.jsonl", "--limit", "0").status == 2


def test_without_lm_eval_the_extra_is_named(bam, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    ended = bam("lm-eval", "seed", "arc_easy")
    assert ended.status == 2
    [line] = ended.err.splitlines()
    assert "pip install -c constraints.txt -e '.[lm-eval]'" in line


@pytest.mark.skipif(not HAS_LM_EVAL, reason="the extra lm-eval is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_gives_the_same_accuracy(bam, store: ArtifactStore, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    (here / "mine").mkdir()
    (here / "mine/cases.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {here / 'cases.jsonl'}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: prompt\ndoc_to_choice: choices\n"
        'doc_to_target: answer\ntarget_delimiter: ""\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
    )
    theirs = json.loads(bam("lm-eval", "seed", "mine", "--tasks-folder", "mine", "--json").out)
    ours = json.loads(bam("tasks", "seed", "cases.jsonl", "--json").out)
    for name in ("acc", "acc_norm"):
        assert theirs["tasks"]["mine"][f"{name},none"] == ours["tasks"]["cases"]["figures"][name]["value"]
    assert "acc_norm" in bam("lm-eval", "seed", "mine", "--tasks-folder", "mine").out
    ended = bam("lm-eval", "seed", "mine", "--tasks-folder", "nowhere")
    assert ended.status == 2
    assert "nowhere: is no folder" in ended.err
