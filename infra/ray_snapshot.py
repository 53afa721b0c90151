"""Ray Train's list of a run's checkpoints, judged before Ray reads it.

Ray joins the names in it to the run's folder, reads the newest and deletes the oldest. So a name that climbs out, put
there by whoever can write to the store, would make Ray delete another folder of the machine that resumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from bam_core.errors import ArtifactDamaged
from infra.storage import Storage

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def require_own_checkpoints(training_uri: str) -> None:
    """Raises ArtifactDamaged unless every checkpoint that Ray would take up is a folder of this very run."""
    storage = Storage(training_uri)
    data = storage.read(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    if data is None:
        return
    where = f"{storage.shown}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    remedy = "remove that folder to train from the start"
    try:
        names = list(_checkpoint_names(json.loads(data)))
    except ValueError as error:
        raise ArtifactDamaged(f"{where}: not JSON ({error}); {remedy}") from error
    for name in names:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ArtifactDamaged(f"{where}: checkpoint {name!r} is no folder of this training; {remedy}")


def _checkpoint_names(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "checkpoint_dir_name":
                yield item
            elif key.endswith("checkpoint_dir_names") and isinstance(item, list):
                yield from item
            else:
                yield from _checkpoint_names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _checkpoint_names(item)
