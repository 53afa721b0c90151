"""Who works on an artifact now: of any number of runs exactly one, across processes and machines.

A lease is a small file that is created exclusively and never rewritten. Renewals go to a file of their own,
named after the lease's token. A lease that has expired is taken over by exclusively creating its successor,
which is named after the token that it succeeds:

    lease.json (token a)  <-  lease.after-a.json (token b)  <-  lease.after-b.json (token c)  = the holder

Invariant: the holder is the end of this chain. Two takers of one lease create the same file, so one of them
fails; a taker that dies half-way is itself an expired lease; a late owner can only renew its own token,
which is no longer the end. No step needs a compare-and-swap, which fsspec does not offer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bam_core.errors import LeaseHeld, StoreError
from bam_core.protocols import LeaseInfo
from infra.storage import Storage

_TOKEN = re.compile(r"[0-9a-f]{32}")
_ROOT = "lease.json"


@dataclass(frozen=True)
class Claim:
    """A lease file. pid_started: clock ticks since boot. boot_id: of this boot and pid namespace."""

    owner: str
    host: str
    pid: int
    pid_started: int | None
    boot_id: str
    token: str
    expires: float

    @classmethod
    def of_this_process(cls, owner: str, expires: float) -> Claim:
        pid = os.getpid()
        return cls(owner, socket.gethostname(), pid, _started(pid), _boot_id(), uuid.uuid4().hex, expires)

    @classmethod
    def parse(cls, data: bytes) -> Claim:
        """A file that cannot be read as a lease protects nothing: it counts as expired."""
        try:
            found = json.loads(data)
            claim = cls(**{name: found.get(name) for name in cls.__dataclass_fields__})
            if _TOKEN.fullmatch(str(claim.token)) and isinstance(claim.expires, int | float):
                return claim
        except (ValueError, AttributeError):
            pass
        return cls("unknown", "", 0, None, "", hashlib.sha256(data).hexdigest()[:32], 0.0)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def is_orphaned(self) -> bool:
        """Whether its process is known to be gone: one of this host, boot and pid namespace, that is."""
        if (self.host, self.boot_id) != (socket.gethostname(), _boot_id()) or not self.boot_id:
            return False
        return self.pid_started is not None and _started(self.pid) != self.pid_started


class Leases:
    """The leases in one artifact's folder."""

    def __init__(self, storage: Storage, folder: str, clock: Callable[[], float], ttl_s: float) -> None:
        self._storage, self._folder = storage, folder
        self.clock, self.ttl_s = clock, ttl_s

    def info(self) -> LeaseInfo | None:
        """Who holds a live lease, or None."""
        claim = self.end()
        return LeaseInfo(claim.owner, claim.expires) if claim is not None and self._is_live(claim) else None

    def acquire(self, owner: str) -> HeldLease:
        """Raises LeaseHeld if another holds it, or is quicker to take it."""
        mine = Claim.of_this_process(owner, self.clock() + self.ttl_s)
        last = self.end()
        if last is not None and self._is_live(last):
            raise self.held(last)
        path = self._path(_ROOT if last is None else _after(last.token))
        if not self._storage.create_exclusive(path, mine.to_bytes()):
            raise self.held(self.end())
        # The chain may have been released, and begun anew, since it was read: then this file succeeds nobody.
        chain = self._chain()
        if mine not in chain:
            self._storage.remove(path)
        if chain[-1:] != [mine]:
            raise self.held(self.end())
        return HeldLease(self, mine)

    def end(self) -> Claim | None:
        """The holder's claim with its newest renewal, live or not."""
        chain = self._chain()
        return self._renewed(chain[-1]) if chain else None

    def renew(self, claim: Claim) -> None:
        beat = json.dumps({"expires": self.clock() + self.ttl_s}).encode()
        self._storage.write_atomic(self._path(_beat(claim.token)), beat)

    def clear(self) -> None:
        """Remove the whole chain, for its holder."""
        names = [name for name in self._storage.sizes(self._folder) if is_lease_file(name) and name != _ROOT]
        # Root first: without it the rest succeeds nobody. Listed before that: what comes later is not ours.
        for name in (_ROOT, *names):
            self._storage.remove(self._path(name))

    def held(self, claim: Claim | None) -> LeaseHeld:
        who = f"held by {claim.owner}" if claim is not None else "just taken by another run"
        artifact = "@".join(self._folder.split("/")[-2:])
        return LeaseHeld(f"{artifact}: {who}; run the same command again later")

    def _chain(self) -> list[Claim]:
        chain: list[Claim] = []
        name = _ROOT
        while (data := self._storage.read(self._path(name))) is not None:
            chain.append(Claim.parse(data))
            name = _after(chain[-1].token)
        return chain

    def _renewed(self, claim: Claim) -> Claim:
        data = self._storage.read(self._path(_beat(claim.token)))
        if data is not None:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return replace(claim, expires=float(json.loads(data)["expires"]))
        return claim

    def _is_live(self, claim: Claim) -> bool:
        return claim.expires > self.clock() and not claim.is_orphaned()

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


class HeldLease:
    """Implements protocols.Lease. Renewed by a daemon thread every third of its time to live."""

    def __init__(self, leases: Leases, claim: Claim) -> None:
        self._leases, self._claim = leases, claim
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {claim.owner}", daemon=True)
        self._thread.start()

    def require(self) -> None:
        if self._released.is_set():
            raise LeaseHeld(f"{self._claim.owner}: this lease was released")
        self._leases.renew(self._claim)
        end = self._leases.end()
        if end is None or end.token != self._claim.token:
            raise self._leases.held(end)

    def release(self) -> None:
        """Give it back. One that was lost is left to its holder; one that cannot be removed will expire."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()  # a renewal under way would leave its file behind
        with contextlib.suppress(StoreError):
            end = self._leases.end()
            if end is not None and end.token == self._claim.token:
                self._leases.clear()

    def _keep(self) -> None:
        while not self._released.wait(self._leases.ttl_s / 3):
            with contextlib.suppress(StoreError):  # the store may come back before the lease expires
                try:
                    self.require()
                except LeaseHeld:
                    return


def is_lease_file(name: str) -> bool:
    return name == _ROOT or (name.startswith(("lease.after-", "lease.beat-")) and name.endswith(".json"))


def _after(token: str) -> str:
    return f"lease.after-{token}.json"


def _beat(token: str) -> str:
    return f"lease.beat-{token}.json"


def _started(pid: int) -> int | None:
    """When a process started, or None if it has ended (a zombie has) or this system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    """This boot and pid namespace (containers may share a host's name, but not pids); empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
