"""Join a Ray cluster that is there, or say in words why not; and whether its nodes see a local store.

Ray itself waits for minutes for a cluster that is away, and tells the reason in the log of its native code only.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from bam_core.errors import UsageError
from infra.ray_address import require_answer

PROBE_S = 120
"""For a node to start a process that looks for a file."""
_NATIVE_LINE = re.compile(rb"^\[\d{4}-\d\d-\d\d .*\] .*\.(cc|h):\d+: ")


def join(address: str, *, verbose: bool, **options: Any) -> None:
    """`ray.init` on a cluster. Raises UsageError if it is away, refuses the token or has other versions."""
    require_answer(address)
    with _native_log(kept=verbose) as said:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise UsageError(f"--address {address}: {_why(error, said())}") from error


def require_shared(store_uri: str, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError if a node of another machine cannot see this local folder. nodes: as of `ray.nodes()`."""
    alive = [node for node in nodes if node["Alive"]]
    machines = {(node["NodeManagerAddress"], node["NodeManagerHostname"]) for node in alive}
    if len(machines) < 2:
        return
    folder = Path(store_uri)
    while not folder.is_dir():
        folder = folder.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".bam-probe-") as probe:
        probe.write(uuid.uuid4().hex.encode())
        probe.flush()
        blind = nodes_without(probe.name, alive)
    if blind:
        raise UsageError(
            f"--store {store_uri}: a local folder that {len(blind)} of the cluster's {len(alive)} nodes cannot see "
            f"({', '.join(blind[:5])}{', ...' if len(blind) > 5 else ''}); give one that all can, such as s3://bucket/bam"
        )


def nodes_without(path: str, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hosts of the nodes on which there is no such file."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=1)(_sees)
    seen = {
        node["NodeID"]: look.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(path)
        for node in nodes
    }
    ended, late = ray.wait(list(seen.values()), num_returns=len(seen), timeout=PROBE_S)
    del ended
    for ref in late:  # a node that answers nothing will not run a stage either
        ray.cancel(ref, force=True)
    return [node["NodeManagerHostname"] for node in nodes if not _answer(seen[node["NodeID"]])]


def _sees(path: str) -> bool:
    return Path(path).is_file()


def _answer(ref: ray.ObjectRef[bool]) -> bool:
    try:
        return bool(ray.get(ref, timeout=0))
    except ray.exceptions.RayError:
        return False


def _why(error: Exception, said: bytes) -> str:
    words = str(error).strip()
    if "Version mismatch" in words:
        return " ".join(words.split()) + "; install the same on both"
    if isinstance(error, ray.exceptions.AuthenticationError) or b"InvalidAuthToken" in said:
        return (
            "the cluster refuses this token, or wants one; RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token "
            "must hold its own"
        )
    return words.partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _native_log(*, kept: bool) -> Iterator[Any]:
    """Take standard error while Ray connects, and give back what is not a line of its native log.

    Yields a function: what has been said until now. kept: give back all of it.
    """
    saved = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield lambda: _read(log)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            for line in _read(log).splitlines(keepends=True):
                if kept or not _NATIVE_LINE.match(line):
                    os.write(2, line)


def _read(log: Any) -> bytes:
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0)
