"""Looking over a store and removing what nothing needs: on a local folder, in memory and on S3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from house_kit import CHAIN, MADE, a_run, key_of, make, name, node, require_whole, three_runs
from store_kit import files, store, uri, write

from bam_core.errors import StoreError
from bam_core.graph.holdings import Node, Policy
from bam_core.graph.pins import Pin, pin_name
from infra.housekeeping import Housekeeping
from infra.leases import Claim
from infra.store import ArtifactStore

__all__ = ["store", "uri"]  # fixtures

ANY_AGE = Policy(min_age_s=0)
OLDEST_FIRST = [name(stage, version) for version in (1, 2) for stage in CHAIN[:0:-1]]


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    """For what is the same wherever a store lies."""
    return ArtifactStore(str(tmp_path / "store"))


def house(store: ArtifactStore, policy: Policy = ANY_AGE, now: float | None = None) -> Housekeeping:
    """now: in a while, unless given, so that also what was written just now has an age."""
    return Housekeeping(store, policy, lambda: time.time() + 10 if now is None else now)


def sweep(store: ArtifactStore, policy: Policy = ANY_AGE) -> dict[str, str | None]:
    """Name -> why it was kept after all."""
    return {removal.going.name: removal.kept for removal in house(store, policy).apply()}


def there(store: ArtifactStore) -> set[Node]:
    """Artifacts of which any file is left; a local store keeps no empty folder either."""
    found = {tuple(path.split("/")[1:3]) for path in files(store) if path.startswith("artifacts/")}
    if store.storage.is_local:
        assert set(store.artifacts()) == found
    return found  # type: ignore[return-value]


def test_a_look_changes_nothing(store: ArtifactStore) -> None:
    three_runs(store)
    before = files(store)
    found = house(store).reach
    assert sorted(going.name for going in found.goes if going.kind == "artifact") == sorted(OLDEST_FIRST)
    assert set(found.stays) == {node("seed"), *(node(stage, 3) for stage in CHAIN[1:])}
    assert all(going.size_bytes > 20 for going in found.goes if going.kind == "artifact")
    assert files(store) == before


def test_what_goes_is_gone_and_what_stays_is_whole(store: ArtifactStore) -> None:
    made = three_runs(store)
    stays = [place for place in made if place == node("seed") or place[1] in {node(stage, 3)[1] for stage in CHAIN}]
    before = {path for path in files(store) if any(f"/{stage}/{key}/" in f"/{path}" for stage, key in stays)}
    assert sorted(sweep(store)) == sorted(OLDEST_FIRST)
    assert files(store) == before | {f"runs/quick-{version}.json" for version in (1, 2, 3)}
    assert there(store) == set(stays)
    require_whole(store)
    # The two old runs are of nothing that is left but the seed, which the newest has too.
    assert sweep(store) == {}


def test_a_run_of_which_nothing_is_left_goes_from_the_record(local: ArtifactStore) -> None:
    three_runs(local)
    for version in (1, 2):
        local.runs.write(a_run(version, CHAIN[1:]))
    assert set(sweep(local)) == {*OLDEST_FIRST, "run quick-1", "run quick-2"}
    assert [run.name for run in local.runs.all()] == ["quick-3"]


def test_pins_and_live_leases_keep_what_they_need(store: ArtifactStore) -> None:
    three_runs(store)
    store.pins.write(Pin(pin_name("registry", "bam model", "1"), "mix.bam", key_of("mix.bam", 1), "", MADE))
    with_lease = replace(a_run(2, ["train.bam"], status="running"), name="now", started=MADE)
    store.runs.write(with_lease)
    store.storage.remove(f"artifacts/train.bam/{node('train.bam', 2)[1]}/record.json")
    lease = store.acquire("train.bam", key_of("train.bam", 2), "host:1 now")
    try:
        assert list(sweep(store)) == [name("train.bam", 1)]
        reasons = house(store).reach.stays
        assert reasons[node("train.bam", 2)][0] == "being made by host:1 now"
        assert reasons[node("mix.bam", 2)] == ("ancestor of " + name("train.bam", 2),)
        assert reasons[node("expert.law", 1)] == ("ancestor of " + name("mix.bam", 1),)
        lease.require()
    finally:
        lease.release()


def test_what_is_young_by_its_record_or_its_files_stays(store: ArtifactStore) -> None:
    make(store, "seed", 1, [])
    write(store, f"artifacts/dense/{node('dense')[1]}/attempts/0001/error.json", b"{}")
    made_now = max(info.changed or 0 for info in store.storage.files("artifacts/dense").values())
    assert abs(made_now - house(store).contents.artifacts[node("dense")].changed) < 1
    an_hour = Policy(min_age_s=3600)
    assert set(house(store, an_hour, MADE + 60).reach.stays) == {node("seed"), node("dense")}
    assert set(house(store, an_hour, made_now + 60).reach.stays) == {node("dense")}
    assert set(house(store, an_hour, made_now + 3700).reach.stays) == set()


def test_failed_attempts_of_what_nothing_needs_go(local: ArtifactStore) -> None:
    three_runs(local, [1])
    for version in (1, 9):
        key = key_of("dense", version)
        local.attempt_dir("dense", key, 1)
        local.close_attempt("dense", key, 1, {"message": "no room"})
    run = a_run(1)
    local.runs.write(replace(run, stages={**run.stages, "dense": replace(run.stages["seed"], key=key_of("dense"))}))
    assert list(sweep(local)) == [name("dense", 9)]
    assert local.error("dense", key_of("dense", 1)) == {"message": "no room"}


def test_checkpoints_and_what_killed_stages_left(store: ArtifactStore) -> None:
    three_runs(store, [1])
    for stage, version in (("seed", 1), ("dense", 7), ("evaluate", 1)):
        write(store, f"training/{stage}-{node(stage, version)[1]}/{stage}-x/step-000005/state.json", b"{}")
    run = a_run(1)
    planned = replace(run.stages["seed"], key=key_of("evaluate"))
    store.runs.write(replace(run, stages={**run.stages, "evaluate": planned}))
    place = f"artifacts/mix.bam/{node('mix.bam')[1]}"
    write(store, f"{place}/scratch-{'0' * 32}/model.safetensors", b"half")
    write(store, f"{place}/.model.safetensors.{'0' * 32}", b"half")
    dead = Claim("host:1 quick-0", "elsewhere", 1, 1, "another boot", "a" * 32, 0.0, 30.0)
    write(store, f"{place}/lease.json", dead.to_bytes())
    before = files(store)
    found = house(store)
    assert sorted(removal.going.name for removal in found.apply()) == sorted(
        [
            f"checkpoints of {name('seed')}",
            f"checkpoints of {name('dense', 7)}",
            f"scratch of {name('mix.bam')}",
            f"lease of {name('mix.bam')}",
        ]
    )
    assert {path.split("/")[0] for path in files(store)} == {"artifacts", "runs", "training"}
    assert {path.split("/")[1] for path in files(store) if path.startswith("training")} == {
        f"evaluate-{node('evaluate')[1]}"
    }
    beside = {path for path in before if "scratch-" in path or "/." in path or "lease" in path}
    trained = {path for path in before if path.startswith("training/") and "evaluate" not in path}
    assert before - files(store) == beside | trained
    require_whole(store)
    assert there(store) == {node(stage) for stage in CHAIN}
    assert sweep(store) == {}


def when_it_acquires(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, stage: str, then: Callable[[], Any]
) -> None:
    """At the very moment that the collector has the lease of a stage's artifact, somebody else does something."""
    acquire = store.acquire

    def acquiring(at: str, key: str, owner: str) -> Any:
        lease = acquire(at, key, owner)
        if at == stage and owner.endswith("bam gc"):
            then()
        return lease

    monkeypatch.setattr(store, "acquire", acquiring)


