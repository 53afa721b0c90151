"""The ranks of a worker group, joined by torch.distributed: on the address of their node and on no other interface.

torch's own rendezvous listens on every interface; here rank 0 opens the socket and hands it over.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ray.train.collective
import ray.util

TIMEOUT = timedelta(minutes=30)
"""A rank that is this late has been lost. Evaluation by rank 0 alone must fit in."""


@contextmanager
def process_group(rank: int, world_size: int, device: str) -> Iterator[Callable[[Any], list[Any]]]:
    """Join the ranks for as long as the context lasts; yields a gather of one small value of each rank.

    A single rank needs no group: then nothing is opened. A BamError that a rank returns ends the group too.
    """
    if world_size == 1:
        yield lambda value: [value]
        return
    import torch.distributed as dist

    address = ray.util.get_node_ip_address()
    server = socket.create_server((address, 0)) if rank == 0 else None
    host, port = ray.train.collective.broadcast_from_rank_zero(server.getsockname()[:2] if server else None)
    if ipaddress.ip_address(address).is_loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not said to be exported
        host,
        port,
        world_size=world_size,
        is_master=rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=server.detach() if server else None,
    )
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield lambda value: _gather(value, world_size)
    finally:
        dist.destroy_process_group()


def _gather(value: Any, world_size: int) -> list[Any]:
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def _loopback() -> str:
    """The name of the loopback interface: the first one wherever there is one."""
    return min(socket.if_nameindex())[1]
