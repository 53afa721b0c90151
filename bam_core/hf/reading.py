"""Open a model folder of somebody else: its config and tensors as ours, read one at a time when they are asked for.

Invariant: all of it or none of it. Each tensor of the folder is used or known to be no weight, each of ours is made,
and every field that changes what the model computes is expressed; else everything that is wrong is named at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource, open_tensors, read_config, tensor_problems
from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem, nearest
from bam_core.hf.families import Family, find_family
from bam_core.hf.files import (
    DTYPES,
    Weights,
    folder_problem,
    open_weights,
    read_config_file,
    tokenizer_of,
)
from bam_core.hf.links import Link
from bam_core.nn.shapes import Shape, tensor_shapes

OURS = "bam"
"""The family of our own model folders."""
MAX_NAMED = 12
"""Tensors that are named before the rest is counted."""
CODE = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


@dataclass(frozen=True)
class Imported:
    """A dense model, or one of ours, that can be read. tensors: in our names and layout.

    dtype: of the embedding as it is stored. tokenizer: tokenizer.json, if there is one. notes: what is no fault and
    good to know. links, weights: of what is not our own folder, its tensors and ours and the files that hold them.
    """

    folder: Path
    family: str
    config: ModelConfig
    tensors: TensorSource
    dtype: torch.dtype
    tokenizer: Path | None
    links: Sequence[Link] = ()
    notes: tuple[str, ...] = ()
    weights: Weights = field(default_factory=lambda: Weights({}, []), repr=False)

    def origin(self, name: str) -> str:
        """Where a tensor of ours comes from: file and tensors."""
        found = [link for link in self.links if name in link.ours]
        theirs = [tensor for link in found for tensor in link.theirs]
        return " + ".join(f"{self.weights.files[tensor][0]}:{tensor}" for tensor in theirs) or name


class _Translated:
    """A `TensorSource` of links over open files."""

    def __init__(self, config: ModelConfig, links: Sequence[Link], files: Mapping[str, tuple[str, Any]]) -> None:
        self._shapes = tensor_shapes(config)
        self._links = {name: (link, place) for link in links for place, name in enumerate(link.ours)}
        self._files = files

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def get(self, name: str) -> Tensor:
        link, place = self._links[name]
        return link.to_ours([self._files[theirs][1].get_tensor(theirs) for theirs in link.theirs])[place]


def read_checkpoint(folder: Path, *, ignore_code: bool = False) -> Imported:
    """Open a folder that save_pretrained wrote, or one of ours; names, shapes and dtypes are read, values are not.

    ignore_code: read a folder with a model file of its own as the class that its model_type names, as transformers does
    without `trust_remote_code`; code is never run.

    Raises InvalidInput with every problem: field or file, value, what would be right, remedy.
    """
    where = f"the model in {folder}"
    if problem := folder_problem(folder):
        raise InvalidInput(where, [problem])
    data, problems = read_config_file(folder)
    if not problems and "model_type" not in data and "layout_version" in data:
        return _ours(folder)
    family: Family | None = None
    config: ModelConfig | None = None
    if data:
        family, problems = find_family(data)
        problems = [*problems, *_config_problems(data, ignore_code)]
        if family is not None:
            config, found = family.parse(data)
            problems += found
    opened = open_weights(folder)
    weights = _renamed(opened, family) if family is not None else opened
    problems += weights.problems
    links = family.links(config) if family is not None and config is not None else []
    if family is not None and config is not None and weights.files:
        problems += _tensor_problems(family, config, links, weights, whole=not weights.problems)
    tokenizer, found, note = tokenizer_of(folder, config.vocab_size if config is not None else None)
    problems += found
    if problems:
        raise InvalidInput(where, problems)
    assert family is not None, f"{where}: no problem, and no family"
    assert config is not None, f"{where}: no problem, and no config"
    tensors = _Translated(config, links, weights.files)
    dtype = _dtype(weights, links[0])
    notes = (*_notes(data), *([note] if note else []))
    return Imported(folder, family.model_type, config, tensors, dtype, tokenizer, links, notes, weights)


def _ours(folder: Path) -> Imported:
    try:
        config, tensors = read_config(folder), open_tensors(folder)
    except ArtifactDamaged as error:
        problem = Problem("folder", str(folder), str(error), "give a whole artifact of bam")
        raise InvalidInput(f"the model in {folder}", [problem]) from error
    if problems := list(tensor_problems(config, {name: tensors.shape(name) for name in tensors.names()})):
        raise InvalidInput(f"the model in {folder}", problems)
    tokenizer = folder / "tokenizer.json"
    dtype = tensors.get("embed.weight").dtype
    return Imported(folder, OURS, config, tensors, dtype, tokenizer if tokenizer.is_file() else None)


def _config_problems(data: Mapping[str, Any], ignore_code: bool) -> Iterator[Problem]:
    """What is wrong with any family's config: code, quantised weights."""
    auto_map = data.get("auto_map")
    if isinstance(auto_map, Mapping) and not ignore_code:
        for name in CODE:
            if name in auto_map:
                remedy = (
                    f"if it computes what transformers' own class of model_type {data.get('model_type')!r} does, "
                    "say so: --ignore-code, or take auto_map out of config.json"
                )
                words = "is code of the folder that wants to run; it is never run, and what it does cannot be seen"
                yield Problem(f"config.json.auto_map.{name}", auto_map[name], words, remedy)
    quantised = data.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        remedy = "give the checkpoint before quantisation, or dequantise it and save it in bfloat16"
        yield Problem("config.json.quantization_config", method, "the weights are quantised", remedy)


