"""The wheel: all that the code reads, nothing else, the same bytes each time. Dependencies are as declared."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bam_core.errors import InvalidInput, StoreError
from infra import hub_text
from infra.storage import Storage
from infra.text_files import find_files

ROOT = Path(__file__).parents[2]
PACKAGES = ("bam", "bam_core", "infra", "pipelines")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMIT = "0123456789abcdef" * 2 + "01234567"
CORE = frozenset({"torch", "numpy", "safetensors", "tokenizers", "pyarrow"})
"""What `bam_core` needs to be imported: all of it, but for the files that only an export or one option asks for."""
IMPORTED_AS = {"pyyaml": "yaml", "nvidia-ml-py": "pynvml", "huggingface-hub": "huggingface_hub", "lm-eval": "lm_eval"}
NOT_IMPORTED = {"s3fs": "fsspec", "accelerate": "transformers", "protobuf": "transformers", "openai": "transformers"}
"""Who imports it instead."""
OF_AN_EXTRA = ("infra/openai_one_model.py", "infra/lm_eval_adapter.py", "bam_core/hf/remote/")
"""Files that are imported only after their extra was found."""


def own_files(root: Path) -> set[str]:
    """What the packages hold, but for what deploys it, which is for people with the checkout."""
    return {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "deploy" not in path.parts
    }


def build(source: Path, folder: Path, changed: float) -> Path:
    """A wheel of what is in `source`, copied to `folder` as if it had been changed at that time."""
    for name in ("pyproject.toml", "README.md", "LICENSE", *own_files(source)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
        os.utime(folder / name, (changed, changed))
    (folder / "setup.cfg").write_text(f"[egg_info]\ntag_build = +g{COMMIT}\n")  # as `make wheel` does
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", folder / "dist", folder]
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    [wheel] = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), 1.6e9)


def test_wheel_has_the_packages_and_their_files_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == own_files(wheel.parents[1])
    assert len(names) == len(set(names))
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    for needed in (
        "pipelines/recipes/quickstart.yaml",
        "pipelines/recipes/study/smoke.yaml",
        "pipelines/report/templates/report.html.j2",
        "bam_core/graph/page/lineage.js",
        "bam_core/hf/remote/modeling_bam.py",
    ):
        assert needed in names


def test_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    head = metadata.partition("\n\n")[0].splitlines()
    extras = {line.removeprefix("Provides-Extra: ") for line in head if line.startswith("Provides-Extra: ")}
    assert f"Version: {PROJECT['version']}+g{COMMIT}" in head
    assert "License-Expression: Apache-2.0" in head
    assert extras == set(PROJECT["optional-dependencies"])
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    [entries] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "bam = pipelines.cli:main" in entries


def test_two_builds_are_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert build(wheel.parents[1], tmp_path, 1.7e9).read_bytes() == wheel.read_bytes()


def test_records_name_the_commit_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert provenance_of(tmp_path) == f"{COMMIT} False None"
    (tmp_path / "bam_core" / "seeds.py").write_text("")
    commit, dirty, digest = provenance_of(tmp_path).split()
    assert (commit, dirty) == (COMMIT, "True")
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_another_bam_that_is_installed_lends_no_commit(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for package in ("bam_core", "infra"):
        shutil.copytree(tmp_path / "site" / package, tmp_path / "job" / package)
    assert provenance_of(tmp_path / "job", tmp_path / "site") == "None None None"


def provenance_of(*folders: Path) -> str:
    """What a record made with the code of the first folder would say of it."""
    code = (
        "from infra.provenance import capture; found = capture([]);"
        "print(found['git_commit'], found['dirty'], found['dirty_diff_sha256'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "BAM_PROVENANCE": ""},
        cwd=folders[0],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.strip()


def requirements(*groups: str) -> set[str]:
    """Packages of these extras, with those that they take from others; without one, what every install has."""
    lines = PROJECT["dependencies"] if not groups else [line for g in groups for line in EXTRAS[g]]
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines} - {"bam"}


EXTRAS = PROJECT["optional-dependencies"]
USED = tuple(name for name in EXTRAS if name not in ("dev", "docs"))


def module(requirement: str) -> str:
    return IMPORTED_AS.get(requirement, requirement)


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    declared = requirements() | requirements(*USED)
    known = {module(name) for name in declared}
    found = {top for package in PACKAGES for _, top, _ in imports(package)}
    assert found - known == set()
    assert known - found == {module(name) for name in NOT_IMPORTED}


def test_what_only_an_extra_brings_is_imported_where_it_is_used() -> None:
    """So that everything else works without it."""
    extra = {module(name) for name in requirements(*USED) - requirements()}
    at_once = [(file, top) for package in PACKAGES for file, top, inside in imports(package) if not inside]
    assert [(file, top) for file, top in at_once if top in extra and not file.startswith(OF_AN_EXTRA)] == []


def test_the_core_needs_five_packages() -> None:
    at_once = {top for file, top, inside in imports("bam_core") if not inside and not file.startswith(OF_AN_EXTRA)}
    assert at_once == CORE
    assert {(file, top) for file, top, inside in imports("bam_core") if inside and top not in CORE} == {
        ("bam_core/data/near_copies.py", "datasketch")
    }


def test_every_dependency_is_pinned_for_us_and_explained() -> None:
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in read("constraints.txt") if "==" in line}
    explained = set(re.findall(r"^\| `([\w.-]+)", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE))
    for name in sorted(requirements() | requirements(*EXTRAS)):
        assert name in pins, f"{name}: regenerate constraints.txt, as its first lines say"
        assert name in {word.lower().replace("_", "-") for word in explained}, f"{name}: a row of docs/dependencies.md"


def test_versions_that_are_pinned_agree() -> None:
    pins = dict(line.split("==") for line in read("constraints.txt") if "==" in line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for line in (*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)):
        if exact := re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(.+)", line):
            assert pinned[exact[1].lower().replace("_", "-")] == exact[2]


def test_without_s3fs_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(uri: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("infra.storage.url_to_fs", no_library)
    with pytest.raises(StoreError, match=r"s3://bucket/bam: Install s3fs .*-e '\.\[s3\]'"):
        Storage("s3://bucket/bam")
    with pytest.raises(InvalidInput, match=r"\[s3\]"):
        find_files("s3://bucket/*.txt")
    with pytest.raises(StoreError, match="pip install it"):
        Storage("gs://bucket/bam")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_text, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"owner/name.*\[hf\]"):
        hub_text.identity({"path": "owner/name", "revision": "0" * 40})


def read(file: str) -> list[str]:
    return (ROOT / file).read_text().splitlines()


def imports(package: str) -> Iterator[tuple[str, str, bool]]:
    """(file, package of somebody else's, whether inside a function) of every import but those for type checkers."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for name, inside in _imported(ast.parse(path.read_text()), inside=False):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                yield path.relative_to(ROOT).as_posix(), top, inside


def _imported(tree: ast.AST, *, inside: bool) -> Iterator[tuple[str, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, inside
        else:
            yield from _imported(node, inside=inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
