"""What `bam` and `bam_core` offer is what `__all__` says, to people, to type checkers and at run time, and is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bam
import bam_core

ROOT = Path(__file__).parents[2]
PACKAGES = ("bam", "bam_core")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) == set(module._WHERE)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'no_such'"):
        module.no_such  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_sees_the_same(package: str) -> None:
    """The names of the `if TYPE_CHECKING` block, and from where: those that are found at run time."""
    module = importlib.import_module(package)
    assert (ROOT / package / "py.typed").exists()
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Name)
        ):
            found[node.targets[0].id] = found[node.value.id]
    assert found.keys() == set(module.__all__)
    for name, (home, attribute) in found.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), attribute)


def test_the_class_of_a_mixture_is_that_of_a_model() -> None:
    assert bam_core.MixtureLM is bam_core.LM is bam.LM
    assert bam.upcycle is bam_core.upcycle_models


def test_importing_and_planning_are_cheap() -> None:
    """Neither package loads anything slow, a plan no Ray, MLflow, torch or pandas; the core never Ray or MLflow."""
    code = f"""
import sys
slow = {{"ray", "mlflow", "torch", "pandas", "pydantic", "datasets", "transformers"}}
import bam, bam_core
assert not slow & set(sys.modules), slow & set(sys.modules)
from bam_core import ModelConfig, VARIANTS
assert not slow & set(sys.modules), slow & set(sys.modules)
pipeline = bam.load("quickstart", set={{"seed": 1}}, store={str(ROOT / "no_store")!r})
repr(pipeline)
assert not (slow - {{"pydantic"}}) & set(sys.modules), slow & set(sys.modules)
for name in bam_core.__all__:
    getattr(bam_core, name)
print(sorted(slow & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['pydantic', 'torch']"
    assert not (ROOT / "no_store").exists()
