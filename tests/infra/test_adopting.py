"""`bam adopt`: what is taken, what is refused and how, and what is read back of where it came from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from exchange_kit import COSTS, DENSE, WIDE, Team, reseal, snapshot

from bam_core.errors import InvalidInput, LeaseHeld
from bam_core.graph.lineage import lineage
from bam_core.graph.record import Output, Record, artifact_digest, record_checksum
from bam_core.upcycle.variants import VARIANTS, mixture_config
from infra.adopting import Adopted, adopt, foreign_records, newest_adopted
from infra.signing import TRUSTED_KEYS, Signer, write_keys
from infra.storage import Storage
from infra.store import ArtifactStore

NAME = "law-by-other-team"


@pytest.fixture
def ours(tmp_path: Path) -> Team:
    team = Team(tmp_path / "ours")
    team.seed()
    return team


@pytest.fixture
def theirs(tmp_path: Path) -> Team:
    team = Team(tmp_path / "theirs")
    team.seed()
    team.model("expert.law")
    return team


def take(ours: Team, uri: str | Path, name: str = NAME, *, replace: bool = False) -> Adopted:
    return adopt(name, str(uri), ours.store, version=1, owner="me", provenance={"user": "us"}, replace=replace)


def refused(ours: Team, uri: str | Path, name: str = NAME) -> str:
    """Why, and that nothing was written."""
    before = snapshot(Path(ours.store.uri))
    with pytest.raises(InvalidInput) as caught:
        take(ours, uri, name)
    assert snapshot(Path(ours.store.uri)) == before
    assert all(problem.remedy or name != NAME for problem in caught.value.problems), caught.value
    return str(caught.value)


def test_an_expert_becomes_ours_with_its_costs_and_its_past(ours: Team, theirs: Team) -> None:
    adopted = take(ours, theirs.folder("expert.law"))
    record, foreign = adopted.record, theirs.made["expert.law"]
    assert adopted.is_new
    assert ours.store.record(f"adopted.{NAME}", record.key) == record
    assert record.payload["config"] == {"name": NAME, "digest": foreign.digest, "origin": vars(foreign.ref)}
    assert (record.payload["function"], record.inputs) == ("adopt", {"seed": ours.made["seed"].ref})
    assert {name: record.metrics[name] for name in COSTS} == COSTS
    assert record.provenance == {"user": "us", "adopted_from": theirs.store.uri}
    assert ours.store.verify(record) == []
    [pin] = ours.store.pins.all()
    assert (pin.name, pin.stage, pin.key) == (f"adopted-{NAME}", record.stage, record.key), "no run can make it again"
    for output in foreign.outputs:
        assert output in record.outputs

    [origin] = [output for output in record.outputs if output not in foreign.outputs]
    document = json.loads((ours.store.localize(record) / origin.path).read_text())
    assert origin.path == "origin.json"
    assert document["store"] == theirs.store.uri
    assert Record.from_json(document["record"], "") == foreign
    assert [made["stage"] for made in document["ancestors"]] == ["seed", "tokenizer"]


def test_its_lineage_goes_on_in_their_store(ours: Team, theirs: Team) -> None:
    theirs.commit("data.law", lambda out: (out / "rows").write_text("rows"), {}, {"tokenizer": "tokenizer"}, {})
    theirs.model("expert.law", {"seed": "seed", "data.law": "data.law"})
    record = take(ours, theirs.folder("expert.law")).record
    records = ours.store.records()
    foreign = foreign_records(ours.store, records)
    assert {made.store for made in foreign} == {theirs.store.uri}
    graph = lineage(records, record.key, "up", foreign)
    places = {node.stage: (node.store, node.missing) for node in graph.nodes}
    assert places == {
        f"adopted.{NAME}": (None, False),
        "expert.law": (theirs.store.uri, False),
        "data.law": (theirs.store.uri, False),
        "seed": (None, False),
        "tokenizer": (None, False),
    }


def test_a_copy_of_the_folder_does_and_its_past_ends_there(ours: Team, theirs: Team, tmp_path: Path) -> None:
    lone = shutil.copytree(theirs.folder("expert.law"), tmp_path / "post" / "law")
    (lone / "notes.txt").write_text("no part of the artifact")
    record = take(ours, lone).record
    assert "notes.txt" not in {output.path for output in record.outputs}
    [foreign] = foreign_records(ours.store, [record])
    assert (foreign.record, foreign.store) == (theirs.made["expert.law"], str(lone))
    assert record.key == take(ours, theirs.folder("expert.law")).record.key, "where it lies is no part of its identity"


@pytest.mark.parametrize("ref", ["expert.law", "expert.law@latest"])
def test_a_store_and_a_reference_do_too_on_any_storage(ours: Team, theirs: Team, ref: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{theirs.store.uri}/artifacts", f"/{tmp_path.name}/artifacts", recursive=True)
    try:
        remote = f"memory://{tmp_path.name}"
        record = take(ours, f"{remote}#{ref}").record
        assert record.provenance["adopted_from"] == remote
        assert len(foreign_records(ours.store, [record])) == 3
        again = take(ours, f"{theirs.store.uri}#{ref}")
        assert (again.record, again.is_new) == (record, False)
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_remote_store_of_ours_gets_it_whole(theirs: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = Team(f"memory://{tmp_path.name}-ours")
    try:
        ours.seed()
        record = take(ours, theirs.folder("expert.law")).record
        assert ours.store.verify(record) == []
        assert len(foreign_records(ours.store, ours.store.records())) == 3
    finally:
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}-ours", recursive=True)


def test_their_secrets_stay_theirs(ours: Team, theirs: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "correct-horse-battery"
    monkeypatch.setenv("THEIR_PASSWORD", secret)
    lone = shutil.copytree(theirs.folder("expert.law"), tmp_path / secret / "law")
    record = take(ours, lone).record
    assert secret not in json.dumps(record.to_json())
    assert secret not in (ours.store.localize(record) / "origin.json").read_text()


# What is refused.

Spoil = Callable[[Team, Path], Path | str | None]


def _flip(file: str) -> Spoil:
    def spoil(team: Team, folder: Path) -> None:
        raw = bytearray((folder / file).read_bytes())
        raw[-1] ^= 1
        (folder / file).write_bytes(raw)

    return spoil


def _cut(file: str) -> Spoil:
    return lambda team, folder: os.truncate(folder / file, 100)


def _gone(file: str) -> Spoil:
    return lambda team, folder: (folder / file).unlink()


def _write(file: str, text: str) -> Spoil:
    return lambda team, folder: (folder / file).write_text(text) and None


def _sealed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    """A record that was changed by somebody who also mended its digest and checksum."""
    return lambda team, folder: reseal(folder, **change(json.loads((folder / "record.json").read_text())))


def _claiming(path: str) -> Spoil:
    def more(record: dict[str, Any]) -> dict[str, Any]:
        return {
            "outputs": [*record["outputs"], {"path": path, "size": 4, "sha256": hashlib.sha256(b"here").hexdigest()}]
        }

    def spoil(team: Team, folder: Path) -> None:
        (folder.parent / "outside.txt").write_bytes(b"here")
        _sealed(more)(team, folder)

    return spoil


def _link(file: str) -> Spoil:
    def spoil(team: Team, folder: Path) -> None:
        there = folder.parent / f"real-{file}"
        (folder / file).rename(there)
        (folder / file).symlink_to(there)

    return spoil


def _deep_link(team: Team, folder: Path) -> None:
    (folder / "attempts" / "0001").mkdir(parents=True)
    (folder / "attempts" / "0001" / "log.txt").symlink_to("/etc/passwd")


def _pipe(team: Team, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _another(stage: str, **how: Any) -> Spoil:
    def spoil(team: Team, folder: Path) -> Path:
        team.model(stage, **how)
        return team.folder(stage)

    return spoil


def _after_seed(**how: Any) -> Spoil:
    def spoil(team: Team, folder: Path) -> Path:
        team.seed(**how)
        how.pop("number", None)
        team.model("expert.other", **how)
        return team.folder("expert.other")

    return spoil


def _weights_of_another_shape(team: Team, folder: Path) -> Path:
    """A record that holds, of files that do not fit together."""
    team.model("expert.wide", config=WIDE)
    wide = team.folder("expert.wide")
    config = (folder / "config.json").read_bytes()
    (wide / "config.json").write_bytes(config)
    outputs = json.loads((wide / "record.json").read_text())["outputs"]
    for output in outputs:
        if output["path"] == "config.json":
            output |= {"size": len(config), "sha256": hashlib.sha256(config).hexdigest()}
    reseal(wide, outputs=outputs)
    return wide


def _mixture(team: Team, folder: Path) -> Path:
    team.model("mix.bam", config=mixture_config(DENSE, ["general", "law"], VARIANTS["bam"]))
    return team.folder("mix.bam")


BAD: dict[str, tuple[Spoil, str]] = {
    "nothing there": (lambda team, folder: folder / "nowhere", "record.json: "),
    "no record": (_gone("record.json"), "is missing here (give an artifact's folder"),
    "a store, without a reference": (lambda team, folder: team.store.uri, "STORE#REF"),
    "a record that is no JSON": (_write("record.json", "{"), "is not JSON"),
    "a record that is no record": (_write("record.json", "[]"), "not a record of this version of bam"),
    "a record of a bomb": (_write("record.json", "[" * 100_000), "is nested too deeply"),
    "a record that was changed": (
        lambda team, folder: (
            (folder / "record.json").write_text((folder / "record.json").read_text().replace('"somebody"', '"nobody"'))
            and None
        ),
        "its checksum differs",
    ),
    "a record with another digest": (
        lambda team, folder: (
            (folder / "record.json").write_text(
                (folder / "record.json").read_text().replace(team.made["expert.law"].digest, "0" * 64)
            )
            and None
        ),
        "record.json: ",
    ),
    "a record of another key": (_sealed(lambda record: {"key": "ab" * 32}), "its key is not its payload's"),
    "a record with other inputs": (
        _sealed(lambda record: {"inputs": {"seed": record["inputs"]["seed"] | {"key": "ab" * 32}}}),
        "input seed: it names abababababab",
    ),
    "a record that lists a file twice": (
        _sealed(lambda record: {"outputs": [*record["outputs"], record["outputs"][0]]}),
        "is listed twice",
    ),
    "truncated weights": (_cut("model.safetensors"), "output model.safetensors has 100 bytes, not"),
    "missing weights": (_gone("model.safetensors"), "output model.safetensors is missing"),
    "a flipped byte in the weights": (_flip("model.safetensors"), "model.safetensors: 'sha256 "),
    "a flipped byte in the card": (_flip("MODEL_CARD.md"), "MODEL_CARD.md: 'sha256 "),
    "a link for weights": (_link("model.safetensors"), "model.safetensors: '"),
    "a link for the record": (_link("record.json"), "must be a plain file"),
    "a link among what is not taken": (_deep_link, "attempts/0001/log.txt: '/etc/passwd': is a link"),
    "a pipe for weights": (_pipe, "is no plain file"),
    "a path that climbs out": (_claiming("../outside.txt"), "leaves the artifact's folder"),
    "an absolute path": (_claiming("/etc/passwd"), "leaves the artifact's folder"),
    "another seed": (_after_seed(number=1), "must be the digest of a seed of this store: seed@"),
    "another tokenizer": (_after_seed(vocabulary='{"a": 1}'), "tokenizer.json: 'sha256 "),
    "another tokenizer than its seed's": (_another("expert.odd", vocabulary='{"a": 1}'), "must be the seed's, "),
    "other shapes": (_another("expert.wide", config=WIDE), f"{NAME}.d_ff: 16: must be as in seed@"),
    "another config of the same shapes": (
        _another("expert.slow", config=replace(DENSE, rope_theta=5.0)),
        f"{NAME}.rope_theta: 5.0",
    ),
    "weights of another shape than the config's": (_weights_of_another_shape, f"{NAME}.blocks.0.ffn.w_up"),
    "weights that are not finite": (
        _another("expert.nan", put={"blocks.0.ffn.w_up": float("nan")}),
        "1 NaN of",
    ),
    "a mixture": (_mixture, "must be a dense model"),
    "a seed": (lambda team, folder: team.folder("seed"), "seed branched from no seed"),
    "no model": (lambda team, folder: team.folder("tokenizer"), "config.json: None: is no output of tokenizer"),
    "costs that are none": (_another("expert.free", metrics=COSTS | {"train_flops": -1}), "metrics.train_flops: -1"),
    "costs that are missing": (_another("expert.free", metrics={}), "metrics.lineage_tokens: None"),
    "costs beyond all bounds": (
        _another("expert.free", metrics=COSTS | {"train_tokens": float("inf")}),
        "metrics.train_tokens: inf",
    ),
    "costs beyond every float": (
        _another("expert.free", metrics=COSTS | {"train_tokens": 10**400}),
        "metrics.train_tokens: 1000",
    ),
    "a history that is none": (_another("expert.old", history='{"history": 7}'), "is no history of a training"),
}
"""What: (how it is spoiled, words that must be in the answer). The folder is its own, or what is returned."""


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_mixed_with_ours_is_refused_in_words(ours: Team, theirs: Team, spoil: Spoil, words: str) -> None:
    folder = theirs.folder("expert.law")
    uri = spoil(theirs, folder) or folder
    assert words in refused(ours, uri)


@pytest.mark.parametrize(
    "name", ["", "a/b", "../x", ".x", "-x", "a.b", "a b", "'", '"', "<b>", "x" * 65, "x" * 300, "é"]
)
def test_a_name_that_no_stage_can_have(ours: Team, theirs: Team, name: str) -> None:
    assert "1 to 64 letters" in refused(ours, theirs.folder("expert.law"), name)


def test_everything_wrong_is_said_at_once(ours: Team, theirs: Team) -> None:
    theirs.seed(number=1)
    theirs.model("expert.law", config=WIDE, vocabulary='{"a": 1}', metrics=COSTS | {"train_tokens": None})
    folder = theirs.folder("expert.law")
    (folder / "MODEL_CARD.md").write_text("# another\n")
    answer = refused(ours, folder)
    for where in (
        "record.json.inputs.seed",
        "record.json.metrics.train_tokens",
        "tokenizer.json",
        f"{NAME}.d_ff",
        "MODEL_CARD.md",
    ):
        assert f"\n  {where}" in answer, answer


def test_of_a_distant_misfit_no_weights_are_fetched(
    ours: Team, theirs: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs.seed(number=1)
    theirs.model("expert.law")
    memory = fsspec.filesystem("memory")
    memory.put(f"{theirs.store.uri}/artifacts", f"/{tmp_path.name}/artifacts", recursive=True)
    fetched: list[str] = []
    get = Storage.get
    monkeypatch.setattr(Storage, "get", lambda self, path, file: (fetched.append(path), get(self, path, file))[1])
    try:
        assert "record.json.inputs.seed" in refused(ours, f"memory://{tmp_path.name}#expert.law")
        assert "config.json" in fetched
        assert "model.safetensors" not in fetched
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_store_without_a_seed_says_so_and_is_not_made(theirs: Team, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="this store has no seed yet"):
        take(Team(tmp_path / "empty"), theirs.folder("expert.law"))
    assert not (tmp_path / "empty").exists()


def test_a_copy_that_is_cut_short_leaves_nothing(ours: Team, theirs: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(Path(ours.store.uri))
    get = Storage.get

    def cut(self: Storage, path: str, file: Path) -> None:
        get(self, path, file)
        if path == "model.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "get", cut)
    with pytest.raises(KeyboardInterrupt):
        take(ours, theirs.folder("expert.law"))
    assert snapshot(Path(ours.store.uri)) == before


def test_a_copy_that_was_left_long_ago_is_swept(ours: Team, theirs: Team) -> None:
    """By a process that was killed. A young one may be another's that is under way."""
    top = Path(ours.store.uri)
    for name in (".adopting-old", ".adopting-young"):
        (top / name).mkdir()
        (top / name / "model.safetensors").write_bytes(b"part")
    os.utime(top / ".adopting-old", (0, 0))
    take(ours, theirs.folder("expert.law"))
    assert [path.name for path in top.glob(".adopting-*")] == [".adopting-young"]


