"""Where things run and live, and the adapters that follow from that."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from bam_core.errors import UsageError
from bam_core.protocols import Tracker
from infra.leases import Watch
from infra.mlflow_tracker import open_tracker as open_mlflow
from infra.provenance import mask_text
from infra.signing import Signer
from infra.storage import LOOK_PATIENCE_S, PATIENCE_S
from infra.store import ArtifactStore


@dataclass(frozen=True)
class Settings:
    """Where things run and live; none of it enters a key."""

    store: str
    tracking_uri: str | None = None
    address: str | None = None
    executor: str = "ray"
    verbose: bool = False


def open_store(settings: Settings, *, working: bool = False, watch: Watch | None = None) -> ArtifactStore:
    """working: artifacts are to be made, which is worth waiting for, should a remote store be away for a while; they
    are signed, if there is a key. watch: what is known of leases. Raises UsageError if the key is none."""
    require_store_uri(settings.store)
    if not working:
        return ArtifactStore(settings.store, patience_s=LOOK_PATIENCE_S)
    return ArtifactStore(settings.store, patience_s=PATIENCE_S, signer=Signer.from_environment(), watch=watch)


def open_tracker(settings: Settings, warn: Callable[[str], None] | None = None) -> Tracker:
    """Raises UsageError for a URI of no kind that MLflow knows."""
    require_tracking_uri(settings.tracking_uri)
    return open_mlflow(settings.tracking_uri, open_store(settings).uri, warn)


_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<slashes>/*)")
_TRACKING_SCHEMES = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


def require_store_uri(uri: str) -> None:
    """Raises UsageError for `s3:/bucket/x`, which would be a folder of this machine with that name."""
    found = _SCHEME.match(uri)
    if found is not None and len(found["slashes"]) == 1:
        slashes = ":///" if found["scheme"] == "file" else "://"
        meant = f"{found['scheme']}{slashes}{uri[found.end() :]}"
        raise UsageError(f"--store {mask_text(uri)}: did you mean {mask_text(meant)}? A folder here reads ./{uri}")


def require_tracking_uri(uri: str | None) -> None:
    """Raises UsageError for a URI that no MLflow here can open; one that does not answer is another matter."""
    found = _SCHEME.match(uri or "")
    if found is None:
        return
    scheme = found["scheme"].lower().partition("+")[0]
    if scheme not in _TRACKING_SCHEMES and scheme not in entry_points(group="mlflow.tracking_store").names:
        raise UsageError(
            f"--tracking-uri {mask_text(uri or '')}: must be http://HOST:PORT of an MLflow server, or a database such "
            "as sqlite:///FILE"
        )
