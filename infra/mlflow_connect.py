"""Where MLflow is, and how to reach it quietly and without waiting.

A local store has its own: a SQLite file in it, with the small files of runs beside it. MLflow takes seconds
to import: `connect` is the first that does.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
ENVIRONMENT = {
    # A server that is down must not hold a stage for minutes: MLflow's own default is 7 retries of 120 s.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # Standard output belongs to `--json`, standard error to our own lines, and nothing is sent elsewhere.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_LOCK_WAIT_S = 20  # as long as MLflow itself waits for another writer


def default_tracking_uri(store_uri: str) -> str | None:
    """SQLite inside a local store; None for a remote one, where a database file cannot be."""
    folder = local_path(store_uri)
    return None if folder is None else _sqlite_uri(folder / "mlflow.db")


def absolute_tracking_uri(tracking_uri: str) -> str:
    """The same place seen from any folder: Ray workers run in one of their own."""
    file = sqlite_file(tracking_uri)
    return tracking_uri if file is None else _sqlite_uri(file)


def artifact_root(tracking_uri: str) -> Path | None:
    """Where the small files of a SQLite view lie: beside it. None when a server decides."""
    file = sqlite_file(tracking_uri)
    return None if file is None else file.parent / "mlflow"


def sqlite_file(tracking_uri: str) -> Path | None:
    """The absolute path of a SQLite tracking database; None for a server."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(SQLITE).partition("?")[0])).absolute()


def local_path(uri: str) -> Path | None:
    """The absolute folder of a path or file:// URI; None for any other scheme."""
    if "://" not in uri:
        return Path(uri).absolute()
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def connect(tracking_uri: str) -> MlflowClient:
    """A client. Raises at once when a SQLite file cannot be opened; a server is asked by the first call."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they narrate at INFO, and the tracker says what went wrong
        logging.getLogger(name).setLevel(logging.ERROR)
    if (file := sqlite_file(tracking_uri)) is not None:
        if not file.exists():
            _create_database(file)
        _require_database(file)
    return MlflowClient(tracking_uri)


def _sqlite_uri(file: Path) -> str:
    # Only what a URI cannot hold: MLflow makes the parent folder of the text as it stands, escapes and all.
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def _create_database(file: Path) -> None:
    """Make the schema aside and link it into place, whole.

    MLflow migrates a new file step by step without a lock: two processes at once, or one that is killed, leave
    it broken for good.
    """
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        MlflowClient(_sqlite_uri(made)).search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was first
            os.link(made, file)


def _require_database(file: Path) -> None:
    # MLflow would try again for a minute and a half before it says that a file is no database.
    with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as database:
        database.execute("PRAGMA schema_version")
