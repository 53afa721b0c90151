"""A run as a job of a cluster: what is sent, under which name, and what happens when it was sent before.

The job's id is made from all that the run is: code, recipe, command, store. So the same submission twice is one job:
a running one is followed, one that ended well is not run again, and one that failed is continued under the next id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bam_core.errors import InvalidInput, UsageError
from bam_core.graph.key import canonical_json
from bam_core.graph.select import Selection
from infra.job_package import JobPackage, job_package
from infra.mlflow_connect import absolute_tracking_uri, local_path
from infra.model_sources import absolute_source
from infra.provenance import OVERRIDE, capture, mask_argv, mask_text
from infra.ray_jobs import Job, RayJobs
from infra.sources import absolute_path
from infra.text_files import find_files
from pipelines import bam, texts
from pipelines.recipe import Recipe
from pipelines.wiring.settings import Settings

RECIPE, START = "recipe.yaml", "start.py"
CONTINUES = "BAM_CONTINUES"
"""In a job's environment: the command, typed where it was submitted, that continues it."""
TRAVELS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "FSSPEC_S3_ENDPOINT_URL",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)
"""Settings that go with a job. The jobs page shows them, so none is secret: credentials are the nodes' own."""
OF_THE_PERSON = ("git_commit", "dirty", "dirty_diff_sha256", "argv", "user", "host")
"""Of the provenance; packages and Python are those of where it runs."""


@dataclass(frozen=True)
class Submission:
    """What `bam` is asked for in the job: command, then the recipe, then options; `--set` is in the recipe already.

    continues: the words, typed here, that continue it if it fails. python: the program there.
    """

    command: tuple[str, ...]
    options: tuple[str, ...]
    continues: tuple[str, ...]
    python: str = "python"


@dataclass(frozen=True)
class Submitted:
    """is_new: False if the job was there already. package_bytes: of what was sent for it; None if nothing was."""

    job: Job
    is_new: bool
    package_bytes: int | None


def open_jobs(settings: Settings) -> RayJobs:
    if settings.address is None:
        raise UsageError(
            "--address is missing: give http://HOST:8265, the address of a cluster's dashboard "
            "(`ray dashboard CLUSTER.yaml` makes it http://127.0.0.1:8265)"
        )
    return RayJobs(settings.address, settings.verbose)


