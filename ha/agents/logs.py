"""Logs: the output of every copy, from its FIFO into its size-rotated file.

run_dir/NODE/p/TENANT.PROCESS.N/out -> data_dir/NODE/logs/TENANT/PROCESS.N.log. At most `limits.LOG_READ_BYTES` of one
copy are read in one turn, so that a copy that floods delays no other. What a full disk does not take is counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ha.linux.fifo import open_fifo, read_fifo
from ha.linux.rotate import RotatingFile
from ha.model import limits
from ha.model.errors import NotPermitted
from ha.model.names import split_copy
from ha.model.plan import Log
from ha.runtime import log
from ha.runtime.loop import Loop

TAIL_BYTES = 1024 * 1024  # `hactl logs` looks back this far at most

Follower = Callable[[bytes], None]


@dataclass(slots=True)
class _Output:
    fd: int
    inode: int
    file: RotatingFile
    lost_bytes: int = 0
    followers: list[Follower] = field(default_factory=list)


class Logs:
    """The outputs of one node. `run_dir`, `data_dir`: those of the node."""

    def __init__(self, loop: Loop, run_dir: str, data_dir: str) -> None:
        self._loop = loop
        self._run_dir = run_dir
        self._data_dir = data_dir
        self._outputs: dict[str, _Output] = {}

    def open(self, copy: str, settings: Log) -> None:
        """Read this copy's output from now on; again: with these settings, from the FIFO that stands there now."""
        tenant, process, number = split_copy(copy)
        fifo = f"{self._run_dir}/p/{tenant}.{process}.{number}/out"
        known = self._outputs.get(copy)
        try:
            inode = os.lstat(fifo).st_ino
            if known is not None:
                known.file.max_bytes, known.file.keep = settings.max_size_bytes, settings.keep
                if known.inode == inode:
                    return
                self._unplug(known)
            fd = open_fifo(fifo)
            os.makedirs(os.path.dirname(self.path(copy)), 0o700, exist_ok=True)
        except (OSError, NotPermitted) as error:
            if not isinstance(error, FileNotFoundError):  # it is made at the first start, and opened then
                log.warning("logs.unreadable", subject=copy, reason=error)
            return
        followers = known.followers if known else []
        file = RotatingFile(self.path(copy), settings.max_size_bytes, settings.keep)
        output = self._outputs[copy] = _Output(fd, inode, file, followers=followers)

        def ready(_: int) -> None:
            self._read(copy, output)

        self._loop.add_fd(fd, ready)

    def close(self, copy: str) -> None:
        """Read what is left, and forget the copy."""
        output = self._outputs.pop(copy, None)
        if output is not None:
            while self._read(copy, output):
                pass
            self._unplug(output)

    def close_all(self) -> None:
        """Give back every descriptor; what is not read stays in the FIFOs for the next Monitor."""
        for output in self._outputs.values():
            self._unplug(output)
        self._outputs.clear()

    def path(self, copy: str) -> str:
        """Return the current log file of a copy."""
        tenant, process, number = split_copy(copy)
        return f"{self._data_dir}/logs/{tenant}/{process}.{number}.log"

    def tail(self, copy: str, lines: int) -> list[str] | None:
        """Return the last lines of the current file, or None if there is none."""
        try:
            with open(self.path(copy), "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                data = file.read(TAIL_BYTES)
        except OSError:
            return None
        return [line.decode(errors="replace") for line in data.splitlines()[-lines:]] if lines > 0 else []

    def follow(self, copy: str, follower: Follower) -> Callable[[], None] | None:
        """Call `follower` with all output to come; return how to end it. None: no such output here."""
        output = self._outputs.get(copy)
        if output is None:
            return None
        followers = output.followers
        followers.append(follower)

        def end() -> None:
            if follower in followers:
                followers.remove(follower)

        return end

    def _read(self, copy: str, output: _Output) -> bool:
        try:
            data = read_fifo(output.fd, limits.LOG_READ_BYTES)
        except OSError:
            return False
        if not data:
            return False
        try:
            output.file.write(data)
        except OSError as error:
            if not output.lost_bytes:
                log.warning("logs.lost", subject=copy, reason=error.strerror)
            output.lost_bytes += len(data)
        for follower in list(output.followers):
            follower(data)
        return True

    def _unplug(self, output: _Output) -> None:
        self._loop.remove_fd(output.fd)
        os.close(output.fd)
        output.file.close()