def _notes(data: Mapping[str, Any]) -> Iterator[str]:
    dropouts = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")
    if dropped := [f"{name} {data[name]}" for name in dropouts if data.get(name)]:
        yield f"{', '.join(dropped)}: training here has no dropout"


def _renamed(weights: Weights, family: Family) -> Weights:
    """Under the names that `links` uses."""
    files = dict(weights.files)
    for other, name in family.names.aliases.items():
        if other in files and name not in files:
            file, held = files.pop(other)
            files[name] = (file, _Alias(held, name, other))
    return Weights(files, weights.problems)


@dataclass(frozen=True)
class _Alias:
    """One tensor of an open file, under another name."""

    held: Any
    name: str
    stored: str

    def get_tensor(self, name: str) -> Any:
        assert name == self.name, (name, self.name)
        return self.held.get_tensor(self.stored)

    def get_slice(self, name: str) -> Any:
        assert name == self.name, (name, self.name)
        return self.held.get_slice(self.stored)


def _tensor_problems(
    family: Family, config: ModelConfig, links: Sequence[Link], weights: Weights, whole: bool
) -> Iterator[Problem]:
    """Tensors that are missing, of another shape or dtype, or would be lost. whole: all files could be opened."""
    wanted = {name: shape for link in links for name, shape in link.theirs.items()}
    if whole:
        yield from _capped(_missing(wanted, weights, config, family), "are missing too")
    yield from _capped(_misshapen(wanted, weights), "are of another shape or dtype too")
    yield from _capped(_leftover(wanted, weights, config, family), "would be lost too")


def _capped(problems: Iterator[Problem], words: str) -> Iterator[Problem]:
    found = list(problems)
    yield from found[:MAX_NAMED]
    if rest := found[MAX_NAMED:]:
        yield Problem(f"{rest[0].path} ..", f"{len(rest)} more tensors", words, rest[0].remedy)


def _missing(wanted: Mapping[str, Shape], weights: Weights, config: ModelConfig, family: Family) -> Iterator[Problem]:
    for name, shape in wanted.items():
        if name in weights.files:
            continue
        remedy = "write the checkpoint again with save_pretrained, or correct config.json"
        if name == f"{family.names.head}.weight":
            remedy = "set tie_word_embeddings to true in config.json if the embedding is the head"
        yield Problem(name, None, f"is missing in every file; must be {list(shape)}", remedy)


def _misshapen(wanted: Mapping[str, Shape], weights: Weights) -> Iterator[Problem]:
    for name, (file, held) in weights.files.items():
        if name not in wanted:
            continue
        entry = held.get_slice(name)
        shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
        if shape != wanted[name]:
            remedy = "correct config.json, or write the checkpoint again"
            yield Problem(f"{file}:{name}", list(shape), f"must be {list(wanted[name])} by config.json", remedy)
        if dtype not in DTYPES:
            words = f"must be of {', '.join(DTYPES.values())}: quantised weights are not imported"
            yield Problem(f"{file}:{name}", dtype, words, "give the checkpoint before quantisation")


def _leftover(wanted: Mapping[str, Shape], weights: Weights, config: ModelConfig, family: Family) -> Iterator[Problem]:
    head = f"{family.names.head}.weight"
    for name, (file, held) in weights.files.items():
        if name in wanted or any(re.search(pattern, name) for pattern in family.names.left_out):
            continue
        if name == head and config.tie_embeddings:
            continue  # `value_problems` compares it with the embedding
        remedy = f"correct config.json, or take it out; {nearest(name, wanted)}"
        if "lora_" in name:
            remedy = "merge the adapter into the weights first (peft: `merge_and_unload`)"
        elif name.endswith("bias"):
            remedy = "say in config.json that there is a bias, or take it out"
        words = f"is no tensor of a {family.architecture} of this config; it would be lost"
        yield Problem(f"{file}:{name}", list(held.get_slice(name).get_shape()), words, remedy)


def _dtype(weights: Weights, embedding: Link) -> torch.dtype:
    name = next(iter(embedding.theirs))
    found: torch.dtype = getattr(torch, DTYPES[weights.files[name][1].get_slice(name).get_dtype()])
    return found
