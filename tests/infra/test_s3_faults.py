"""A store on S3 whose requests fail, one by one or all for a while: what passes is waited out, the rest is said."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_kit import S3Server
from store_kit import FILES, KEY, PLACE, commit

from bam_core.errors import ArtifactDamaged, InvalidInput, LeaseHeld, StoreError
from infra import patience, text_files
from infra.patience import Patience, is_passing
from infra.sources import TextSources
from infra.storage import Storage, ray_storage
from infra.store import ArtifactStore

SEED = ("seed", KEY)
PASSING = ["500", "503", "cut", "lost", "half"]


@pytest.fixture
def uri(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    return s3.uri(tmp_path.name)


@pytest.fixture
def store(uri: str) -> ArtifactStore:
    return ArtifactStore(uri)


class Clock:
    """Of the waiting of one thread alone: to connect takes no time of it, and a lease's thread has its own."""

    def __init__(self) -> None:
        self.now, self._thread = 0.0, threading.get_ident()

    def monotonic(self) -> float:
        return self.now if threading.get_ident() == self._thread else time.monotonic()

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._thread:
            self.now += seconds
        else:
            time.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "time", made)
    return made


def faults(s3: S3Server) -> list[str]:
    return [request["fault"] for request in s3.requests() if request["fault"]]


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
def test_one_request_of_each_kind_fails(s3: S3Server, store: ArtifactStore, kind: Any, method: str) -> None:
    """Of a commit, a look, a download and a lease, the first two requests by each method go wrong."""
    s3.fail(kind, method, times=2)
    lease = store.acquire("expert.law", KEY, "me")
    lease.require()
    record = commit(store)
    lease.release()
    assert store.record("expert.law", KEY) == record
    assert store.records() == [record]
    assert store.verify(record) == []
    folder = store.localize(record)
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert faults(s3) == [kind] * 2
    assert set(Storage(store.uri).sizes("")) == {f"{PLACE}/{path}" for path in (*FILES, "record.json")}


@pytest.mark.parametrize("name", ["lease.json", "lease.after"])
def test_a_lease_whose_creation_was_answered_to_nobody_is_ours(s3: S3Server, store: ArtifactStore, name: str) -> None:
    if name == "lease.after":
        Storage(store.uri).write_atomic(f"artifacts/seed/{KEY[:12]}/lease.json", b"of a dead process")
    s3.fail("lost", "PUT", name, times=3)
    lease = store.acquire(*SEED, "me")
    assert faults(s3) == ["lost"] * 3
    lease.require()
    with pytest.raises(LeaseHeld, match="held by me"):
        ArtifactStore(store.uri).acquire(*SEED, "you")
    lease.release()


def test_a_lease_that_another_created_in_between_is_not_ours(s3: S3Server, uri: str) -> None:
    """The first try never arrives, and before the second another run is quicker."""
    mine, yours = Storage(uri), Storage(uri)
    s3.fail("cut", "PUT", "lease", times=1)
    real, first = mine.fs.pipe_file, []

    def pipe_file(*args: Any, **options: Any) -> Any:
        if not first:
            first.append(1)
            assert yours.create_exclusive("other", b"yours")
        return real(*args, **options)

    mine.fs.pipe_file = pipe_file
    assert mine.create_exclusive("lease", b"mine")
    assert not mine.create_exclusive("other", b"mine")
    assert mine.read("other") == b"yours"


@pytest.mark.long
def test_twenty_seconds_away_are_survived(s3: S3Server, store: ArtifactStore) -> None:
    record = commit(store)
    lease = store.acquire(*SEED, "me")
    s3.offline(20)
    assert store.record("expert.law", KEY) == record
    lease.require()
    again = commit(store, {"model.safetensors": b"other"})
    assert store.record("expert.law", KEY) == again
    lease.release()


