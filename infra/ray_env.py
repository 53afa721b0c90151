"""Environment that Ray reads when it is imported or started; set before either."""

from __future__ import annotations

import os

COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a group's end is noticed sooner than after the default 2 s
}
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}  # what the raylet says to every driver; it stays in Ray's own logs


def prepare(verbose: bool) -> None:
    """Set what is not set yet: a person's own choice wins."""
    for name, value in (COMMON if verbose else COMMON | QUIET).items():
        os.environ.setdefault(name, value)
