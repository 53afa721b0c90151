"""What a first recipe is made from: the text and the model that somebody names, and what this machine has.

A text is named as `PATH` or `PATH:COLUMN`; PATH is a file, a folder, a glob, a URI, or `hf:ORG/NAME` (`/SUBSET`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem, UsageError
from infra import text_looking
from infra.devices import nvidia_gpus
from infra.text_looking import LookedAt
from pipelines.recipe import recipe_from
from pipelines.recipe.document import join, parse
from pipelines.recipe.imports import Asked, Checkpoint
from pipelines.starting.choosing import Chosen, Start, choose
from pipelines.starting.found import Found
from pipelines.starting.recipe import recipe_text
from pipelines.starting.sizes import SeedModel

HUB = "hf:"
IS_THERE = "there already; --force writes over it"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def find_text(named: str) -> tuple[Found, str | None]:
    """What is there, and the column that was named with it. Raises InvalidInput."""
    place, column = _split(named)
    _require_writable(place)
    if place.startswith(HUB):
        return _of_hub(place.removeprefix(HUB)), column
    is_there = "://" in place or _exists(place)
    if is_there and "://" not in place and Path(place).expanduser().is_dir():
        return _of_folder(place), column
    if is_there or any(char in place for char in "*?["):
        return _of_files([place]), column
    if _HUB_ID.fullmatch(place) and not Path(place).suffix and not _exists(place.partition("/")[0]):
        return _perhaps_of_hub(place), column
    raise InvalidInput("source", [Problem("path", place, "no such file or folder", _near(place))])


def _split(named: str) -> tuple[str, str | None]:
    """A column has no slash; a file whose name has a colon is taken as it is."""
    place, colon, column = named.rpartition(":")
    if not colon or not place or "/" in column or _exists(named) or place in ("hf", "file"):
        return named, None
    return place, column or None


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a file, a NUL byte, an unknown ~user
        return False


def _near(place: str) -> str:
    """The name beside it that is most like it; else what else may be meant."""
    folder = Path(place).expanduser().parent
    names = [path.name for path in folder.iterdir()] if _exists(str(folder)) and folder.is_dir() else []
    close = get_close_matches(Path(place).name, names, n=1)
    return f"did you mean {str(Path(place).with_name(close[0]))!r}?" if close else f"{HUB}ORG/NAME is one of the hub"


def _require_writable(place: str) -> None:
    """A recipe is UTF-8, so a path in it is too."""
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "source", [Problem("path", ascii(place), "has a name that is not UTF-8", "rename")]
        ) from error


def _of_folder(place: str) -> Found:
    from infra.hub_looking import is_saved

    if is_saved(place):
        return _of_hub(place if place.startswith((".", "/", "~")) else f"./{place}")
    return _of_files(text_looking.pattern_of(place))


def _of_files(paths: list[str]) -> Found:
    path = paths[0] if len(paths) == 1 else paths
    looked = text_looking.look_at_files(path)
    return _found({"kind": looked.kind, "path": path}, looked)


def _perhaps_of_hub(place: str) -> Found:
    """Of what may as well be a path that is misspelt."""
    try:
        return _of_hub(place)
    except InvalidInput as error:
        words = "is no file or folder here, and as a data set of the hub"
        raise InvalidInput("source", [replace(p, expected=f"{words}: {p.expected}") for p in error.problems]) from error


def _of_hub(place: str) -> Found:
    from infra.hub_looking import SPLIT, look_at_hub
    from infra.hub_text import is_folder

    org, name, *subset = place.split("/", 2) if not is_folder(place) else (place, "")
    path, of = (place, None) if not name else (f"{org}/{name}", subset[0] if subset else None)
    looked, split = look_at_hub(path, of)
    source: dict[str, Any] = {"kind": "hf", "path": path} | ({"name": of} if of else {})
    return _found(source | ({"split": split} if split != SPLIT else {}), looked)


def _found(source: Mapping[str, Any], looked: LookedAt) -> Found:
    return Found(source, looked.files, looked.columns, looked.n_bytes)


def find_seed(source: str) -> tuple[SeedModel, Checkpoint]:
    """A folder or an id of the hub, looked at; no weight is read. Raises InvalidInput."""
    from bam_core.nn import costs
    from pipelines.wiring.imported import look

    found = look(Asked("--seed-model", source, None), None)
    params = costs.params_total(found.config)
    return SeedModel(source, found.family, params, found.config.max_seq_len), found


def name_problems(name: str, domains: Iterable[str]) -> list[Problem]:
    """What a recipe would say of these names alone."""
    document = {"name": name, "domains": {domain: {"source": {"kind": "generated-math"}} for domain in domains}}
    places = {"name", *(join("domains", domain) for domain in document["domains"])}
    try:
        recipe_from(document, "")
    except InvalidInput as error:
        return [problem for problem in error.problems if problem.path in places]
    raise AssertionError("a recipe of names alone lacks its phases")


def same_texts(domains: Mapping[str, Iterable[Found]]) -> list[Problem]:
    """Files that two domains have in common: the one's held-out text would be in the other's training text."""
    owner: dict[str, str] = {}
    problems: dict[str, Problem] = {}
    for domain, found in domains.items():
        for file in (file for one in found for file in one.files):
            first = owner.setdefault(file, domain)
            if first != domain:
                expected = f"has {file}, which is text of {first}"
                problems.setdefault(domain, Problem(f"--domain {domain}", None, expected, "a file is of one domain"))
    return list(problems.values())


def write_recipe(start: Start, file: Path, *, checkpoint: Checkpoint | None, replace_it: bool) -> Chosen:
    """Choose, write, and read back. Nothing is written of what the recipe's own reader refuses.

    Raises InvalidInput, and UsageError for a file that is there (unless replace_it) or cannot be written.
    """
    start = replace(start, cpus=os.cpu_count() or 1, gpus=nvidia_gpus())
    chosen = choose(start)
    text = recipe_text(start, chosen, str(file))
    document, problems = parse(text, str(file))
    recipe_from(document, str(file), problems, look=None if checkpoint is None else lambda *_: checkpoint)
    _write(file, text, replace_it)
    return chosen


def _write(file: Path, text: str, replace_it: bool) -> None:
    """As a whole, or not at all; only with replace_it over what is there, which stays until the new one is whole."""
    made = file.with_name(f".{file.name}.{os.getpid()}") if replace_it else file
    try:
        with made.open("x", encoding="utf-8") as out:
            try:
                out.write(text)
                out.flush()
            except OSError:
                made.unlink()
                raise
        if replace_it:
            made.replace(file)
    except FileExistsError as error:
        raise UsageError(f"{file}: {IS_THERE}") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror or error}") from error