def test_another_process_that_adopts_the_same_is_left_alone(ours: Team, theirs: Team) -> None:
    key = take(ours, theirs.folder("expert.law")).record.key
    stage = f"adopted.{NAME}"
    shutil.rmtree(Path(ours.store.uri) / "artifacts" / stage)
    lease = ours.store.acquire(stage, key, "another")
    with pytest.raises(LeaseHeld, match="held by another"):
        take(ours, theirs.folder("expert.law"))
    assert ours.store.records(stage) == []
    lease.release()
    assert take(ours, theirs.folder("expert.law")).is_new


def test_a_name_stands_for_one_expert_until_it_is_replaced(ours: Team, theirs: Team) -> None:
    first = take(ours, theirs.folder("expert.law"))
    again = take(ours, theirs.folder("expert.law"))
    assert (again.record, again.is_new) == (first.record, False)

    theirs.model("expert.law", number=8)
    answer = refused(ours, theirs.folder("expert.law"))
    assert "is expert.law@" in answer
    assert "--replace" in answer
    second = take(ours, theirs.folder("expert.law"), replace=True)
    assert second.record.key != first.record.key
    assert newest_adopted(ours.store.records())[NAME] == second.record.payload["config"]
    assert ours.store.record(f"adopted.{NAME}", first.record.key) == first.record, "mixtures were made of it"

    back = adopt(
        NAME,
        f"{theirs.store.uri}#expert.law@{first.record.payload['config']['origin']['key']}",
        ours.store,
        version=1,
        owner="me",
        provenance={},
        replace=True,
    )
    assert back.is_new
    assert [pin.key for pin in ours.store.pins.all()] == [first.record.key], "what it stands for now"
    assert newest_adopted(ours.store.records())[NAME] == first.record.payload["config"]
    assert take(ours, theirs.folder("expert.law"), "another-name").is_new