def test_away_for_good_is_one_error_within_a_bound(s3: S3Server, uri: str, clock: Clock) -> None:
    """One caller waits out the outage, and those that come later do not wait for it again."""
    store = ArtifactStore(uri, patience_s=1.0)
    commit(store)
    s3.offline()
    with pytest.raises(StoreError, match=r"cannot read: Could not connect.*check --store, its credentials") as caught:
        store.record("expert.law", KEY)
    assert caught.value.exit_code == 2
    assert 1.0 <= clock.now <= 2.0
    clock.now += 0.1
    tried: list[int] = []
    real = store.storage.fs.cat_file
    store.storage.fs.cat_file = lambda *args, **options: (tried.append(1), real(*args, **options))[1]
    for _ in range(3):
        with pytest.raises(StoreError):
            store.record("expert.law", KEY)
    assert len(tried) == 3
    s3.clear()
    assert store.record("expert.law", KEY) is not None


def test_a_new_outage_is_waited_for_again(clock: Clock) -> None:
    waits = Patience(10.0)

    def away() -> None:
        raise TimeoutError

    def lasting() -> float:
        began = clock.now
        with pytest.raises(TimeoutError):
            waits.call(away)
        return clock.now - began

    assert 10 <= lasting() <= 15
    clock.now += 1
    assert lasting() == 0, "the same outage"
    clock.now += 3600
    assert 10 <= lasting() <= 15, "an hour later it is another"
    with pytest.raises(ZeroDivisionError):
        waits.call(lambda: 1 / 0)
    assert 10 <= lasting() <= 15, "an answer ended it"


