"""A model into MLflow's registry, if it is as recorded and as good as its recipe asks: `bam promote`.

All checks come before anything is written: a promotion that is refused leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bam_core.errors import ArtifactDamaged, BamError, LeaseHeld, StoreError, UsageError
from bam_core.graph.key import key12
from bam_core.graph.record import Record
from infra.provenance import mask_text
from infra.registry_pins import Promoted, note_aliases, promoted
from infra.store import ArtifactStore
from pipelines.recipe import load_recipe
from pipelines.recipe.promotion import default_model_name, model_name_fault
from pipelines.wiring.acceptance import asked_of, judged
from pipelines.wiring.origins import Known, known_records, model_record, name_of, upstream
from pipelines.wiring.settings import Settings, open_store
from pipelines.wiring.tracking import tracking_uri
from pipelines.wiring.verifying import verify

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

ALIAS = re.compile(r"[\w-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
_REGISTERED = re.compile(r"models:/(?P<name>[^/]+?)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
SYNC = "`bam lineage sync` writes into MLflow what it lacks"


@dataclass(frozen=True)
class Promotion:
    """What came of it. refused: why nothing was registered; empty if it was.

    unchecked: of what made it, what could not be verified and why. rule: what was asked, and the outcome. rule_of:
    whose rule it was, None if none was asked. evaluation: what it was judged by. alias_before: the version that had the
    alias until now. page: of the version, after MLflow's host.
    """

    stage: str
    key: str
    model: str
    refused: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    rule_of: str | None = None
    evaluation: str | None = None
    version: str | None = None
    is_new: bool = False
    alias: str | None = None
    alias_before: str | None = None
    page: str | None = None


def promote(
    ref: str,
    settings: Settings,
    *,
    alias: str | None = None,
    name: str | None = None,
    recipe: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Promotion:
    """Register the model `ref`, or say why not.

    recipe: whose rule it is held against; by default that of the newest run that used or made it. say: hears what is
    being verified: the model, and all that it was made from. Raises UsageError for what cannot be meant, StoreError
    where MLflow is away or does not know the model.
    """
    _require_alias(alias)
    loaded = load_recipe(recipe) if recipe else None
    store = open_store(settings)
    ref = resolve_registered(ref, settings)
    known = known_records(store)
    record = _done_model(ref, store, known)
    asked = asked_of(record, store, loaded, recipe)
    usual = asked.promote.model or default_model_name(asked.pipeline, record.stage)
    model_name = usual if name is None else name
    if fault := model_name_fault(model_name):
        raise UsageError(f"model name {model_name[:80]!r}: {fault}; give another --name")
    outcome = judged(record, asked, store, known)
    found = Promotion(record.stage, record.key, model_name, rule_of=asked.whose, **vars(outcome))
    if found.refused:
        return found
    with _mlflow(settings, store) as client:
        logged = _logged_model(client, record)
    with _held(store, record):
        checked = verify(f"{record.stage}@{record.key}", settings, deep=True, say=say)
        found = replace(found, refused=tuple(checked.faults), unchecked=tuple(checked.cannot))
        if found.refused:
            return found
        with _mlflow(settings, store) as client:
            return _registered(client, store, record, logged, found, alias, _models_behind(record, known))


def resolve_registered(ref: str, settings: Settings) -> str:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` as `stage@key`; any other reference as it is."""
    if not ref.startswith("models:/"):
        return ref
    asked = _REGISTERED.fullmatch(ref)
    if asked is None:
        raise UsageError(f"{ref!r}: a registered model reads models:/NAME@ALIAS or models:/NAME/VERSION")
    from infra.mlflow_registry import version_tags

    which = asked["version"] or f"@{asked['alias']}"
    with _mlflow(settings, open_store(settings)) as client:
        if (tags := version_tags(client, asked["name"], which)) is None:
            raise UsageError(f"{ref!r}: MLflow has no such registered model")
    if not {"bam.stage", "bam.key"} <= tags.keys():
        raise UsageError(f"{ref!r}: `bam promote` has not registered it, so it names no artifact")
    return f"{tags['bam.stage']}@{tags['bam.key']}"


