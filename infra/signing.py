"""Signatures of records (Ed25519): who made an artifact, which no checksum can say.

`record.sig.json` lies beside `record.json` and signs the canonical JSON of all that is in it, checksum included; so it
signs the digests of all outputs and inputs. Equal records are signed equally.

The private key is in `BAM_SIGNING_KEY` of the process that commits, and nowhere else: it is in no object that is sent
to another process, in no message and no file of ours. Which keys count is said by who verifies, in `BAM_TRUSTED_KEYS`;
without it a signature that is there must hold, whoever made it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bam_core.errors import UsageError

SIGNING_KEY = "BAM_SIGNING_KEY"
TRUSTED_KEYS = "BAM_TRUSTED_KEYS"
ALGORITHM = "ed25519"
REMEDY = "`bam keygen PATH` makes a pair of keys"


class Signer:
    """Signs with one private key. Sent to another process, it is that process's own, or nothing."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __reduce__(self) -> tuple[Callable[[], Signer | None], tuple[()]]:
        return Signer.from_environment, ()

    @classmethod
    def from_environment(cls) -> Signer | None:
        """None without a key. Raises UsageError, which names the variable and never what is in it."""
        value = os.environ.get(SIGNING_KEY, "").strip()
        if not value:
            return None
        data = value.encode() if "-----BEGIN" in value else _of_file(value)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except TypeError:  # a password is wanted
            raise UsageError(f"{SIGNING_KEY}: the key is locked with a password; give one that is not") from None
        except (ValueError, UnsupportedAlgorithm):
            raise UsageError(f"{SIGNING_KEY}: not a private key in PEM, nor a file that holds one; {REMEDY}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{SIGNING_KEY}: must be an Ed25519 key; {REMEDY}")
        return cls(key)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._key.public_key())

    def sign(self, record: bytes) -> bytes:
        """The signature file of a record.json."""
        signature = {
            "algorithm": ALGORITHM,
            "public_key": base64.b64encode(_raw(self._key.public_key())).decode(),
            "signature": base64.b64encode(self._key.sign(_signed_bytes(json.loads(record)))).decode(),
        }
        return json.dumps(signature, indent=2, sort_keys=True).encode()


@dataclass(frozen=True)
class Judged:
    """signed_by: the fingerprint of the key whose signature holds, trusted or not. fault: what is wrong, in words."""

    signed_by: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class TrustedKeys:
    """fingerprints: of the keys that count; None: any key, and a record may be without a signature."""

    fingerprints: frozenset[str] | None = None

    @classmethod
    def from_environment(cls) -> TrustedKeys:
        """Raises UsageError for a file that holds no public key, or a variable that names none."""
        value = os.environ.get(TRUSTED_KEYS)
        if value is None:
            return cls()
        if "-----BEGIN" in value:  # likely a private one, by mistake
            raise UsageError(f"{TRUSTED_KEYS}: give paths of public keys, not a key itself")
        paths = [path for path in value.split(os.pathsep) if path.strip()]
        if not paths:  # nobody sets it to trust everyone
            raise UsageError(f"{TRUSTED_KEYS} is set and names no key: give paths of public keys, or unset it")
        return cls(frozenset(fingerprint(_public_key(path)) for path in paths))

    def judge(self, record: Mapping[str, Any], signature: bytes | None) -> Judged:
        """record: what record.json holds. signature: the bytes of its record.sig.json, if there is one."""
        if signature is None:
            return Judged(fault=None if self.fingerprints is None else "its record is not signed")
        try:
            found = json.loads(signature)
            if found["algorithm"] != ALGORITHM:
                return Judged(fault=f"record.sig.json: algorithm {found['algorithm']!r}; must be {ALGORITHM}")
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(found["public_key"], validate=True))
            bare = base64.b64decode(found["signature"], validate=True)
        except (ValueError, TypeError, KeyError) as error:
            return Judged(fault=f"record.sig.json is not a signature ({type(error).__name__})")
        name = fingerprint(key)
        try:
            key.verify(bare, _signed_bytes(record))
        except InvalidSignature:
            return Judged(fault=f"its record was altered since it was signed (key {name}): the signature does not hold")
        if self.fingerprints is not None and name not in self.fingerprints:
            return Judged(name, f"its record is signed by a key that is not trusted: {name}")
        return Judged(name)


def fingerprint(key: Ed25519PublicKey) -> str:
    """16 hex digits of the sha256 of the raw public key: how people tell keys apart."""
    return hashlib.sha256(_raw(key)).hexdigest()[:16]


def write_keys(path: Path) -> str:
    """A new pair: PATH, for its owner alone, and PATH.pub. Returns the fingerprint.

    Raises UsageError, and leaves nothing, if one of them exists or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _create(public_path(path), public, 0o644)
    try:
        _create(path, private, 0o600)
    except UsageError:
        public_path(path).unlink()
        raise
    return fingerprint(key.public_key())


def public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def _create(path: Path, data: bytes, mode: int) -> None:
    """Whole, with these rights from the start; nothing that exists is touched."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise UsageError(f"{path} exists already: nothing was written; give another PATH") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _of_file(value: str) -> bytes:
    """Never says what the variable holds: it may be a key after all."""
    try:
        return Path(value).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise UsageError(
            f"{SIGNING_KEY}: neither a private key in PEM nor a file that can be read ({reason}); {REMEDY}"
        ) from None


def _public_key(path: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise UsageError(f"{TRUSTED_KEYS}: {path}: cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{TRUSTED_KEYS}: {path}: not a public key in PEM; {REMEDY}, of which PATH.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{TRUSTED_KEYS}: {path}: must be an Ed25519 key; {REMEDY}")
    return key


def _signed_bytes(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
