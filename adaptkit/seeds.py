"""Derive independent seeds from one seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed for a purpose, from the first digits of the sha256 of `seed/purpose`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1
