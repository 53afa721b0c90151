"""A model of the store as a folder for transformers: `bam export`.

All of the folder or nothing: it grows beside its place and gets its name last. What was in its place is never removed.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from bam_core.documents import read_json
from bam_core.errors import StoreError, UsageError
from bam_core.graph import refs
from bam_core.graph.record import Record
from bam_core.graph.stage import kind_of
from infra.store import ArtifactStore
from pipelines.stages.inputs import EXPORTED
from pipelines.wiring.carding import card_text
from pipelines.wiring.origins import Known, known_records, model_record, name_of, upstream, whole_folder
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.hf.export import Exported


@dataclass(frozen=True)
class ExportedFolder:
    """model: `stage@key12`. report: what export.json says. kept: where what was in the folder's place is now."""

    model: str
    folder: Path
    report: dict[str, Any]
    size_bytes: int
    has_tokenizer: bool
    has_chat_template: bool
    kept: Path | None = None


def export(
    ref: str,
    folder: Path,
    settings: Settings,
    *,
    to: str = "auto",
    dtype: str | None = None,
    chat_template: Path | None = None,
    force: bool = False,
) -> ExportedFolder:
    """Write the model `ref` for transformers. to: `auto`, `bam` or a class's model_type. dtype: fp32, bf16 or fp64.

    force: a folder that has something in it is moved aside. Raises UsageError for what is no model, a folder that is
    not empty or cannot be written, InvalidInput where the class that was asked for is another model.
    """
    _require_free(folder, force)
    if chat_template is not None:
        _require_template(chat_template)
    store = open_store(settings)
    known = known_records(store)
    record = refs.resolve(ref, known.values())
    if kind_of(record.stage) == "export":
        is_as_it_is = to == "auto" and dtype is None and chat_template is None
        return _copied(record, whole_folder(store, record) / EXPORTED, folder, is_as_it_is)
    record = model_record(ref, known)
    source = whole_folder(store, record)

    def write(growing: Path) -> Exported:
        from bam_core.hf.export import export_model
        from bam_core.train.loop import DTYPES

        return export_model(
            source,
            growing,
            to=to,
            dtype=DTYPES[dtype] if dtype is not None else None,
            chat_template=chat_template,
            beside=tokenizer_settings(store, record, known),
            card=card_text(store, record, known, store.runs.all()),
            origin={"stage": record.stage, "key": record.key, "digest": record.digest},
        )

    with _growing(folder) as growing:
        _require_room(growing.parent, source, dtype)
        found = write(growing)
        report = read_json(growing / "export.json")
        kept = _put(growing, folder)
    return ExportedFolder(
        name_of(record.ref), folder, report, found.size_bytes, found.has_tokenizer, found.has_chat_template, kept
    )


def _copied(record: Record, source: Path, folder: Path, is_as_it_is: bool) -> ExportedFolder:
    """An export that a run has made, out of the store."""
    model = name_of(record.inputs.get("model"))
    if not is_as_it_is:
        raise UsageError(f"{name_of(record.ref)} is an export of {model} already; give that model to have another")
    with _growing(folder) as growing:
        shutil.copytree(source, growing)
        report = read_json(growing / "export.json")
        size = sum(path.stat().st_size for path in growing.glob("*.safetensors"))
        has_tokenizer, has_template = ((growing / name).is_file() for name in ("tokenizer.json", "chat_template.jinja"))
        kept = _put(growing, folder)
    return ExportedFolder(model, folder, report, size, has_tokenizer, has_template, kept)


def tokenizer_settings(store: ArtifactStore, record: Record, known: Known) -> Path | None:
    """The nearest ancestor, the seed before all others, that came with settings of its tokenizer."""
    wanted = {"tokenizer_config.json", "chat_template.jinja"}
    found = [made for made in upstream(record, known) if wanted & {output.path for output in made.outputs}]
    found.sort(key=lambda made: kind_of(made.stage) != "seed")
    return store.localize(found[0]) if found else None


def _require_free(folder: Path, force: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is no folder: nothing was written; give another DIR")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: nothing was written; give another DIR, or --force to move it aside")


def _require_template(file: Path) -> None:
    """One that cannot be read would be found out by whoever opens the folder. Raises UsageError."""
    from pipelines.wiring.chat_format import compiled

    try:
        compiled(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"--chat-template {file}: is no file") from error
    except OSError as error:
        raise UsageError(f"--chat-template {file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--chat-template {file}: is not UTF-8 text (byte {error.start})") from error
    except TemplateError as error:
        raise UsageError(f"--chat-template {file}: is no template of jinja2: {error}") from error


def _require_room(where: Path, source: Path, dtype: str | None) -> None:
    """A disk that is too small is told before an hour of writing, not after."""
    stored = sum(path.stat().st_size for path in source.iterdir() if path.is_file())
    needed = stored * {"fp64": 2.0, "bf16": 0.5}.get(dtype or "", 1.0)  # of float32, as most are stored
    free = shutil.disk_usage(where).free
    if needed > free:
        sizes = f"{needed / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} are free"
        raise UsageError(f"{where}: {sizes}: nothing was written")


@contextmanager
def _growing(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is asked for, to be written and renamed; gone whatever happens."""
    growing = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield growing
    except (OSError, StoreError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        remedy = "; free some space and run the same command" if is_full else ""
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{folder}: cannot be written: {words}{remedy}") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _put(growing: Path, folder: Path) -> Path | None:
    """Give it its name. Returns where what had that name is now, if that was anything."""
    if not folder.exists() or not any(folder.iterdir()):
        growing.rename(folder)
        return None
    kept = next(path for path in _names_beside(folder) if not path.exists())
    folder.rename(kept)
    try:
        growing.rename(folder)
    except OSError:
        kept.rename(folder)
        raise
    return kept


def _names_beside(folder: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield folder.with_name(f"{folder.name}.before-{number}")
        number += 1
