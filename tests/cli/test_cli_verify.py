"""`bam verify` and `bam keygen` over a store with a real mixture: what is damaged is named, and only that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from bam_core.graph.record import Record, record_checksum
from bam_core.graph.runs import Run
from infra.signing import Signer, write_keys
from infra.store import ArtifactStore
from tests.infra.model_store import RUN, change_record, file_of, fill, flip_a_byte, made, tampered

ALL = ["train.bam", "mix.bam", "data.law", "expert.law", "seed"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Record]]:
    folder = tmp_path_factory.mktemp("verify") / "bam_store"
    return folder, fill(ArtifactStore(str(folder)))


@pytest.fixture
def store(here: Path, template: tuple[Path, dict[str, Record]], monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    for name in ("BAM_SIGNING_KEY", "BAM_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(template[0], here / "bam_store")
    return ArtifactStore(str(here / "bam_store"))


@pytest.fixture
def records(template: tuple[Path, dict[str, Record]]) -> dict[str, Record]:
    return template[1]


@pytest.fixture
def keys(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key that signs; nobody is asked to trust it yet."""
    write_keys(here / "key")
    monkeypatch.setenv("BAM_SIGNING_KEY", str(here / "key"))
    return here / "key"


def sign_all(store: ArtifactStore, signer: Signer) -> None:
    for record in store.records():
        file = file_of(store, record, "record.json")
        file.with_name("record.sig.json").write_bytes(signer.sign(file.read_bytes()))


class Deep:
    """The answer of `bam verify REF --deep --json`."""

    def __init__(self, bam: Any, *words: str) -> None:
        ended = bam("verify", *words, "--deep", "--json")
        assert ended.status in (0, 1), ended.err
        self.status, self.answer = ended.status, json.loads(ended.out)
        assert self.answer["ok"] is (ended.status == 0)
        self.found = {checked["stage"]: checked for checked in self.answer["artifacts"]}

    def said(self, what: str) -> dict[str, list[str]]:
        return {stage: checked[what] for stage, checked in self.found.items() if checked[what]}


def test_a_whole_mixture_is_compared_to_the_last_tensor(bam, store):
    deep = Deep(bam, "train.bam")
    assert (deep.status, list(deep.found)) == (0, ALL)
    assert deep.said("faults") == deep.said("cannot") == {}
    mix = deep.found["mix.bam"]
    assert mix["n_tensors"] == mix["n_again"] > 20
    assert (deep.found["train.bam"]["n_tensors"], deep.found["train.bam"]["n_again"]) == (mix["n_tensors"], 0)
    edit = Deep(bam, "edit.small").found["edit.small"]
    assert edit["n_again"] == edit["n_tensors"] > 20
    words = bam("verify", "train.bam", "--deep")
    assert (words.status, words.err) == (0, "")
    assert words.out.splitlines()[-1] == "5 artifacts: 5 ok"
    assert f"{mix['n_tensors']} of them made again from their sources" in words.out


def test_one_flipped_byte_of_an_expert_is_named_where_it_is(bam, store, records):
    """Show 6 of the issue. What follows from it is no second fault."""
    flip_a_byte(file_of(store, records["expert.law"], "model.safetensors"))
    deep = Deep(bam, "train.bam")
    assert deep.status == 1
    assert deep.said("faults") == {
        "expert.law": [
            "output model.safetensors has other bytes than recorded: sha256 differs",
            "tensor of other bytes than config.json says: norm.weight",
        ]
    }
    [reason] = deep.said("cannot")["mix.bam"]
    assert reason.endswith("has other bytes now than were read: norm.weight; it is damaged")
    words = bam("verify", "train.bam", "--deep").out
    assert "\nfaults\n  expert.law@" in words
    assert "5 artifacts: 3 ok, 1 fault, 1 cannot" in words
    assert bam("verify", "train.bam").status == 0, "its own files are whole"


