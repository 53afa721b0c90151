"""Who made this tensor: from a model back through training, mixing and editing to the seed's random numbers.

Pure: records and the JSON files of their artifacts in, a tree of `Origin` out. Invariant: a step is what was written
down when it happened (`mix.json`, `edit.json`, a record's inputs), never what exists now. An ancestor that is gone is
marked missing; one that was made again since, with other bytes, is marked replaced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bam_core.config import ModelConfig
from bam_core.errors import BamError, UsageError, nearest
from bam_core.graph.adopted import origin_words
from bam_core.graph.key import key12
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import kind_of
from bam_core.seeds import child_seed

NodeId = tuple[str, str]
Documents = Mapping[NodeId, Mapping[str, Mapping[str, Any]]]
"""(stage, key) -> name of a file of the artifact (config.json, mix.json, edit.json) -> its content."""

_BRANCHES = {"attn": "attention", "ffn": "ffn"}


@dataclass(frozen=True)
class Origin:
    """One step in a tensor's making. digest: sha256 of the whole tensor; None where it was not written down.

    expert: its number and label in a stacked tensor, where one was asked for. op: `trained`, `adopted`, `random`, or
    the operation that mix.json or edit.json names. parents: the tensors that it was made from.
    """

    stage: str
    key: str
    tensor: str
    expert: str | None
    op: str
    digest: str | None
    detail: str = ""
    missing: bool = False
    replaced: bool = False
    parents: tuple[Origin, ...] = ()


def parse_tensor(text: str, names: Collection[str]) -> tuple[str, str | None]:
    """`NAME` or `NAME[EXPERT]` as (name, expert). `layers.` is read as `blocks.`. Raises UsageError."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", text.strip())
    if match is None:
        raise UsageError(f"{text!r}: must read TENSOR or TENSOR[EXPERT], such as blocks.1.attn.w_q[law]")
    name, expert = match[1].strip(), match[2]
    ours = re.sub(r"^layers\.", "blocks.", name)
    if ours not in names:
        raise UsageError(f"{name!r} is no tensor of this model: {nearest(ours, names)}")
    return ours, None if expert is None else expert.strip()


def expert_index(text: str, tensor: str, labels: Sequence[str]) -> int:
    """The place of an expert, given as number or label, in a tensor stacked in the order of `labels`.

    labels: empty for a tensor that has no expert dimension. Raises UsageError.
    """
    if not labels:
        raise UsageError(f"{tensor} is one tensor for all experts: leave [{text}] out")
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    if text not in labels:
        raise UsageError(f"{tensor}[{text}]: there are {len(labels)} experts, from 0; {nearest(text, labels)}")
    return labels.index(text)


def blame(
    record: Record, tensor: str, index: int | None, records: Mapping[NodeId, Record], documents: Documents
) -> Origin:
    """The making of one tensor of a model, or, with `index`, of one expert's part of it."""
    return _Walk(records, documents).step(record.ref, tensor, index, None)


@dataclass(frozen=True)
class _Walk:
    records: Mapping[NodeId, Record]
    documents: Documents

    def step(self, ref: InputRef, tensor: str, index: int | None, read: str | None) -> Origin:
        """read: the digest that the child wrote down when it read this tensor."""
        node = (ref.stage, ref.key)
        record, files = self.records.get(node), self.documents.get(node, {})
        if record is None:
            return Origin(ref.stage, ref.key, tensor, _number(index), "", read, missing=True)
        now = _digests(files).get(tensor)
        kind = "import" if "import" in record.payload.get("config", {}) else kind_of(ref.stage)
        makers = {
            "mix": self._mixed,
            "edit": self._edited,
            "seed": self._from_scratch,
            "import": self._imported,
            "adopted": self._adopted,
        }
        op, detail, parents = makers.get(kind, self._trained)(record, files, tensor, index)
        return Origin(
            stage=ref.stage,
            key=ref.key,
            tensor=tensor,
            expert=_label(files, tensor, index),
            op=op,
            digest=read or now,
            detail=detail,
            replaced=record.digest != ref.digest or (read is not None and now is not None and read != now),
            parents=tuple(parents),
        )

    def _trained(self, record: Record, files: Any, tensor: str, index: int | None) -> _Made:
        sources = [ref for role, ref in record.inputs.items() if role in ("mix", "seed", "teacher", "import")]
        return "trained", "", [self.step(ref, tensor, index, None) for ref in sources]

    def _adopted(self, record: Record, files: Any, tensor: str, index: int | None) -> _Made:
        """Trained elsewhere, from a seed that is ours too."""
        _, _, parents = self._trained(record, files, tensor, index)
        return "adopted", f"trained as {origin_words(record)}", parents

    def _imported(self, record: Record, files: Mapping[str, Any], tensor: str, index: int | None) -> _Made:
        """Of a checkpoint that somebody else made: there is no record of that."""
        said = record.payload["config"]["import"]
        entry = files.get("import.json", {}).get("tensors", {}).get(tensor, {})
        steps = [entry.get("from", "import.json does not say of what"), *entry.get("then", ())]
        detail = f"{', '.join(steps)}; {said.get('hub') or said['family']} {said['digest'][:12]}"
        return "imported", detail, []

    def _from_scratch(self, record: Record, files: Any, tensor: str, index: int | None) -> _Made:
        seed = record.payload.get("config", {}).get("init_seed")
        detail = "its seed is not in the record" if seed is None else f"init seed {seed}, its own {_own(seed, tensor)}"
        return "trained", "", [Origin(record.stage, record.key, tensor, None, "random", None, detail)]

    def _mixed(self, record: Record, files: Mapping[str, Any], tensor: str, index: int | None) -> _Made:
        mix = files.get("mix.json", {})
        entry = mix.get("tensors", {}).get(tensor)
        if entry is None:
            return "mixed", "mix.json does not say how", []
        is_stack = entry["op"] == "stack"
        wanted = _of_expert(entry["from"], index, _width(_config(files), tensor)) if is_stack else entry["from"]
        parents = []
        for source in wanted:
            role = dict(mix["experts"])[source["expert"]]
            ref = record.inputs.get(role, InputRef(role, "", ""))
            parents.append(self.step(ref, source["tensor"], None, source["sha256"]))
        seed = record.payload.get("config", {}).get("seed")
        return entry["op"], "; ".join(_facts(entry, seed, tensor)), parents

    def _edited(self, record: Record, files: Mapping[str, Any], tensor: str, index: int | None) -> _Made:
        edit = files.get("edit.json", {})
        entry = edit.get("tensors", {}).get(tensor)
        if entry is None:
            return "edited", "edit.json does not say how", []
        detail = f"{edit.get('operation')} {edit.get('name')}"
        slots = entry.get("slots")
        place = slots[index] if slots and index is not None and index < len(slots) else None
        parents = []
        for source in entry["from"]:
            role = source["input"]
            if place is not None and place[0] != role:
                continue
            inner = None if role == "expert" else index if place is None else place[1]
            ref = record.inputs.get(role, InputRef(role, "", ""))
            parents.append(self.step(ref, source["tensor"], inner, source["sha256"]))
        if place is not None and not parents:
            detail += f", fresh ({edit.get('router_row', 'constant')})"
        return entry["op"], "; ".join([detail, *_facts(entry, None, tensor)]), parents


