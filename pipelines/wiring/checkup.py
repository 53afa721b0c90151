"""Is everything there that a run needs? Starts nothing and leaves nothing behind; every fault comes with its remedy.

Invariant: one thing that is wrong hides none of the others, so a check answers, whatever happens to it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from bam_core.errors import BamError, UsageError
from bam_core.graph.words import size
from bam_core.plugins import Plugin, installed
from infra.devices import nvidia_gpus
from infra.mlflow_connect import connect, default_tracking_uri, local_path, sqlite_file
from infra.provenance import mask_text
from infra.signing import SIGNING_KEY, Signer, TrustedKeys
from pipelines.wiring.settings import Settings, open_store, require_tracking_uri

SHOWN = ("torch", "ray", "mlflow", "pyarrow")
"""Packages whose versions people are asked for."""
GIB = 2**30
STORE_BYTES, TEMPORARY_BYTES, SHARED_BYTES = 2 * GIB, GIB // 2, GIB // 8
SOCKET_CHARS = 103 if sys.platform == "darwin" else 107
"""Of a socket's path at most: `sun_path` of unix(7)."""
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""What Ray adds to the folder for temporary files."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?:==\s*(?P<pin>[^\s;,]+))?")
_CUDA = re.compile(r"^cuda\b[^=]*=\s*['\"](?P<version>[^'\"]+)", re.MULTILINE)


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(settings: Settings) -> list[Check]:
    """The cluster too where `address` names one."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("gpu", _gpu),
        ("shared memory", _shared_memory),
        ("temporary files", _temporary),
        ("store", lambda: _store(settings)),
        ("disk", lambda: _room(settings)),
        ("keys", _keys),
        ("mlflow tracking", lambda: _tracking(settings)),
    ]
    if settings.address:
        checks.append(("cluster", lambda: _cluster(settings.address or "", settings.verbose)))
    return [_python(), *_packages(), *(_answered(name, check) for name, check in checks), *_plugins()]


def _answered(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # of whatever library was asked
        return Check(name, False, _first_line(error), "what the library says itself; -v with the command that needs it")


def _first_line(error: Exception) -> str:
    return mask_text((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 11), version, "bam is tested on Python 3.11: make a venv of it")


def _packages() -> Iterator[Check]:
    """Those of SHOWN, and of the others each that is not there or not as pinned."""
    shown = dict.fromkeys(SHOWN, "")
    try:
        required = metadata.requires("bam") or []
    except metadata.PackageNotFoundError:  # the code alone, as in a job
        required = list(shown)
    seen = {"bam"}
    for line in required:
        found = _REQUIREMENT.match(line)
        if found is None or found["name"] in seen:
            continue
        seen.add(found["name"])
        wanted = line.partition(";")[0].strip()
        check = _package(found["name"], found["pin"], wanted, is_extra="extra ==" in line)
        if check is not None and (not check.ok or found["name"] in shown):
            yield check


def _package(name: str, pin: str | None, wanted: str, *, is_extra: bool) -> Check | None:
    """None for an extra that is not installed."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None if is_extra else Check(name, False, "is not installed", f"pip install '{wanted}'")
    if pin is None or version.partition("+")[0] == pin:
        return Check(name, True, version)
    return Check(name, False, f"{version}, and bam is tested with {pin}", f"pip install '{wanted}'")


def _gpu() -> Check:
    n_gpus, cuda = nvidia_gpus(), _cuda_of_torch()
    if not n_gpus:
        return Check("gpu", True, "none: everything runs on the processor")
    seen = f"{n_gpus} of NVIDIA"
    if cuda is None:
        expected = f"{seen}, and torch is a build for processors"
        remedy = "pip install --force-reinstall torch, without --index-url: on Linux that is a CUDA build"
        return Check("gpu", False, expected, remedy)
    return _usable(seen, cuda)


