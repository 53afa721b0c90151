"""Of any number of runs exactly one works on an artifact; a run that died makes nobody wait."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bam_core.errors import LeaseHeld, StoreError
from infra import leases
from infra.leases import Claim, HeldLease, Watch
from infra.storage import Storage
from infra.store import ArtifactStore

KEY = "ab" * 32
TTL_S = 30.0
SEED = ("seed", KEY)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def owners_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With their test. One that went on renewing met the outages of later tests and counted among their callers."""
    held: list[HeldLease] = []
    begin = HeldLease.__init__

    def recorded(lease: HeldLease, *args: Any) -> None:
        held.append(lease)
        begin(lease, *args)

    monkeypatch.setattr(HeldLease, "__init__", recorded)
    yield
    for lease in held:
        lease._released.set()
        lease._thread.join()


@pytest.fixture(params=["local", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        yield request.getfixturevalue("s3").uri(tmp_path.name)
        return
    yield str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(uri: str, clock: Clock) -> ArtifactStore:
    return ArtifactStore(uri, clock=clock, watch=Watch(clock), lease_ttl_s=TTL_S)


def lease_files(store: ArtifactStore) -> set[str]:
    return set(Storage(f"{store.uri}/artifacts/seed/{KEY[:12]}").sizes(""))


def other_process(**changes: Any) -> Claim:
    """A claim of a process that cannot be judged from here."""
    return replace(Claim.of_this_process("far:1", 1030.0, TTL_S), host="far", **changes)


def plant(store: ArtifactStore, data: bytes, name: str = "lease.json") -> None:
    Storage(store.uri).write_atomic(f"artifacts/seed/{KEY[:12]}/{name}", data)


def test_one_holder_at_a_time(store: ArtifactStore) -> None:
    lease = store.acquire(*SEED, "me:1")
    assert store.lease_info(*SEED).owner == "me:1"
    assert store.lease_info(*SEED).expires == 1030.0
    with pytest.raises(LeaseHeld, match="seed@abababababab: held by me:1") as caught:
        store.acquire(*SEED, "you:2")
    assert caught.value.exit_code == 3
    lease.require()
    lease.release()
    lease.release()
    assert store.lease_info(*SEED) is None
    assert lease_files(store) == set()
    with pytest.raises(LeaseHeld, match="was released"):
        lease.require()
    store.acquire(*SEED, "you:2").release()


def test_what_a_lease_says(store: ArtifactStore) -> None:
    lease = store.acquire(*SEED, "me:1")
    content = json.loads(Storage(store.uri).read(f"artifacts/seed/{KEY[:12]}/lease.json") or b"")
    assert content == content | {
        "owner": "me:1",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "expires": 1030.0,
    }
    assert set(content) == {"owner", "host", "pid", "pid_started", "boot_id", "token", "expires", "ttl_s"}
    lease.release()


def test_stages_and_keys_have_leases_of_their_own(store: ArtifactStore) -> None:
    held = [
        store.acquire(*SEED, "a"),
        store.acquire("seed", "cd" * 32, "b"),
        store.acquire("dense", KEY, "c"),
    ]
    for lease in held:
        lease.require()
        lease.release()


def test_renewed_it_outlives_its_first_term(store: ArtifactStore, clock: Clock) -> None:
    lease = store.acquire(*SEED, "me:1")
    clock.now += 0.9 * TTL_S
    lease.require()  # what the background thread does every third of a term
    assert store.lease_info(*SEED).expires == pytest.approx(1000 + 1.9 * TTL_S)
    clock.now += 0.9 * TTL_S
    assert store.lease_info(*SEED).expires == pytest.approx(1000 + 1.9 * TTL_S)
    with pytest.raises(LeaseHeld):
        store.acquire(*SEED, "you:2")
    lease.release()
    assert lease_files(store) == set()


def test_the_background_thread_renews(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a third of the term, by the real clock; a renewal that fails is tried again."""
    renewed = threading.Semaphore(0)
    real = leases.Leases.renew
    calls = iter(range(1_000_000))

    def renew(self: leases.Leases, claim: Claim) -> None:
        if next(calls) == 0:
            raise StoreError("the network is away")
        real(self, claim)
        renewed.release()

    monkeypatch.setattr(leases.Leases, "renew", renew)
    lease = ArtifactStore(uri, lease_ttl_s=0.03).acquire(*SEED, "me:1")
    assert renewed.acquire(timeout=60)
    assert renewed.acquire(timeout=60)
    lease.release()
    assert not lease._thread.is_alive()


def test_expired_it_is_taken_over_and_its_owner_learns_it(store: ArtifactStore, clock: Clock) -> None:
    slow = store.acquire(*SEED, "slow:1")
    clock.now += TTL_S
    assert store.lease_info(*SEED) is None
    quick = store.acquire(*SEED, "quick:2")
    assert store.lease_info(*SEED).owner == "quick:2"
    with pytest.raises(LeaseHeld, match="held by quick:2"):
        slow.require()
    slow.release()  # leaves what is not its own
    quick.require()
    clock.now += TTL_S
    third = store.acquire(*SEED, "third:3")
    with pytest.raises(LeaseHeld, match="held by third:3"):
        quick.require()
    third.require()
    third.release()
    # What a late owner renewed stays; it can never be mistaken for a lease.
    assert not any(name == "lease.json" or "after" in name for name in lease_files(store))
    store.acquire(*SEED, "fourth:4").release()


def test_expired_but_not_taken_it_is_still_its_owners(store: ArtifactStore, clock: Clock) -> None:
    lease = store.acquire(*SEED, "me:1")
    clock.now += 10 * TTL_S
    lease.require()
    assert store.lease_info(*SEED).owner == "me:1"
    lease.release()


def test_a_store_that_is_away_does_not_fail_a_release(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = store.acquire(*SEED, "me:1")

    def away(self: Storage, path: str) -> None:
        raise StoreError("the network is away")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read", away)
        lease.release()
    assert store.lease_info(*SEED).owner == "me:1"


@pytest.mark.parametrize("chain_length", [0, 1, 3])
def test_of_many_takers_one_wins(tmp_path: Path, chain_length: int) -> None:
    """Threads that start together: no lease yet, an expired one, and one that was taken over before."""
    for round_ in range(20):
        clock = Clock()
        store = ArtifactStore(str(tmp_path / str(round_)), clock=clock, watch=Watch(clock), lease_ttl_s=TTL_S)
        for _ in range(chain_length):
            store.acquire(*SEED, "before")
            clock.now += TTL_S
        together = threading.Barrier(6)

        def take(name: str, store: ArtifactStore = store, together: threading.Barrier = together) -> Any:
            together.wait()
            try:
                return store.acquire(*SEED, name)
            except LeaseHeld as held:
                return held

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(take, [f"taker {i}" for i in range(6)]))
        winners = [result for result in results if not isinstance(result, LeaseHeld)]
        assert len(winners) == 1
        winners[0].require()
        winners[0].release()


class Interleaved(Storage):
    """A storage in which something else happens just before the first exclusive create."""

    def __init__(self, uri: str, meanwhile: Any) -> None:
        super().__init__(uri)
        self._meanwhile = [meanwhile]

    def create_exclusive(self, path: str, data: bytes) -> bool:
        while self._meanwhile:
            self._meanwhile.pop()()
        return super().create_exclusive(path, data)


@pytest.mark.parametrize("then_held", [True, False])
def test_a_taker_that_is_overtaken_by_a_takeover_and_a_release(
    store: ArtifactStore, clock: Clock, then_held: bool
) -> None:
    """It read the old chain, which was then taken over, released, perhaps begun anew: it must not win."""
    store.acquire(*SEED, "old:0")
    clock.now += TTL_S
    held = []

    def meanwhile() -> None:
        store.acquire(*SEED, "quick:1").release()
        if then_held:
            held.append(store.acquire(*SEED, "next:2"))

    slow = ArtifactStore(store.uri, clock=clock, watch=store._watch, lease_ttl_s=TTL_S)
    slow.storage = Interleaved(store.uri, meanwhile)
    with pytest.raises(LeaseHeld):
        slow.acquire(*SEED, "slow:3")
    for lease in held:
        lease.require()
        lease.release()
    assert not any("after" in name for name in lease_files(store))
    slow.acquire(*SEED, "slow:3").release()


def test_another_hosts_lease_is_waited_for(store: ArtifactStore, clock: Clock) -> None:
    plant(store, other_process(ttl_s=5.0).to_bytes())
    with pytest.raises(LeaseHeld, match="held by far:1"):
        store.acquire(*SEED, "me")
    clock.now += 5
    store.acquire(*SEED, "me").release()
    assert lease_files(store) == set()


def beat(store: ArtifactStore, claim: Claim, expires: float, number: int) -> None:
    plant(store, json.dumps({"expires": expires, "beat": number}).encode(), f"lease.beat-{claim.token}.json")


@pytest.mark.parametrize("skew_s", [-3600.0, 0.0, 3600.0])
def test_the_clock_of_another_host_is_not_believed(store: ArtifactStore, clock: Clock, skew_s: float) -> None:
    """An hour wrong either way: renewed it is live, and silent for its term it is over, as seen from here."""
    far = other_process(expires=clock.now + skew_s + TTL_S)
    plant(store, far.to_bytes())
    for number in range(6):
        assert store.lease_info(*SEED).expires == clock.now + TTL_S
        with pytest.raises(LeaseHeld, match="held by far:1"):
            store.acquire(*SEED, "me")
        clock.now += TTL_S / 3
        beat(store, far, clock.now + skew_s + TTL_S, number)
    assert store.lease_info(*SEED) is not None
    clock.now += 0.99 * TTL_S
    with pytest.raises(LeaseHeld, match="held by far:1"):
        store.acquire(*SEED, "me")
    clock.now += 0.01 * TTL_S
    assert store.lease_info(*SEED) is None
    store.acquire(*SEED, "me").release()


def test_a_clock_that_stands_still_renews_all_the_same(store: ArtifactStore, clock: Clock) -> None:
    far = other_process()
    plant(store, far.to_bytes())
    for number in range(5):
        assert store.lease_info(*SEED) is not None
        clock.now += TTL_S / 2
        beat(store, far, far.expires, number)
    assert store.lease_info(*SEED) is not None


def test_a_renewal_never_looks_like_the_one_before(store: ArtifactStore) -> None:
    lease = store.acquire(*SEED, "me:1")
    looks = set()
    for _ in range(3):
        lease.require()  # under a clock that stands still
        looks.add(store._leases(*SEED).end().sign)
    assert len(looks) == 3
    lease.release()


def test_what_a_process_has_seen_is_its_own(store: ArtifactStore, clock: Clock) -> None:
    plant(store, other_process().to_bytes())
    assert store.lease_info(*SEED) is not None
    clock.now += TTL_S
    assert ArtifactStore(store.uri, clock=clock, watch=Watch(clock)).lease_info(*SEED) is not None
    assert store.lease_info(*SEED) is None


def test_a_lease_of_yesterday_need_not_be_watched(store: ArtifactStore, clock: Clock) -> None:
    plant(store, other_process().to_bytes())
    clock.now += leases.LONGEST_SKEW_S + TTL_S + 1
    assert store.lease_info(*SEED) is None
    store.acquire(*SEED, "me").release()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"{}", b'{"token": "../../x", "expires": 9e9, "ttl_s": 9e9}']
)
def test_a_lease_that_cannot_be_read_protects_nothing(store: ArtifactStore, data: bytes) -> None:
    plant(store, data)
    assert store.lease_info(*SEED) is None
    lease = store.acquire(*SEED, "me")
    with pytest.raises(LeaseHeld, match="held by me"):
        store.acquire(*SEED, "you")
    lease.release()
    assert lease_files(store) == set()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"expires": "x"}', b'{"expires": null}'])
def test_a_renewal_that_cannot_be_read_leaves_the_first_term(store: ArtifactStore, data: bytes) -> None:
    lease = store.acquire(*SEED, "me")
    plant(store, data, f"lease.beat-{lease._claim.token}.json")
    assert store.lease_info(*SEED).expires == 1030.0
    lease.release()
