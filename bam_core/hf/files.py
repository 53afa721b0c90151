"""The files of a public model folder: what is there, what is not, and which of it can be opened.

Nothing is unpickled and no code of the folder is run. Files may be links: the hub's cache is made of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bam_core.checkpoint import CONFIG, INDEX, WEIGHTS
from bam_core.documents import LFS_POINTER
from bam_core.errors import ArtifactDamaged, Problem
from bam_core.graph.record import require_inside

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FETCH = "fetch it again: `git lfs pull`, or `hf download REPO`"
CONVERT = (
    "pickles are not opened, since that can run code; convert it in a place that you trust: python -c "
    "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('DIR-safe')\""
)


@dataclass(frozen=True)
class Weights:
    """files: tensor name -> (file name, the open file that holds it). problems: of the files."""

    files: Mapping[str, tuple[str, Any]]
    problems: list[Problem]


def folder_problem(folder: Path) -> Problem | None:
    """Why this is no folder that can be read."""
    remedy = "give a folder with config.json and *.safetensors, or the id of a model on the hub"
    if not folder.exists():
        return Problem("folder", str(folder), "is not there", remedy)
    if not folder.is_dir():
        kinds = {".gguf": "is a GGUF file, whose weights are quantised", ".bin": "is a pickle"}
        return Problem("folder", str(folder), kinds.get(folder.suffix, "is a file"), remedy)
    return None


def read_object(folder: Path, name: str, remedy: str) -> tuple[dict[str, Any], list[Problem]]:
    """A JSON file of the folder; empty, and what is wrong, if it cannot be read."""
    path = folder / name
    if not path.is_file():
        return {}, [Problem(name, None, f"is missing in {folder}", remedy)]
    if is_pointer(path):
        return {}, [Problem(name, "a git-LFS pointer", "holds no content", FETCH)]
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Problem(name, str(path), f"cannot be read as JSON: {error}", "fetch it again")]
    if not isinstance(data, dict):
        return {}, [Problem(name, data, "must be a JSON object", "fetch it again")]
    return data, []


def read_config_file(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    if (folder / "adapter_config.json").is_file() and not (folder / CONFIG).is_file():
        base = read_object(folder, "adapter_config.json", "")[0].get("base_model_name_or_path")
        remedy = "merge it first (peft: `merge_and_unload`), or name it as a domain's expert of a recipe"
        return {}, [Problem("adapter_config.json", base, "this is an adapter of that model, not a model", remedy)]
    return read_object(folder, CONFIG, "give the folder that save_pretrained wrote")


def is_pointer(path: Path) -> bool:
    """Whether a file is what git-LFS leaves in the place of one."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def open_weights(folder: Path) -> Weights:
    """Open every safetensors file that belongs to the model; values are not read."""
    names, problems = _weight_files(folder)
    files: dict[str, tuple[str, Any]] = {}
    for name, promised in names.items():
        held, found = _open(folder, name)
        problems += found
        if held is None:
            continue
        keys = set(held.keys())
        for tensor in sorted(keys if promised is None else promised & keys):
            if tensor in files:
                there = files[tensor][0]
                problems.append(Problem(f"{name}:{tensor}", None, f"is in {there} too", "write the model again"))
            files[tensor] = (name, held)
        if promised is not None and (gone := sorted(promised - keys)):
            words = f"lacks {len(gone)} tensors that {INDEX} names, {gone[0]} first"
            problems.append(Problem(name, f"{len(keys)} tensors", words, "fetch file and index again, of one commit"))
        if promised is not None and (more := sorted(keys - promised)):
            words = f"has {len(more)} tensors that {INDEX} does not name, {more[0]} first"
            problems.append(Problem(name, f"{len(keys)} tensors", words, "fetch file and index again, of one commit"))
    return Weights(files, problems)


