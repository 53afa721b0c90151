"""Records are signed where they are committed; a signature that does not hold is told from one that is not trusted."""

from __future__ import annotations

import base64
import json
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from store_kit import FILES, KEY, OTHER_KEY, PLACE, commit, files, store, uri, write

from bam_core.errors import BamError, UsageError
from bam_core.graph.record import record_checksum
from infra.signing import Judged, Signer, TrustedKeys, write_keys
from infra.store import ArtifactStore

__all__ = ["store", "uri"]

ANY = TrustedKeys()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BAM_SIGNING_KEY", "BAM_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def signer() -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))


@pytest.fixture
def signing(uri: str, signer: Signer) -> ArtifactStore:
    return ArtifactStore(uri, signer=signer)


def content(store: ArtifactStore, stage: str = "expert.law", key: str = KEY) -> dict[str, Any]:
    data, _ = store.written(stage, key)
    assert data is not None
    return json.loads(data)


def judged(store: ArtifactStore, trusted: TrustedKeys = ANY) -> Judged:
    data, signature = store.written("expert.law", KEY)
    assert data is not None
    return trusted.judge(json.loads(data), signature)


def test_a_commit_signs_and_a_commit_without_a_key_does_not(uri: str, signing: ArtifactStore, signer: Signer) -> None:
    record = commit(signing)
    assert files(signing) == {f"{PLACE}/{name}" for name in (*FILES, "record.json", "record.sig.json")}
    assert (
        judged(signing) == judged(signing, TrustedKeys(frozenset({signer.fingerprint}))) == Judged(signer.fingerprint)
    )
    assert signing.record("expert.law", KEY) == record
    assert signing.verify(record) == signing.strays(record) == []

    commit(ArtifactStore(uri))
    assert f"{PLACE}/record.sig.json" not in files(signing), "the signature of another record went with it"
    assert judged(signing) == Judged()
    trusting = TrustedKeys(frozenset({signer.fingerprint}))
    assert judged(signing, trusting) == Judged(fault="its record is not signed")


def test_the_signature_is_that_of_the_canonical_record(signing: ArtifactStore) -> None:
    """As anybody can check who has the public key, without this code."""
    commit(signing)
    data, signature = signing.written("expert.law", KEY)
    assert data is not None
    assert signature is not None
    found = json.loads(signature)
    assert (found.keys(), found["algorithm"]) == ({"algorithm", "public_key", "signature"}, "ed25519")
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(found["public_key"]))
    canonical = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert b'"checksum":"' in canonical
    key.verify(base64.b64decode(found["signature"]), canonical)


def test_equal_records_sign_equal(signing: ArtifactStore) -> None:
    commit(signing)
    first = signing.written("expert.law", KEY)
    commit(signing)
    assert signing.written("expert.law", KEY) == first
    commit(signing, ended=7.0)
    assert signing.written("expert.law", KEY)[1] != first[1]


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"loss": 0.1}},
        {"digest": "0" * 64},
        {"ended": 3.0},
        {"more": 1},
        {"key": OTHER_KEY},
    ],
    ids=str,
)
def test_a_changed_record_with_a_checksum_that_holds_again_is_found(
    change: dict[str, Any], signing: ArtifactStore, signer: Signer
) -> None:
    commit(signing)
    forged = content(signing) | change
    forged["checksum"] = record_checksum(forged)
    write(signing, f"{PLACE}/record.json", json.dumps(forged).encode())
    fault = judged(signing).fault
    assert fault is not None
    assert fault.startswith(f"its record was altered since it was signed (key {signer.fingerprint})")
    assert judged(signing).signed_by is None


def test_a_record_signed_anew_by_another_is_known_by_its_fingerprint(
    uri: str, signing: ArtifactStore, signer: Signer
) -> None:
    commit(signing)
    other = Signer(Ed25519PrivateKey.from_private_bytes(b"\x02" * 32))
    commit(ArtifactStore(uri, signer=other))
    assert judged(signing) == Judged(other.fingerprint), "nobody said whom to trust"
    found = judged(signing, TrustedKeys(frozenset({signer.fingerprint})))
    assert found == Judged(other.fingerprint, f"its record is signed by a key that is not trusted: {other.fingerprint}")
    both = TrustedKeys(frozenset({signer.fingerprint, other.fingerprint}))
    assert judged(signing, both).fault is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda signature: b"",
        lambda signature: b"\0\xff",
        lambda signature: b"[]",
        lambda signature: b"null",
        lambda signature: b"{}",
        lambda signature: json.dumps(json.loads(signature) | {"algorithm": "none"}).encode(),
        lambda signature: json.dumps(json.loads(signature) | {"public_key": "AAAA"}).encode(),
        lambda signature: json.dumps(json.loads(signature) | {"public_key": 5}).encode(),
        lambda signature: json.dumps(json.loads(signature) | {"signature": "!"}).encode(),
        lambda signature: json.dumps(json.loads(signature) | {"signature": "é"}).encode(),
        lambda signature: json.dumps(json.loads(signature) | {"signature": ""}).encode(),
    ],
)
def test_a_signature_that_is_none_is_a_fault(damage: Callable[[bytes], bytes], signer: Signer) -> None:
    record = {"stage": "seed"}
    signature = signer.sign(json.dumps(record).encode())
    assert ANY.judge(record, signature) == Judged(signer.fingerprint)
    found = ANY.judge(record, damage(signature))
    assert found.signed_by is None
    assert found.fault


