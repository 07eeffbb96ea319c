"""Talk: the control and notify sockets of every copy of this node, and the watchdogs that programs arm over them.

One directory per copy, owned by its user, holds both sockets and the output FIFO. The sockets outlive an instance:
they belong to the copy. What a program says becomes an event; roles go to all its connections, the first Done or
Failed with the id that stands counts, and a new connection is told again what has not been answered.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ha.core.machine import Event
from ha.core.spawning import events as ev
from ha.core.spawning.launch import CONTROL_SOCKET, NOTIFY_SOCKET, OUTPUT_FIFO, copy_directory
from ha.core.spawning.rights import deadline_of
from ha.core.spawning.state import Copy, Ice, SpawnerState
from ha.linux.fifo import make_fifo
from ha.linux.sockets import Connection, ControlSocket, Notice, NotifySocket
from ha.linux.users import Account, ensure_directory
from ha.model.status import Role
from ha.model.timing import MS
from ha.runtime.loop import Loop, Timer
from ha.sdk import protocol

Feed = Callable[[Event], None]
MIN_WATCHDOG_NS = protocol.MIN_WATCHDOG_MS * MS


@dataclass(slots=True)
class Line:
    """A connection's descriptor, which it loses when it closes, and the line that is not complete yet."""

    fd: int
    buffer: protocol.LineBuffer = field(default_factory=protocol.LineBuffer)


@dataclass(slots=True)
class Ends:
    """Our ends of one copy's sockets. `asked`: (id, role line) that is not answered yet."""

    copy: str
    directory: str
    account: Account
    notify: NotifySocket
    control: ControlSocket
    connections: dict[Connection, Line] = field(default_factory=dict)
    asked: protocol.TakeRole | None = None
    instance: str = ""
    watchdog_ns: int = 0
    pinged: int = 0
    timer: Timer | None = None


