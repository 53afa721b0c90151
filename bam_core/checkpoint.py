"""A model folder: config.json, model.safetensors (or shards and an index), tokenizer.json, MODEL_CARD.md.

Written and read one tensor at a time. Equal models give equal bytes. Nothing is skipped: the tensors of a
folder are exactly those of its config, in name and shape, or it is refused with every difference named.
config.json has the sha256 of every tensor. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bam_core.config import LAYOUT_VERSION, ModelConfig
from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem, StoreError
from bam_core.graph.record import require_inside
from bam_core.nn.lm import LM
from bam_core.nn.shapes import Shape, tensor_shapes

CARD = "MODEL_CARD.md"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
MIN_SYNCED_BYTES = 16_000_000
"""A shard from this size on is brought to the disk at once: whoever commits it asks for that, and waits less."""


class TensorSource(Protocol):
    """Named tensors that are read when asked for, so that one at a time need be in memory."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> Shape: ...

    def get(self, name: str) -> Tensor: ...


class _SafetensorsFiles:
    """The tensors of one or more safetensors files; they are mapped into memory, and read when touched."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files
        """tensor name -> the open file that holds it"""

    def names(self) -> list[str]:
        return sorted(self._files)

    def shape(self, name: str) -> Shape:
        return tuple(self._files[name].get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def open_tensors(folder: Path) -> TensorSource:
    """Open the weights of a model folder without reading them.

    Raises ArtifactDamaged naming the file that is missing, truncated, not safetensors, of another layout
    version, or that does not hold what the index says.
    """
    index = folder / INDEX
    if not index.exists():
        file = _open_file(folder / WEIGHTS)
        return _SafetensorsFiles(dict.fromkeys(file.keys(), file))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ArtifactDamaged(f"{index}: has no weight_map of tensor names to file names")
    files: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        require_inside(shard, str(index))
        file = _open_file(folder / shard)
        promised = {name for name, holder in weight_map.items() if holder == shard}
        if differing := promised ^ set(file.keys()):
            raise ArtifactDamaged(f"{folder / shard}: differs from {INDEX} in {', '.join(sorted(differing))}")
        files |= dict.fromkeys(promised, file)
    return _SafetensorsFiles(files)


def _open_file(path: Path) -> Any:
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactDamaged(f"{path}: cannot be read as safetensors ({error})") from error
    version = (file.metadata() or {}).get("layout_version", str(LAYOUT_VERSION))
    if version != str(LAYOUT_VERSION):
        raise ArtifactDamaged(f"{path}: layout_version {version}; this version of bam reads {LAYOUT_VERSION}")
    return file


def read_config(folder: Path) -> ModelConfig:
    """Read what the model is; `bam`, the provenance, is left out.

    Raises ArtifactDamaged if the file is missing or not JSON, InvalidInput if it describes no possible model.
    """
    path = folder / CONFIG
    data = read_json(path)
    data.pop("bam", None)
    try:
        return ModelConfig.from_json(data, where=str(path))
    except (TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{path}: not the config of a model ({error})") from error


def made_by(folder: Path) -> dict[str, Any]:
    """What `write_model` kept of a model's provenance. Raises ArtifactDamaged if there is no config.json."""
    found = read_json(folder / CONFIG).get("bam")
    return found if isinstance(found, dict) else {}


def read_digests(folder: Path) -> dict[str, str]:
    """Tensor name -> sha256 as written; empty for a folder from before digests were kept. Raises ArtifactDamaged."""
    digests = made_by(folder).get("tensors", {})
    if not isinstance(digests, dict):
        raise ArtifactDamaged(f"{folder / CONFIG}: bam.tensors must map tensor names to sha256")
    return {str(name): str(digest) for name, digest in digests.items()}


