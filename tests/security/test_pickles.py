"""A pickle planted in a store does not run: beside the files that are read, and in place of each of them."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bam_core.graph.record import Output, artifact_digest, record_checksum
from tests.e2e.kit import Place
from tests.security import bombs
from tests.security.processes import killed_in_training

ROOT = Path(__file__).parents[2]
READERS = (
    ("ls",),
    ("show", "seed"),
    ("tree", "report"),
    ("lineage", "report"),
    ("verify", "seed"),
    ("verify", "data.law"),
    ("generate", "train.bam", "the river", "--max-new-tokens", "2"),
)
"""Commands that read what a store holds."""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "a-pickle-has-run"


FORMS = [pytest.param(kind, marks=[] if kind in ("pickle", "torch") else [pytest.mark.long]) for kind in bombs.KINDS]
"""`make test` takes the two that torch would open; all five together take a minute."""


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_the_bombs_work(kind: str, marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "bomb"
    file.write_bytes(bombs.KINDS[kind](marker))
    if kind == "torch":
        torch.load(file, weights_only=False)
    elif kind == "numpy":
        np.load(file, allow_pickle=True)
    else:
        pickle.loads(file.read_bytes())
    assert marker.exists()


def test_pickles_lying_in_every_folder_of_a_store_do_not_run(done: Place, marker: Path) -> None:
    assert bombs.plant_beside(done.store, marker) > 500
    for words in READERS:
        answer = done.bam(*words)
        assert answer.status == 0, (words, answer.err)
    answer = done.run("--force", "train.bam", "--force", "data.law")
    assert answer.status == 0, answer.err
    assert not marker.exists()


@pytest.mark.parametrize("kind", FORMS)
def test_a_pickle_in_place_of_each_file_of_an_artifact_does_not_run(done: Place, marker: Path, kind: str) -> None:
    """The records are forged to match, so that nothing but the reading of a file stands in the way."""
    bomb = bombs.KINDS[kind](marker)
    for folder in sorted(done.store.glob("artifacts/*/*")):
        for file in _files(folder):
            file.write_bytes(bomb)
        _forge_record(folder)
    _require_words_not_code(done, marker)


def test_a_type_that_is_a_pickle_in_an_arrow_file_does_not_run(done: Place, marker: Path) -> None:
    for file in done.store.rglob("*.arrow"):
        file.write_bytes(bombs.arrow_file(file, marker))
        _forge_record(file.parents[1])
    answer = done.run()
    assert answer.status == 0, answer.err
    assert answer.actions()["seed"] == "run", "it was read"
    assert not marker.exists()


@pytest.mark.parametrize("kind", FORMS)
def test_a_pickle_in_place_of_the_stores_own_files_does_not_run(done: Place, marker: Path, kind: str) -> None:
    bomb = bombs.KINDS[kind](marker)
    for name in ("record.json", "lease.json", "attempts/0001/error.json", "attempts/0001/progress.json"):
        for folder in sorted(done.store.glob("artifacts/*/*")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bomb)
    (done.store / "mlflow.db").write_bytes(bomb)
    _require_words_not_code(done, marker)


@pytest.mark.parametrize("kind", FORMS)
def test_a_pickle_in_place_of_a_checkpoint_does_not_run(up_to: Callable[..., Place], marker: Path, kind: str) -> None:
    place = killed_in_training(up_to("tokenizer", "data.*"), "seed")
    files = [file for file in (place.store / "training").rglob("*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(bombs.KINDS[kind](marker))
    answer = place.run("--until", "seed")
    assert answer.status == 1
    assert "Traceback" not in answer.err
    assert not marker.exists()


def test_nothing_in_the_source_unpickles_or_runs_what_it_reads() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for package in ("bam", "bam_core", "infra", "pipelines")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, what in _dangers(ast.parse(path.read_text()))
    ]
    places = [place for place in found if not place.startswith(f"{CONFINED}:")]
    assert places == []
    assert [place.rpartition(" ")[2] for place in found if place not in places] == ["exec", "compile"]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "dcp.FileSystemReader(path)",
        "Tuner.restore(path, f)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "datasets.load_dataset(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert len(list(_dangers(ast.parse(code)))) == 1


def test_the_search_lets_the_safe_ones_pass() -> None:
    assert list(_dangers(ast.parse("torch.load(path, weights_only=True); np.load(path); load_file(path)"))) == []


def _require_words_not_code(place: Place, marker: Path) -> None:
    answers = [place.bam(*words) for words in READERS]
    answers += [place.plan(), place.run(), place.bam("lineage", "sync", tracking=())]
    assert any(answer.status for answer in answers), "nothing was read"
    assert [answer.err for answer in answers if "Traceback" in answer.err] == []
    assert not marker.exists()


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and not _is_the_stores(file, folder)]


def _is_the_stores(file: Path, folder: Path) -> bool:
    return file.name == "record.json" or "attempts" in file.relative_to(folder).parts


def _forge_record(folder: Path) -> None:
    """Make the record say that the files are as they are."""
    record = json.loads((folder / "record.json").read_text())
    outputs = [
        Output(file.relative_to(folder).as_posix(), file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in _files(folder)
    ]
    record |= {"outputs": [vars(output) for output in outputs], "digest": artifact_digest(outputs)}
    (folder / "record.json").write_text(json.dumps(record | {"checksum": record_checksum(record)}))


CONFINED = "bam_core/evaluate/sandbox_child.py"
"""Runs the code of a model, in a process that can do nothing else: `test_sandbox.py`."""
_PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
_RUNNING = {"eval", "exec", "compile", "FileSystemReader", "unsafe_load", "full_load"}


def _dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"imports {name}") for name in names if name.split(".")[-1] in _PICKLING)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                called in _RUNNING - {"FileSystemReader"}
                or called.split(".")[-1] in _RUNNING - {"eval", "exec", "compile"}
                or (called == "torch.load" and given.get("weights_only") != "True")
                or called in ("yaml.load", "Tuner.restore", "tune.Tuner.restore")
                or any(given.get(word) == "True" for word in ("allow_pickle", "shell", "trust_remote_code"))
            ):
                yield node.lineno, f"calls {called}"
