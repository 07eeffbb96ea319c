"""Prober: runs probes in the Monitor's own loop, without a thread and without ever waiting.

A tcp probe passes when the connection is accepted, an http one when the status line names the status, an exec one
when the command ends with 0. Timeouts are the machine's: it cancels a run, and nothing more is said about it. An
exec probe leads its own session and is killed with it. Targets are numeric addresses (and localhost): looking a name
up could block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ha.core.desk import StartProbe
from ha.core.probes import Run
from ha.linux.identity import reap
from ha.linux.spawn import EXEC_TIMEOUT_MS, Pending, Spawned, SpawnError, SpawnRequest, begin, finish
from ha.linux.users import UnknownAccount, resolve
from ha.model.names import split_copy
from ha.model.plan import Probe
from ha.runtime.loop import Loop

HEAD_BYTES = 8 * 1024  # a status line that does not end within this is no HTTP
READY = (0, errno.EINPROGRESS)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Done = Callable[[Run, bool, str], None]


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    http: SplitResult | None
    status: int
    head: bytes = b""
    asked: bool = False


@dataclass(slots=True)
class _Command:
    pending: Pending | None
    child: Spawned | None = None


class Prober:
    """The runs of one Monitor. `done(run, ok, reason)` is called at most once per run, never after `cancel`."""

    def __init__(self, loop: Loop, done: Done, node: str) -> None:
        self._loop = loop
        self._done = done
        self._node = node
        self._runs: dict[Run, _Connection | _Command] = {}

    def start(self, effect: StartProbe) -> None:
        """Begin a run; what cannot even begin has failed."""
        probe = effect.probe
        try:
            if probe.kind == "exec":
                self._exec(effect)
            elif probe.kind == "http":
                url = urlsplit(probe.target)
                if url.scheme != "http" or not url.hostname:
                    raise ValueError(f"{probe.target} is no http:// address")
                self._connect(effect.run, url.hostname, url.port or 80, url, probe)
            else:
                host, _, port = probe.target.rpartition(":")
                self._connect(effect.run, host.strip("[]"), int(port), None, probe)
        except (OSError, ValueError, SpawnError, UnknownAccount) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._end(effect.run, False, text)

    def cancel(self, run: Run) -> None:
        """End a run without a word."""
        self._drop(run)

    def close(self) -> None:
        """End all runs."""
        for run in list(self._runs):
            self._drop(run)

    # --- tcp and http ---

    def _connect(self, run: Run, host: str, port: int, http: SplitResult | None, probe: Probe) -> None:
        sock, address = _numeric(host, port)
        connection = _Connection(sock, http, probe.status)
        self._runs[run] = connection
        code = sock.connect_ex(address)
        if code not in READY:
            self._end(run, False, os.strerror(code))
            return
        self._loop.add_fd(sock.fileno(), lambda _: self._connected(run, connection), select.EPOLLOUT)

    def _connected(self, run: Run, connection: _Connection) -> None:
        sock = connection.sock
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._end(run, False, os.strerror(code))
        elif _to_itself(sock):
            self._end(run, False, "nobody listens")
        elif connection.http is None:
            self._end(run, True, "")
        else:
            self._ask(run, connection, connection.http)

    def _ask(self, run: Run, connection: _Connection, url: SplitResult) -> None:
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        request = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: ha-monitor\r\nConnection: close\r\n\r\n"
        try:
            connection.sock.send(request.encode())  # less than any fresh socket's buffer
        except OSError as error:
            self._end(run, False, str(error.strerror))
            return
        self._loop.remove_fd(connection.sock.fileno())
        self._loop.add_fd(connection.sock.fileno(), lambda _: self._answered(run, connection))

    def _answered(self, run: Run, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(run, False, str(error.strerror))
            return
        connection.head += data
        line, found, _ = connection.head.partition(b"\r\n")
        if found:
            self._judge(run, line, connection.status)
        elif not data or len(connection.head) > HEAD_BYTES:
            self._end(run, False, "no HTTP answer")

    def _judge(self, run: Run, line: bytes, wanted: int) -> None:
        words = line.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            self._end(run, False, "no HTTP answer")
        else:
            status = int(words[1][:9])
            self._end(run, status == wanted, "" if status == wanted else f"status {status}, expected {wanted}")

    # --- exec ---

    def _exec(self, effect: StartProbe) -> None:
        run, account = effect.run, resolve(effect.user, effect.group)
        tenant, process, number = split_copy(run.copy)
        environment = {
            "PATH": PATH, "HOME": account.home, "USER": account.name, "LANG": "C.UTF-8", **dict(effect.environment),
            "HA_TENANT": tenant, "HA_PROCESS": process, "HA_COPY": str(number), "HA_NODE": self._node,
        }  # fmt: skip
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            request = SpawnRequest(
                argv=effect.probe.command, environment=environment, account=account, output=null,
                directory=effect.directory, umask=0o077,
            )  # fmt: skip
            pending = begin(request)
        finally:
            os.close(null)
        command = _Command(pending)
        self._runs[run] = command
        self._loop.add_fd(pending.error_fd, lambda _: self._executed(run, command, pending))

    def _executed(self, run: Run, command: _Command, pending: Pending) -> None:
        self._loop.remove_fd(pending.error_fd)
        command.pending = None
        try:
            child = command.child = finish(pending, 0)
        except SpawnError as error:
            self._end(run, False, str(error))
            return
        self._loop.add_fd(child.pidfd, lambda _: self._ended(run, child))

    def _ended(self, run: Run, child: Spawned) -> None:
        _kill_session(child)  # what it left behind; before the reap, while its pid is still its own
        exit = reap(child.pidfd)
        if exit is None:
            return
        if exit.clean:
            self._end(run, True, "")
        else:
            self._end(run, False, f"exit {exit.code}" if exit.code is not None else f"ended by {exit.signal}")

    def _abandon(self, command: _Command) -> None:
        """Kill the command and reap it when it is gone."""
        if command.pending is not None:
            self._loop.remove_fd(command.pending.error_fd)
            with contextlib.suppress(SpawnError):
                command.child = finish(command.pending, EXEC_TIMEOUT_MS)
        child = command.child
        if child is None:
            return
        _kill_session(child)
        self._loop.remove_fd(child.pidfd)

        def gone(_: int) -> None:
            if reap(child.pidfd) is not None:
                self._loop.remove_fd(child.pidfd)
                os.close(child.pidfd)

        self._loop.add_fd(child.pidfd, gone)

    # --- both ---

    def _end(self, run: Run, ok: bool, reason: str) -> None:
        known = self._runs.pop(run, None)
        if isinstance(known, _Connection):
            self._loop.remove_fd(known.sock.fileno())
            known.sock.close()
        elif isinstance(known, _Command) and known.child is not None:
            self._loop.remove_fd(known.child.pidfd)
            os.close(known.child.pidfd)
        self._done(run, ok, reason)

    def _drop(self, run: Run) -> None:
        known = self._runs.pop(run, None)
        if isinstance(known, _Connection):
            self._loop.remove_fd(known.sock.fileno())
            known.sock.close()
        elif isinstance(known, _Command):
            self._abandon(known)


def _numeric(host: str, port: int) -> tuple[socket.socket, tuple[object, ...]]:
    """Return a non-blocking socket and the address to connect it to. Raises ValueError for a name."""
    try:
        found = socket.getaddrinfo(
            "127.0.0.1" if host == "localhost" else host, port, type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )  # fmt: skip
    except (socket.gaierror, OverflowError):
        raise ValueError(f"{host!r} is no numeric address") from None
    family, kind, proto, _, address = found[0]
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto), address


def _to_itself(sock: socket.socket) -> bool:
    """A connection from a port to the very same port (TCP's simultaneous open) proves no listener."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False


def _kill_session(child: Spawned) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
