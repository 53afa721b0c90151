"""Memory that is left out of garbage collection for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unscanned() -> Iterator[None]:
    """What has been loaded by now is no garbage. With MLflow it is so much that looking through it, again and again,
    doubled the time of what makes many objects of its own, such as reading Python source."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