def submit(
    recipe: Recipe,
    settings: Settings,
    selection: Selection,
    asked: Submission,
    *,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> Submitted:
    """Start the job, or find it. again: also when it has ended well."""
    _check_stages(recipe, selection, asked)
    store, tracking_uri = _places(settings)
    jobs = open_jobs(settings)
    document = _absolute(recipe.to_json())
    files = {RECIPE: yaml.safe_dump(document, sort_keys=False).encode(), START: _start()}
    package = job_package(files)
    words = [*asked.command, RECIPE, *asked.options, "--store", store]
    words += ["--tracking-uri", tracking_uri] if tracking_uri else []
    base = _job_id(recipe, package, words, document)
    number, before = _newest(base, jobs.jobs())
    if before is not None and (not before.is_ended or (before.status == "SUCCEEDED" and not again)):
        return Submitted(before, False, None)
    if local_path(store) is not None and not _is_here(settings.address or ""):
        say(f"note: the store {store} is a folder of the cluster's machine; --store s3://... is kept when it goes")
    job_id = base if before is None else f"{base}-{number + 1}"
    entrypoint = shlex.join([asked.python, START, *words, "--address", "auto", "--executor", "ray"])
    provenance = capture(sys.argv)
    metadata = {
        "recipe": recipe.name,
        "command": shlex.join(mask_argv(["bam", *sys.argv[1:]])),
        "commit": str(provenance.get("git_commit")),
    }
    env = _settings_that_travel() | {
        OVERRIDE: json.dumps({name: provenance[name] for name in OF_THE_PERSON if name in provenance}),
        CONTINUES: shlex.join(mask_argv(asked.continues)),
    }
    with tempfile.TemporaryDirectory(prefix="bam-job-") as folder:
        file = Path(folder) / "package.zip"
        size = package.write(file)
        is_new = jobs.submit(job_id, entrypoint, file, env, metadata)  # False: another submitter was first
    return Submitted(jobs.job(job_id), is_new, size)


def _check_stages(recipe: Recipe, selection: Selection, asked: Submission) -> None:
    """A misspelt name is told here, not by the job. Names do not depend on what the texts hold."""
    adopted: bam.Adopted = {name: {} for name in recipe.adopted.values()}
    tasks = [texts.task_digest(number) for number in range(len(recipe.evaluate.tasks))]
    pipeline = bam.build(recipe, dict.fromkeys([*recipe.texts, "tokenizer", *tasks], ""), adopted)
    selection.stages(pipeline)
    selection.forced(pipeline)
    for name in asked.command[1:]:
        pipeline[name]


def _places(settings: Settings) -> tuple[str, str | None]:
    """The store and MLflow as the job's command names them. Raises UsageError for what must not be shown there."""
    folder = local_path(settings.store)
    store = settings.store if folder is None else str(folder)
    tracking_uri = settings.tracking_uri and absolute_tracking_uri(settings.tracking_uri)
    for option, value in (("--store", store), ("--tracking-uri", tracking_uri or "")):
        _require_open(option, value)
    return store, tracking_uri


def _settings_that_travel() -> dict[str, str]:
    found = {name: os.environ[name] for name in TRAVELS if os.environ.get(name)}
    for name, value in found.items():
        _require_open(name, value)
    return found


def _require_open(name: str, value: str) -> None:
    if mask_text(value) != value:
        raise UsageError(
            f"{name} {mask_text(value)}: its password or query would be seen on the cluster's jobs page; "
            "leave it out, and set the credentials in the environment of the cluster's nodes"
        )


def _absolute(value: Any) -> Any:
    """The recipe's document with paths of files absolute: the job runs in a folder of its own."""
    if isinstance(value, list):
        return [_absolute(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    made = {name: _absolute(part) for name, part in value.items()}
    made |= {"path": absolute_path(made)} if "path" in made else {}
    return made | ({"import": absolute_source(made["import"])} if isinstance(made.get("import"), str) else {})


def _local_files(part: Mapping[str, Any]) -> list[str]:
    """Paths of the local files that a source has, none where it has other ones."""
    path = part.get("path")
    paths = path if isinstance(path, list) else [path]
    return [one for one in paths if isinstance(one, str) and "://" not in one and part.get("kind") != "hf"]


def _job_id(recipe: Recipe, package: JobPackage, words: Sequence[str], document: Any) -> str:
    """`bam-<recipe>-<12 hex>` of what runs. A text that was edited here since is another run."""
    found = {"package": package.digest, "command": list(words), "texts": _texts(document)}
    if recipe.imports is not None:
        found["imports"] = [checkpoint.digest for checkpoint in recipe.imports.found.values()]
    identity = canonical_json(found)
    name = re.sub(r"[^A-Za-z0-9_]+", "-", recipe.name).strip("-")[:40]
    return f"bam-{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _texts(value: Any) -> list[Any]:
    """Size and time of change of every local file that the recipe reads; to hash them all would take too long."""
    if isinstance(value, list):
        return [found for part in value for found in _texts(part)]
    if not isinstance(value, Mapping):
        return []
    texts = [found for part in value.values() for found in _texts(part)]
    for path in _local_files(value):
        with suppress(InvalidInput):  # it may be there on the cluster
            for file in find_files(path):
                state = file.fs.info(file.path)
                texts.append([file.path, state["size"], str(state["mtime"])])
    return texts


def _newest(base: str, jobs: Sequence[Job]) -> tuple[int, Job | None]:
    """Of the jobs `base`, `base-2`, `base-3` ... the last one and its number."""
    numbered = {}
    for job in jobs:
        name, _, number = job.id.rpartition("-")
        if job.id == base:
            numbered[1] = job
        elif name == base and number.isdecimal():
            numbered[int(number)] = job
    newest = max(numbered, default=0)
    return newest, numbered.get(newest)


def _start() -> bytes:
    return (Path(bam.__file__).parent / "job_start.py").read_bytes()


def _is_here(address: str) -> bool:
    return bool(re.match(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)", address))
