"""MLflow's model registry: a version for each promoted artifact, whose page leads back to how it was made.

Raises what MLflow raises. Nothing stays half-registered: what `register` has begun it takes back when a later step
fails. The registry holds no bytes: a version's source is the artifact's LoggedModel, which says where our store has it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bam_core.graph.record import Record
from infra import mlflow_runs as runs
from infra.mlflow_pages import code
from infra.pin_files import PinFiles
from infra.registry_entry import Entry, entry, logged_model
from infra.registry_pins import Promoted, note_aliases, promoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

VERSIONS_TAG = "mlflow.modelVersions"
"""On a LoggedModel: the versions that its page shows. An MLflow server writes it by itself; a database does not."""
_MOST_SKIPPED = 1000
"""Numbers that are passed over at most, so that a version which is registered again has the number that it had."""


def registered_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def find_version(client: MlflowClient, name: str, record: Record) -> str | None:
    """The newest version of the registered model that is this artifact, byte for byte."""
    tags = runs.condition({runs.KEY: record.key, runs.DIGEST: record.digest})
    # Not by name: MLflow's filters cannot hold every name that its registry can.
    found = [int(version.version) for version in client.search_model_versions(tags) if version.name == name]
    return str(max(found)) if found else None


def register(
    client: MlflowClient,
    name: str,
    entry: Entry,
    keep: Callable[[str], None],
    *,
    alias: str | None = None,
    number: int | None = None,
) -> str:
    """Make a version, and the registered model where there is none. Returns the version.

    keep: writes down what must outlive MLflow; called last. If it fails, or anything before it, all is taken back.
    number: the version that it should be, of one that was registered before.
    """
    with ExitStack() as undo:
        if registered_model(client, name) is None:
            _create_model(client, name, entry)
            undo.callback(_remove_if_empty, client, name)
        before = client.get_logged_model(entry.model.model_id)
        undo.callback(_reset_versions_tag, client, before)
        version = _numbered_version(client, name, entry, number, undo)
        _tag_with_version(client, before, name, version)
        if alias:
            undo.callback(_reset_alias, client, name, alias, aliases(client, name).get(alias))
            set_alias(client, name, alias, version)
        keep(version)
        undo.pop_all()
    return version


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """From whichever version had it."""
    client.set_registered_model_alias(name, alias, version)


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias -> version of a registered model."""
    found = registered_model(client, name)
    return {} if found is None else {alias: str(version) for alias, version in found.aliases.items()}


def version_tags(client: MlflowClient, name: str, which: str) -> dict[str, str] | None:
    """The tags of a version, None if there is none. which: `@ALIAS`, or a number."""
    from mlflow.exceptions import MlflowException

    try:
        if which.startswith("@"):
            return dict(client.get_model_version_by_alias(name, which[1:]).tags)
        return dict(client.get_model_version(name, which).tags)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no such alias
            return None
        raise


def version_page(name: str, version: str) -> str:
    """The part of an MLflow address after its host."""
    return f"#/models/{quote(name, safe='')}/versions/{version}"


def restore_registry(
    client: MlflowClient,
    records: Iterable[Record],
    pins: PinFiles,
    artifact_uri: Callable[[str, str], str],
    models_behind: Callable[[Record], Sequence[Record]],
) -> list[Promoted]:
    """Register again what pins say was promoted and MLflow has lost; a second time it does nothing.

    Versions keep their number where it is free, and get their aliases back where nothing else has them. Passed over:
    artifacts that were made again with other bytes, and those that MLflow does not know (sync comes first).
    Returns what was registered now.
    """
    known = {(record.stage, record.key): record for record in records}
    restored = []
    for made in promoted(pins):
        record = known.get((made.stage, made.key))
        if record is None or record.digest != made.digest:
            continue
        version = find_version(client, made.model, record)
        if version is None:
            if (model := logged_model(client, record)) is None:
                continue
            asked = entry(client, record, model, models_behind(record), artifact_uri(record.stage, record.key))
            keep = functools.partial(_renumber, made, pins)
            version = register(client, made.model, asked, keep, number=made.version)
            restored.append(replace(made, version=int(version)))
        _renumber(made, pins, version)
        taken = aliases(client, made.model)
        for alias in made.aliases:
            if alias not in taken:
                client.set_registered_model_alias(made.model, alias, version)
        note_aliases(pins, made.model, aliases(client, made.model))
    return restored


