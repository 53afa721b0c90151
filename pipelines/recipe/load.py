"""A name or a path to a checked `Recipe`, or every reason why not.

Two readings of one document: the first gives the schema's errors; if there are any, the second leaves holes
where they were, so that the checks across keys still speak about everything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bam_core.errors import InvalidInput, Problem, UsageError, nearest
from pipelines.recipe import checks
from pipelines.recipe.base import LENIENT, TAG
from pipelines.recipe.document import apply_sets, join
from pipelines.recipe.extends import read_whole, told
from pipelines.recipe.imports import Look, look_at_all
from pipelines.recipe.layers import last_said
from pipelines.recipe.like import resolve_likes, said_once
from pipelines.recipe.matching_checks import is_missing_pace
from pipelines.recipe.parts import TOKENIZERS
from pipelines.recipe.schema import Recipe
from pipelines.recipe.sources import SOURCES, TEXTS
from pipelines.recipe.vocabulary import fill_vocab_size

SHIPPED = Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with bam: `quickstart`, `paper/paper_small`, ..."""
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in sorted(SHIPPED.rglob("*.yaml"))}


def load_recipe(
    name_or_path: str, sets: Sequence[str] = (), *, unmeasured: bool = False, look: Look | None = None
) -> Recipe:
    """Read, override, check. Raises UsageError for an unknown name, InvalidInput with all that is wrong.

    unmeasured: paces that `match: seconds` needs may be missing; nothing that depends on them can be asked then. look:
    at the checkpoints that the recipe imports; without it nothing is known of them, and `recipe_with_imports` follows.
    """
    path = find_recipe(name_or_path)
    where = f"recipe {name_or_path}"
    layered, problems = read_whole(path, name_or_path, find_recipe)
    said = [item.partition("=")[0] for item in sets]
    problems += apply_sets(layered.document, sets)
    last_said(layered.document, said)
    for key in said:
        layered.tell(key, name_or_path)
    try:
        return recipe_from(layered.document, where, problems, unmeasured=unmeasured, look=look)
    except InvalidInput as error:
        found = [p if p in problems else told(p, layered, name_or_path) for p in error.problems]
        raise InvalidInput(where, found) from error


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's name, with its folder or without, or of a path.

    Raises UsageError with the nearest name, or for a name that is in two folders with both.
    """
    path = Path(name_or_path)
    looks_like_path = path.suffix in {".yaml", ".yml"} or name_or_path.startswith((".", "/", "~"))
    if not looks_like_path and (shipped := _shipped(name_or_path)):
        return shipped
    try:
        if name_or_path and path.expanduser().exists():
            return path.expanduser()
    except (OSError, ValueError, RuntimeError):  # a name too long for a file, a NUL byte, an unknown ~user
        pass
    kind = "no such file" if looks_like_path else "no such file, and no shipped recipe of this name"
    hint = _near(path) or (
        "a shipped one goes by its name, such as quickstart" if looks_like_path else _shipped_names()
    )
    raise UsageError(f"recipe {name_or_path[:200]!r}: {kind}; {hint}")


def _near(path: Path) -> str:
    """The shipped recipe or the file beside it whose name is nearest; nothing where none is near."""
    known = {short: short for name in shipped_recipes() for short in (name, Path(name).name)}
    with suppress(OSError, ValueError):  # a name too long for a file, a NUL byte
        known |= {file.stem: str(file) for file in path.parent.glob("*.y*ml")}
    found = get_close_matches(path.stem, known, n=1)
    return f"did you mean {known[found[0]]!r}?" if found else ""


def _shipped_names() -> str:
    return f"known: {', '.join(shipped_recipes())}"


def _shipped(name: str) -> Path | None:
    recipes = shipped_recipes()
    found = [full for full in recipes if full == name] or [full for full in recipes if full.endswith(f"/{name}")]
    if name and len(found) > 1:
        raise UsageError(f"recipe {name!r}: there are {' and '.join(found)}; say which")
    return recipes[found[0]] if name and found else None


def recipe_with_imports(recipe: Recipe, look: Look) -> Recipe:
    """A recipe that was loaded without a look at what it imports, with it. Raises InvalidInput."""
    imports, problems = look_at_all(recipe, look)
    known = recipe.knowing(imports)
    holes = {problem.path for problem in problems}
    problems += [p for p in checks.problems(known) if not is_missing_pace(p) and not _is_under(p.path, holes)]
    if problems:
        raise InvalidInput(f"recipe {recipe.name}", problems)
    return known


def recipe_from(
    document: dict[str, Any],
    where: str,
    problems: Sequence[Problem] = (),
    *,
    unmeasured: bool = False,
    look: Look | None = None,
) -> Recipe:
    """Check a document against the schema and across its keys. Raises InvalidInput with everything."""
    likes, bases = resolve_likes(document)
    found = [*problems, *fill_vocab_size(document), *likes]
    recipe, schema_problems = _validate(document)
    found += schema_problems
    if recipe is not None and look is not None and recipe.imported:
        imports, wrong_imports = look_at_all(recipe, look)
        recipe = recipe.knowing(imports)
        found += wrong_imports
    if recipe is not None:
        holes = {problem.path for problem in found}
        found += [problem for problem in checks.problems(recipe) if not _is_under(problem.path, holes)]
    found = [p for p in said_once(found, bases) if not (unmeasured and is_missing_pace(p))]
    if found or recipe is None:
        order = list(Recipe.model_fields)
        found.sort(key=lambda problem: _position(problem.path, order))
        raise InvalidInput(where, found)
    return recipe


def _position(path: str, order: list[str]) -> int:
    top = path.split(".")[0]
    return order.index(top) if top in order else -1


def _is_under(path: str, holes: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[: depth + 1]) in holes for depth in range(len(parts)))


def _validate(document: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, with holes where the schema's problems are; None when even that is not possible."""
    try:
        return Recipe.model_validate(document), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = [_problem(wrong) for wrong in errors]
    for wrong in errors:
        if wrong["type"] == "missing":
            _make_hole(document, _keys(wrong["loc"]))
    try:
        return Recipe.model_validate(document, context=LENIENT), problems
    except ValidationError:
        return None, problems


