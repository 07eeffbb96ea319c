"""Guard: the deadlines of exclusive active copies, as bytes that three agents share, and the verdict over them.

The Spawner writes them at each Grant; a restarted Spawner, the Watcher and the Master read them and freeze what has
outlived its right (design section 3, rule 11). One deadline serves all copies of the last Grant and is one word, so
that a renewal is one store; a copy whose tenant's lease ends earlier (`Grant.short`) has its own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgspec

SHARED = 0  # `deadline_ns` of an entry that follows the shared deadline
_HEAD = struct.Struct("<II")  # crc32 of what follows, number of entries
_ENTRY = struct.Struct("<QQQIBB")  # fencing, deadline, start ticks, pid, key and cookie length


class GuardEntry(msgspec.Struct, frozen=True):
    """One exclusive copy that is active here, or frozen with that role. Times: CLOCK_BOOTTIME ns of this boot."""

    copy: str
    fencing: int
    deadline_ns: int = SHARED  # when its right lapses
    pid: int = 0
    start_ticks: int = 0
    cookie: str = ""  # HA_INSTANCE


def encode(entries: Sequence[GuardEntry]) -> bytes:
    """Return the entries as bytes with a checksum."""
    parts: list[bytes] = []
    for entry in entries:
        key, cookie = entry.copy.encode(), entry.cookie.encode()
        parts.append(_ENTRY.pack(entry.fencing, entry.deadline_ns, entry.start_ticks, entry.pid, len(key), len(cookie)))
        parts += (key, cookie)
    body = struct.pack("<I", len(entries)) + b"".join(parts)
    return struct.pack("<I", zlib.crc32(body)) + body


def decode(data: bytes, shared_ns: int) -> tuple[GuardEntry, ...] | None:
    """Return the entries with the shared deadline filled in; None for bytes that are torn or were never written."""
    if len(data) < _HEAD.size:
        return None
    checksum, count = _HEAD.unpack_from(data)
    at, entries = _HEAD.size, []
    for _ in range(count):
        if at + _ENTRY.size > len(data):
            return None
        fencing, deadline, ticks, pid, key_bytes, cookie_bytes = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        end = at + key_bytes + cookie_bytes
        if end > len(data):
            return None
        entries.append(
            (data[at : at + key_bytes], fencing, deadline or shared_ns, pid, ticks, data[at + key_bytes : end])
        )
        at = end
    if zlib.crc32(data[4:at]) != checksum:
        return None
    return tuple(
        GuardEntry(key.decode(), fencing, deadline, pid, ticks, cookie.decode())
        for key, fencing, deadline, pid, ticks, cookie in entries
    )


def verdict(entries: Sequence[GuardEntry], now_ns: int) -> tuple[GuardEntry, ...]:
    """Return the entries whose deadline has passed: they must be frozen. A deadline of 0 has passed."""
    return tuple(entry for entry in entries if entry.deadline_ns <= now_ns)
