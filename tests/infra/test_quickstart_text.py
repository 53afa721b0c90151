"""Text of every installation: the same in every place, right as far as can be checked, each passage once."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bam_core.protocols import Document
from infra.quickstart import exercises, licences, python_text
from infra.sources import TextSources

SOURCES = TextSources()
QUICKSTART = (
    {"kind": "python-docs"},
    {"kind": "python-code"},
    {"kind": "python-licences"},
    {"kind": "generated-math", "documents": 50},
)


@pytest.fixture(scope="module")
def quickstart() -> dict[str, list[Document]]:
    """The text of every installation, read once: kind -> documents."""
    return {spec["kind"]: list(SOURCES.read(spec)) for spec in QUICKSTART}


def test_quickstart_text_is_the_same_in_another_process_and_place(quickstart, tmp_path):
    program = (
        "import hashlib, json, sys; from infra.sources import TextSources; sources = TextSources();"
        "specs = json.loads(sys.argv[1]);"
        "joined = ['\\0'.join(document.text for document in sources.read(spec)) for spec in specs];"
        "read = [hashlib.sha256(text.encode()).hexdigest() for text in joined];"
        "print(json.dumps([read, [sources.digest(s) for s in specs]]))"
    )
    checkout = tmp_path / "another" / "checkout"
    for package in ("infra", "bam_core"):
        root = Path(__file__).parents[2]
        shutil.copytree(root / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(checkout), "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(QUICKSTART)],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    joined = ("\0".join(document.text for document in documents) for documents in quickstart.values())
    here = [hashlib.sha256(text.encode()).hexdigest() for text in joined]
    assert json.loads(done.stdout) == [here, [SOURCES.digest(spec) for spec in QUICKSTART]]


def test_quickstart_text_names_no_place_on_this_machine(quickstart):
    places = {sys.prefix, sys.base_prefix, str(Path.home()), str(Path(__file__).parents[2])} - {"/", "/usr"}
    for document in itertools.chain.from_iterable(quickstart.values()):
        for place in places:
            assert not re.search(rf"{re.escape(place)}(/|\b)", document.text), (place, document.source)


def test_documentation_and_code_share_hardly_a_line(quickstart):
    whole = "\n".join(document.text for document in quickstart["python-code"])
    documentation = "\n".join(document.text for document in quickstart["python-docs"])
    long_lines = {line.strip() for line in documentation.splitlines() if len(line.strip()) > 60}
    shared = long_lines & {line.strip() for line in whole.splitlines()}
    assert len(shared) < 0.02 * len(long_lines), sorted(shared)[:5]


def test_code_still_parses_and_has_no_docstrings(quickstart):
    for document in quickstart["python-code"]:
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, python_text.Documented):
                assert ast.get_docstring(node) is None, document.source


def test_documentation_strings_are_under_the_names_of_what_they_document(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(
        '"""About the package."""\n'
        "try:\n    pass\nexcept ImportError:\n    def spare():\n        'Spare.'\n"
        "class Outer:\n    def method(self):\n"
        '        """Does it.\n\n        Then:\n            more.\n        """\n'
        "    class Inner:\n        'Inside.'\n" + "def silent(): pass\n" + f'def long():\n    "{"x" * 200}"\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text(f'"""{"y" * 300}"""\n')
    (tmp_path / "_sysconfigdata_here.py").write_text(f'"""{"z" * 300}"""\n')
    (document,) = python_text.read_documentation(tmp_path)
    assert document.text == (
        "package\nAbout the package.\n\nspare\nSpare.\n\nOuter.method\nDoes it.\n\nThen:\n    more.\n\n"
        f"Outer.Inner\nInside.\n\nlong\n{'x' * 200}"
    )


def test_topics_of_the_language_reference_are_documents(tmp_path):
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'b': 'Second\\n  topic\\n', 'a': 'First'}\n")
    assert [d.text for d in python_text.read_documentation(tmp_path)] == ["First", "Second\ntopic"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nx = 1\n', "x = 1\n"),
        ('def f():\n    """Doc."""\n', "def f():\n    pass\n"),
        ('def f(): "doc"\n', "def f(): pass\n"),
        ('def f(): "doc"; return 1\n', "def f(): pass; return 1\n"),
        ('def f():\n    "doc"; x = 1\n    return x\n', "def f():\n    pass; x = 1\n    return x\n"),
        ('def f():\n    "doc"  # why\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    "doc"\n    "more"\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    "doc"\n    "more"\n', "def f():\n    pass\n"),
        ('class é:\n    """Döc\n    über\n    """\n    é = "ü"\n', 'class é:\n    é = "ü"\n'),
        (
            "# one\x0cpage\n\x0c\ndef f():\n    'doc'\n    return 1\n",
            "# one\x0cpage\n\x0c\ndef f():\n    return 1\n",
        ),
        ("x = 'a\u2028b'\ndef f():\n    'doc'\n    return 1\n", "x = 'a\u2028b'\ndef f():\n    return 1\n"),
        ("def f():\n    b'no doc'\n    f'nor this'\n", "def f():\n    b'no doc'\n    f'nor this'\n"),
        ('def f():\r\n    "doc"\r\n    return 1\r\n', "def f():\n    return 1\n"),
        ('def f():\n    "a"; "b"; return 1\n', "def f():\n    pass; pass; return 1\n"),
        ('"one" "two"\nx = ("kept",)', 'x = ("kept",)'),
    ],
)
def test_docstrings_are_cut_and_nothing_else(source, expected):
    assert python_text.without_docstrings(source.encode()) == expected


def site_with(folder: Path, **licences: str) -> Path:
    for package, text in licences.items():
        (folder / f"{package}-1.0.dist-info" / "licenses").mkdir(parents=True)
        (folder / f"{package}-1.0.dist-info" / "licenses" / "LICENSE").write_text(text)
    return folder


def clause(topic: str, n_words: int = 80) -> str:
    return " ".join(f"{topic}{number}" for number in range(n_words)) + "."


def test_a_passage_that_repeats_is_read_once_whatever_the_case_and_line_ends(tmp_path):
    shared = clause("grant")
    site = site_with(
        tmp_path,
        numpy=f"{shared}\n\n{clause('patent')}\n",
        torch=f"{clause('warranty')}\n \n{shared.upper()}\n",
    )
    whole = "\n".join(document.text.lower() for document in licences.read_licences(site, tmp_path))
    for topic in ("grant", "patent", "warranty"):
        assert whole.count(f"{topic}42 ") == 1


def test_licences_hardly_repeat_each_other(quickstart):
    runs = []
    for document in quickstart["python-licences"]:
        words = licences.WORD.findall(document.text.lower())
        n = licences.RUN_WORDS
        runs.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)})
    shared = [sum(len(one & other) for j, other in enumerate(runs) if i != j) for i, one in enumerate(runs)]
    assert sum(shared) / 2 < 0.1 * sum(map(len, runs))


def test_installing_an_unrelated_package_is_no_other_text(tmp_path):
    site = site_with(tmp_path, numpy=clause("grant"))
    files = licences.licence_files(site, tmp_path)
    site_with(tmp_path, pytest=clause("other"))
    assert licences.licence_files(site, tmp_path) == files
    assert len(files) == 1


def needed(name: str, extras: Collection[str] = (), seen: set[tuple[str, str]] | None = None) -> set[str]:
    """What an installation of `name` brings, as the folders of its metadata are called."""
    seen = set() if seen is None else seen
    names = {re.sub(r"[-_.]+", "_", name).lower()}
    with suppress(PackageNotFoundError):  # on this platform there is none
        for line in requires(name) or []:
            found = Requirement(line)
            marks = [{"extra": extra} for extra in ("", *extras)]
            if (found.marker is None or any(map(found.marker.evaluate, marks))) and (name, line) not in seen:
                seen.add((name, line))
                names |= needed(found.name, found.extras, seen)
    return names


def test_the_licences_are_those_of_packages_that_every_installation_has() -> None:
    """Else `make test`, which installs more, would make the quickstart's law another text."""
    assert set(licences.PACKAGES) <= needed("bam")


