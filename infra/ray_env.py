"""Environment that Ray reads when it is imported or started; set before either."""

from __future__ import annotations

import json
import os
from pathlib import Path

COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A group's end is noticed sooner than after the default 2 s, and so is a checkpoint, of which one waits at a time.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
EMBEDDED = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts a laptop: one process less per group
    # The number of tokens that an FFN expert gets is new each step, and for each oneDNN would keep a compiled product:
    # with its default of 1024 a mixture of 3M parameters takes 1.15 GB, with 64 it takes 0.83 GB at the same speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Off, an embedded Ray keeps to 127.0.0.1 on every system; else it replaces a loopback address that it is given by
that of the network, and its servers listen on every interface."""
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}  # what the raylet says to every driver; it stays in Ray's own logs


FOR_WORKERS = (*COMMON, *EMBEDDED)
"""Read in Ray's own processes, on whatever machine: they travel with the job."""


def prepare(*, verbose: bool, embedded: bool) -> None:
    """Set what is not set yet: a person's own choice wins. embedded: this process starts its own Ray."""
    for name, value in (COMMON | (EMBEDDED | LOOPBACK if embedded else {}) | ({} if verbose else QUIET)).items():
        os.environ.setdefault(name, value)
    if not embedded:
        use_token()


def for_workers() -> dict[str, str]:
    """What travels to the processes of this run. What a submitted job was given wins: Ray takes no name twice."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    taken = given.get("env_vars") or {}
    return {name: os.environ[name] for name in FOR_WORKERS if name in os.environ and name not in taken}


def use_token() -> None:
    """To reach a cluster: show a token where there is one, as Ray does for a cluster of its own.

    A mode that is set wins. A cluster without authentication does not look at the token.
    """
    has_token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if has_token or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
