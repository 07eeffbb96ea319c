"""Sockets: what a managed process talks to, NOTIFY_SOCKET (sd_notify) and HA_SOCKET (JSON lines).

Both stand in the process's own directory and are made with its user's rights (`as_user`), so that nothing planted
there can mislead us. Everything is non-blocking and bounded: a program that floods us loses its own messages only.
Source: sd_notify(3); design section 2; `ha/sdk/protocol.py`.
"""

from __future__ import annotations

import os
import socket
import stat
import struct

import msgspec

from ha.linux.users import Account, as_user
from ha.model.errors import NotPermitted
from ha.model.limits import STATUS_LINE_CHARS, UNIX_PATH_BYTES

LINE_BYTES = 64 * 1024  # one JSON line
OUT_BYTES = 1024 * 1024  # unsent answers of one connection; more closes it
CONNECTIONS = 16  # of one listener; more wait in the kernel's queue
DATAGRAM_BYTES = 8 * 1024
DATAGRAMS_AT_ONCE = 32
_PEERCRED = struct.Struct("3i")


class Notice(msgspec.Struct, frozen=True):
    """One sd_notify datagram. `pid`: the sender, by the kernel's word; `watchdog_usec` 0 disarms, None: not said."""

    pid: int
    ready: bool = False
    stopping: bool = False
    watchdog: bool = False
    watchdog_usec: int | None = None
    status: str | None = None


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end, by the kernel's word at connect."""

    pid: int
    uid: int
    gid: int


def _bind(sock: socket.socket, path: str, mode: int, account: Account | None, gid: int | None) -> None:
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise NotPermitted(f"cannot bind {path}: longer than {UNIX_PATH_BYTES} bytes")
    with as_user(account):
        _remove_ours(path, account)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
    if gid is not None:
        os.chown(path, -1, gid, follow_symlinks=False)
        os.chmod(path, mode)


def _remove_ours(path: str, account: Account | None) -> None:
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(seen.st_mode):
        raise NotPermitted(f"cannot bind {path}: something that is no socket stands there")
    if seen.st_uid not in (os.geteuid(), account.uid if account else os.geteuid()):
        raise NotPermitted(f"cannot bind {path}: the socket there belongs to uid {seen.st_uid}")
    os.unlink(path)


class NotifySocket:
    """The NOTIFY_SOCKET of one process: poll `fileno()`, then `receive()`."""

    def __init__(self, path: str, account: Account | None = None) -> None:
        """Make and bind it, mode 0600 of that user. Raises OSError, NotPermitted."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _bind(self._socket, path, 0o600, account, None)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it; the path stays for a successor that binds it again."""
        self._socket.close()

    def receive(self) -> list[Notice]:
        """Return what came, at most DATAGRAMS_AT_ONCE; passed descriptors are closed, which ends a BARRIER=1."""
        notices: list[Notice] = []
        space = socket.CMSG_SPACE(_PEERCRED.size) + socket.CMSG_SPACE(16 * 4)
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES, space, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                break
            pid = 0
            for level, kind, body in ancillary:
                if level != socket.SOL_SOCKET:
                    continue
                if kind == socket.SCM_RIGHTS:
                    for (fd,) in struct.iter_unpack("i", body[: len(body) // 4 * 4]):
                        os.close(fd)
                elif kind == socket.SCM_CREDENTIALS and len(body) >= _PEERCRED.size:
                    pid = _PEERCRED.unpack_from(body)[0]
            if not flags & socket.MSG_TRUNC:
                notices.append(parse_notice(data, pid))
        return notices


def parse_notice(data: bytes, pid: int) -> Notice:
    """Return what the datagram says; unknown and malformed lines, and MAINPID, say nothing."""
    words: dict[str, str] = {}
    for line in data.decode(errors="replace").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            words[key] = value
    usec = words.get("WATCHDOG_USEC", "")
    status = words.get("STATUS")
    return Notice(
        pid=pid,
        ready=words.get("READY") == "1",
        stopping=words.get("STOPPING") == "1",
        watchdog=words.get("WATCHDOG") == "1",
        watchdog_usec=int(usec) if usec.isascii() and usec.isdigit() and len(usec) < 16 else None,
        status=None if status is None else status[:STATUS_LINE_CHARS],
    )


class ControlSocket:
    """A listener for JSON lines: poll `fileno()`, then `accept()` until None."""

    def __init__(self, path: str, account: Account | None = None, *, mode: int = 0o600, gid: int | None = None) -> None:
        """Make, bind and listen. `gid`: the group that may connect, for sockets in our own directory.

        Raises OSError, NotPermitted.
        """
        self.path = path
        self.connections: set[Connection] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            _bind(self._socket, path, mode, account, gid)
            self._socket.listen(CONNECTIONS)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def accept(self) -> Connection | None:
        """Return the next connection; None when there is none. Beyond CONNECTIONS the newcomer is closed."""
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:  # nobody, or gone already, or no descriptor left: the poll comes again
                return None
            if len(self.connections) < CONNECTIONS:
                break
            sock.close()
        sock.setblocking(False)
        connection = Connection(sock, self.connections)
        self.connections.add(connection)
        return connection

    def close(self) -> None:
        """Close the listener and all connections; the path stays for a successor."""
        for connection in tuple(self.connections):
            connection.close("listener closed")
        self._socket.close()


class Connection:
    """One connection of JSON lines. `closed`: why it is, "" while it is open; `peer`: who."""

    def __init__(self, sock: socket.socket, register: set[Connection]) -> None:
        self.closed = ""
        self.peer = Peer(*_PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)))
        self._socket = sock
        self._register = register
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 once closed."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether to poll for writing, too, and then `flush`."""
        return bool(self._out)

    def receive(self) -> list[dict[str, object]]:
        """Return the whole lines that came; what is no JSON object, or too long, closes the connection."""
        lines: list[dict[str, object]] = []
        while not self.closed:
            try:
                data = self._socket.recv(LINE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.close(error.strerror or "broken")
                break
            if not data:
                self.close("peer closed")
                break
            self._in += data
            self._take_lines(lines)
            if len(data) < LINE_BYTES:
                break  # the kernel's buffer is empty, or others are served in between
        return lines

    def receive_bytes(self) -> bytes:
        """Return what came, at most LINE_BYTES, for who has line rules of his own; a closed peer closes it."""
        try:
            data = self._socket.recv(LINE_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            self.close(error.strerror or "broken")
            return b""
        if not data:
            self.close("peer closed")
        return data

    def send(self, message: object) -> bool:
        """Queue one object as a line and send what goes; False when it is closed, or does not read its answers."""
        if self.closed:
            return False
        self._out += msgspec.json.encode(message) + b"\n"
        self.flush()
        if len(self._out) > OUT_BYTES:
            self.close("does not read")
        return not self.closed

    def flush(self) -> None:
        """Send what the kernel takes."""
        while self._out and not self.closed:
            try:
                sent = self._socket.send(self._out, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close(error.strerror or "broken")
                return
            del self._out[:sent]

    def close(self, reason: str = "closed") -> None:
        """Close it; take it out of the poller before."""
        self.closed = self.closed or reason
        self._register.discard(self)
        self._socket.close()

    def _take_lines(self, lines: list[dict[str, object]]) -> None:
        *whole, rest = self._in.split(b"\n")
        self._in = rest
        for line in whole:
            if not line.strip():
                continue
            try:
                lines.append(_LINE.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.close("no JSON object")
                return
        if len(self._in) > LINE_BYTES:
            self.close("line too long")


_LINE = msgspec.json.Decoder(dict[str, object])
