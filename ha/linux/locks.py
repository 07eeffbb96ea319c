"""Locks: one live process per role and node; flock before any bind, and the file says who holds it.

The kernel gives the lock back when the holder dies, however it dies. Descriptors are close-on-exec, so that no
program an agent starts keeps the agent's lock.
"""

from __future__ import annotations

import fcntl
import os

from ha.linux.clocks import boot_id
from ha.linux.identity import Identity, alive, start_ticks
from ha.model.errors import AlreadyRunning, NotPermitted
from ha.model.names import Agent

_LINE_BYTES = 80  # one write of fixed size: a reader sees the old line or the new one


class Lock:
    """A held role. Keep it; `release` (or the end of the process) gives it back."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Give the role back; the file stays, empty, since unlinking would let two hold it."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def lock_path(run_dir_node: str, role: Agent) -> str:
    """Return the path of a role's lock; `run_dir_node` is run_dir/NODE."""
    return f"{run_dir_node}/agents/{role}.lock"


def hold_role(run_dir_node: str, role: Agent) -> Lock:
    """Take the role on this node. Raises AlreadyRunning naming the holder's pid, NotPermitted, OSError."""
    path = lock_path(run_dir_node, role)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        raise NotPermitted(f"cannot hold {path}: permission denied for uid {os.geteuid()}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(fd)
        os.close(fd)
        who = f"pid {holder.pid}" if holder else "a process that has not said its pid yet"
        raise AlreadyRunning(f"cannot run {role}: {who} holds {path}") from None
    line = f"{os.getpid()} {start_ticks(os.getpid()) or 0} {boot_id()}"
    os.pwrite(fd, line.ljust(_LINE_BYTES - 1).encode() + b"\n", 0)
    os.ftruncate(fd, _LINE_BYTES)
    return Lock(path, fd)


def who_holds(run_dir_node: str, role: Agent) -> Identity | None:
    """Return the live process that holds the role; None when nobody does, or it is of another boot."""
    try:
        fd = os.open(lock_path(run_dir_node, role), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        holder = _read(fd)
    finally:
        os.close(fd)
    return holder if holder is not None and alive(holder) else None


def _read(fd: int) -> Identity | None:
    words = os.pread(fd, _LINE_BYTES, 0).split()
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
        return None
    return Identity(int(words[0]), int(words[1]), words[2].decode(errors="replace"))
