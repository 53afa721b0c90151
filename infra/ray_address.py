"""Whether a Ray cluster's address can be one, and whether something answers there: known before Ray is imported."""

from __future__ import annotations

import socket

from bam_core.errors import UsageError

CONNECT_S = 10


def require_answer(address: str) -> None:
    """Raises UsageError at once if nothing listens at a node's HOST:PORT. `auto` is looked up by Ray."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Client is not supported; from outside the cluster give http://HOST:8265, which "
            "runs this as a job"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--address {address}: must read http://HOST:8265 (a job), HOST:PORT of the head, seen from a node, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({error.strerror or error}); is the cluster up, and this "
            "machine a node of it? From elsewhere give http://HOST:8265"
        ) from error
