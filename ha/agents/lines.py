"""Lines: JSON lines over AF_UNIX stream sockets, for `view.sock` and `operate.sock`.

Who may connect is decided by the file's mode and group, and told apart by the socket that was used. Every line, every
connection's backlog and the number of connections are bounded; a reader that is too slow is dropped.
"""

from __future__ import annotations

import contextlib
import grp
import os
import select
import socket
import struct
from collections.abc import Callable

import msgspec

from ha.model import limits
from ha.model.errors import HaError
from ha.runtime.loop import Loop

MAX_LINE_BYTES = 64 * 1024
MAX_CONNECTIONS = 64
MAX_BACKLOG_BYTES = 4 * limits.MAX_CHUNK_BYTES
READ_BYTES = 16 * 1024

_UCRED = struct.Struct("=iII")

Handler = Callable[["Connection", bytes], None]
Lost = Callable[["Connection"], None]


class Connection:
    """One client. `uid`: whose process connected; `operator`: it came by the operators' socket."""

    def __init__(self, loop: Loop, sock: socket.socket, operator: bool, handler: Handler, lost: Lost) -> None:
        self._loop = loop
        self._sock = sock
        self._handler = handler
        self._lost = lost
        self._in = b""
        self._out = bytearray()
        self.operator = operator
        self.uid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        self.open = True
        self.closers: list[Callable[[], None]] = []  # called when the client is gone
        loop.add_fd(sock.fileno(), self._ready)

    def say(self, value: object) -> None:
        """Send one line; a client that does not read is dropped."""
        if not self.open:
            return
        self._out += msgspec.json.encode(value) + b"\n"
        self._flush()
        if len(self._out) > MAX_BACKLOG_BYTES:
            self.close()

    def close(self) -> None:
        """Drop the client; harmless twice."""
        if self.open:
            self.open = False
            self._loop.remove_fd(self._sock.fileno())
            self._sock.close()
            for closer in self.closers:
                closer()
            self._lost(self)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if self.open and events & ~select.EPOLLOUT:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        *lines, self._in = (self._in + data).split(b"\n")
        if len(self._in) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            self.say({"id": "", "final": True, "exit": 2, "error": f"a line has at most {MAX_LINE_BYTES} bytes"})
            self.close()
            return
        for line in lines:
            if line.strip() and self.open:
                self._handler(self, line)

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if self.open:
            self._loop.modify_fd(self._sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._out else 0))


class LineServer:
    """One listening socket. The caller holds the role's lock, so a socket file that is there is a dead one's."""

    def __init__(self, loop: Loop, path: str, *, group: str, operator: bool, handler: Handler, lost: Lost) -> None:
        """Bind `path`: 0660 with that group, 0600 if it is empty. Raises HaError."""
        self._loop = loop
        self._operator = operator
        self._handler = handler
        self._lost = lost
        self._path = path
        self.connections: list[Connection] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            self._sock.bind(path)
        except OSError as error:
            raise HaError(f"cannot bind {path}: {error.strerror}") from None
        finally:
            os.umask(mask)
        if group:
            _give(path, group)
        self._sock.listen(MAX_CONNECTIONS)
        loop.add_fd(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Drop all clients and remove the socket file."""
        for connection in list(self.connections):
            connection.close()
        self._loop.remove_fd(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self.connections) >= MAX_CONNECTIONS:
            with contextlib.suppress(OSError):
                sock.send(b'{"id":"","final":true,"exit":3,"error":"too many connections, try again"}\n')
            sock.close()
            return
        self.connections.append(Connection(self._loop, sock, self._operator, self._handler, self._gone))

    def _gone(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._lost(connection)


def _give(path: str, group: str) -> None:
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        os.chown(path, -1, gid)
        os.chmod(path, 0o660)
    except (KeyError, OSError) as error:
        raise HaError(f"cannot give {path} to group {group}: {error}") from None
