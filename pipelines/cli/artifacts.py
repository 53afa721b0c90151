"""`bam show`, `tree`, `get`: what the store holds."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import ArtifactDamaged, UsageError, nearest
from bam_core.graph.key import key12
from bam_core.graph.record import Output, Record
from bam_core.graph.refs import resolve
from pipelines.cli import completing, text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.step0 import step0_text
from pipelines.cli.text_stats import STATS_FILE, stats_text

MIX_FILE = "mix.json"

if TYPE_CHECKING:
    from infra.store import ArtifactStore


@click.command(
    cls=Command,
    examples=(
        "bam show train.bam",
        "bam show mix.bam@0123abcd --json",
    ),
)
@click.argument("ref", shell_complete=completing.artifacts)
@with_session
def show(session: Session, ref: str) -> None:
    """One artifact's record in full; of a mixture what it was at step 0, of a text what was left out of it."""
    store = _store(session)
    record = resolve(ref, store.records())
    uri = store.artifact_uri(record.stage, record.key)
    step0, stats = _step0(store, record), _stats(store, record)
    value = record.to_json() | {"artifact": uri} | ({"step0": step0} if step0 else {})
    value |= {"text": stats} if stats else {}

    def words() -> str:
        found = {"text": stats_text(stats, _inside())} if stats else {}
        if step0:
            found["step 0"] = step0_text(step0, width=max(40, shutil.get_terminal_size().columns - 2))
        parts = [record_text(record, uri)]
        for title, shown in found.items():
            parts += ["", click.style(title, bold=True), indent(shown, "  ")]
        return "\n".join(parts)

    session.answer(value, words)


def _step0(store: ArtifactStore, record: Record) -> Mapping[str, Any] | None:
    """`receipt.step0` of a mixture's mix.json. One that cannot be read is a warning: the record is still shown."""
    if MIX_FILE not in {output.path for output in record.outputs}:
        return None
    try:
        path = store.localize(record) / MIX_FILE
        found: Mapping[str, Any] | None = json.loads(path.read_bytes())["receipt"].get("step0")
    except (ArtifactDamaged, OSError, ValueError, TypeError, KeyError) as error:
        remedy = f"`bam verify {record.stage}@{key12(record.key)}`"
        return {"warnings": [f"{MIX_FILE} cannot be read ({error}): {remedy} names what is damaged"]}
    return found


def _stats(store: ArtifactStore, record: Record) -> Mapping[str, Any] | None:
    """What a domain's text became. A file that cannot be read is left out: the record is still shown."""
    if not (record.stage.startswith("data.") and STATS_FILE in {output.path for output in record.outputs}):
        return None
    try:
        found: Mapping[str, Any] = json.loads((store.localize(record) / STATS_FILE).read_bytes())
        stats_text(found)
    except (ArtifactDamaged, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found


def record_text(record: Record, uri: str) -> str:
    """A record for people: what it is, what it was made from, what it holds, how it came about."""
    started = datetime.fromtimestamp(record.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    head = [
        ("artifact", uri),
        ("key", record.key),
        ("digest", record.digest),
        ("made", f"{started}, in {text.duration(record.seconds)}, attempt {record.attempt}"),
        *((f"mlflow {name}", str(value)) for name, value in record.mlflow.items()),
    ]
    outputs = [[output.path, text.size(output.size), output.sha256[:12]] for output in record.outputs]
    inputs = [[role, f"{given.stage}@{key12(given.key)}", given.digest[:12]] for role, given in record.inputs.items()]
    width = _inside()
    sections = {
        "inputs": indent(text.table(["role", "artifact", "digest"], inputs, width=width), "  ") if inputs else "",
        "outputs": indent(text.table(["file", "size", "sha256"], outputs, right=(1,), width=width), "  "),
        "metrics": text.pairs(((name, text.number(value)) for name, value in record.metrics.items()), 2),
        "config": indent(json.dumps(record.payload.get("config", {}), indent=2, default=str), "  "),
        "provenance": text.pairs(((name, _short(value)) for name, value in record.provenance.items()), 2),
    }
    parts = [click.style(f"{record.stage}@{key12(record.key)}", bold=True), text.pairs(head, 2)]
    for title, body in sections.items():
        parts += ["", click.style(title, bold=True), body] if body else []
    return "\n".join(parts)


def _inside() -> int | None:
    """Columns for what is indented by two."""
    most = text.columns()
    return None if most is None else most - 2


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, Mapping) for item in value) else " ").join(map(_short, value))
    return str(value)


@click.command(
    cls=Command,
    examples=("bam tree train.bam",),
)
@click.argument("ref", shell_complete=completing.artifacts)
@with_session
def tree(session: Session, ref: str) -> None:
    """What REF was made from, as a tree."""
    records = _store(session).records()
    root = resolve(ref, records)
    known = {(record.stage, record.key): record for record in records}
    nested = _nested(root.stage, root.key, "", known, set())
    session.answer(nested, lambda: "\n".join(_branches(nested, known, "", "")))