def _require_alias(alias: str | None) -> None:
    if alias is None:
        return
    if not ALIAS.fullmatch(alias):
        raise UsageError(f"--alias {alias[:80]!r}: must be 1 to 255 letters, digits, '_' and '-'")
    if _RESERVED_ALIAS.fullmatch(alias):
        raise UsageError(f"--alias {alias!r}: MLflow keeps 'latest' and 'v1', 'v2', ... for itself; give another")


def _done_model(ref: str, store: ArtifactStore, known: Known) -> Record:
    """Raises UsageError for what is no model or has not been made.

    ArtifactDamaged for a record that cannot be read and that `ref` may mean: an older one is not taken for it.
    """
    stage, _, prefix = ref.partition("@")
    start = "" if prefix == "latest" else key12(prefix.lower())
    readable = {(found, key12(key)) for found, key in known}
    others = [key for found, key in store.artifacts() if found == stage and (found, key) not in readable]
    for key in others:
        if key.startswith(start) and store.written(stage, key)[0] is not None:
            raise ArtifactDamaged(f"{stage}@{key}: its record cannot be read; `bam verify {stage}@{key}` says why")
    if others and stage not in {found for found, _ in known}:
        raise UsageError(f"{ref}: is not done; `bam ls {stage}` says how far it is")
    return model_record(ref, known)


@contextmanager
def _held(store: ArtifactStore, record: Record) -> Iterator[None]:
    """Nobody makes the artifact again or collects it meanwhile. Raises LeaseHeld if somebody does, or has just done."""
    store.check_writable()
    lease = store.acquire(record.stage, record.key, f"{socket.gethostname()}:{os.getpid()} bam promote")
    try:
        if store.record(record.stage, record.key) != record:
            raise LeaseHeld(f"{name_of(record.ref)}: was made again or collected just now; run the same command again")
        yield
    finally:
        lease.release()


def _models_behind(record: Record, known: Known) -> list[Record]:
    """All models that it was made from, the nearest first."""
    from infra.mlflow_lineage import is_model

    return [made for made in upstream(record, known) if is_model(made)]


@contextmanager
def _mlflow(settings: Settings, store: ArtifactStore) -> Iterator[MlflowClient]:
    """A client of an MLflow that is there; what goes wrong in it is a StoreError in words."""
    from infra.mlflow_connect import connect, sqlite_file

    uri = tracking_uri(settings, store)
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise StoreError(f"{file}: nothing was tracked here yet; {SYNC}")
    try:
        yield connect(uri)
    except BamError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise StoreError(f"MLflow at {mask_text(uri)}: {mask_text(reason)}") from error


def _logged_model(client: MlflowClient, record: Record) -> LoggedModel:
    from infra.registry_entry import logged_model

    if (found := logged_model(client, record)) is None:
        raise StoreError(f"{name_of(record.ref)}: MLflow does not know this model; {SYNC}")
    return found


def _registered(
    client: MlflowClient,
    store: ArtifactStore,
    record: Record,
    logged: LoggedModel,
    found: Promotion,
    alias: str | None,
    behind: Sequence[Record],
) -> Promotion:
    from infra import mlflow_registry as registry
    from infra.registry_entry import entry

    model = found.model
    before = registry.aliases(client, model).get(alias) if alias else None

    since = {pinned.pin_name: pinned.created for pinned in promoted(store.pins)}

    def keep(version: str) -> None:
        its = tuple(sorted(name for name, of in registry.aliases(client, model).items() if of == version))
        made = Promoted(model, int(version), record.stage, record.key, record.digest, time.time(), its)
        replace(made, created=since.get(made.pin_name, made.created)).write(store.pins)

    version = registry.find_version(client, model, record)
    is_new = version is None
    if version is None:
        artifact = store.artifact_uri(record.stage, record.key)
        page = entry(client, record, logged, behind, artifact)
        version = registry.register(client, model, page, keep, alias=alias)
    else:
        if alias:
            registry.set_alias(client, model, alias, version)
        keep(version)
    note_aliases(store.pins, model, registry.aliases(client, model))
    address = registry.version_page(model, version)
    return replace(found, version=version, is_new=is_new, alias=alias, alias_before=before, page=address)