class Talk:
    """See the module. `state` returns the machine's state, for looking only."""

    def __init__(self, loop: Loop, run_dir: str, node: str, feed: Feed, state: Callable[[], SpawnerState]) -> None:
        self._loop = loop
        self._run_dir = run_dir
        self._node = node
        self._feed = feed
        self._state = state
        self._ends: dict[str, Ends] = {}
        self._count = 0

    def open(self, copy: str, account: Account, instance: str) -> str:
        """Make directory, FIFO and sockets for an instance, and return the directory. Raises OSError, NotPermitted."""
        ends = self._ends.get(copy)
        if ends is not None and (ends.account.uid, ends.account.gid) != (account.uid, account.gid):
            self.close(copy)
            ends = None
        if ends is None:
            ends = self._open(copy, account)
        if ends.instance != instance:
            self._begin(ends, instance)
        return ends.directory

    def _open(self, copy: str, account: Account) -> Ends:
        directory = copy_directory(self._run_dir, self._node, copy)
        ensure_directory(directory, 0o700, account)
        make_fifo(f"{directory}/{OUTPUT_FIFO}", account)
        notify = NotifySocket(f"{directory}/{NOTIFY_SOCKET}", account)
        try:
            control = ControlSocket(f"{directory}/{CONTROL_SOCKET}", account)
        except BaseException:
            notify.close()
            raise
        ends = self._ends[copy] = Ends(copy, directory, account, notify, control)
        self._loop.add_fd(notify.fileno(), lambda _: self._noticed(ends))
        self._loop.add_fd(control.fileno(), lambda _: self._accept(ends))
        return ends

    def _begin(self, ends: Ends, instance: str) -> None:
        for connection in list(ends.connections):
            self._drop(ends, connection)
        ends.instance, ends.asked, ends.watchdog_ns = instance, None, 0
        if ends.timer is not None:
            ends.timer.cancel()
            ends.timer = None

    def close(self, copy: str) -> None:
        """Close the copy's sockets; its directory stays."""
        ends = self._ends.pop(copy, None)
        if ends is None:
            return
        self._begin(ends, "")
        for socket in (ends.notify, ends.control):
            self._loop.remove_fd(socket.fileno())
            socket.close()

    def directory(self, copy: str) -> str:
        """Return the directory of a copy."""
        return copy_directory(self._run_dir, self._node, copy)

    def tell(self, effect: ev.TellRole) -> None:
        """Say a role on all connections, now and on those that come, until it is answered."""
        ends = self._ends.get(effect.copy)
        if ends is None or ends.instance != effect.instance:
            return  # the machine's timeout speaks
        self._count += 1
        ends.asked = protocol.TakeRole(id=self._count, role=protocol.Role(effect.role.value), epoch=effect.fencing)
        for connection in list(ends.connections):
            self._say(ends, connection, ends.asked)

    def thawed(self, copy: str) -> None:
        """The copy stood still: its watchdog begins anew."""
        ends = self._ends.get(copy)
        if ends is not None:
            ends.pinged = self._loop.now()

    # --- sd_notify ---

    def _noticed(self, ends: Ends) -> None:
        for notice in ends.notify.receive():
            if ends.instance:
                self._take_notice(ends, notice)

    def _take_notice(self, ends: Ends, notice: Notice) -> None:
        if notice.ready or notice.status is not None:
            self._feed(ev.Notified(ends.copy, ends.instance, notice.ready, notice.status))
        if notice.watchdog_usec is not None:
            self._arm(ends, max(MIN_WATCHDOG_NS, notice.watchdog_usec * 1_000) if notice.watchdog_usec else 0)
        if notice.watchdog:
            ends.pinged = self._loop.now()

    # --- control socket ---

    def _accept(self, ends: Ends) -> None:
        while (connection := ends.control.accept()) is not None:
            if not ends.instance:
                connection.close("no instance")
                continue
            line = ends.connections[connection] = Line(connection.fileno())
            self._loop.add_fd(line.fd, self._reader(ends, connection))
            copy = self._state().copies.get(ends.copy)
            welcome = protocol.Welcome(
                role=_role(copy), epoch=copy.fencing if copy else 0, watchdog_ms=ends.watchdog_ns // MS
            )
            self._say(ends, connection, welcome)
            if ends.asked is not None:
                self._say(ends, connection, ends.asked)

    def _reader(self, ends: Ends, connection: Connection) -> Callable[[int], None]:
        def read(events: int) -> None:
            if events & select.EPOLLOUT:
                connection.flush()
            if events & ~select.EPOLLOUT:
                self._receive(ends, connection)
            self._settle(ends, connection)

        return read

    def _receive(self, ends: Ends, connection: Connection) -> None:
        try:
            lines = ends.connections[connection].buffer.feed(connection.receive_bytes())
        except protocol.ProtocolError as error:
            self._say(ends, connection, protocol.refusal(error))
            connection.close("line too long")
            return
        for line in lines:
            self._heard(ends, connection, line)

    def _heard(self, ends: Ends, connection: Connection, line: bytes) -> None:
        try:
            said = protocol.decode_to_agent(line)
        except protocol.ProtocolError as error:
            self._say(ends, connection, protocol.refusal(error))
            return
        copy, instance = ends.copy, ends.instance
        match said:
            case protocol.Hello():
                role = Role(said.role.value) if said.role is not None else None
                self._feed(ev.Connected(copy, instance, role, said.epoch))
            case protocol.Done() | protocol.Failed():
                self._answered(ends, said)
            case protocol.Ready():
                self._feed(ev.Notified(copy, instance, ready=True))
            case protocol.Status():
                self._feed(ev.Notified(copy, instance, status=said.text))
            case protocol.Watchdog():
                self._arm(ends, said.interval_ms * MS)
            case protocol.Ping():
                ends.pinged = self._loop.now()
            case protocol.AskEpoch():
                self._say(ends, connection, self._epoch_now(said.id, copy))

    def _answered(self, ends: Ends, said: protocol.Done | protocol.Failed) -> None:
        asked = ends.asked
        if asked is None or said.id != asked.id:
            return
        ends.asked = None
        reason = said.reason if isinstance(said, protocol.Failed) else ""
        ok = isinstance(said, protocol.Done)
        self._feed(ev.RoleTold(ends.copy, ends.instance, Role(asked.role.value), asked.epoch, ok, reason))

    def _epoch_now(self, number: int, key: str) -> protocol.EpochNow:
        state = self._state()
        copy = state.copies.get(key)
        valid_ms: int | None = None
        if copy is not None and copy.acts:
            left = deadline_of(state, copy) - self._loop.now()
            valid_ms = max(0, left // MS) if copy.ice is Ice.NONE else 0
        return protocol.EpochNow(id=number, role=_role(copy), epoch=copy.fencing if copy else 0, valid_ms=valid_ms)

    def _say(self, ends: Ends, connection: Connection, line: protocol.ToProgram) -> None:
        connection.send(msgspec.Raw(protocol.encode(line).rstrip()))
        self._settle(ends, connection)

    def _settle(self, ends: Ends, connection: Connection) -> None:
        if connection.closed:
            self._drop(ends, connection)
        elif connection in ends.connections:
            self._loop.modify_fd(connection.fileno(), select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0))

    def _drop(self, ends: Ends, connection: Connection) -> None:
        """Forget a connection. A closed one has lost its descriptor, so the loop forgets by the number kept."""
        line = ends.connections.pop(connection, None)
        if line is not None:
            self._loop.remove_fd(line.fd)
            connection.close()

    # --- watchdog ---

    def _arm(self, ends: Ends, interval_ns: int) -> None:
        ends.pinged = self._loop.now()
        if interval_ns == ends.watchdog_ns:
            return
        ends.watchdog_ns = interval_ns
        if ends.timer is not None:
            ends.timer.cancel()
            ends.timer = None
        if interval_ns:
            self._look_later(ends)
        self._feed(ev.WatchdogArmed(ends.copy, ends.instance, interval_ns // MS))

    def _look_later(self, ends: Ends) -> None:
        ends.timer = self._loop.call_at(ends.pinged + ends.watchdog_ns, lambda: self._look(ends, ends.instance))

    def _look(self, ends: Ends, instance: str) -> None:
        if ends.instance != instance or not ends.watchdog_ns:
            return
        now = self._loop.now()
        copy = self._state().copies.get(ends.copy)
        if copy is not None and copy.ice is not Ice.NONE:
            ends.pinged = now  # a frozen process is not hung
        if now - ends.pinged >= ends.watchdog_ns:
            # Late ourselves? What the program said meanwhile may stand unread in the sockets: it is read first.
            self._noticed(ends)
            for connection in list(ends.connections):
                self._receive(ends, connection)
                self._settle(ends, connection)
            if now - ends.pinged >= ends.watchdog_ns:
                self._feed(ev.WatchdogMissed(ends.copy, instance))
                ends.pinged = now
        if ends.watchdog_ns:
            self._look_later(ends)


def _role(copy: Copy | None) -> protocol.Role:
    role = copy.role if copy is not None and copy.role is not None else Role.STANDBY
    return protocol.Role(role.value)