Known = Mapping[tuple[str, str], Record]


def _nested(stage: str, key: str, role: str, known: Known, opened: set[tuple[str, str]]) -> dict[str, Any]:
    """An artifact and, the first time that it is met, its inputs (`as_above` afterwards)."""
    record, again = known.get((stage, key)), (stage, key) in opened
    opened.add((stage, key))
    inputs = record.inputs.items() if record is not None and not again else ()
    return {
        "stage": stage,
        "key": key,
        "role": role,
        "missing": record is None,
        "as_above": again and record is not None and bool(record.inputs),
        "inputs": [_nested(given.stage, given.key, name, known, opened) for name, given in inputs],
    }


def _branches(node: Mapping[str, Any], known: Known, stem: str, turn: str) -> Iterator[str]:
    record = known.get((node["stage"], node["key"]))
    note = "gone from the store" if record is None else "as above" if node["as_above"] else text.metrics(record.metrics)
    yield f"{stem}{turn}{node['stage']} " + click.style(f"@{key12(node['key'])}  {note}".rstrip(), dim=True)
    below = stem + {"": "", "├─ ": "│  ", "└─ ": "   "}[turn]
    for index, inner in enumerate(node["inputs"]):
        yield from _branches(inner, known, below, "└─ " if index == len(node["inputs"]) - 1 else "├─ ")


@click.command(
    cls=Command,
    examples=(
        "bam get report:report.html",
        "bam get evaluate:perplexity.json -",
    ),
)
@click.argument("ref", metavar="REF[:PATH]", shell_complete=completing.artifacts)
@click.argument("dest", required=False)
@with_session
def get(session: Session, ref: str, dest: str | None) -> None:
    """Copy an artifact, or a part of it, to DEST.

    DEST `-` writes one file to standard output. Nothing that exists is overwritten."""
    name, _, path = ref.partition(":")
    store = _store(session)
    record = resolve(name, store.records())
    wanted = _under(record, path.strip("/"))
    folder = store.localize(record)
    if dest == "-":
        if len(wanted) > 1:
            raise UsageError(f"{ref!r} holds {len(wanted)} files: only one file can be written to standard output")
        sys.stdout.buffer.write((folder / wanted[0][0].path).read_bytes())
        return
    target = _destination(dest, path.strip("/") or f"{record.stage}-{key12(record.key)}")
    is_file = wanted[0][1] == ""
    files = [(folder / output.path, target / rest if not is_file else target, output) for output, rest in wanted]
    taken = [str(to) for _, to, _ in files if to.exists()]
    if taken:
        raise UsageError(f"{taken[0]} exists already: nothing was written; give another DEST")
    _copy_all(files, f"{record.stage}@{key12(record.key)}")
    value = {
        "artifact": store.artifact_uri(record.stage, record.key),
        "dest": str(target),
        "files": len(files),
    }
    n_bytes = sum(output.size for _, _, output in files)
    session.answer(value, lambda: f"{target}: {len(files)} file{'s'[: len(files) > 1]}, {text.size(n_bytes)}")


def _under(record: Record, path: str) -> list[tuple[Output, str]]:
    """(output, its path below `path`); one with the empty path when `path` is a file. Raises UsageError."""
    wanted = []
    for output in record.outputs:
        if not path or output.path == path or output.path.startswith(f"{path}/"):
            wanted.append((output, output.path[len(path) :].lstrip("/") if path else output.path))
    if not wanted:
        hint = nearest(path, [output.path for output in record.outputs])
        raise UsageError(f"{record.stage}@{key12(record.key)} has no output {path!r}: {hint}")
    return wanted


def _destination(dest: str | None, name: str) -> Path:
    """As `cp` does: into a folder that exists, else under the name given."""
    base = Path(name).name
    target = Path(dest) if dest else Path(base)
    return target / base if dest and target.is_dir() else target


def _copy_all(files: Sequence[tuple[Path, Path, Output]], artifact: str) -> None:
    """Every file (source, copy, as recorded), or none: what was made until one fails is gone again."""
    made: list[Path] = []
    try:
        for source, to, output in files:
            made += _folders_to_make(to.parent)
            made.append(to)
            _copy(source, to, output, artifact)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _folders_to_make(folder: Path) -> list[Path]:
    """Those of its path that are not there, the outermost first."""
    return [path for path in reversed([folder, *folder.parents]) if not path.exists()]


def _copy(source: Path, to: Path, output: Output, artifact: str) -> None:
    """Raises ArtifactDamaged unless the copy has the recorded digest."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    except OSError as error:
        raise UsageError(f"{to}: cannot be written: {error.strerror or error}") from error
    with to.open("rb") as copy:
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
    if digest != output.sha256:
        raise ArtifactDamaged(
            f"{artifact}: {output.path} has sha256 {digest[:12]}, its record says {output.sha256[:12]}: nothing was "
            "written; the run that made it makes it again"
        )


COMMANDS = (show, tree, get)


def _store(session: Session) -> ArtifactStore:
    from pipelines import wiring

    return wiring.open_store(session.settings())
