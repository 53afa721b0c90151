"""Files that leave a marker when they are unpickled, in every format that can hold a pickle."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

NAMES = (
    ".metadata",  # torch.distributed.checkpoint
    "checkpoint.pt",
    "dict_checkpoint.pkl",
    "model.pt",
    "optimizer.pt",
    "pytorch_model.bin",
    "state.pt",
    "training_args.bin",
    "preprocessor.pkl",
    ".tune_metadata",
    "searcher-state.pkl",
    "trainable.pkl",
    "trainer.pkl",
    "tuner.pkl",
    "params.pkl",
    "result.pkl",
    "python_model.pkl",
    "data.npy",
    "MLmodel.pkl",
)
"""Where libraries of this field look for pickles, in a folder that they are given."""


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(_Bomb(marker))


def torch_saved(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": _Bomb(marker)}, buffer)
    return buffer.getvalue()


def numpy_saved(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Bomb(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def arrow_file(path: Path, marker: Path) -> bytes:
    """The Arrow file at `path` with a column that claims to be an extension type whose type is a pickle."""
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    claims = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(marker)}
    fields = [field.with_metadata(claims) for field in table.schema]
    schema = pa.schema(fields, metadata=table.schema.metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(table.columns, schema=schema))
    return sink.getvalue().to_pybytes()


def safetensors_with_tail(marker: Path) -> bytes:
    """An empty safetensors file whose metadata holds a pickle, followed by one."""
    header = json.dumps({"__metadata__": {"pickle": pickled(marker).hex()}}).encode()
    return len(header).to_bytes(8, "little") + header + pickled(marker)


def zipped(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
    return buffer.getvalue()


KINDS: dict[str, Callable[[Path], bytes]] = {
    "pickle": pickled,
    "torch": torch_saved,
    "numpy": numpy_saved,
    "safetensors": safetensors_with_tail,
    "zip": zipped,
}


def plant_beside(root: Path, marker: Path) -> int:
    """Put a pickle under every telling name into every folder below `root`. Returns how many."""
    n_planted = 0
    for folder in [root, *(path for path in sorted(root.rglob("*")) if path.is_dir())]:
        for name in NAMES:
            if not (folder / name).exists():
                (folder / name).write_bytes(torch_saved(marker) if name.endswith((".pt", ".bin")) else pickled(marker))
                n_planted += 1
    return n_planted
