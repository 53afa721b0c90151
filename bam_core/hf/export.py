"""A model of ours as a folder that transformers opens: weights, config, code if there is no class, tokenizer, report.

Tensors are read, turned and written one at a time. `export.json` says of every tensor of ours where it went, by digest;
nothing is left unread, or there is no export. Equal models give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import (
    CARD,
    CONFIG,
    MAX_SHARD_BYTES,
    TensorSource,
    filled_shards,
    name_shards,
    open_tensors,
    part_name,
    read_config,
    read_digests,
    tensor_sha256,
    write_shard,
)
from bam_core.config import ModelConfig
from bam_core.errors import ArtifactDamaged
from bam_core.hf.moves import AS_IT_IS, Move, require_each_once
from bam_core.hf.targets import AUTO, Target, choose
from bam_core.hf.to_bam import CODE, REMOTE
from bam_core.hf.tokens import CHAT_TEMPLATE, GENERATION, TOKENIZER, carried_settings, write_tokenizer
from bam_core.nn.shapes import tensor_shapes

REPORT = "export.json"
README = "README.md"
FORMAT = 1
TRANSFORMERS = "5.23.0"
"""The version that exports are tested with."""


@dataclass(frozen=True)
class Exported:
    """target: what it was written as, and why. tensors: how many of ours, and of theirs. dtype: of the weights."""

    target: Target
    n_ours: int
    n_theirs: int
    size_bytes: int
    dtype: str
    has_tokenizer: bool
    has_chat_template: bool


def export_model(
    folder: Path,
    out: Path,
    *,
    to: str = AUTO,
    dtype: torch.dtype | None = None,
    chat_template: Path | None = None,
    beside: Path | None = None,
    card: str | None = None,
    origin: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write the export of a model folder into `out`, a folder with nothing in it.

    dtype: of the weights, as stored by default; routers of `bam` are never narrower than float32. beside: a folder with
    what belongs to the tokenizer, where the model's own has not got it. card: in place of the folder's. origin: where
    the model is from (stage, key, digest), for the report.
    Raises UsageError and InvalidInput as `targets.choose`, ArtifactDamaged for a tensor that is not as recorded,
    StoreError if a file cannot be written.
    """
    config, source = read_config(folder), open_tensors(folder)
    target = choose(config, source, to, dtype)
    require_each_once(target.moves, list(tensor_shapes(config)))
    if unknown := set(source.names()) ^ set(tensor_shapes(config)):
        raise ArtifactDamaged(f"{folder}: its tensors are not those of its config: {', '.join(sorted(unknown))}")
    out.mkdir(parents=True, exist_ok=True)
    main = source.get("embed.weight").dtype if dtype is None else dtype
    report: dict[str, Any] = {}
    moving = _Moving(target, source, read_digests(folder), main, dtype is not None, report)
    size = _write_weights(out, moving.tensors(), max_shard_bytes)
    special = write_tokenizer(folder, out, config.max_seq_len, chat_template, beside)
    words = str(main).removeprefix("torch.")
    about = {"transformers_version": TRANSFORMERS, "dtype": words}
    _write_json(out / CONFIG, {**target.config, **_NO_TOKENS, **_of_text(special), **about})
    carried = carried_settings(folder, beside)  # may know more ends than one
    _write_json(out / GENERATION, special | carried | {"transformers_version": TRANSFORMERS})
    for name in CODE if target.has_code else ():
        shutil.copyfile(REMOTE / name, out / name)
    (out / README).write_text(_readme(folder, card, target), encoding="utf-8")
    _write_json(out / REPORT, _report(target, config, origin or {}, words, report, out))
    n_theirs = sum(len(move.theirs) for move in target.moves)
    has_template = (out / CHAT_TEMPLATE).is_file()
    return Exported(target, len(report["read"]), n_theirs, size, words, (out / TOKENIZER).is_file(), has_template)