@pytest.mark.parametrize("stage", ["train.bam", "mix.bam", "data.law"])
def test_one_changed_field_of_a_record_is_named_and_all_behind_it_is_still_looked_at(bam, store, records, stage):
    change_record(file_of(store, records[stage], "record.json"), lambda r: r["metrics"].update(loss=0.1), sealed=False)
    flip_a_byte(file_of(store, records["data.law"], "train/00000.arrow"))
    deep = Deep(bam, "train.bam")
    assert deep.status == 1
    faults = deep.said("faults")
    assert faults[stage][0] == "record.json was changed since it was written: its checksum differs"
    assert faults["data.law"][-1].startswith("output train/00000.arrow has other bytes")
    assert faults.keys() == {stage, "data.law"}
    assert list(deep.found) == ALL


def test_a_signed_record_that_was_altered_with_its_checksum_is_named(bam, store, records, keys):
    signer = Signer.from_environment()
    sign_all(store, signer)
    assert Deep(bam, "train.bam").said("faults") == {}
    file = file_of(store, records["expert.law"], "record.json")
    change_record(file, lambda record: record["metrics"].update(loss=0.1), sealed=True)
    deep = Deep(bam, "train.bam")
    assert deep.said("faults") == {
        "expert.law": [
            f"its record was altered since it was signed (key {signer.fingerprint}): the signature does not hold"
        ]
    }
    assert {checked["signed_by"] for checked in deep.found.values()} == {signer.fingerprint, None}
    file.with_name("record.sig.json").unlink()
    assert Deep(bam, "train.bam").said("faults") == {}, "without its signature nothing of it contradicts"


def test_trusted_keys_want_every_record_signed_by_one_of_them(bam, store, records, keys, here, monkeypatch):
    signer = Signer.from_environment()
    monkeypatch.setenv("BAM_TRUSTED_KEYS", f"{keys}.pub")
    faults = Deep(bam, "train.bam").said("faults")
    assert faults == {stage: ["its record is not signed"] for stage in ALL}
    sign_all(store, signer)
    assert Deep(bam, "train.bam").status == 0
    assert bam("verify", "seed").out.endswith(f"files are as recorded, signed by {signer.fingerprint}\n")

    other = write_keys(here / "other")
    monkeypatch.setenv("BAM_SIGNING_KEY", str(here / "other"))
    file = file_of(store, records["seed"], "record.json")
    file.with_name("record.sig.json").write_bytes(Signer.from_environment().sign(file.read_bytes()))
    assert Deep(bam, "train.bam").said("faults") == {
        "seed": [f"its record is signed by a key that is not trusted: {other}"]
    }
    assert bam("verify", "seed").status == 1
    monkeypatch.setenv("BAM_TRUSTED_KEYS", f"{keys}.pub:{here / 'other.pub'}")
    assert Deep(bam, "train.bam").status == 0
    monkeypatch.setenv("BAM_TRUSTED_KEYS", "nowhere.pub")
    assert (bam("verify", "seed").status, "BAM_TRUSTED_KEYS: nowhere.pub" in bam("verify", "seed").err) == (2, True)


def test_weights_changed_by_somebody_who_made_all_files_of_it_agree_are_named_by_what_was_made_of_them(
    bam, store, records
):
    tampered(store, records["expert.law"], lambda name, tensor: tensor + (name == "blocks.0.ffn.w_up"))
    deep = Deep(bam, "train.bam")
    faults = deep.said("faults")
    assert faults.keys() == {"mix.bam"}
    replaced, tensors = faults["mix.bam"]
    assert replaced.startswith(f"input expert.law: expert.law@{records['expert.law'].key[:12]} was read with digest ")
    assert tensors.endswith("has other bytes now than were read: blocks.0.ffn.w_up")


def test_a_mixture_that_its_sources_do_not_make_is_named_though_its_files_agree(bam, store, records):
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2 if name == "blocks.1.attn.w_o" else tensor

    tampered(store, records["mix.bam"], change)
    mix = file_of(store, records["mix.bam"], "mix.json")
    assert Deep(bam, "mix.bam").said("faults")["mix.bam"] == [
        "tensor of other bytes than mix.json says: blocks.1.attn.w_o"
    ]
    digest = json.loads(file_of(store, records["mix.bam"], "config.json").read_text())["bam"]["tensors"]
    content = json.loads(mix.read_text())
    content["tensors"]["blocks.1.attn.w_o"]["sha256"] = digest["blocks.1.attn.w_o"]
    mix.write_text(json.dumps(content))
    tampered(store, records["mix.bam"], lambda name, tensor: tensor)  # once more, for mix.json's new bytes
    deep = Deep(bam, "train.bam")
    assert deep.said("faults")["mix.bam"] == ["tensor not what their sources make: blocks.1.attn.w_o"]
    assert deep.said("faults")["train.bam"][0].startswith("input mix: mix.bam@")


