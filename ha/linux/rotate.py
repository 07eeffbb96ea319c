"""Rotate: an append-only log file that is renamed by size, `path` -> `path.1` -> ... -> `path.<keep>`.

Appending and renaming lose nothing over a restart of the agent, and a file that someone else renamed (logrotate) is
left alone: the next write goes to a new one.
"""

from __future__ import annotations

import os


class RotatingFile:
    """One process's log. `max_bytes`: of each file, exceeded by one write at most; `keep`: older files kept."""

    def __init__(self, path: str, max_bytes: int, keep: int, *, mode: int = 0o640) -> None:
        """Remember the settings; the file is opened with the first write."""
        self.path = path
        self.max_bytes = max_bytes
        self.keep = keep
        self._mode = mode
        self._fd = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append `data` whole. Raises OSError (a full disk): what was not written is the caller's to count."""
        if not data:
            return
        self._follow()
        if self._size and self._size + len(data) > self.max_bytes:
            self._rotate()
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self) -> None:
        """Open the file that stands at the path now."""
        if self._fd >= 0:
            try:
                seen, mine = os.stat(self.path), os.fstat(self._fd)
                if (seen.st_dev, seen.st_ino) == (mine.st_dev, mine.st_ino):
                    self._size = seen.st_size  # someone may have truncated it in place
                    return
            except FileNotFoundError:
                pass
            self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, self._mode)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self.keep, 0, -1):
            older = f"{self.path}.{number}"
            newer = f"{self.path}.{number - 1}" if number > 1 else self.path
            try:
                os.rename(newer, older)
            except FileNotFoundError:
                pass
        if self.keep == 0:
            os.unlink(self.path)
        self._follow()
