"""Who works on an artifact now: of any number of runs exactly one, across processes and machines.

A lease is a small file that is created exclusively and never rewritten. Renewals go to a file of their own,
named after the lease's token. A lease that has expired is taken over by exclusively creating its successor,
which is named after the token that it succeeds:

    lease.json (token a)  <-  lease.after-a.json (token b)  <-  lease.after-b.json (token c)  = the holder

Invariant: the holder is the end of this chain. Two takers of one lease create the same file, so one of them
fails; a taker that dies half-way is itself an expired lease; a late owner can only renew its own token,
which is no longer the end. No step needs a compare-and-swap, which fsspec does not offer.

Whether a lease has expired is judged by what its judge has seen change, on the judge's own clock: a lease is over when
it was not renewed for its whole term under the judge's eyes. No two clocks are compared, so none need agree. A process
of this host and boot is asked for itself: once it has ended, its lease is over at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bam_core.errors import LeaseHeld, StoreError
from bam_core.protocols import LeaseInfo
from infra.storage import Storage

_TOKEN = re.compile(r"[0-9a-f]{32}")
_ROOT = "lease.json"
LONGEST_SKEW_S = 2 * 3600.0
"""A lease that ended longer ago than this, by the clock of who wrote it, is over without being watched.

Were a clock more wrong than that, its owner would find its lease lost before it commits.
"""


@dataclass(frozen=True)
class Claim:
    """A lease file. pid_started: clock ticks since boot. boot_id: of this boot and pid namespace.

    expires: by its owner's clock. ttl_s: its term, for whoever watches it. sign: what changes when it is renewed.
    """

    owner: str
    host: str
    pid: int
    pid_started: int | None
    boot_id: str
    token: str
    expires: float
    ttl_s: float
    sign: str = field(default="", compare=False)

    @classmethod
    def of_this_process(cls, owner: str, expires: float, ttl_s: float) -> Claim:
        pid = os.getpid()
        return cls(owner, socket.gethostname(), pid, _started(pid), _boot_id(), uuid.uuid4().hex, expires, ttl_s)

    @classmethod
    def parse(cls, data: bytes) -> Claim:
        """A file that cannot be read as a lease protects nothing: it counts as expired."""
        try:
            found = json.loads(data)
            claim = cls(**{name: found.get(name) for name in _WRITTEN})
            if _TOKEN.fullmatch(str(claim.token)) and _is_number(claim.expires) and _is_number(claim.ttl_s):
                return claim
        except (ValueError, AttributeError):
            pass
        return cls("unknown", "", 0, None, "", hashlib.sha256(data).hexdigest()[:32], 0.0, 0.0)

    def to_bytes(self) -> bytes:
        return json.dumps({name: getattr(self, name) for name in _WRITTEN}).encode()

    def is_orphaned(self) -> bool:
        """Whether its process is known to be gone: one of this host, boot and pid namespace, that is."""
        if (self.host, self.boot_id) != (socket.gethostname(), _boot_id()) or not self.boot_id:
            return False
        return self.pid_started is not None and _started(self.pid) != self.pid_started


_WRITTEN = tuple(name for name in Claim.__dataclass_fields__ if name != "sign")


class Watch:
    """Since when each lease has looked as it does now, by a clock of this process that only goes forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[tuple[str, str], float]] = {}

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()  # another process has seen nothing yet, by a clock of its own

    def unchanged_s(self, place: str, claim: Claim) -> float:
        look, now = (claim.token, claim.sign), self._clock()
        seen = self._seen.get(place)
        if seen is None or seen[0] != look:
            self._seen[place] = seen = (look, now)
        return now - seen[1]


class Leases:
    """The leases in one artifact's folder. clock: seconds since the epoch; only people read what it says."""

    def __init__(
        self, storage: Storage, folder: str, clock: Callable[[], float], ttl_s: float, watch: Watch | None = None
    ) -> None:
        self._storage, self._folder = storage, folder
        self.clock, self.ttl_s = clock, ttl_s
        self._watch = watch or Watch()

    def info(self) -> LeaseInfo | None:
        """Who holds a live lease, or None. expires: by our clock, if it is not renewed again."""
        claim = self.end()
        left_s = self._left_s(claim) if claim is not None else 0.0
        return LeaseInfo(claim.owner, self.clock() + left_s) if claim is not None and left_s > 0 else None

    def acquire(self, owner: str) -> HeldLease:
        """Raises LeaseHeld if another holds it, or is quicker to take it."""
        mine = Claim.of_this_process(owner, self.clock() + self.ttl_s, self.ttl_s)
        last = self.end()
        if last is not None and self._left_s(last) > 0:
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
        self._watch.unchanged_s(self._folder, mine)
        return HeldLease(self, mine)

    def end(self) -> Claim | None:
        """The holder's claim with its newest renewal, live or not."""
        chain = self._chain()
        if not chain:
            return None
        claim = self._renewed(chain[-1])
        self._watch.unchanged_s(self._folder, claim)
        return claim

    def renew(self, claim: Claim) -> None:
        # A wall clock may stand still or go back, and each beat must differ from the one before.
        beat = json.dumps({"expires": self.clock() + self.ttl_s, "beat": time.monotonic_ns()}).encode()
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
                return replace(claim, expires=float(json.loads(data)["expires"]), sign=data.decode())
        return claim

    def _left_s(self, claim: Claim) -> float:
        """How long it lives yet, as far as can be known from here; 0 if it is over."""
        unchanged_s = self._watch.unchanged_s(self._folder, claim)
        if claim.is_orphaned() or claim.expires + LONGEST_SKEW_S < self.clock():
            return 0.0
        return max(0.0, claim.ttl_s - unchanged_s)

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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
