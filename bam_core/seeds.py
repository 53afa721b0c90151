"""Child seeds by name: every random choice has its own generator, and adding one never shifts another."""

from __future__ import annotations

import hashlib


def child_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends on `seed` and `name` only, equal on every platform."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
