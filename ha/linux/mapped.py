"""Mapped: a small file of 64-bit words shared by mmap; a word is stored and loaded by one machine instruction.

The header names what it is and the boot it belongs to; another boot, layout or size empties it. It lives in the 0700
directory of the agents, best on a tmpfs: nothing of it must survive the boot.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import zlib

WORD = 8
HEADER_WORDS = 8


class MappedWords:
    """The file's words after the header, as `words`, shared by all who opened it."""

    def __init__(self, path: str, magic: int, count: int, boot: str) -> None:
        """Open or make the file with `count` words. Raises OSError."""
        size = (HEADER_WORDS + count) * WORD
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # two may come at the same time after a boot; held for microseconds
            marks = (magic, count, zlib.crc32(boot.encode()), zlib.crc32(boot[::-1].encode()))
            if os.fstat(fd).st_size != size or not _marked(fd, marks):
                # In place: another size would pull the pages from under those who have it mapped.
                os.ftruncate(fd, max(size, os.fstat(fd).st_size))
                os.pwrite(fd, b"\0" * size, 0)
                os.pwrite(fd, b"".join(mark.to_bytes(WORD, "little") for mark in marks), 0)
                os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            # mmap keeps a duplicate of the descriptor, and with it the lock: closing alone would not give it back.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
        self._view = memoryview(self._map)
        self.data = self._view[HEADER_WORDS * WORD :]
        self.words = self.data.cast("Q")

    def close(self) -> None:
        """Unmap."""
        self.words.release()
        self.data.release()
        self._view.release()
        self._map.close()


def _marked(fd: int, marks: tuple[int, ...]) -> bool:
    return os.pread(fd, len(marks) * WORD, 0) == b"".join(mark.to_bytes(WORD, "little") for mark in marks)