def test_a_damaged_adopted_expert_is_fetched_again(ours: Team, theirs: Team) -> None:
    record = take(ours, theirs.folder("expert.law")).record
    (ours.store.localize(record) / "model.safetensors").unlink()
    assert take(ours, theirs.folder("expert.law")).is_new
    assert ours.store.verify(record) == []


def test_signatures(ours: Team, theirs: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for team in ("them", "strangers"):
        write_keys(tmp_path / team)
    folder = theirs.folder("expert.law")
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "them.pub"))
    assert "is not signed" in refused(ours, folder)
    monkeypatch.setenv("BAM_SIGNING_KEY", str(tmp_path / "them"))
    signer = Signer.from_environment()
    assert signer is not None
    signature = signer.sign((folder / "record.json").read_bytes())
    (folder / "record.sig.json").write_bytes(signature)
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "strangers.pub"))
    assert "a key that is not trusted" in refused(ours, folder)
    monkeypatch.setenv(TRUSTED_KEYS, str(tmp_path / "them.pub"))
    record = take(ours, folder).record
    document = json.loads((ours.store.localize(record) / "origin.json").read_text())
    assert document["signature"] == json.loads(signature)

    reseal(folder, provenance={"user": "somebody else"})
    monkeypatch.delenv(TRUSTED_KEYS)
    assert "was altered since it was signed" in refused(ours, folder, "again")


