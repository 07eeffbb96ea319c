"""Digests: short, stable, for comparing and never for security.

BLAKE2b straight from the interpreter: `hashlib` would load OpenSSL into every agent, 1 MiB each.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # an interpreter that keeps it elsewhere
    from hashlib import blake2b


def digest_of(data: bytes) -> str:
    """Return 16 hex digits."""
    return blake2b(data, digest_size=8).hexdigest()


def number_of(data: bytes) -> int:
    """Return 64 bits."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
