"""A configuration of mergekit-moe as frozen types, or all that is wrong with it, each with its line.

It is stricter than mergekit where mergekit goes on and fails later, or makes something else than was meant: unknown
keys, unknown gate modes, prompts that no router can tell apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem, nearest
from pipelines.recipe.document import join, lines_of, parse, read_text

PROMPTED = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")
RANDOM = ("random", "uniform_random")
DTYPES = ("bfloat16", "float16", "float32", "float64")
ARCHITECTURES = ("mixtral", "deepseek", "qwen", "qwen3")

_TOP = ("base_model", "gate_mode", "dtype", "experts", "experts_per_token", "shared_experts", "architecture")
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
_DENSE_MERGES = ("merge_method", "models", "slices")
_REFERENCE = ("model", "lora", "override_architecture")


@dataclass(frozen=True)
class Source:
    """A checkpoint: a folder or an id of the hub, and a LoRA adapter on it."""

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        return "+".join(_at(path, commit) for path, commit in self._parts if path)

    @property
    def _parts(self) -> tuple[tuple[str | None, str | None], ...]:
        return (self.path, self.revision), (self.lora, self.lora_revision)


def _at(path: str | None, revision: str | None) -> str:
    return f"{path}@{revision}" if revision else str(path)


@dataclass(frozen=True)
class Expert:
    source: Source
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise_scale: float | None = None
    residual_scale: float | None = None


@dataclass(frozen=True)
class MoeConfig:
    base: Source
    experts: tuple[Expert, ...]
    shared: Expert | None
    gate_mode: str
    dtype: str | None
    top_k: int
    architecture: str | None


def read_moe_config(path: Path) -> MoeConfig:
    """Raises InvalidInput with everything that is wrong in the file."""
    where = str(path)
    return moe_config(read_text(path, where), where)


def moe_config(text: str, where: str) -> MoeConfig:
    """Of a text. Raises InvalidInput with everything that is wrong."""
    document, problems = parse(text, where)
    reader = _Reader(lines_of(text), [])
    reader.problems += problems
    found = reader.config(document)
    if reader.problems or found is None:
        raise InvalidInput(where, reader.problems)
    return found


class _Reader:
    """Reads what it can and remembers what is wrong."""

    def __init__(self, lines: Mapping[str, int], problems: list[Problem]) -> None:
        self.lines, self.problems = lines, problems

    def wrong(self, path: str, value: Any, expected: str, remedy: str = "") -> None:
        self.problems.append(Problem(f"line {self.line(path)}: {path}" if path else "", value, expected, remedy))

    def line(self, path: str) -> int:
        """Of the key, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path, 1)

    def config(self, document: Any) -> MoeConfig | None:
        if not isinstance(document, Mapping):
            self.wrong("", document, "must be a mapping with base_model and experts")
            return None
        if dense := [key for key in _DENSE_MERGES if key in document]:
            self.wrong(
                dense[0],
                document[dense[0]],
                "belongs to mergekit-yaml, which merges into a dense model; this reads mergekit-moe's",
                "a variant with attention: merged, ffn: merged and merge: {method: ...} is such a merge",
            )
            return None
        self._known(document, _TOP, "")
        base = self._source(document, "base_model", "")
        experts = self._experts(document, "experts")
        shared = self._experts(document, "shared_experts") if document.get("shared_experts") else ()
        mode = self._one_of(document, "gate_mode", (*PROMPTED, *RANDOM)) or "hidden"
        found = MoeConfig(
            base=base or Source("?"),
            experts=experts,
            shared=shared[0] if shared else None,
            gate_mode=mode,
            dtype=self._dtype(document),
            top_k=self._top_k(document, len(experts)),
            architecture=self._one_of(document, "architecture", ARCHITECTURES),
        )
        if len(shared) > 1:
            self.wrong("shared_experts", len(shared), "must be one at most, here as in mergekit")
        if found.base.lora:
            self.wrong("base_model", str(found.base), "has an adapter, and a seed is a whole model", _MERGE_FIRST)
        for number, expert in enumerate(experts):
            if expert.source.lora and _at(expert.source.path, expert.source.revision) != str(found.base):
                here = f"experts.{number}.source_model"
                self.wrong(here, str(expert.source), "is an adapter of another model than base_model", _MERGE_FIRST)
        if mode in PROMPTED and experts:
            self._prompts_tell_apart(experts)
        return found

    def _known(self, part: Mapping[Any, Any], known: Collection[str], path: str) -> None:
        for key in part:
            if key not in known:
                self.wrong(join(path, key), part[key], "is not a known key", nearest(str(key), known))

    def _one_of(self, document: Mapping[str, Any], key: str, known: Collection[str]) -> str | None:
        value = document.get(key)
        if value is None or (isinstance(value, str) and value.lower() in known):
            return value.lower() if value is not None else None
        remedy = nearest(value, known) if isinstance(value, str) else ""
        remedy = remedy if remedy.startswith("did you mean") else ""
        self.wrong(key, value, f"must be one of {', '.join(known)}", remedy)
        return None

    def _dtype(self, document: Mapping[str, Any]) -> str | None:
        value = document.get("dtype")
        plain = value.removeprefix("torch.") if isinstance(value, str) else value
        return self._one_of({"dtype": plain}, "dtype", DTYPES)

    def _top_k(self, document: Mapping[str, Any], n_experts: int) -> int:
        value = document.get("experts_per_token", 2)
        if type(value) is not int or value < 1:
            self.wrong("experts_per_token", value, "must be a number of at least 1")
            return 1
        if n_experts and value > n_experts:
            said = "" if "experts_per_token" in document else " (its default)"
            here = "experts_per_token" if "experts_per_token" in document else "experts"
            self.wrong(here, value, f"experts_per_token{said} must be at most the number of experts, {n_experts}")
        return value

    def _experts(self, document: Mapping[str, Any], key: str) -> tuple[Expert, ...]:
        value = document.get(key)
        if not isinstance(value, list) or not value:
            self.wrong(key, value, "is missing" if value is None else "must be a list of experts")
            return ()
        return tuple(e for n, part in enumerate(value) if (e := self._expert(part, f"{key}.{n}")) is not None)

    def _expert(self, part: Any, path: str) -> Expert | None:
        if not isinstance(part, Mapping):
            self.wrong(path, part, "must be a mapping with source_model")
            return None
        self._known(part, _EXPERT, path)
        source = self._source(part, "source_model", path)
        return Expert(
            source=source or Source("?"),
            positive=self._prompts(part, "positive_prompts", path),
            negative=self._prompts(part, "negative_prompts", path),
            noise_scale=self._number(part, "noise_scale", path),
            residual_scale=self._number(part, "residual_scale", path),
        )

    def _prompts(self, part: Mapping[str, Any], key: str, path: str) -> tuple[str, ...]:
        value = part.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in value):
            self.wrong(join(path, key), value, "must be a list of texts", "put each in quotes, after a dash")
            return ()
        return tuple(value)

    def _number(self, part: Mapping[str, Any], key: str, path: str) -> float | None:
        value = part.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            self.wrong(join(path, key), value, "must be a number")
            return None
        return float(value)

    def _source(self, part: Mapping[str, Any], key: str, path: str) -> Source | None:
        """`path@revision+lora@revision`, or the same as a mapping."""
        here, value = join(path, key), part.get(key)
        if isinstance(value, str) and value:
            model, *loras = value.split("+")
            base, lora = _halves(model), _halves(loras[0]) if loras else (None, None)
            if len(loras) <= 1 and base is not None and lora is not None:
                return Source(*base, *lora)
        elif isinstance(value, Mapping):
            self._known(value, _REFERENCE, here)
            found = [_reference(value.get(name)) for name in ("model", "lora")]
            if "override_architecture" in value:
                words = "has no equal: a family is told by its config.json"
                self.wrong(join(here, "override_architecture"), value["override_architecture"], words)
            if found[0] is not None and (found[1] is not None or value.get("lora") is None):
                return Source(*found[0], *(found[1] or (None, None)))
        expected = "must be a folder or an id of the hub: PATH, PATH@REVISION or PATH+LORA"
        self.wrong(here, value, "is missing" if value is None else expected)
        return None

    def _prompts_tell_apart(self, experts: tuple[Expert, ...]) -> None:
        """A gate made of prompts needs some of each expert, and not the same."""
        for number, expert in enumerate(experts):
            if not expert.positive:
                remedy = "or gate_mode: random, to train the router afterwards"
                self.wrong(f"experts.{number}", str(expert.source), "has no positive_prompts for the router", remedy)
        first: dict[tuple[str, ...], int] = {}
        for number, expert in enumerate(experts):
            asked = tuple(sorted(expert.positive))
            if asked and asked in first:
                words = f"are those of experts.{first[asked]}: no router can tell the two apart"
                self.wrong(f"experts.{number}.positive_prompts", list(asked), words)
            first.setdefault(asked, number)


_MERGE_FIRST = "write the merged model first: peft's merge_and_unload, then save_pretrained"


def _halves(text: str) -> tuple[str, str | None] | None:
    path, at, revision = text.partition("@")
    return (path, revision or None) if path and "@" not in revision and bool(at) == bool(revision) else None


def _reference(value: Any) -> tuple[str, str | None] | None:
    if isinstance(value, str):
        return _halves(value)
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return value["path"], value.get("revision")
    return None


def problems_of(config: MoeConfig) -> Iterator[str]:
    """What mergekit would make of it and is likely not meant; no reason to refuse."""
    sources = {str(expert.source) for expert in config.experts}
    if len(sources) == 1 and len(config.experts) > 1:
        yield "all experts are one checkpoint: without training the mixture is that model, at a higher price"