# Read back.


def _with_origin(ours: Team, record: Record, content: Any) -> Record:
    """The adopted artifact with another origin.json, whose digest its record has."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    folder = ours.store.localize(record)
    (folder / "origin.json").write_bytes(data)
    mine = Output("origin.json", len(data), hashlib.sha256(data).hexdigest())
    outputs = tuple(mine if output.path == "origin.json" else output for output in record.outputs)
    return replace(record, outputs=outputs, digest=artifact_digest(outputs))


def _changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document | changes


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda document: b"{",
    "not UTF-8": lambda document: b"\xff\xfe",
    "a bomb": lambda document: b"[" * 100_000,
    "a list": lambda document: [document],
    "no record": lambda document: {"store": "x"},
    "a record that is none": _changed(record={"stage": "expert.law"}),
    "a record of something else": lambda document: document | {"record": document["ancestors"][0]},
    "a record whose stage climbs": lambda document: document | {"record": document["record"] | {"stage": "../../x"}},
    "a store that is none": _changed(store=["s3://x"]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_origin_gives_nothing(ours: Team, theirs: Team, change: Callable[[dict[str, Any]], Any]) -> None:
    record = take(ours, theirs.folder("expert.law")).record
    document = json.loads((ours.store.localize(record) / "origin.json").read_text())
    hostile = _with_origin(ours, record, change(document))
    assert foreign_records(ours.store, [hostile]) == []
    assert lineage([hostile], record.key, "up").nodes, "the lineage goes on without"


def test_ancestors_that_are_none_are_left_out(ours: Team, theirs: Team) -> None:
    record = take(ours, theirs.folder("expert.law")).record
    document = json.loads((ours.store.localize(record) / "origin.json").read_text())
    seed, tokenizer = document["ancestors"]
    changed = seed | {"inputs": {"tokenizer": vars(record.ref)}}  # a cycle
    changed["checksum"] = record_checksum(changed)
    hostile = _with_origin(ours, record, document | {"ancestors": [changed, 7, None, tokenizer]})
    assert [made.record.stage for made in foreign_records(ours.store, [hostile])] == ["expert.law", "tokenizer"]


def test_an_origin_that_was_changed_or_lost_gives_nothing(ours: Team, theirs: Team) -> None:
    record = take(ours, theirs.folder("expert.law")).record
    file = ours.store.localize(record) / "origin.json"
    file.write_text(file.read_text() + " ")
    assert foreign_records(ours.store, [record]) == []
    file.unlink()
    assert foreign_records(ours.store, [record]) == []


def test_what_passed_through_a_third_store_keeps_its_whole_past(ours: Team, theirs: Team, tmp_path: Path) -> None:
    between = Team(tmp_path / "between")
    between.seed()
    passed = take(between, theirs.folder("expert.law"), "from-them").record
    record = take(ours, f"{between.store.uri}#adopted.from-them").record
    assert record.provenance["adopted_from"] == between.store.uri
    assert [output.path for output in record.outputs].count("origin.json") == 1
    foreign = foreign_records(ours.store, ours.store.records())
    stores = {made.record.stage: made.store for made in foreign}
    assert stores["adopted.from-them"] == between.store.uri
    assert stores["expert.law"] == theirs.store.uri
    stages = [node.stage for node in lineage(ours.store.records(), record.key, "up", foreign).nodes]
    assert stages == ["tokenizer", "seed", "expert.law", "adopted.from-them", f"adopted.{NAME}"]
    assert passed.digest == record.payload["config"]["digest"]


def test_a_store_of_ours_that_is_asked_again_needs_none_of_theirs(ours: Team, theirs: Team) -> None:
    record = take(ours, theirs.folder("expert.law")).record
    shutil.rmtree(theirs.store.uri)
    assert len(foreign_records(ArtifactStore(ours.store.uri), [record])) == 3