_Made = tuple[str, str, list[Origin]]
"""Operation, detail, parents."""


def _of_expert(sources: Sequence[Any], index: int | None, width: int) -> Sequence[Any]:
    """Of a stack's sources, which stand in stacking order, the one of an expert; all when none is asked for."""
    return sources if index is None else sources[index // width :][:1]


def _width(config: ModelConfig | None, tensor: str) -> int:
    """Experts that each dense model gave to a tensor: its FFN may be cut into groups."""
    return config.ffn.split if config is not None and config.ffn is not None and ".ffn." in tensor else 1


def _facts(entry: Mapping[str, Any], seed: int | None, tensor: str) -> Iterator[str]:
    if not entry["from"] and seed is not None:
        yield f"{entry.get('init', 'new')}, seed {seed}, its own {_own(seed, tensor)}"
    if "factor" in entry:
        yield f"times {entry['factor']:g}"


def _own(seed: int, tensor: str) -> int:
    return child_seed(seed, tensor)


def _config(files: Mapping[str, Any]) -> ModelConfig | None:
    data = {name: value for name, value in files.get("config.json", {}).items() if name != "bam"}
    try:
        return ModelConfig.from_json(data) if data else None
    except (BamError, TypeError):
        return None


def _digests(files: Mapping[str, Any]) -> Mapping[str, str]:
    made_by = files.get("config.json", {}).get("bam") or {}
    tensors: Mapping[str, str] = made_by.get("tensors") or {}
    return tensors


def _label(files: Mapping[str, Any], tensor: str, index: int | None) -> str | None:
    config, branch = _config(files), _BRANCHES.get(".".join(tensor.split(".")[2:3]))
    if index is None or config is None or branch is None:
        return _number(index)
    labels = config.expert_labels("attention" if branch == "attention" else "ffn")
    return f"{index}: {labels[index]}" if index < len(labels) else _number(index)


def _number(index: int | None) -> str | None:
    return None if index is None else str(index)


def to_json(origin: Origin) -> dict[str, Any]:
    return asdict(origin)


def to_text(origin: Origin) -> str:
    """A tree, the newest first; a chain that was drawn already is `(above)`."""
    return "\n".join(_lines(origin, "", "", set()))


def _lines(origin: Origin, stem: str, turn: str, drawn: set[tuple[str, str, str, str | None, str]]) -> Iterator[str]:
    this = (origin.stage, origin.key, origin.tensor, origin.expert, origin.op)
    again = bool(origin.parents) and this in drawn
    drawn.add(this)
    yield f"{stem}{turn}{_words(origin)}" + "  (above)" * again
    below = stem + {"": "", "├─ ": "│  ", "└─ ": "   "}[turn]
    for number, parent in enumerate(() if again else origin.parents):
        yield from _lines(parent, below, "└─ " if number == len(origin.parents) - 1 else "├─ ", drawn)


def _words(origin: Origin) -> str:
    if origin.op == "random":
        return f"random initialisation: {origin.detail}"
    name = origin.tensor + (f"[{origin.expert}]" if origin.expert is not None else "")
    parts = [f"{origin.stage}@{key12(origin.key) or '?'}", name]
    if origin.op:
        parts.append(origin.op + (f" ({origin.detail})" if origin.detail else ""))
    parts.append(f"sha256 {origin.digest[:12]}" if origin.digest else "sha256 not recorded")
    if origin.missing:
        parts.append("missing: gone from the store")
    if origin.replaced:
        parts.append("replaced: made again since, with other bytes")
    return "  ".join(parts)
