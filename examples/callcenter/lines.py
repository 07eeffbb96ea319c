"""TCP with one line a message: the server, a client that comes back by itself, and the search for the active copy.

Servers that have a role greet with `ROLE active|standby EPOCH` and say it again at each change, so that a client
connected to both copies knows within one message which of them serves. A client never goes back to a lower epoch.
"""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Callable
from functools import partial

from program import Loop, Seat, fail

MAX_LINE_BYTES = 4096
MAX_UNSENT_BYTES = 256 * 1024  # a peer that does not read is dropped
MAX_CONNECTIONS = 1024
RETRY_S = 0.2


class Connection:
    """One connection; `send` never waits."""

    def __init__(self, loop: Loop, sock: socket.socket, on_line: Callable[[Connection, str], None],
                 on_close: Callable[[Connection], None]) -> None:  # fmt: skip
        self._loop, self._sock, self._on_line, self._on_close = loop, sock, on_line, on_close
        self._unread, self._unsent = b"", b""
        self.closing = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.watch(sock, self._ready)

    @property
    def open(self) -> bool:
        """Whether it is not closed."""
        return self._sock.fileno() >= 0

    def send(self, text: str) -> None:
        """Send a line, or as much text as there is; it ends with a newline."""
        if not self.open:
            return
        self._unsent += text.encode() + (b"" if text.endswith("\n") else b"\n")
        self._flush()

    def close(self) -> None:
        """Close it now; the close callback is called once."""
        if self.open:
            self._loop.forget(self._sock)
            self._sock.close()
            self._on_close(self)

    def finish(self) -> None:
        """Close it once all is sent."""
        self.closing = True
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if len(self._unsent) > MAX_UNSENT_BYTES or (self.closing and not self._unsent):
            self.close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._loop.watch(self._sock, self._ready, wanted)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if not events & selectors.EVENT_READ or not self.open:
            return
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            if self.open:
                self._on_line(self, line.decode("utf-8", "replace").rstrip("\r"))
        if not data or len(self._unread) > MAX_LINE_BYTES:
            self.close()


class LineServer:
    """Listens and hands on lines. Exits the program when it cannot listen."""

    def __init__(self, loop: Loop, host: str, port: int, on_line: Callable[[Connection, str], None],
                 on_open: Callable[[Connection], None] = lambda _: None,
                 on_close: Callable[[Connection], None] = lambda _: None) -> None:  # fmt: skip
        self._loop, self._on_line, self._on_open, self._on_close = loop, on_line, on_open, on_close
        self.connections: set[Connection] = set()
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._sock.bind((host, port))
            self._sock.listen(256)
        except OSError as error:
            fail(f"cannot listen at {host}:{port}: {error.strerror}")
        self._sock.setblocking(False)
        loop.watch(self._sock, lambda _: self._accept())

    def say(self, text: str) -> None:
        """Send a line to all."""
        for connection in tuple(self.connections):
            connection.send(text)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        if len(self.connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self._loop, sock, self._on_line, self._closed)
        self.connections.add(connection)
        self._on_open(connection)

    def _closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._on_close(connection)


class RoleServer(LineServer):
    """A line server that greets with its role; `seat.ready()` and each change say it to all."""

    def __init__(self, loop: Loop, host: str, port: int, on_line: Callable[[Connection, str], None],
                 on_close: Callable[[Connection], None] = lambda _: None,
                 on_role: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self.seat = Seat(loop, self._changed)
        self._on_role = on_role
        super().__init__(loop, host, port, on_line, lambda connection: connection.send(self._greeting()), on_close)

    def _greeting(self) -> str:
        return f"ROLE {'active' if self.seat.active else 'standby'} {self.seat.epoch}"

    def _changed(self) -> None:
        self._on_role()
        self.say(self._greeting())


class LineClient:
    """A connection to one address that is made again whenever it is lost. `send` returns whether there was one."""

    def __init__(self, loop: Loop, address: tuple[str, int], on_line: Callable[[LineClient, str], None],
                 on_open: Callable[[LineClient], None] = lambda _: None,
                 on_close: Callable[[LineClient], None] = lambda _: None) -> None:  # fmt: skip
        self._loop, self.address = loop, address
        self._on_line, self._on_open, self._on_close = on_line, on_open, on_close
        self._connection: Connection | None = None
        self._ended = False
        self._connect()

    def send(self, text: str) -> bool:
        """Send a line if connected; False: it was not sent."""
        if self._connection is None:
            return False
        self._connection.send(text)
        return self._connection is not None

    def close(self) -> None:
        """Close for good."""
        self._ended = True
        if self._connection:
            self._connection.close()

    def _connect(self) -> None:
        if self._ended:
            return
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex(self.address) not in (0, errno.EINPROGRESS):
            sock.close()
            self._loop.after(RETRY_S, self._connect)
            return
        self._loop.watch(sock, partial(self._connected, sock), selectors.EVENT_WRITE)

    def _connected(self, sock: socket.socket, _events: int) -> None:
        self._loop.forget(sock)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._ended:
            sock.close()
            self._loop.after(RETRY_S, self._connect)
            return
        self._connection = Connection(self._loop, sock, lambda _, line: self._on_line(self, line), self._lost)
        self._on_open(self)

    def _lost(self, _: Connection) -> None:
        self._connection = None
        self._on_close(self)
        self._loop.after(RETRY_S, self._connect)


class Finder:
    """Clients to all addresses of a service, and which of them is the active copy now.

    `on_line(line)`: what the active copy said; `on_change()`: another copy is active, or none. `epoch` only grows:
    a copy that calls itself active at a lower epoch than one already seen is not believed.
    """

    def __init__(self, loop: Loop, where: tuple[tuple[str, int], ...], on_line: Callable[[str], None],
                 on_change: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self._on_line, self._on_change = on_line, on_change
        self.active: LineClient | None = None
        self.epoch = 0
        self._clients = [LineClient(loop, address, self._said, on_close=self._lost) for address in where]

    def send(self, text: str) -> bool:
        """Send to the active copy; False: there is none."""
        return self.active is not None and self.active.send(text)

    def close(self) -> None:
        """Close all connections for good."""
        for client in self._clients:
            client.close()

    def _said(self, client: LineClient, line: str) -> None:
        words = line.split()
        if words[:1] == ["ROLE"] and len(words) == 3 and words[2].isdigit():
            epoch = int(words[2])
            if words[1] == "active" and epoch >= self.epoch:
                self.epoch = epoch
                if self.active is not client:
                    self.active = client
                    self._on_change()
            elif self.active is client:
                self._lost(client)
        elif client is self.active:
            self._on_line(line)

    def _lost(self, client: LineClient) -> None:
        if self.active is client:
            self.active = None
            self._on_change()
