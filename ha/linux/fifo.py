"""Fifo: where a managed process writes its output; it outlives every agent, and never runs out of readers.

Whoever opens it, opens it for reading and writing: the process therefore has a reader in itself (no EPIPE when the
agents die, it only blocks once the buffer is full), and a reader sees no end-of-file storms between two starts.
What the kernel holds is lost when the last opener goes: two agents should hold it (one reads, one only holds), so that
the last words of a process that dies while the reader is being restarted are still there.
"""

from __future__ import annotations

import fcntl
import os
import stat

from ha.linux.users import Account, as_user
from ha.model.errors import NotPermitted
from ha.model.limits import LOG_READ_BYTES

PIPE_BYTES = 1024 * 1024


def make_fifo(path: str, account: Account | None = None) -> None:
    """Make the FIFO, mode 0600 of that user; one that is there stays, with what is in it.

    Raises OSError, NotPermitted.
    """
    with as_user(account):
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            if not stat.S_ISFIFO(os.lstat(path).st_mode):
                raise NotPermitted(f"cannot use {path}: something that is no FIFO stands there") from None


def open_fifo(path: str, account: Account | None = None) -> int:
    """Return a non-blocking read-write descriptor, to poll and `read_fifo`, with a 1 MiB buffer if it can be had.

    Raises OSError, NotPermitted.
    """
    with as_user(account):
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY)
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise NotPermitted(f"cannot use {path}: something that is no FIFO stands there")
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except PermissionError:
        pass  # beyond pipe-max-size or the user's share: what it has must do
    except NotPermitted:
        os.close(fd)
        raise
    return fd


def read_fifo(fd: int, limit: int = LOG_READ_BYTES) -> bytes:
    """Return what is there, at most `limit` bytes; empty when there is nothing."""
    try:
        return os.read(fd, limit)
    except BlockingIOError:
        return b""
