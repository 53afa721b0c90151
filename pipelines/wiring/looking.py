"""What is there: lineage, MLflow's pages, a model's words, and whether this machine can run."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bam_core.errors import BamError, UsageError
from bam_core.graph import refs
from bam_core.plugins import Plugin, installed
from infra.provenance import mask_text
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.graph.lineage import Graph


def lineage(ref: str, settings: Settings, direction: Literal["up", "down", "both"]) -> Graph:
    """Also of what was adopted, in the store where it was made. Raises UsageError unless `ref` names one artifact."""
    from bam_core.graph.lineage import lineage as graph_of
    from infra.adopting import foreign_records

    store = open_store(settings)
    records = store.records()
    root = refs.resolve(ref, records)
    return graph_of(records, root.key, direction, foreign_records(store, records))


def generate(
    ref: str,
    prompt: str,
    settings: Settings,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue `prompt` with a model. Raises UsageError if `ref` is no model."""
    _, folder = model_folder(ref, settings)
    import torch

    from bam_core.checkpoint import load_model
    from bam_core.data.tokenize import Tokenizer
    from bam_core.nn.generate import generate as continue_tokens

    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tokens = torch.tensor([tokenizer.eos_id, *tokenizer.encode_batch([prompt])[0]])
    model = load_model(folder).eval()
    sampling = {"temperature": temperature, "top_p": top_p}
    new = continue_tokens(model, tokens, max_new_tokens, **sampling, seed=seed, eos_id=tokenizer.eos_id)
    return tokenizer.decode(new)


def model_folder(ref: str, settings: Settings) -> tuple[str, Path]:
    """`stage@key12` of a model, and a local folder with its files. Raises UsageError if `ref` is no model."""
    store = open_store(settings)
    record = refs.resolve(ref, store.records())
    if not any(output.path == "config.json" for output in record.outputs):
        raise UsageError(f"{ref}: {record.stage} makes no model; try one of seed, expert.*, train.*")
    return f"{record.stage}@{record.key[:12]}", store.localize(record)


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(settings: Settings) -> list[Check]:
    """Is everything there that a run needs, the cluster at `address` too? Starts nothing and leaves nothing behind."""
    return [
        _python(),
        *(_package(name) for name in ("torch", "ray", "mlflow", "pyarrow")),
        _shared_memory(),
        _store(settings),
        _room(settings),
        _tracking(settings),
        *([_cluster(settings.address, settings.verbose)] if settings.address else []),
        *_plugins(),
    ]


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


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 11), version, "bam is tested on Python 3.11")


def _package(name: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False, "is not installed", f"pip install -c constraints.txt {name}")


def _shared_memory() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check("shared memory", True, "no /dev/shm: Ray will use slower files")
    free_mib = shutil.disk_usage("/dev/shm").free // 2**20
    return Check(
        "shared memory",
        free_mib >= 128,
        f"{free_mib} MiB free in /dev/shm",
        "Ray wants 128 MiB: docker run --shm-size=1g",
    )


def _store(settings: Settings) -> Check:
    try:
        store = open_store(settings)
        n_artifacts = len(store.records())
        store.check_writable()
    except BamError as error:
        return Check("store", False, str(error), "give another --store, or set BAM_STORE")
    return Check("store", True, f"{store.uri}: writable, {n_artifacts} artifacts")


def _room(settings: Settings) -> Check:
    from infra.mlflow_connect import local_path

    folder = local_path(settings.store)
    while folder is not None and not folder.exists():
        folder = folder.parent
    if folder is None:
        return Check("disk", True, "the store is not on this machine")
    free_gib = shutil.disk_usage(folder).free / 2**30
    return Check("disk", free_gib >= 2, f"{free_gib:.1f} GiB free", "the quickstart needs about 1 GiB")


def _tracking(settings: Settings) -> Check:
    from infra.mlflow_connect import connect, default_tracking_uri, sqlite_file

    uri = settings.tracking_uri or default_tracking_uri(open_store(settings).uri)
    if uri is None:
        return Check("mlflow tracking", True, "off: a remote store needs --tracking-uri")
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return Check("mlflow tracking", True, f"{file}: the first run makes it")
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        return Check("mlflow tracking", False, reason, "runs go on without it; `bam lineage sync` fills it in later")
    return Check("mlflow tracking", True, str(file or uri))


def _cluster(address: str, verbose: bool) -> Check:
    try:
        found = _as_jobs(address, verbose) if address.startswith("http") else _as_node(address, verbose)
    except UsageError as error:
        return Check("cluster", False, mask_text(str(error)), "`ray status` on its head; docs/cluster.md")
    return Check("cluster", True, found)


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