def test_a_call_that_is_slow_to_fail_is_tried_three_times(clock: Clock) -> None:
    tries = []

    def slow() -> str:
        tries.append(1)
        clock.now += 600
        if len(tries) < 3:
            raise ConnectionResetError
        return "sent"

    assert Patience(10.0).call(slow) == "sent"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError(5, "Input/output error"), True),
        (OSError(16, "SlowDown"), True),
        (OSError(28, "No space left on device"), False),
        (OSError("no number"), False),
        (FileNotFoundError(), False),
        (PermissionError(13, "no"), False),
        (FileExistsError(), False),
        (ValueError(), False),
        (type("SSLError", (ConnectionError,), {})(), False),
        (type("EndpointConnectionError", (type("HTTPClientError", (Exception,), {}),), {})(), True),
    ],
)
def test_what_passes_by_itself(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes


USES: dict[str, Callable[[ArtifactStore], object]] = {
    "check_writable": ArtifactStore.check_writable,
    "acquire": lambda store: store.acquire(*SEED, "me"),
    "commit": commit,
}


@pytest.mark.parametrize("use", USES)
def test_credentials_that_may_read_and_not_write(s3: S3Server, store: ArtifactStore, use: str) -> None:
    s3.read_only()
    assert store.records() == []
    with pytest.raises(
        StoreError, match=r"s3://bam/.*: cannot (create|remove): .*check the permissions or credentials"
    ):
        USES[use](store)


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    with pytest.raises(StoreError, match=r"s3://nowhere/x/probe-\w+: cannot create: .*bucket does not exist"):
        ArtifactStore("s3://nowhere/x").check_writable()


def test_no_credential_is_in_an_error(s3: S3Server, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.read_only()
    s3.fail("403", "GET", times=None)
    secrets = {value for name, value in s3.env().items() if "KEY" in name}
    for use in (*USES.values(), ArtifactStore.records):
        with pytest.raises(StoreError) as caught:
            use(store)
        errors: list[BaseException | None] = [caught.value, caught.value.__cause__, caught.value.__context__]
        assert not any(secret in str(error) for secret in secrets for error in errors)


def test_a_storage_that_creates_what_exists_is_refused(uri: str) -> None:
    """As an S3 server without conditional writes does."""
    storage = Storage(uri)
    real = storage.fs.pipe_file
    storage.fs.pipe_file = lambda path, data, mode="overwrite": real(path, data)
    with pytest.raises(StoreError, match=r"creates a file that exists already.*conditional writes"):
        storage.check_writable()
    assert storage.sizes("") == {}


def test_another_process_is_seen_at_once(uri: str) -> None:
    """No listing, size or absence is remembered."""
    ours, theirs = ArtifactStore(uri), pickle.loads(pickle.dumps(ArtifactStore(uri)))
    theirs.storage.fs = type(theirs.storage.fs)(use_listings_cache=False, skip_instance_cache=True)
    assert ours.records() == [] == ours.artifacts()
    assert ours.record("expert.law", KEY) is None
    record = commit(theirs)
    assert ours.record("expert.law", KEY) == record
    assert ours.records() == [record]
    other = commit(theirs, stage="seed", ended=1.0)
    assert ours.records() == [other, record], "listed before"
    theirs.storage.remove(f"{PLACE}/config.json")
    with pytest.raises(ArtifactDamaged, match=r"output config\.json is missing"):
        ours.record("expert.law", KEY)
    theirs.storage.remove(f"{PLACE}/record.json")
    assert ours.records() == [other]
    lease = theirs.acquire(*SEED, "them")
    with pytest.raises(LeaseHeld, match="held by them"):
        ours.acquire(*SEED, "us")
    lease.release()
    ours.acquire(*SEED, "us").release()


def test_of_many_takers_on_s3_one_wins(s3: S3Server, store: ArtifactStore) -> None:
    s3.fail("lost", "PUT", "lease", times=4)
    won, lost, together = [], [], threading.Barrier(6)

    def take(number: int) -> None:
        mine = ArtifactStore(store.uri)
        together.wait()
        try:
            won.append(mine.acquire(*SEED, f"taker {number}"))
        except LeaseHeld as held:
            lost.append(held)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    won[0].require()
    won[0].release()


@pytest.mark.parametrize("kind", PASSING)
def test_ray_writes_and_reads_through_faults(s3: S3Server, uri: str, kind: Any) -> None:
    """What Ray Train does with a run's folder: a checkpoint goes up, its state is written, read and listed."""
    from pyarrow.fs import FileSelector

    filesystem, parent, name = pickle.loads(pickle.dumps(ray_storage(f"{uri}/training/run")))
    data = bytes(range(256)) * 4096 * 6  # in several ranges
    for method in ("PUT", "GET", "HEAD"):
        s3.fail(kind, method, times=2)
    filesystem.create_dir(f"{parent}/{name}")
    with filesystem.open_output_stream(f"{parent}/{name}/step/model") as file:
        file.write(data[:1000])
        file.write(data[1000:])
    with filesystem.open_input_stream(f"{parent}/{name}/step/model") as file:
        assert file.read() == data
    listed = filesystem.get_file_info(FileSelector(f"{parent}/{name}", recursive=True))
    assert f"{parent}/{name}/step/model" in {info.path for info in listed}
    filesystem.delete_dir(f"{parent}/{name}/step")
    assert not any("model" in path for path in Storage(uri).sizes(""))
    assert len(faults(s3)) >= 5  # half of an answer without a body is all of it


@pytest.mark.parametrize("kind", PASSING)
def test_texts_are_read_through_faults(s3: S3Server, uri: str, kind: Any) -> None:
    storage, sources = Storage(uri), TextSources()
    lines = [f'{{"text": "line {number} {"x" * 1000}"}}' for number in range(12_000)]  # in several ranges
    storage.write_atomic("a.jsonl", "\n".join(lines).encode())
    spec = {"kind": "jsonl", "path": f"{uri}/*.jsonl"}
    undisturbed = sources.digest(spec), len(list(sources.read(spec)))
    s3.fail(kind, "GET", "a.jsonl", after=1, times=2)
    assert (sources.digest(spec), len(list(sources.read(spec)))) == undisturbed
    assert faults(s3) == [kind] * 2


def test_texts_that_cannot_be_reached_are_a_problem_of_the_recipe(s3: S3Server, uri: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(text_files, "LOOK_PATIENCE_S", 0.5)
    s3.offline()
    with pytest.raises(InvalidInput, match="cannot be read: Could not connect"):
        TextSources().digest({"kind": "text", "path": f"{uri}/a.txt"})
    s3.clear()
    s3.fail("403", "GET|HEAD", times=None)
    with pytest.raises(InvalidInput, match=r"path: .*cannot be read"):
        TextSources().digest({"kind": "text", "path": f"{uri}/a.txt"})


def test_waiting_is_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    left = iter([TimeoutError()] * 8)

    def away() -> str:
        for error in left:
            raise error
        return "back"

    assert Patience(100.0).call(away) == "back"
    assert pauses == [0.25, 0.5, 1, 2, 4, 4, 4, 4]
