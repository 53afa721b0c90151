"""Where things run and live, and the adapters that follow from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bam_core.protocols import Tracker
from infra.mlflow_tracker import open_tracker as open_mlflow
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


def open_store(settings: Settings, *, working: bool = False) -> ArtifactStore:
    """working: artifacts are to be made, which is worth waiting for, should a remote store be away for a while; they
    are signed, if there is a key. Raises UsageError if that is none."""
    if not working:
        return ArtifactStore(settings.store, patience_s=LOOK_PATIENCE_S)
    return ArtifactStore(settings.store, patience_s=PATIENCE_S, signer=Signer.from_environment())


def open_tracker(settings: Settings, warn: Callable[[str], None] | None = None) -> Tracker:
    return open_mlflow(settings.tracking_uri, open_store(settings).uri, warn)
