"""Drop-in: the tenants directory as it is now, read after every change and 200 ms of quiet.

Only regular files `*.toml` count (`ha.config.check.read_directory`), and only once they were closed, renamed or removed
(inotify). A directory that is not there is looked for once a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ha.model.limits import DROP_IN_QUIET_MS
from ha.model.timing import MS
from ha.runtime import log
from ha.runtime.loop import Loop, Timer

SUFFIX = ".toml"
QUIET_AT_MOST_MS = 600  # a directory that never gets quiet is read all the same
MISSING_RETRY_MS = 1_000

Files = dict[str, bytes]  # name without .toml -> content


class DropIn:
    """Calls `deliver(files)` with all files after each change, with None when there is no directory."""

    def __init__(self, loop: Loop, path: str, deliver: Callable[[Files | None], None]) -> None:
        self._loop = loop
        self._path = path
        self._deliver = deliver
        self._timer: Timer | None = None
        self._first_change = 0
        self._said: Files | str | None = "nothing yet"

    def start(self) -> None:
        """Watch, then read: what changes in between is read again."""
        self._look()
        self.read()

    def read(self) -> None:
        """Read everything now, and deliver it if it differs from what was delivered last."""
        self._timer = None
        self._first_change = 0
        files = read_files(self._path)
        if files != self._said:
            self._said = files
            self._deliver(files)

    def _look(self) -> None:
        from ha.linux.inotify import DirectoryWatch

        try:
            watch = DirectoryWatch(self._path)
        except OSError:
            self._loop.call_at(self._loop.now() + MISSING_RETRY_MS * MS, self._look_again)
            return

        def changed(_events: int) -> None:
            changes = watch.drain()
            if changes.lost:
                self._loop.remove_fd(watch.fileno())
                watch.close()
                self._look()
            if changes.lost or changes.overflow or any(name.endswith(SUFFIX) for name in changes.names):
                self._changed()

        self._loop.add_fd(watch.fileno(), changed)

    def _look_again(self) -> None:
        self._look()
        if os.path.isdir(self._path):
            self.read()

    def _changed(self) -> None:
        now = self._loop.now()
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._first_change = now
        when = min(now + DROP_IN_QUIET_MS * MS, self._first_change + QUIET_AT_MOST_MS * MS)
        self._timer = self._loop.call_at(when, self.read)


def read_files(path: str) -> Files | None:
    """Return the content of each tenant file in `path`; None: there is no directory, or it cannot be listed."""
    from ha.config.check import read_directory

    try:
        return read_directory(path)
    except OSError as error:
        log.warning("tenants-dir.unreadable", path=path, reason=error.strerror)
        return None