def stopping(call: Callable[..., Any], after: list[int]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        if after[0] == 0:
            raise KeyboardInterrupt
        after[0] -= 1
        return call(*args)

    return wrapped


@pytest.mark.parametrize("forced", ["equal bytes", "other bytes"])
def test_killed_anywhere_in_a_commit_no_record_has_the_signature_of_another(
    forced: str, signing: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is a signed record or none; while an older one stays for its readers, it may be unsigned."""
    states = set()
    for stop in range(12):
        commit(signing)
        contents = FILES if forced == "equal bytes" else {path: data + b"%d" % stop for path, data in FILES.items()}
        left = [stop]
        with monkeypatch.context() as patch:
            for name in ("put", "remove", "write_atomic"):
                patch.setattr(signing.storage, name, stopping(getattr(signing.storage, name), left))
            try:
                commit(signing, contents, ended=10.0 + stop)
            except KeyboardInterrupt:
                pass
            else:
                break
        data, _ = signing.written("expert.law", KEY)
        found = None if data is None else judged(signing)
        states.add("none" if found is None else "signed" if found.signed_by else "unsigned")
        assert found is None or found.fault is None, f"stopped after {stop} changes"
    else:
        raise AssertionError("a commit takes fewer changes than that")
    assert states == ({"signed", "unsigned"} if forced == "equal bytes" else {"signed", "none"})
    assert judged(signing).signed_by


def test_the_signature_is_the_stores_own_name(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.sig.json").write_text("{}")
    with pytest.raises(BamError, match="name is the store's own"):
        store.hash_outputs(tmp_path / "out")


def test_strays_are_files_that_no_record_names(signing: ArtifactStore) -> None:
    record = commit(signing)
    signing.attempt_dir("expert.law", KEY, 1)
    signing.close_attempt("expert.law", KEY, 1, {"message": "x"})
    assert signing.strays(record) == []
    write(signing, f"{PLACE}/train/more.arrow", b"rows")
    assert signing.strays(record) == ["train/more.arrow"]


# --- keys


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Path]:
    write_keys(tmp_path / "key")
    return tmp_path / "key"


def test_new_keys_are_the_owners_alone_and_sign(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = pair.with_name("key.pub")
    assert stat.S_IMODE(pair.stat().st_mode) == 0o600
    monkeypatch.setenv("BAM_TRUSTED_KEYS", str(public))
    record = {"stage": "seed"}
    for value in (str(pair), pair.read_text(), f"\n{pair.read_text()}\n"):
        monkeypatch.setenv("BAM_SIGNING_KEY", value)
        signer = Signer.from_environment()
        assert signer is not None
        signature = signer.sign(json.dumps(record).encode())
        assert TrustedKeys.from_environment().judge(record, signature) == Judged(signer.fingerprint)
    assert b"PRIVATE" not in public.read_bytes()


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_keys_overwrite_nothing(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(UsageError, match=f"{taken} exists already: nothing was written"):
        write_keys(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists already"):
        write_keys(tmp_path / "link")
    with pytest.raises(UsageError, match="cannot be written"):
        write_keys(tmp_path / "no" / "folder")


def pem(key: Any, lock: Any = None) -> str:
    lock = lock or serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock).decode()


BAD_KEYS = {
    "another algorithm": (lambda: pem(generate_private_key(SECP256R1())), "must be an Ed25519 key"),
    "locked": (
        lambda: pem(Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"x")),
        "locked with a password",
    ),
    "cut off": (lambda: pem(Ed25519PrivateKey.generate())[:60], "not a private key in PEM"),
    "not PEM": (lambda: "planted-key-5d1f0c6b", "neither a private key in PEM nor a file"),
    "not base64": (
        lambda: "-----BEGIN PRIVATE KEY-----\nplanted-5d1f\n-----END PRIVATE KEY-----\n",
        "not a private key",
    ),
    "too long for a path": (lambda: "planted" * 2000, "neither a private key in PEM nor a file"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_is_none_is_told_without_a_word_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = BAD_KEYS[name]
    value = make()
    monkeypatch.setenv("BAM_SIGNING_KEY", value)
    with pytest.raises(UsageError, match=words) as caught:
        Signer.from_environment()
    assert str(caught.value).startswith("BAM_SIGNING_KEY: ")
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__, "a traceback would show what a library said of it"
    assert [line for line in value.split() if len(line) > 7 and line in str(caught.value)] == []


def test_no_key_signs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Signer.from_environment() is None
    monkeypatch.setenv("BAM_SIGNING_KEY", "  ")
    assert Signer.from_environment() is None


def test_trusted_keys_that_are_none_are_named(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrustedKeys.from_environment() == ANY
    public = pair.with_name("key.pub")
    (pair.parent / "text").write_text("no key")
    for value, words in {
        "": "names no key",
        " : ": "names no key",
        f"{public}:{pair.parent}/none": "none: cannot be read",
        f"{public}:{pair.parent}/text": "text: not a public key",
        str(pair): "key: not a public key",
    }.items():
        monkeypatch.setenv("BAM_TRUSTED_KEYS", value)
        with pytest.raises(UsageError, match=words) as caught:
            TrustedKeys.from_environment()
        assert str(caught.value).startswith("BAM_TRUSTED_KEYS")
    monkeypatch.setenv("BAM_TRUSTED_KEYS", pair.read_text())
    with pytest.raises(UsageError, match="paths of public keys") as caught:
        TrustedKeys.from_environment()
    assert pair.read_text().splitlines()[1] not in str(caught.value)


def test_a_signer_sent_to_another_process_takes_no_key_along(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAM_SIGNING_KEY", str(pair))
    signer = Signer.from_environment()
    sent = pickle.dumps(signer)
    secret = serialization.load_pem_private_key(pair.read_bytes(), password=None).private_bytes_raw()
    assert secret not in sent
    monkeypatch.delenv("BAM_SIGNING_KEY")
    assert pickle.loads(sent) is None
    assert pair.read_text().splitlines()[1] not in repr(signer) + str(vars(signer))