@pytest.mark.parametrize("gone", ["seed", "expert.law", "mix.bam"])
def test_what_was_collected_is_no_fault_and_what_cannot_be_checked_is_said(bam, store, records, gone):
    shutil.rmtree(file_of(store, records[gone], ""))
    deep = Deep(bam, "train.bam")
    assert (deep.status, deep.said("faults")) == (0, {})
    cannot = deep.said("cannot")
    assert cannot[gone] == ["gone from the store: it was collected, or never was here"]
    if gone == "mix.bam":
        assert list(deep.found) == ["train.bam", "mix.bam"]
        return
    expert = {"seed": "general", "expert.law": "law"}[gone]
    assert cannot["mix.bam"] == [f"its tensors were not made again: {expert} cannot be read"]
    assert (deep.found["mix.bam"]["n_again"], deep.found["mix.bam"]["n_tensors"] > 20) == (0, True)
    assert "cannot be checked\n" in bam("verify", "train.bam", "--deep").out


def test_an_ancestor_without_its_record_is_said(bam, store, records):
    file_of(store, records["seed"], "record.json").unlink()
    deep = Deep(bam, "train.bam")
    assert deep.said("cannot")["seed"] == ["it has no record: it is being made, or its record was taken away"]


@pytest.mark.parametrize("ref", ["expert.law", "expert.law@latest", "expert.law@KEY"])
@pytest.mark.parametrize("deep", [True, False])
def test_a_damaged_record_of_the_artifact_itself_is_named(bam, store, records, ref, deep):
    """`resolve` knows readable records only."""
    key = records["expert.law"].key[:12]
    ref = ref.replace("KEY", key[:6])
    file = file_of(store, records["expert.law"], "record.json")
    for damage, words in {
        b"\0garbage": "record.json is not JSON",
        b"[]": "not a record of this version",
        json.dumps(json.loads(file.read_text()) | {"ended": 5.0}).encode(): "record.json was changed since it was",
    }.items():
        file.write_bytes(damage)
        ended = bam("verify", ref, "--json", *["--deep"][: int(deep)])
        answer = json.loads(ended.out)
        assert (ended.status, answer["stage"], answer["key"][:12]) == (1, "expert.law", key)
        assert words in answer["faults"][0]
        assert f"expert.law@{key}: " in bam("verify", ref).out


def test_an_older_artifact_does_not_stand_for_a_damaged_one(bam, store, records):
    """Which of them REF means cannot be told from a record that cannot be read."""
    older = made(store, "expert.law", {"seed": records["seed"]}, lambda out: (out / "x").write_text("x"), {"lr": 1})
    assert json.loads(bam("verify", f"expert.law@{older.key[:8]}", "--json").out)["ok"] is True
    file_of(store, records["expert.law"], "record.json").write_text("{")
    ended = bam("verify", "expert.law", "--json")
    assert ended.status == 1
    assert {checked["key"][:12]: checked["state"] for checked in json.loads(ended.out)["artifacts"]} == {
        older.key[:12]: "ok",
        records["expert.law"].key[:12]: "fault",
    }
    assert bam("verify", f"expert.law@{older.key[:8]}").status == 0


def test_a_record_of_another_place_is_named(bam, store, records):
    change_record(file_of(store, records["seed"], "record.json"), lambda r: r.update(key="0" * 64), sealed=True)
    faults = Deep(bam, "train.bam").said("faults")
    assert faults["seed"][0] == f"its record is of seed@{'0' * 64}"
    assert faults.keys() == {"seed"}
    assert bam("verify", f"seed@{records['seed'].key[:12]}").status == 1


