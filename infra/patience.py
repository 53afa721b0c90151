"""Waiting, within a bound, for a storage that is away for a while: a network that drops, a server that is slow.

Invariant: an answer is never waited for again. "No such file", "not allowed" and "exists already" are answers; what
passes by itself (a cut connection, a timeout, 500, 503, "slow down") is none, and is tried again.
"""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0
FEWEST_TRIES = 3
"""Of a call that is slow to fail (a large upload), however long each took."""
BLOCK_BYTES = 4 << 20

_PASSING_NUMBERS = {
    *(
        errno.EIO,
        getattr(errno, "EREMOTEIO", errno.EIO),
        errno.EBUSY,
        errno.EAGAIN,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.EPIPE,
    ),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET),
}
"""s3fs says EREMOTEIO for 500, EBUSY for 503 and 409 (another conditional write under way), EIO for 502 and 504."""
_PASSING_CLASSES = {
    *("HTTPClientError", "IncompleteReadError", "ResponseStreamingError"),  # botocore
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("ServiceRequestError", "ServiceResponseError"),  # azure
    *("ConnectionError", "Timeout"),  # requests
}
"""By name, so that no storage library is imported that is not used."""
_RANGED = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
"""Protocols that surely give any range of a file; a web server need not."""


def is_passing(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    if "SSLError" in names:  # a certificate that is refused today is refused tomorrow
        return False
    if isinstance(error, TimeoutError | ConnectionError) or names & _PASSING_CLASSES:
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


class Patience:
    """Shared by all callers of one storage: an outage that one has waited out, no other waits out again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None
        self._last = 0.0

    def __reduce__(self) -> tuple[type[Patience], tuple[float]]:
        return Patience, (self.seconds,)  # another host's clock began at another time

    def call(self, operation: Callable[[], T]) -> T:
        """Its result. Raises its error: at once if that is an answer, else when `seconds` without one are over."""
        began = time.monotonic()
        first, pause_s, tries = None, FIRST_PAUSE_S, 0
        while True:
            try:
                result = operation()
            except Exception as error:
                if not is_passing(error):
                    self._since = None
                    raise
                now, tries = time.monotonic(), tries + 1
                first = now if first is None else first
                if self._is_over(now, first, began, tries):
                    raise
            else:
                self._since = None
                return result
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _is_over(self, now: float, first: float, began: float, tries: int) -> bool:
        since = self._since
        if since is None or now - self._last > self.seconds:  # long since anybody failed: another outage
            since = first
        self._since, self._last = since, now
        known = since < began
        return now - min(since, first) >= self.seconds and (known or tries >= FEWEST_TRIES or self.seconds == 0)


def open_for_reading(fs: Any, path: str, patience: Patience) -> IO[bytes]:
    """The file, read in ranges, each of which is asked for again if it does not come."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if not set(protocols) & set(_RANGED):
        opened: IO[bytes] = patience.call(lambda: fs.open(path, "rb"))
        return opened
    size = patience.call(lambda: fs.info(path)["size"])
    return io.BufferedReader(_Ranges(fs, path, size, patience), BLOCK_BYTES)


class _Ranges(io.RawIOBase):
    def __init__(self, fs: Any, path: str, size: int, patience: Patience) -> None:
        self._fs, self._path, self._size, self._patience = fs, path, size, patience
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        start, end = self._place, min(self._place + len(buffer), self._size)
        if start >= end:
            return 0
        data = self._patience.call(lambda: self._fs.cat_file(self._path, start=start, end=end))
        if len(data) != end - start:
            raise OSError(errno.EINVAL, f"has other bytes than when it was opened: {len(data)}, not {end - start}")
        buffer[: len(data)] = data
        self._place = end
        return len(data)