def _make_hole(document: dict[str, Any], keys: Sequence[Any]) -> None:
    target = document
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = None


_UNIONS = {"source", "expert", "attention", "ffn", "merge", "shared", "train"}


def _keys(loc: Sequence[Any]) -> list[Any]:
    """pydantic's location without the names it adds for the chosen member of a union."""
    keys: list[Any] = []
    for depth, item in enumerate(loc):
        in_tokenizer = depth == 1 and loc[0] in ("tokenizer", "dense")
        in_member = depth == 3 and loc[2] in _UNIONS and loc[0] != "distil"
        is_tag = isinstance(item, str) and item.startswith(TAG)
        in_experts = depth == 5 and loc[0] == "variants" and loc[4] == "experts"
        if not (in_tokenizer or in_member or in_experts or is_tag):
            keys.append(item)
    return keys


def _problem(error: Mapping[str, Any]) -> Problem:
    """A schema error in our words."""
    keys = _keys(error["loc"])
    is_key = bool(keys) and keys[-1] == "[key]"
    path = ""
    for key in keys[:-1] if is_key else keys:
        path = join(path, key)
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return Problem(path, None, "is missing")
    if is_key or kind == "invalid_key":
        return Problem(path, value, "a key must be text", "put it in quotes")
    if kind == "union_tag_not_found":
        is_cluster_fine = len(keys) == 3 and (keys[0], keys[2]) == ("domains", "source")
        sources = SOURCES if is_cluster_fine else TEXTS
        return _no_such_kind(path, value, TOKENIZERS if path == "tokenizer" else sources)
    if kind == "literal_error":
        return _not_one_of(path, value, re.findall(r"'([^']*)'", context["expected"]))
    if kind == "value_error":
        return Problem(path, value, str(context["error"]))
    expected = _EXPECTED.get(kind) or error["msg"]
    if len(keys) == 3 and (keys[0], keys[2]) == ("domains", "expert"):
        expected += ", or the name of an adopted expert" if kind.startswith("model_") else ""
    return Problem(path, value, expected)


def _no_such_kind(path: str, value: Any, kinds: Mapping[str, Any]) -> Problem:
    if not isinstance(value, dict):
        return Problem(path, value, f"must be a mapping with a kind, one of {', '.join(kinds)}")
    if "kind" not in value:
        return Problem(f"{path}.kind", None, f"is missing; one of {', '.join(kinds)}")
    return _not_one_of(f"{path}.kind", value["kind"], list(kinds))


def _not_one_of(path: str, value: Any, known: Sequence[str]) -> Problem:
    expected = f"must be {' or '.join(known)}" if len(known) < 3 else f"must be one of {', '.join(known)}"
    expected += _OR_KEYS.get(known[-1], _OR_KEYS.get(known[0], ""))
    remedy = nearest(value, known) if isinstance(value, str) else ""
    return Problem(path, value, expected, remedy if remedy.startswith("did you mean") else "")


_OR_KEYS = {
    "uniform": ", or a share for each domain",
    "merged": ", or the keys of a mixture of experts",
    "routed": ", or the keys of what is routed",
    "per-domain": ", or a list of domains",
    "mean": ", or the keys of a merge",
}
_EXPECTED = {
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
}
