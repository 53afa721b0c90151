"""The sha256 of a tensor, computed by a thread beside the work that makes and writes it.

Hashing a byte takes about as long as making it and writing it together, and Python lets go of its lock meanwhile.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from bam_core.checkpoint import tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Hashing:
    """Of one tensor, which is given in parts, in their order, each when its values are final.

    thread: of one worker, as the order counts. A part that waits is kept alive; none is once `hexdigest` returns.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread, self._sum = thread, hashlib.sha256()
        self._waiting: list[Future[None]] = []

    def add(self, part: Tensor) -> None:
        self._waiting.append(self._thread.submit(self._update, [tensor_bytes(part)]))

    def _update(self, part: list[memoryview]) -> None:
        self._sum.update(part.pop())  # or the thread, which may be slow to come back, would keep it alive for a while

    def hexdigest(self) -> str:
        """`tensor_sha256` of the tensor, when its last part has been hashed."""
        for part in self._waiting:
            part.result()
        return self._sum.hexdigest()
