"""Who ran what, from which code: captured once, where a person gave the command, and put into every record.

Nothing secret leaves this module: values of secret-looking options and environment variables, and user information
and queries of URLs, become `***`. A submitted job runs where there is no git, so the submitter captures and hands
the result over in `BAM_PROVENANCE`, whose fields win.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import bam_core
from bam_core.errors import UsageError
from infra.wheel_commit import wheel_commit

OVERRIDE = "BAM_PROVENANCE"
HIDDEN = "***"
PACKAGES = (
    "bam",
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "pyarrow",
    "datasets",
    "ray",
    "mlflow",
)

_SECRET_WORDS = frozenset(
    {"token", "password", "passwd", "secret", "secrets", "credential", "credentials", "apikey", "accesskey"}
)
_SECRET_PAIRS = frozenset(
    {("api", "key"), ("access", "key"), ("secret", "key"), ("private", "key"), ("signing", "key")}
)
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"<>]+)")
_QUERY = re.compile(r"\?[\w.%-]+=[^\s'\"<>()]*")
"""Of an address without its host, as clients quote it in errors."""
_PAIR = re.compile(r"[^\s'\"/:@]+:[^\s'\"/:@]+@")
"""A user and a password before what is left of their URL."""
_GIT_TIMEOUT_S = 20
_SHORTEST_SECRET = 8


def capture(argv: Sequence[str]) -> dict[str, Any]:
    """Commit, packages, command, user and host of this process. Raises UsageError on a malformed override."""
    given = _override()
    found = {"git_commit": None, "dirty": None, "dirty_diff_sha256": None}
    if "git_commit" not in given:
        source = Path(bam_core.__file__).resolve()
        found |= _git_state(source) or _wheel_state(source)
    return {
        **found,
        "packages": _versions(),
        "python": platform.python_version(),
        "argv": mask_argv(argv),
        "user": _user(),
        "host": socket.gethostname(),
        **given,
    }


def mask_text(text: str) -> str:
    """`text` without the secrets of this environment, and with every URL's user information and query hidden."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    text = _URL.sub(lambda match: match["scheme"] + _mask_rest(match["rest"]), text)
    return _PAIR.sub(f"{HIDDEN}@", _QUERY.sub(f"?{HIDDEN}", text))


def mask_argv(argv: Sequence[str]) -> list[str]:
    """The command line without secrets: `--hub-token X`, `--hub-token=X`, `a.password=X`, URLs."""
    masked = []
    hide_next = False
    for word in argv:
        name, has_value, _ = word.partition("=")
        if hide_next:
            masked.append(HIDDEN)
        elif has_value and names_secret(name):
            masked.append(f"{name}={HIDDEN}")
        else:
            masked.append(mask_text(word))
        hide_next = not hide_next and not has_value and word.startswith("-") and names_secret(word)
    return masked


def mask_values(value: Any) -> Any:
    """A JSON value with secrets hidden: by the name of their key, and inside URLs."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if names_secret(str(key)) and isinstance(item, str) else mask_values(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_values(item) for item in value]
    return mask_text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Whether a word of a name stands for a secret: `hf_token` has one, `tokens` has none."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name.lower()) if word]
    return any(word in _SECRET_WORDS for word in words) or any(pair in _SECRET_PAIRS for pair in pairwise(words))


def _secrets() -> list[str]:
    """Values of secret-looking environment variables, the longest first; short ones could be part of any word."""
    found = {
        secret
        for name, value in os.environ.items()
        if names_secret(name) and not name.endswith(("_PATH", "_FILE", "_DIR"))
        for secret in (value, *value.splitlines())  # a key in PEM may be quoted a line at a time
        if len(secret) >= _SHORTEST_SECRET
    }
    return sorted(found, key=len, reverse=True)


def _mask_rest(rest: str) -> str:
    place, has_query, _ = rest.partition("?")
    host, slash, path = place.partition("/")
    if "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    return host + slash + path + (f"?{HIDDEN}" if has_query else "")


def _override() -> dict[str, Any]:
    text = os.environ.get(OVERRIDE)
    if not text:
        return {}
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{OVERRIDE}: not JSON ({error}); unset it, or give what `bam submit` captured") from error
    if not isinstance(given, dict):
        raise UsageError(f"{OVERRIDE}: must be a JSON object, not {type(given).__name__}; unset it")
    return given


def _git_state(source: Path) -> dict[str, Any]:
    """State of the checkout that tracks `source`; empty without one, as for an install inside a checkout."""
    try:
        folder = source.parent
        _git(folder, "ls-files", "--error-unmatch", source.name)
        top = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel")).rstrip("\n"))
        commit = _git(top, "rev-parse", "HEAD").decode().strip()
        diff = _git(top, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv")
        # New modules change results as much as edits do; data lying about in the checkout does not.
        code = [folder.parent / name for name in ("bam_core", "infra", "pipelines")]
        packages = [str(path) for path in code if path.is_dir()]
        new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", *packages)
        for name in filter(None, new.split(b"\0")):
            content = (top / os.fsdecode(name)).read_bytes()
            diff += name + b"\0" + hashlib.sha256(content).digest()
    except (OSError, subprocess.SubprocessError):
        return {}
    digest = hashlib.sha256(diff).hexdigest() if diff else None
    return {"git_commit": commit, "dirty": bool(diff), "dirty_diff_sha256": digest}


def _wheel_state(source: Path) -> dict[str, Any]:
    """The same of an installed wheel that says its commit; empty where none does."""
    found = wheel_commit(source)
    if found is None:
        return {}
    commit, changes = found
    return {"git_commit": commit, "dirty": changes is not None, "dirty_diff_sha256": changes}


def _git(folder: Path, *words: str) -> bytes:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    # A git hook exports these; they would make git answer for the hook's repository instead of `folder`'s.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"):
        environment.pop(name, None)
    return subprocess.run(
        ["git", "-C", str(folder), *words],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_GIT_TIMEOUT_S,
        env=environment,
    ).stdout


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id often has no name
        return f"uid {os.getuid()}"
