"""A model's folder: one of this machine, or an id of the Hugging Face hub, fetched at a commit that is then known.

Only weights as safetensors, configs, tokenizer files and the README are fetched; code and pickles are left where they
are, and nothing that is fetched is run. The library does the rest: its cache, `HF_HUB_OFFLINE`, `HF_ENDPOINT` of
another hub, and the token of a private model (`HF_TOKEN`, or `hf auth login`), which is never shown.

The library is imported where it is used: it takes a second, and most runs need no hub.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from bam_core.errors import InvalidInput, Problem

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "README.md",
)
"""Files at the top of a repository that are fetched, and that a folder's identity is made of, but for NOT_CONTENT."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
NOT_CONTENT = ("README.md", "MODEL_CARD.md", "record*.json", "lease*.json", "import.json")
"""What people read, and what a store keeps beside an artifact: other bytes for the same model."""
WHERE = "model"


@dataclass(frozen=True)
class Located:
    """folder: on this machine. commit: of a hub's model. shown: for people, `org/name@0123456789ab` or the folder."""

    folder: Path
    commit: str | None
    shown: str


def is_hub_id(source: str) -> bool:
    """Whether a source means a model of the hub: it has the form of an id, and there is no such folder."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def locate(source: str, revision: str | None = None) -> Located:
    """A folder as it is, or a hub's model in the hub's cache, fetched if it is not there.

    revision: a branch, tag or commit of the hub. Raises InvalidInput.
    """
    if not is_hub_id(source):
        folder = _folder(source, revision)
        return Located(folder, None, str(folder))
    folder = _fetch(source, revision)
    commit = folder.name
    if not any(folder.glob("*.safetensors")):
        _refuse_pickles(source, commit)
    return Located(folder, commit, f"{source}@{commit[:12]}")


def digest(source: str, revision: str | None = None) -> str:
    """What identifies the content: a hub's commit, or sha256 over names and hashes of a folder's files.

    A commit is itself, without the network. Raises InvalidInput.
    """
    if is_hub_id(source):
        return revision if revision is not None and COMMIT.fullmatch(revision) else _resolve(source, revision)
    folder = _folder(source, revision)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and _is_content(path.name))
    if not names:
        raise _invalid(source, "has no file of a model", "give a folder with config.json and *.safetensors")
    lines = [f"{name}\0{_sha256(str(folder / name), *_stamp(folder / name))}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folder(source: str, revision: str | None) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        words = "is a file" if folder.exists() else "is no folder here and no id of the hub"
        raise _invalid(source, words, "give a folder with config.json and *.safetensors, or ORG/NAME")
    if revision is not None:
        problem = Problem("revision", revision, "is for a model of the hub, and this is a folder", "leave it out")
        raise InvalidInput(WHERE, [problem])
    return folder


def _is_content(name: str) -> bool:
    wanted, left_out = (any(fnmatch(name, pattern) for pattern in patterns) for patterns in (WANTED, NOT_CONTENT))
    return wanted and not left_out


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """size, mtime_ns: a file is hashed again when they change."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(source: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=list(WANTED), ignore_patterns=["*/*"]
        )
    except Exception as error:  # wrong names, missing rights, a full disk and the network's many errors
        raise _explained(source, revision, error) from error
    return Path(str(found))


def _resolve(source: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for now; offline, the one that the cache has it at."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = huggingface_hub.HfApi().model_info(source, revision=revision).sha
    except HfHubHTTPError as error:  # its answer
        raise _explained(source, revision, error) from error
    except Exception:  # none: offline, or away
        return _fetch(source, revision).name
    assert commit is not None, f"the hub gave no commit for {source}@{revision}"
    return commit


def _refuse_pickles(source: str, commit: str) -> None:
    """Raises InvalidInput for a repository whose weights are pickles. Offline nothing is known of them."""
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(source, revision=commit)
    except Exception:  # the folder is read next, and lacks its weights
        return
    pickles = [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        shown = pickles[0] if len(pickles) == 1 else f"{pickles[0]} and {len(pickles) - 1} more"
        remedy = (
            'convert it in a place that you trust, and give the folder: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{source}').save_pretrained('DIR')\""
        )
        words = f"has its weights as pickles ({shown}); they are not opened, since that can run code"
        raise _invalid(source, words, remedy)


def _explained(source: str, revision: str | None, error: Exception) -> InvalidInput:
    from huggingface_hub import constants, errors

    at = f" at revision {revision!r}" if revision is not None else ""
    cached = f"fetch it where there is a network, `hf download {source}`, or give its folder"
    known: list[tuple[type[Exception] | tuple[type[Exception], ...], str, str]] = [
        (errors.GatedRepoError, "is gated", "accept its terms on the hub, and set HF_TOKEN"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r}", "give a branch, a tag or a commit"),
        (
            errors.RepositoryNotFoundError,
            f"is no folder here, and {constants.ENDPOINT} knows no such model or does not show it",
            "check the name; for a private one set HF_TOKEN",
        ),
        (errors.HFValidationError, "is no id of the hub", "give a folder, or ORG/NAME"),
        (errors.LocalEntryNotFoundError, f"is not in the hub's cache{at}, and the hub cannot be asked", cached),
        (errors.OfflineModeIsEnabled, f"is not in the hub's cache{at}, and HF_HUB_OFFLINE is set", cached),
    ]
    for kind, words, remedy in known:
        if isinstance(error, kind):
            return _invalid(source, words, remedy)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _invalid(source, f"cannot be had from {constants.ENDPOINT}{at}: {reason}", f"check the network; {cached}")


def _invalid(source: str, expected: str, remedy: str) -> InvalidInput:
    return InvalidInput(WHERE, [Problem("source", source, expected, remedy)])


def licence_of(folder: Path) -> str | None:
    """The licence that the README of a model's folder names in its heading."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    heading = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found: Any = re.search(r"^licen[cs]e:\s*['\"]?([^'\"\n#]+)", heading[1] if heading else "", re.MULTILINE)
    return found[1].strip() or None if found else None