def test_exercises_are_right_as_far_as_python_can_check():
    """Every line of the form `sum = sum = value`, made of numbers and operators only, holds."""
    checked = 0
    for document in exercises.read_exercises(300, seed=1):
        for sentence in re.split(r"\n|: |, |(?<=\d)\. |; | because | so | and |So ", document.text):
            is_sum = re.fullmatch(r"[\d\s+*/()^-]+(= [\d\s+*/()^-]+)+\.?", sentence)
            if is_sum and sentence.count("(") == sentence.count(")"):
                values = [eval(part.strip(" .").replace("^", "**")) for part in sentence.split("=")]
                assert max(values) - min(values) < 1e-9, sentence
                checked += 1
    assert checked > 2500


@pytest.mark.parametrize("seed", range(30))
def test_the_columns_of_an_addition_give_its_answer(seed):
    text = exercises.addition(exercises.Random(seed))
    a, b = map(int, re.match(r"Add (\d+) and (\d+)\.", text).groups())
    columns = re.findall(r": ([\d +]+) = (\d+), write (\d), carry (\d)\.", text)
    carried = 0
    for column, total, digit, carry in columns:
        assert carried == (int(column.split(" + ")[2]) if column.count("+") == 2 else 0)
        assert eval(column) == int(total) == int(carry) * 10 + int(digit)
        carried = int(carry)
    assert int(f"{carried}" + "".join(digit for _, _, digit, _ in reversed(columns))) == a + b


@pytest.mark.parametrize("topic", exercises.TOPICS, ids=lambda topic: topic.__name__)
def test_a_topic_is_varied_and_ends_its_last_line(topic):
    made = {topic(exercises.Random(seed)) for seed in range(100)}
    assert len(made) > 75
    assert all(text.endswith(".\n") or text[-2].isdigit() for text in made)


def test_more_documents_keep_the_first_and_another_seed_keeps_none():
    few = [document.text for document in exercises.read_exercises(20)]
    more = [document.text for document in exercises.read_exercises(40)]
    other = [document.text for document in exercises.read_exercises(40, seed=1)]
    assert more[:20] == few
    assert len(set(more + other)) == 80
