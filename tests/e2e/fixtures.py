"""Fixtures of the tests that run whole pipelines. One undisturbed run is made once and copied where it is needed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kit import Place, recipe_dict, write_recipe, write_texts


@functools.cache
def _finished(folder: Path) -> Place:
    place = _new_place(folder)
    answer = place.run()
    assert answer.status == 0, answer.err
    return place


def _new_place(folder: Path) -> Place:
    write_texts(folder / "texts")
    return Place(write_recipe(folder / "tiny.yaml", recipe_dict(folder / "texts")), folder / "store")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An undisturbed whole run. Read it only."""
    return _finished(tmp_path_factory.getbasetemp() / "finished")


@pytest.fixture
def done(finished: Place, tmp_path: Path) -> Place:
    """A copy of the finished run, with texts and a recipe of its own, to change at will."""
    place = _new_place(tmp_path)
    shutil.copytree(finished.store, place.store)
    return place


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    """The same recipe and a store that is not there yet."""
    return _new_place(tmp_path)


@pytest.fixture
def up_to(finished: Place, empty: Place) -> Callable[..., Place]:
    """`up_to("seed", "data.*")`: a store with these artifacts of the finished run and no others."""

    def copy(*patterns: str) -> Place:
        for pattern in patterns:
            found = list(finished.store.glob(f"artifacts/{pattern}"))
            assert found, f"the finished run has no {pattern}"
            for folder in found:
                shutil.copytree(folder, empty.store / "artifacts" / folder.name)
        return empty

    return copy
