"""Journal: what an agent must remember, as an append-only file of key and value.

    file    = MAGIC record*
    record  = length (4 bytes, big-endian) crc32 of the payload (4) payload
    payload = MessagePack of [key, value], or of [key]: forgotten

Opening reads until the first record that does not pass its CRC, cuts the file there and says how much was cut: a torn
tail is what was being written when the machine stopped, and nothing that was synced. Old records are garbage; when
they outweigh the live ones the file is written anew beside it, synced, renamed, and the directory synced.

A write or sync that fails ends the journal: what the kernel dropped after a failed fsync cannot be known, so nothing
is tried again, and the agent must not speak (notes on ZeroMQ, section 5; PostgreSQL's fsync of 2018).
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterable

import msgpack
import msgspec

from ha.model.errors import PersistError

MAGIC = b"HAJRNL1\n"
MAX_RECORD_BYTES = 64 * 1024 * 1024  # a longer length is no length but damage
COMPACT_MIN_BYTES = 64 * 1024  # below this, garbage is not worth a rename
GARBAGE_AT_OPEN = 1  # times the live bytes
GARBAGE_AT_RUN = 4

_FRAME = struct.Struct(">II")


class Journal:
    """One open journal; one writer (its role lock sees to that)."""

    def __init__(self, path: str, fd: int, live: dict[str, bytes], size: int, cut_bytes: int) -> None:
        """Use `open`. `cut_bytes`: what the torn tail had, for the log."""
        self.path = path
        self.cut_bytes = cut_bytes
        self._fd = fd
        self._live = live  # key -> its record
        self._live_bytes = sum(len(record) for record in live.values())
        self._size = size
        self._retry_at = 0  # a compaction that did not fit is tried again when the file is this large
        self._failed = ""

    @classmethod
    def open(cls, path: str) -> tuple[Journal, dict[str, object]]:
        """Return the journal at `path` (made if absent, 0600) and what it holds: builtins, lists for arrays.

        Raises PersistError when it cannot be read or written, or is no journal.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PersistError(f"cannot open {path}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise PersistError(f"cannot open {path}: it is no regular file")
            data = _read_all(fd)
            live, good = _scan(path, data)
            if good < len(MAGIC):
                os.ftruncate(fd, 0)
                _write_all(fd, MAGIC)
                good = len(MAGIC)
                os.fdatasync(fd)
                _sync_directory(path)
            elif good < len(data):
                os.ftruncate(fd, good)
                os.fdatasync(fd)
        except OSError as error:
            os.close(fd)
            raise PersistError(f"cannot open {path}: {error.strerror}") from None
        except PersistError:
            os.close(fd)
            raise
        journal = cls(path, fd, live, good, max(0, len(data) - good))
        journal._compact_if(GARBAGE_AT_OPEN)
        return journal, {key: _payload(record)[1] for key, record in live.items()}

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self._size

    def put(self, key: str, value: object, sync: bool = True) -> None:
        """Remember `value` (builtins or msgspec structs; None: forget) under `key`. Raises PersistError."""
        self.put_all(((key, value),), sync)

    def put_all(self, items: Iterable[tuple[str, object]], sync: bool = True) -> None:
        """Remember all of them with one write, and with one fdatasync if `sync`. Raises PersistError, then always."""
        if self._failed:
            raise PersistError(self._failed)
        records = [(key, value is None, _record(key, value)) for key, value in items]
        data = b"".join(record for _, _, record in records)
        try:
            _write_all(self._fd, data)
            if sync:
                os.fdatasync(self._fd)
        except OSError as error:
            self._failed = f"cannot write {self.path}: {error.strerror}"
            raise PersistError(self._failed) from None
        self._size += len(data)
        for key, forget, record in records:
            self._live_bytes -= len(self._live.pop(key, b""))
            if not forget:
                self._live[key] = record
                self._live_bytes += len(record)
        self._compact_if(GARBAGE_AT_RUN)

    def close(self) -> None:
        """Close the file; what was put without sync may still be lost with the machine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._failed = self._failed or f"cannot write {self.path}: it is closed"

    def _compact_if(self, times: int) -> None:
        garbage = self._size - len(MAGIC) - self._live_bytes
        if self._size < max(COMPACT_MIN_BYTES, self._retry_at) or garbage <= times * self._live_bytes:
            return
        temporary = self.path + ".tmp"
        data = MAGIC + b"".join(self._live.values())
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            self._retry_at = 2 * self._size
            return
        try:
            _write_all(fd, data)
            os.fsync(fd)
        except OSError:  # the old file is whole and stays
            os.close(fd)
            self._retry_at = 2 * self._size
            return
        try:
            os.rename(temporary, self.path)
            _sync_directory(self.path)
        except OSError as error:
            os.close(fd)
            self._failed = f"cannot write {self.path}: {error.strerror}"
            raise PersistError(self._failed) from None
        os.close(self._fd)
        self._fd = fd
        self._size = len(data)
        self._retry_at = 0


def _record(key: str, value: object) -> bytes:
    plain = [key] if value is None else [key, msgspec.to_builtins(value, builtin_types=(bytes,))]
    payload: bytes = msgpack.packb(plain)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _payload(record: bytes) -> list[object]:
    plain: list[object] = msgpack.unpackb(record[_FRAME.size :], strict_map_key=False, max_ext_len=0)
    return plain


def _scan(path: str, data: bytes) -> tuple[dict[str, bytes], int]:
    """Return the live records by key, and where the good part of `data` ends."""
    live: dict[str, bytes] = {}
    if not data.startswith(MAGIC):
        if MAGIC.startswith(data):
            return live, 0  # the very first write was torn
        raise PersistError(f"cannot open {path}: it is not a journal; move it away to start without memory")
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if not 0 < length <= MAX_RECORD_BYTES or end > len(data):
            break
        if zlib.crc32(data[at + _FRAME.size : end]) != crc:
            break
        record = data[at:end]
        plain = _payload(record)
        key = str(plain[0])
        live.pop(key, None)
        if len(plain) > 1:
            live[key] = record
        at = end
    return live, at


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