_NO_TOKENS: Mapping[str, None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Classes have those of their own models by default, which may lie outside the vocabulary."""


def _of_text(special: Mapping[str, int]) -> dict[str, int]:
    """Without padding: the token that pads ends documents too, and an embedding does not train its padding's row."""
    return {name: number for name, number in special.items() if name != "pad_token_id"}


@dataclass(frozen=True)
class _Moving:
    """What all tensors of an export have in common. dtype: of the weights; is_cast: whether that was asked for."""

    target: Target
    source: TensorSource
    recorded: Mapping[str, str]
    dtype: torch.dtype
    is_cast: bool
    report: dict[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Theirs, and what became of each of ours into the report."""
        self.report.update({"read": {}, "tensors": {}, "left_out": {}})
        for move in self.target.moves:
            yield from self._tensors(move)  # a call of its own: what it holds is gone before the next is read

    def _tensors(self, move: Move) -> Iterator[tuple[str, Tensor]]:
        found = [self.source.get(name) for name in move.ours]
        parents = [{"tensor": name, "sha256": self._digest(name, t)} for name, t in zip(move.ours, found, strict=True)]
        self.report["read"] |= {parent["tensor"]: parent["sha256"] for parent in parents}
        if not move.theirs:
            self.report["left_out"] |= {p["tensor"]: {"sha256": p["sha256"], "how": move.how} for p in parents}
            return
        for (name, shape), tensor in zip(move.theirs.items(), move.turn(found), strict=True):
            assert tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)} is not {tuple(shape)}"
            made = self._in_dtype(tensor, move).contiguous()
            digest = tensor_sha256(made)
            self.report["tensors"][name] = {
                "sha256": digest,
                "dtype": str(made.dtype).removeprefix("torch."),
                "shape": list(shape),
                "from": parents,
                "how": _how(move, digest == parents[0]["sha256"], found[0].dtype, made.dtype),
            }
            yield name, made

    def _digest(self, name: str, tensor: Tensor) -> str:
        digest = tensor_sha256(tensor)
        if (recorded := self.recorded.get(name, digest)) != digest:
            words = f"its bytes are {digest[:12]}, of record {recorded[:12]}"
            raise ArtifactDamaged(f"{name} is not what was written: {words}")
        return digest

    def _in_dtype(self, tensor: Tensor, move: Move) -> Tensor:
        if move.is_router and self.target.has_code:
            return tensor.to(torch.promote_types(self.dtype if self.is_cast else tensor.dtype, torch.float32))
        return tensor.to(self.dtype)


def _how(move: Move, is_same: bool, stored: torch.dtype, made: torch.dtype) -> str:
    """In words; a link of a family has none, so its digest says whether anything moved."""
    how = move.how or (AS_IT_IS if is_same else "rearranged")
    return how if made == stored else f"{how}, {stored} as {made}".replace("torch.", "")


def _write_weights(out: Path, tensors: Iterator[tuple[str, Tensor]], max_shard_bytes: int) -> int:
    shards: list[list[str]] = []
    total = 0
    for shard in filled_shards(tensors, max_shard_bytes):
        write_shard(out / part_name(len(shards)), shard, {"format": "pt"})
        shards.append(sorted(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        shard.clear()
    name_shards(out, shards, total)
    return total


def _report(
    target: Target, config: ModelConfig, origin: Mapping[str, Any], dtype: str, found: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if target.config.get("tie_word_embeddings") else {}
    return {
        "format": FORMAT,
        "to": target.name,
        "class": target.architecture,
        "reason": target.reason,
        "refused": {
            name: {"field": problem.path, "value": str(problem.value), "reason": problem.expected}
            for name, problem in target.refused.items()
        },
        "notes": list(target.notes),
        "model": dict(origin),
        "model_config": config.to_json(),
        "dtype": dtype,
        "tied": tied,
        "tensors": dict(sorted(found["tensors"].items())),
        "left_out": found["left_out"],
        "files": {path.name: _sha256(path) for path in sorted(out.iterdir()) if path.is_file()},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readme(folder: Path, card: str | None, target: Target) -> str:
    """The model's card, and how to open it here."""
    if card is None:
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else "# A BAM model"
    card = card.replace("\nlibrary_name: bam\n", "\nlibrary_name: transformers\n", 1)
    trust = ", trust_remote_code=True" if target.has_code else ""
    what = (
        f"As `{target.architecture}` of transformers; every tensor and where it came from: `{REPORT}`."
        if not target.has_code
        else f"With its own code, `{'`, `'.join(CODE)}`: read it before you trust it. Every tensor and where it came "
        f"from: `{REPORT}`."
    )
    lines = [
        "## Open it",
        what,
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained(DIR{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(DIR{trust})\n```",
    ]
    return "\n\n".join([card.rstrip(), *lines]) + "\n"


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
