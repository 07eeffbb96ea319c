"""The fence of a resource: refuses whoever comes with a lower fencing number than one already seen.

Put it where the effect happens (the database proxy, the writer of a shared file, the replication receiver), not in
the process that asks for it: an active copy that was frozen for minutes believes in its epoch when it wakes up.
Source: design section 3, rule 8.
"""

from __future__ import annotations

import os
import threading


class StaleEpoch(Exception):
    """A lower fencing number than one already seen. `epoch`: what came, `highest`: what was seen."""

    def __init__(self, epoch: int, highest: int) -> None:
        super().__init__(f"cannot act at epoch {epoch}: epoch {highest} was seen already, another copy is active")
        self.epoch = epoch
        self.highest = highest


class Fence:
    """Remembers the highest fencing number seen, in memory or, with `path`, over restarts of the resource.

    Threads may share it; processes may not share a `path`. Raises OSError when `path` cannot be read or written,
    ValueError when it holds no number.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = os.fspath(path) if path is not None else None
        self._lock = threading.Lock()
        self._highest = 0
        if self._path is not None and os.path.exists(self._path):
            with open(self._path, encoding="ascii") as file:
                self._highest = int(file.read())

    @property
    def highest(self) -> int:
        """The highest fencing number seen, 0 at first."""
        return self._highest

    def admit(self, epoch: int) -> bool:
        """Return whether an effect at this fencing number may happen; a higher one is remembered before."""
        with self._lock:
            if epoch > self._highest:
                if self._path is not None:
                    _store(self._path, epoch)
                self._highest = epoch
            return epoch >= self._highest

    def require(self, epoch: int) -> None:
        """Do nothing when the effect may happen. Raises StaleEpoch."""
        if not self.admit(epoch):
            raise StaleEpoch(epoch, self._highest)


def _store(path: str, epoch: int) -> None:
    """Replace the file whole and on disk: half a number would be a lower one."""
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="ascii") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