def _renumber(made: Promoted, pins: PinFiles, version: str) -> None:
    """Its pin under the number that MLflow has given it."""
    now = replace(made, version=int(version))
    if now.pin_name != made.pin_name:
        now.write(pins)
        pins.remove(made.pin_name)


def _create_model(client: MlflowClient, name: str, entry: Entry) -> None:
    from mlflow.exceptions import MlflowException

    pipeline = entry.tags.get(runs.PIPELINE)
    words = f"Models that `bam promote` has registered{f' from the recipe {code(pipeline)}' if pipeline else ''}."
    try:
        client.create_registered_model(name, {runs.PIPELINE: pipeline} if pipeline else None, words)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
            raise


def _numbered_version(client: MlflowClient, name: str, entry: Entry, number: int | None, undo: ExitStack) -> str:
    """MLflow counts: those before the wanted one are made and deleted, as they once were."""
    while True:
        version = _create_version(client, name, entry)
        undo.callback(_quietly, client.delete_model_version, name, version)
        if number is None or not int(version) < number <= int(version) + _MOST_SKIPPED:
            return version
        client.delete_model_version(name, version)


def _create_version(client: MlflowClient, name: str, entry: Entry) -> str:
    model = entry.model
    with _default_tracking(client.tracking_uri):
        made: ModelVersion = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            model.source_run_id,
            dict(entry.tags),
            description=entry.description,
            model_id=model.model_id,
        )
    return str(made.version)


@contextmanager
def _default_tracking(uri: str) -> Iterator[None]:
    """MLflow's SQL registry looks a LoggedModel up where the process's default is, not where its client is."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the way back to the environment's
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _tag_with_version(client: MlflowClient, before: LoggedModel, name: str, version: str) -> None:
    """before: as it was: a server has tagged it with versions that were only made to be passed over, too."""
    versions: list[Any] = []
    with suppress(ValueError):
        found = json.loads(before.tags.get(VERSIONS_TAG, "[]"))
        versions = found if isinstance(found, list) else []
    versions = [item for item in versions if item != {"name": name, "version": int(version)}]
    value = json.dumps([*versions, {"name": name, "version": int(version)}])  # a number, as a server writes it
    client.set_logged_model_tags(before.model_id, {VERSIONS_TAG: value})


def _reset_versions_tag(client: MlflowClient, before: LoggedModel) -> None:
    with suppress(Exception):
        if VERSIONS_TAG in before.tags:
            client.set_logged_model_tags(before.model_id, {VERSIONS_TAG: before.tags[VERSIONS_TAG]})
        elif VERSIONS_TAG in client.get_logged_model(before.model_id).tags:
            client.delete_logged_model_tag(before.model_id, VERSIONS_TAG)


def _reset_alias(client: MlflowClient, name: str, alias: str, before: str | None) -> None:
    with suppress(Exception):
        if before is not None:
            client.set_registered_model_alias(name, alias, before)
        else:
            client.delete_registered_model_alias(name, alias)


def _remove_if_empty(client: MlflowClient, name: str) -> None:
    """Another process may have registered a version of its own meanwhile."""
    with suppress(Exception):
        if not client.get_registered_model(name).latest_versions:
            client.delete_registered_model(name)


def _quietly(function: Callable[..., Any], *arguments: Any) -> None:
    """What goes wrong in taking back must not hide why."""
    with suppress(Exception):
        function(*arguments)
