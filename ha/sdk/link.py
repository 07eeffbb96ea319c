"""The connection to the control socket: one file descriptor that stays the same while connections come and go.

An epoll holds the socket and, while there is none, a timer for the next try; so a program may select on the link
itself and needs no thread. Sending never blocks: a line that does not fit closes the connection, and everything
that matters is said again on the next one.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket

from ha.sdk import protocol

RETRY_MS = 100  # between two tries to connect
_MAX_READS = 16  # reads of one pump: lines of an agent are few, a flood must not hold the program


class Link:
    """A connection that comes back by itself. Not safe for threads: `Agent` holds its lock around every call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._epoll = select.epoll()
        self._timer = -1
        self._socket: socket.socket | None = None
        self._lines = protocol.LineBuffer()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now, as far as is known."""
        return self._socket is not None

    def fileno(self) -> int:
        """Return the descriptor that is readable when `pump` has something to do."""
        return self._epoll.fileno()

    def connect(self) -> bool:
        """Try to connect; return whether it worked. If not, the descriptor is readable after RETRY_MS."""
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            fresh.connect(self._path)
        except OSError:
            fresh.close()
            self._arm()
            return False
        self._disarm()
        self._socket, self._lines = fresh, protocol.LineBuffer()
        self._epoll.register(fresh.fileno(), select.EPOLLIN)
        return True

    def pump(self) -> tuple[bool, list[protocol.ToProgram]]:
        """Return (whether this is a new connection, the lines that came in). Lines that do not pass are skipped."""
        fresh = False
        if self._socket is None:
            fresh = self.connect()
        lines: list[protocol.ToProgram] = []
        for _ in range(_MAX_READS):
            if self._socket is None:
                break
            try:
                data = self._socket.recv(protocol.MAX_LINE_BYTES, socket.MSG_DONTWAIT)
                said = self._lines.feed(data)
            except (BlockingIOError, InterruptedError):
                break
            except (OSError, protocol.ProtocolError):
                self.drop()
                break
            if not data:
                self.drop()
                break
            for line in said:
                try:
                    lines.append(protocol.decode_to_program(line))
                except protocol.ProtocolError:
                    continue  # a type of a later version, most likely; an agent expects no answer to it
        return fresh, lines

    def send(self, line: protocol.ToAgent) -> bool:
        """Send a line; return False, without waiting, when it could not be sent whole (the connection is dropped)."""
        if self._socket is None:
            return False
        data = protocol.encode(line)
        try:
            whole = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
        except OSError:
            whole = False
        if not whole:
            self.drop()
        return whole

    def drop(self) -> None:
        """Close the connection; the next try follows after RETRY_MS."""
        if self._socket is not None:
            self._epoll.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._arm()

    def close(self) -> None:
        """Close all descriptors for good."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._disarm()
        self._epoll.close()

    def _arm(self) -> None:
        self._disarm()
        self._timer = _timer(RETRY_MS)
        self._epoll.register(self._timer, select.EPOLLIN)

    def _disarm(self) -> None:
        if self._timer >= 0:
            self._epoll.unregister(self._timer)
            os.close(self._timer)
            self._timer = -1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _timer(after_ms: int) -> int:
    """Return a timerfd that becomes readable once (os.timerfd_create comes with Python 3.13)."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(1, os.O_CLOEXEC | os.O_NONBLOCK)  # CLOCK_MONOTONIC
    if timer < 0:
        raise OSError(ctypes.get_errno(), "cannot make a timerfd")
    when = _Itimerspec(_Timespec(0, 0), _Timespec(after_ms // 1_000, after_ms % 1_000 * 1_000_000))
    libc.timerfd_settime(timer, 0, ctypes.byref(when), None)
    return int(timer)