def _cuda_of_torch() -> str | None:
    """The CUDA that torch was built with; None for a build without. torch, which takes seconds, is not loaded."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = _CUDA.search(Path(spec.origin).with_name("version.py").read_text())
    return found["version"] if found else None


def _usable(seen: str, cuda: str) -> Check:
    """Whether torch can use what the driver shows."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        n_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_usable:
        names = sorted({torch.cuda.get_device_name(number) for number in range(n_usable)})
        return Check("gpu", True, f"{n_usable} usable ({', '.join(names)}), CUDA {cuda}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("gpu", True, f"{seen}, hidden by CUDA_VISIBLE_DEVICES")
    reason = f": {str(said[0].message).splitlines()[0]}" if said else ""
    remedy = f"`nvidia-smi` must answer, and show CUDA {cuda} or newer: install a newer driver, or a torch for this one"
    return Check("gpu", False, f"{seen}, and torch, built with CUDA {cuda}, can use none{reason}"[:300], remedy)


def _shared_memory() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check("shared memory", True, "no /dev/shm: Ray will use slower files")
    free = shutil.disk_usage("/dev/shm").free
    remedy = "Ray wants 128 MiB: docker run --shm-size=1g"
    return Check("shared memory", free >= SHARED_BYTES, f"{size(free)} free in /dev/shm", remedy)


def _temporary() -> Check:
    """Where Ray keeps its logs and sockets, and others what they unpack."""
    from_environment = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    folder = next((os.environ[name] for name in from_environment if os.environ.get(name)), "/tmp")
    if not Path(folder).is_dir():
        return Check("temporary files", False, f"{folder}: is no folder", "make it, or set RAY_TMPDIR to one")
    if (n_chars := len(os.fsencode(folder + RAY_SOCKET))) > SOCKET_CHARS:
        too_long = n_chars - SOCKET_CHARS
        detail = f"{folder}: {too_long} character{'s' if too_long > 1 else ''} too long for the sockets of Ray"
        return Check("temporary files", False, detail, "set RAY_TMPDIR to a short path, such as /tmp")
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = "make room or get the right to write there, or set TMPDIR to another folder"
        return Check("temporary files", False, f"{folder}: cannot be written: {error.strerror or error}", remedy)
    remedy = f"Ray wants {size(TEMPORARY_BYTES)}: make room, or set TMPDIR to another disk's"
    return Check("temporary files", free >= TEMPORARY_BYTES, f"{folder}: {size(free)} free", remedy)


def _store(settings: Settings) -> Check:
    try:
        store = open_store(settings)
        n_artifacts = len(store.records())
        store.check_writable()
    except BamError as error:
        remedy = "get the right to write there, or give another --store (BAM_STORE)"
        return Check("store", False, mask_text(str(error)), remedy)
    return Check("store", True, f"{mask_text(store.uri)}: writable, {n_artifacts} artifacts")


def _room(settings: Settings) -> Check:
    folder = local_path(settings.store)
    while folder is not None and not folder.exists():
        folder = folder.parent
    if folder is None:
        return Check("disk", True, "the store is not on this machine")
    free = shutil.disk_usage(folder).free
    remedy = "the quickstart needs about 1 GiB: `bam gc` shows what nothing needs any more, or give another --store"
    return Check("disk", free >= STORE_BYTES, f"{size(free)} free", remedy)


def _keys() -> Check:
    """Of signatures: what is set and cannot be used ends a run."""
    try:
        signer, trusted = Signer.from_environment(), TrustedKeys.from_environment()
    except UsageError as error:
        return Check("keys", False, str(error), f"mend the variable, or unset it; `bam keygen` makes a {SIGNING_KEY}")
    said = [f"records are signed, {signer.fingerprint}"] if signer else ["records are not signed"]
    said += [f"{len(trusted.fingerprints)} trusted"] if trusted.fingerprints is not None else []
    return Check("keys", True, ", ".join(said))


def _tracking(settings: Settings) -> Check:
    try:
        require_tracking_uri(settings.tracking_uri)
        uri = settings.tracking_uri or default_tracking_uri(open_store(settings).uri)
    except BamError as error:
        return Check("mlflow tracking", False, mask_text(str(error)), "mend --tracking-uri or --store")
    if uri is None:
        return Check("mlflow tracking", True, "off: a remote store needs --tracking-uri")
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return Check("mlflow tracking", True, f"{file}: the first run makes it")
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:  # of the network, the server, the database
        remedy = "runs go on without it; `bam lineage sync` fills it in later. Is the server up?"
        if file is not None:
            remedy = f"move {file} away and `bam lineage sync` makes it anew from the records"
        return Check("mlflow tracking", False, f"{mask_text(uri)}: {_first_line(error)}", remedy)
    return Check("mlflow tracking", True, str(file or mask_text(uri)))


def _cluster(address: str, verbose: bool) -> Check:
    try:
        found = _as_jobs(address, verbose) if address.startswith("http") else _as_node(address, verbose)
    except UsageError as error:
        return Check("cluster", False, mask_text(str(error)), "`ray status` on its head; docs/cluster.md")
    return Check("cluster", True, mask_text(found))


def _as_jobs(address: str, verbose: bool) -> str:
    from infra.ray_jobs import RayJobs

    jobs = RayJobs(address, verbose)
    going = [job.id for job in jobs.jobs() if not job.is_ended]
    return f"{address}: Ray {jobs.ray_version}, jobs that are not done: {len(going)}"


def _as_node(address: str, verbose: bool) -> str:
    from infra import ray_env

    ray_env.prepare(verbose=verbose, embedded=False)
    from infra.ray_executor import describe_cluster

    nodes = describe_cluster(address, verbose)
    sizes = [f"{sum(node.get(unit, 0) for node in nodes):g} {unit}" for unit in ("CPU", "GPU")]
    return f"{address}: {len(nodes)} node(s), {', '.join(sizes)}"


def _plugins() -> list[Check]:
    """Those that are installed, a line for each distribution; none of them is imported."""
    made: dict[str, list[Plugin]] = {}
    for plugin in installed():
        made.setdefault(plugin.origin, []).append(plugin)
    found = []
    for origin, plugins in made.items():
        faults = "; ".join(f"{plugin.what}: {plugin.fault}" for plugin in plugins if plugin.fault)
        detail = ", ".join(plugin.what for plugin in plugins)
        found.append(Check(f"plug-ins of {origin}", not faults, detail, faults))
    return found