def test_a_run_that_starts_meanwhile_keeps_what_it_uses(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    three_runs(store, [1, 2])
    late = replace(a_run(1, ["expert.law", "mix.bam"]), name="late", started=MADE + 1e6)
    when_it_acquires(store, monkeypatch, "mix.bam", lambda: store.runs.write(late))
    swept = sweep(store)
    assert swept == {
        name("train.bam", 1): None,
        name("mix.bam", 1): "newest run of quick",
        name("expert.law", 1): "newest run of quick",
    }
    require_whole(store)
    assert store.record("mix.bam", key_of("mix.bam", 1)) is not None


def test_a_pin_that_is_set_meanwhile_holds(local: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    three_runs(local, [1, 2])
    pin = Pin("best", "mix.bam", key_of("mix.bam", 1), "", MADE)
    when_it_acquires(local, monkeypatch, "mix.bam", lambda: local.pins.write(pin))
    assert sweep(local)[name("mix.bam", 1)] == "pinned as best"
    require_whole(local)


def test_what_another_takes_meanwhile_and_its_ancestors_stay(local: ArtifactStore) -> None:
    three_runs(local, [1, 2])
    looked = house(local)
    lease = local.acquire("mix.bam", key_of("mix.bam", 1), "host:1 now")
    try:
        kept = {removal.going.name: removal.kept for removal in looked.apply()}
    finally:
        lease.release()
    assert kept[name("train.bam", 1)] is None
    assert "held by host:1 now" in str(kept[name("mix.bam", 1)])
    assert kept[name("expert.law", 1)] == "ancestor of " + name("mix.bam", 1)
    require_whole(local)


def test_what_another_collector_is_at_keeps_its_ancestors_until_it_is_gone(local: ArtifactStore) -> None:
    """Killed there, the other would leave a child without them."""
    three_runs(local, [1, 2])
    lease = local.acquire("train.bam", key_of("train.bam", 1), "host:1 bam gc")
    try:
        assert sweep(local) == {}
    finally:
        lease.release()
    looked = house(local)
    lease = local.acquire("train.bam", key_of("train.bam", 1), "host:1 bam gc")
    try:
        assert None not in {removal.kept for removal in looked.apply()}
    finally:
        lease.release()
    require_whole(local)
    assert len(sweep(local)) == 3


def test_each_removal_holds_the_lease_and_takes_the_record_first(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_runs(store, [1, 2])
    seen: dict[str, list[str]] = {}

    def watching(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str) -> None:
            folder, top = path.split("/")[1:3], path.split("/", 3)[-1]
            if path.startswith("artifacts/") and not top.startswith("lease"):
                held = store.lease_info(folder[0], folder[1])
                assert held is not None, path
                assert held.owner.endswith("bam gc"), path
                seen.setdefault("@".join(folder), []).append(top)
            method(path)

        return call

    monkeypatch.setattr(store.storage, "remove", watching(store.storage.remove))
    monkeypatch.setattr(store.storage, "remove_tree", watching(store.storage.remove_tree))
    swept = sweep(store)
    assert seen.keys() == swept.keys() == {name(stage, 1) for stage in CHAIN[1:]}
    assert {tops[0] for tops in seen.values()} == {"record.json"}
    assert {frozenset(tops) for tops in seen.values()} == {
        frozenset({"record.json", "attempts", "train", "model.safetensors"})
    }


def test_stopped_after_any_removal_the_next_call_goes_on(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local processes are killed at every system call in tests/faults/test_gc.py; here it is the storage's calls."""
    three_runs(ArtifactStore(uri), [1, 2])
    stop = 0
    while True:
        stop += 1
        store, left = ArtifactStore(uri), [stop]

        def stopping(method: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(path: str) -> None:
                if "lease" not in path:
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                method(path)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(store.storage, "remove", stopping(store.storage.remove))
            patch.setattr(store.storage, "remove_tree", stopping(store.storage.remove_tree))
            try:
                sweep(store)
                break
            except KeyboardInterrupt:
                require_whole(ArtifactStore(uri))
    assert stop > 2
    assert sweep(ArtifactStore(uri)) == {}
    assert there(ArtifactStore(uri)) == {node("seed"), *(node(stage, 2) for stage in CHAIN[1:])}


@pytest.mark.parametrize("path", ["runs/odd.json", "pins/odd.json"])
def test_a_run_or_pin_that_cannot_be_read_stops_all_removal(local: ArtifactStore, path: str) -> None:
    three_runs(local)
    write(local, path, b"{")
    before = files(local)
    found = house(local)
    assert path in found.reach.blocked[0]
    assert list(found.apply()) == []
    assert files(local) == before


def test_damaged_artifacts_of_the_newest_run_do_not_cost_the_last_whole_ones(local: ArtifactStore) -> None:
    three_runs(local, [1, 2])
    local.storage.remove(f"artifacts/train.bam/{node('train.bam', 2)[1]}/model.safetensors")
    assert sweep(local) == {}
    assert house(local).contents.artifacts[node("train.bam", 2)].record == "damaged"


def test_records_are_read_again_only_when_they_changed(local: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    three_runs(local, [1, 2])
    looked = house(local)
    read: list[str] = []
    read_many = local.storage.read_many
    monkeypatch.setattr(local.storage, "read_many", lambda paths: read.extend(paths) or read_many(paths))
    make(local, "dense", 1, [])
    looked.look()
    records = [path for path in read if path.startswith("artifacts/")]
    assert records == [f"artifacts/dense/{node('dense')[1]}/record.json"]


def test_nothing_to_do_leaves_nothing_behind(store: ArtifactStore, tmp_path: Path) -> None:
    assert sweep(store) == {}
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_files_and_links_are_left_alone(tmp_path: Path) -> None:
    """A link in a store never takes a removal out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years")
    store = ArtifactStore(str(tmp_path / "store"))
    make(store, "seed", 1, [])
    folder = store.storage.local(f"artifacts/seed/{node('seed')[1]}")
    (folder / "linked").symlink_to(outside)
    (folder / "linked.txt").symlink_to(outside / "thesis.txt")
    (folder / "train" / "linked").symlink_to(outside)
    (folder.parent / ("f" * 12)).symlink_to(outside)
    training = store.storage.local("training")
    training.mkdir()
    (training / f"seed-{'e' * 12}").symlink_to(outside)
    mine = store.storage.local("artifacts/my notes")
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    assert list(sweep(store)) == [name("seed")]
    assert not folder.exists()
    assert (outside / "thesis.txt").read_text() == "years"
    assert (mine / "a.txt").exists()


def test_a_store_that_cannot_be_written_is_said_to_be(s3: Any) -> None:
    store = ArtifactStore(s3.uri("readonly"), patience_s=1)
    three_runs(store, [1, 2])
    before = files(store)
    s3.read_only()
    with pytest.raises(StoreError, match="credentials"):
        sweep(store)
    s3.clear()
    assert files(store) == before


def test_a_storage_that_fails_half_way_loses_nothing_that_stays(s3: Any) -> None:
    store = ArtifactStore(s3.uri("failing"), patience_s=1)
    three_runs(store, [1, 2])
    s3.fail("403", "DELETE|POST", "artifacts/mix.bam", times=None)
    with pytest.raises(StoreError, match=r"mix\.bam"):
        sweep(store)
    s3.clear()
    require_whole(store)
    for path in files(store):
        if "/lease" in path:  # whoever held it has ended by the next call
            store.storage.remove(path)
    assert sweep(store).keys() == {name("mix.bam", 1), name("expert.law", 1)}


def test_a_folder_swept_while_still_empty_costs_a_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of its folder and the first file in it."""
    store = ArtifactStore(str(tmp_path))
    parented, swept = store.storage._parented, []

    def sweeping(path: str) -> Path:
        target = parented(path)
        if not swept:
            swept.append(target.parent)
            target.parent.rmdir()
        return target

    monkeypatch.setattr(store.storage, "_parented", sweeping)
    lease = store.acquire("seed", key_of("seed"), "me")
    lease.require()
    lease.release()
    assert len(swept) == 1


def test_pins_are_read_as_they_were_written(store: ArtifactStore) -> None:
    pin = Pin("best", "seed", "ab" * 32, "it is", 5.0)
    store.pins.write(replace(pin, why="once"))
    store.pins.write(pin)
    store.pins.write(replace(pin, name="also"))
    write(store, "pins/broken.json", b"[]")
    assert store.pins.all() == [replace(pin, name="also"), pin]
    assert store.pins.get("best") == pin
    assert store.pins.get("none") is None
    assert json.loads(store.storage.read("pins/best.json") or b"") == pin.to_json()
    assert store.pins.remove("best")
    assert not store.pins.remove("best")
    assert store.pins.get("best") is None


def test_pin_names_are_safe_and_differ() -> None:
    odd = [("registry", "my model", "1"), ("registry", "my/model", "1"), ("..", "/etc"), ("registry", "x" * 300, "1")]
    odd += [("registry", "bam", "1"), ("registry", "x" * 300, "2"), (" ",), ("é",)]
    names = [pin_name(*parts) for parts in odd]
    assert len(set(names)) == len(names)
    store = ArtifactStore("memory://pins")
    for each in names:
        assert store.pins.get(each) is None