def load_model(folder: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> LM:
    """Build the model of a folder with its weights, in evaluation mode.

    dtype: as `LM.cast`; None is the dtype of the weights as stored, and float32 if that is narrower.
    Raises InvalidInput naming every tensor that is missing, unknown or of another shape; else as
    `open_tensors`.
    """
    config = read_config(folder)
    source = open_tensors(folder)
    _require_tensors(folder, config, {name: source.shape(name) for name in source.names()})
    with torch.device(device):
        model = LM(config)
    model.cast(dtype or torch.promote_types(source.get("embed.weight").dtype, torch.float32))
    for name, parameter in model.state_dict().items():
        parameter.copy_(source.get(name))
    return model.eval()


def tensor_problems(config: ModelConfig, found: Mapping[str, Shape]) -> Iterator[Problem]:
    """Tensors that are missing, of no use to the config, or of another shape."""
    wanted = tensor_shapes(config)
    for name in wanted:
        if name not in found:
            yield Problem(name, None, f"is missing; must be {list(wanted[name])}")
    for name, shape in found.items():
        if name not in wanted:
            yield Problem(name, list(shape), "is no tensor of this config")
        elif shape != wanted[name]:
            yield Problem(name, list(shape), f"must be {list(wanted[name])}")


def _require_tensors(folder: Path, config: ModelConfig, found: Mapping[str, Shape]) -> None:
    if problems := list(tensor_problems(config, found)):
        raise InvalidInput(f"the tensors of {folder}", problems)


def write_model(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer: Path | None,
    card: str | None,
    provenance: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    made: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a model folder, tensors as they come; one shard and the tensor that opens the next are held.

    card: None if the caller writes it when it knows what the tensors came to. provenance: free-form JSON (stage,
    key ...), kept under `bam` in config.json, and with it, as `tensors`, the sha256 of every tensor. config.json is
    written last. made: what the iteration over `tensors` says of each of them, its `sha256` among it, when it has
    come to its end; without it they are hashed here.
    Raises InvalidInput, before the weights get their final names, unless the tensors are exactly the
    config's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, Shape] = {}
    digests: dict[str, str] = {}
    shards: list[list[str]] = []
    total_bytes = 0
    with ThreadPoolExecutor(1, "disk") as disk:
        synced = []
        for shard in filled_shards(tensors, max_shard_bytes):
            assert shapes.keys().isdisjoint(shard), f"tensors given twice: {shapes.keys() & shard.keys()}"
            part, shard_bytes = folder / part_name(len(shards)), sum(tensor.nbytes for tensor in shard.values())
            write_shard(part, shard, {"layout_version": str(LAYOUT_VERSION)})
            if shard_bytes >= MIN_SYNCED_BYTES:  # the disk works while the next one is made
                synced.append(disk.submit(_bring_to_disk, part))
            shards.append(sorted(shard))
            shapes |= {name: tuple(tensor.shape) for name, tensor in shard.items()}
            digests |= {name: tensor_sha256(tensor) for name, tensor in shard.items() if made is None}
            total_bytes += shard_bytes
            shard.clear()  # or it would stay alive while the next one fills
    for part_is_there in synced:
        part_is_there.result()
    _require_tensors(folder, config, shapes)
    digests |= {name: made[name]["sha256"] for name in shapes} if made is not None else {}
    for stale in folder.glob(f"{Path(WEIGHTS).stem}*.safetensors*"):
        stale.unlink()  # of an earlier model in this folder: an index of its shards would be read first
    name_shards(folder, shards, total_bytes)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    kept = dict(provenance or {}) | {"tensors": dict(sorted(digests.items()))}
    _write_json(folder / CONFIG, config.to_json() | {"bam": kept})


def write_shard(path: Path, shard: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """metadata: one entry only, since safetensors writes several in a random order, and bytes must not vary.

    Raises StoreError if the file cannot be written.
    """
    try:
        save_file(shard, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise StoreError(f"{path}: cannot be written ({error})") from error


def _bring_to_disk(path: Path) -> None:
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error})") from error


def part_name(index: int) -> str:
    """Of a shard, as long as it is not known how many there are."""
    return f"model-{index + 1:05d}.part"


def filled_shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The tensors, as many at a time as fit into one file; clear what you got before you ask for the next."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        assert name not in shard, f"tensor given twice: {name}"
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
        if size >= max_bytes:  # full: written before the next tensor is made
            del tensor
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def name_shards(folder: Path, shards: Sequence[Sequence[str]], total_bytes: int) -> None:
    """Give parts their final names, and several an index. shards: the names of the tensors of each."""
    if len(shards) == 1:
        (folder / part_name(0)).rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        shard = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / part_name(index)).rename(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    _write_json(
        folder / INDEX,
        {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tensor_sha256(tensor: Tensor) -> str:
    """Hex sha256 of the raw bytes, C order: of the very bytes that safetensors stores for this tensor."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw bytes, C order; of the tensor itself where it is contiguous and in the host's memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
