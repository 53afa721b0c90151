"""What the processes of a run listen on."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Listener:
    """host: as the kernel has it. process: its command line, cut."""

    host: str
    port: int
    process: str

    @property
    def is_loopback(self) -> bool:
        address = ipaddress.ip_address(self.host)
        inner = getattr(address, "ipv4_mapped", None)
        return (inner or address).is_loopback


def family(pid: int) -> list[psutil.Process]:
    """The process and all that descend from it, as of now."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def listeners(processes: list[psutil.Process]) -> set[Listener]:
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            name = " ".join(process.cmdline())[:300].strip()
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.add(Listener(one.laddr.ip, one.laddr.port, name))
    return found


def rays() -> set[Listener]:
    """Those of the Ray that this process has started."""
    return {one for one in listeners(family(os.getpid())) if "ray" in one.process and "pytest" not in one.process}