def test_what_a_record_contradicts_is_named_though_its_checksum_holds(bam, store, records):
    def change(record: dict[str, Any]) -> None:
        record["payload"]["config"] = {"lr": 5}

    change_record(file_of(store, records["expert.law"], "record.json"), change, sealed=True)
    assert bam("verify", "expert.law").status == 0, "that wants --deep"
    faults = Deep(bam, "train.bam").said("faults")
    assert [fault[:30] for fault in faults["expert.law"]] == ["its key is not its payload's: "]


def test_a_file_that_no_record_names_is_a_fault_and_the_stores_own_are_not(bam, store, records):
    folder = file_of(store, records["seed"], "")
    (folder / "attempts" / "0001").mkdir(parents=True)
    (folder / "attempts" / "0001" / "log.txt").write_text("hello")
    assert Deep(bam, "seed").status == 0
    (folder / "model.bin").write_bytes(b"x")
    assert Deep(bam, "seed").said("faults") == {"seed": ["file model.bin is in its folder and not in its record"]}


def test_records_from_before_checksums_are_taken_and_said(bam, store, records):
    file = file_of(store, records["seed"], "record.json")
    content = json.loads(file.read_text())
    del content["checksum"]
    file.write_text(json.dumps(content))
    deep = Deep(bam, "seed")
    assert (deep.status, deep.said("cannot").keys()) == (0, {"seed"})
    assert "has no checksum" in deep.said("cannot")["seed"][0]


def test_ancestors_that_go_in_a_circle_are_walked_once(bam, store, records):
    def change(record: dict[str, Any]) -> None:
        train = records["train.bam"]
        record["inputs"]["mix"] = {"stage": train.stage, "key": train.key, "digest": train.digest}

    change_record(file_of(store, records["data.law"], "record.json"), change, sealed=True)
    deep = Deep(bam, "train.bam")
    assert list(deep.found) == ALL
    assert deep.said("faults").keys() == {"data.law"}


def test_a_mixture_of_another_version_is_compared_by_digest_only(bam, store, records, monkeypatch):
    from pipelines.stages import KINDS, StageKind

    monkeypatch.setitem(KINDS, "mix", StageKind("mix", 3))
    deep = Deep(bam, "mix.bam")
    assert deep.said("cannot") == {
        "mix.bam": ["its tensors were not made again: version 2 of mix made it, and this bam has 3"]
    }
    assert (deep.status, deep.found["mix.bam"]["n_again"]) == (0, 0)