def _weight_files(folder: Path) -> tuple[dict[str, set[str] | None], list[Problem]]:
    """File name -> the tensors that an index says are in it, None where there is no index."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}, []
    if (folder / INDEX).exists():
        return _indexed(folder)
    shards = sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name))
    if not shards:
        return {}, list(_no_weights(folder))
    last = max(int(match[2]) for name in shards if (match := SHARD.fullmatch(name)))
    wanted = [f"model-{number:05d}-of-{last:05d}.safetensors" for number in range(1, last + 1)]
    lacking = [name for name in wanted if name not in shards]
    return dict.fromkeys(shards), [Problem(name, None, f"is missing in {folder}", FETCH) for name in lacking]


def _indexed(folder: Path) -> tuple[dict[str, set[str] | None], list[Problem]]:
    data, problems = read_object(folder, INDEX, "")
    weight_map = data.get("weight_map")
    if problems:
        return {}, problems
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        words = "must map tensor names to file names"
        return {}, [Problem(f"{INDEX}.weight_map", type(weight_map).__name__, words, "fetch it again")]
    names: dict[str, set[str] | None] = {}
    for shard in sorted(set(weight_map.values())):
        promised = {name for name, holder in weight_map.items() if holder == shard}
        try:
            require_inside(shard, INDEX)
        except ArtifactDamaged:
            problems.append(Problem(f"{INDEX}.weight_map", shard, "must be a file of this folder", "do not trust it"))
            continue
        if (folder / shard).exists():
            names[shard] = promised
        else:
            words = f"is missing in {folder}; {INDEX} says that it holds {len(promised)} tensors"
            problems.append(Problem(shard, None, words, FETCH))
    return names, problems


def _no_weights(folder: Path) -> Iterator[Problem]:
    pickles = sorted(
        path.name for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin"
    )
    if pickles:
        shown = pickles[0] if len(pickles) == 1 else f"{pickles[0]} and {len(pickles) - 1} more"
        yield Problem(shown, "a pickle", f"must be {WEIGHTS} or shards of it", CONVERT.replace("DIR", str(folder)))
        return
    others = sorted(path.name for path in folder.glob("*.safetensors")) or sorted(
        path.name for path in folder.glob("*.gguf")
    )
    words = f"is missing in {folder}" + (f"; {others[0]} is no file of a model's weights" if others else "")
    yield Problem(WEIGHTS, None, words, "give the folder that save_pretrained wrote")


def _open(folder: Path, name: str) -> tuple[Any, list[Problem]]:
    path = folder / name
    if is_pointer(path):
        return None, [Problem(name, "a git-LFS pointer", "holds no weights", FETCH)]
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.is_file() else 0
        reason = f"cannot be read as safetensors: {error}"
        return None, [Problem(name, f"{size:,} bytes", reason, "it is cut short or damaged: fetch it again")]
    return file, []


def tokenizer_of(folder: Path, vocab_size: int | None) -> tuple[Path | None, list[Problem], str | None]:
    """tokenizer.json, what is wrong with it, and a note where there is none. vocab_size: of the model, if known."""
    path = folder / "tokenizer.json"
    if not path.exists():
        others = [name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / name).exists()]
        if not others:
            return None, [], "no tokenizer"
        return None, [], f"{others[0]}, which is to be converted to tokenizer.json"
    data, problems = read_object(folder, path.name, "")
    if problems:
        return None, problems, None
    ids = _ids(data)
    if vocab_size is not None and ids and max(ids) >= vocab_size:
        words = f"must be below the model's vocab_size, {vocab_size}"
        remedy = "give the tokenizer that the model was trained with, or resize the embedding"
        return None, [Problem("tokenizer.json", f"ids up to {max(ids)}", words, remedy)], None
    return path, [], None


def _ids(data: Mapping[str, Any]) -> list[int]:
    """The ids that a tokenizer.json gives out, as far as they can be seen."""
    model, added = data.get("model"), data.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    found = [len(vocabulary) - 1] if isinstance(vocabulary, list) and vocabulary else []
    if isinstance(vocabulary, Mapping):
        found += [number for number in vocabulary.values() if isinstance(number, int)]
    rows = added if isinstance(added, list) else []
    return found + [row["id"] for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), int)]
