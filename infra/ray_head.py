"""Whether the cluster's head still answers.

Ray notices after a minute that it does not, and then ends the driver's process from its native code, without a word.
So the driver looks first.
"""

from __future__ import annotations

import socket
import time

from bam_core.errors import ExecutorLost

LOOK_EVERY_S, ANSWER_S = 1.0, 2.0
PATIENCE_S = 20.0
"""For a head that is busy or restarting: three times that long, and Ray gives up on it too."""


class HeadWatch:
    """address: HOST:PORT of the head's control store. Ask `require` often: it looks once a second at most."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._looked = self._answered = time.monotonic()

    def require(self) -> None:
        """Raises ExecutorLost once it has not answered for PATIENCE_S."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
            self._answered = now
        except OSError as error:
            if now - self._answered > PATIENCE_S:
                raise ExecutorLost(
                    f"the Ray cluster's head at {self._address} does not answer any more ({error.strerror or error}); "
                    "start the cluster again, then the same command continues"
                ) from error
        self._looked = time.monotonic()