def test_an_adopted_expert_is_held_against_the_record_that_it_brought(bam, store, records, keys):
    theirs = records["expert.law"]
    document = {"store": "s3://theirs", "record": theirs.to_json(), "ancestors": []}
    signature = Signer.from_environment().sign(json.dumps(document["record"]).encode())
    config = {"name": "law", "digest": theirs.digest, "origin": dict(vars(theirs.ref))}

    def write(out: Path) -> None:
        shutil.copytree(store.localize(theirs), out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record*"))
        (out / "origin.json").write_text(json.dumps(document))

    document["signature"] = json.loads(signature)
    ours = made(store, "adopted.law", {"seed": records["seed"]}, write, config)
    deep = Deep(bam, "adopted.law")
    assert (deep.status, deep.said("faults")) == (0, {})
    assert deep.said("cannot") == {
        "adopted.law": [f"its ancestors are in another store, with expert.law@{theirs.key[:12]}"]
    }
    document["record"]["metrics"]["loss"] = 0.1
    document["record"]["checksum"] = record_checksum(document["record"])
    made(store, "adopted.law", {"seed": records["seed"]}, write, config)
    [fault] = Deep(bam, "adopted.law").said("faults")["adopted.law"]
    assert fault.startswith("origin.json: its record was altered since it was signed")
    tampered(store, ours, lambda name, tensor: tensor + 1)
    faults = Deep(bam, "adopted.law").said("faults")["adopted.law"]
    assert f"output model.safetensors is not the file of expert.law@{theirs.key[:12]} that was adopted" in faults


def test_a_remote_store_is_compared_too(bam, here, monkeypatch):
    """Its models are downloaded, but for those that are damaged there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    where = "memory://verified"
    memory = fsspec.filesystem("memory")
    try:
        records = fill(ArtifactStore(where))
        whole = Deep(bam, "train.bam", "--store", where)
        assert (whole.status, whole.said("cannot")) == (0, {})
        assert whole.found["mix.bam"]["n_again"] == whole.found["mix.bam"]["n_tensors"]
        shutil.rmtree(here / "cache")
        file = f"/verified/artifacts/expert.law/{records['expert.law'].key[:12]}/model.safetensors"
        memory.pipe_file(file, memory.cat_file(file)[:-1] + b"x")
        deep = Deep(bam, "train.bam", "--store", where)
        assert deep.said("faults") == {
            "expert.law": ["output model.safetensors has other bytes than recorded: sha256 differs"]
        }
        assert deep.said("cannot") == {
            "expert.law": ["its tensors were not read, as its files are damaged"],
            "mix.bam": ["its tensors were not made again: law cannot be read"],
        }
    finally:
        memory.store.clear()


# --- texts


@pytest.fixture
def on_record(store: ArtifactStore, here: Path) -> Callable[[dict[str, Any]], None]:
    """`on_record(source)`: a run that says where the text of `law` lies."""

    def write(source: dict[str, Any]) -> None:
        recipe = {"domains": {"law": {"source": source}}}
        store.runs.write(Run(RUN, "tiny", "done", 1.0, 2.0, recipe, {}, {}))

    return write


def data(store: ArtifactStore, source: dict[str, Any]) -> None:
    made(store, "data.law", {}, lambda out: (out / "rows").write_text("x"), {"domain": "law", "source": source})


def test_texts_are_read_again_where_they_can_be_found(bam, store, here, on_record):
    from infra.sources import TextSources

    text = here / "law.txt"
    text.write_text("the licensee shall\n")
    source = {"kind": "text", "path": str(text)}
    shutil.rmtree(here / "bam_store" / "artifacts" / "data.law")
    data(store, {"kind": "text", "digest": TextSources().digest(source)})
    asked = ("data.law", "--sources")
    assert Deep(bam, *asked).said("cannot") == {"data.law": ["text of law: where it lies is not on record"]}
    on_record({"kind": "text", "path": "law.txt"})
    [reason] = Deep(bam, *asked).said("cannot")["data.law"]
    assert "relative path" in reason
    on_record(source | {"licence": "CC0"})
    assert Deep(bam, *asked).said("cannot") == Deep(bam, *asked).said("faults") == {}
    text.write_text("the licensor shall\n")
    deep = Deep(bam, *asked)
    assert (deep.status, deep.said("faults")["data.law"][0][:24]) == (1, "text of law: has digest ")
    assert Deep(bam, "data.law").status == 0, "not asked for"
    text.unlink()
    deep = Deep(bam, *asked)
    assert deep.status == 0
    assert "cannot be read here" in deep.said("cannot")["data.law"][0]


def test_a_text_that_is_made_from_numbers_needs_no_place(bam, store):
    deep = Deep(bam, "data.law", "--sources")
    assert deep.said("faults")["data.law"][0].endswith("and was read with 000000000000")


def test_sources_want_deep(bam, store):
    ended = bam("verify", "seed", "--sources")
    assert (ended.status, "--deep" in ended.err) == (2, True)


# --- keygen


def test_keygen_makes_a_pair_and_says_how_to_use_it(bam, here):
    ended = bam("keygen", "mine")
    assert ended.status == 0
    assert (here / "mine").stat().st_mode & 0o777 == 0o600
    assert "BAM_SIGNING_KEY=mine" in ended.out
    assert "BAM_TRUSTED_KEYS=mine.pub" in ended.out
    body = (here / "mine").read_text().splitlines()[1]
    assert body not in ended.out + ended.err
    again = bam("keygen", "mine")
    assert (again.status, "exists already" in again.err) == (2, True)
    assert (here / "mine").read_text().splitlines()[1] == body
    answer = json.loads(bam("keygen", "other", "--json").out)
    assert answer.keys() == {"private", "public", "fingerprint"}
    assert answer["fingerprint"] != json.loads(bam("keygen", "third", "--json").out)["fingerprint"]
