"""Common: how every agent starts, what it holds then, and how it ends.

`main(role, serve)` is the whole of an executable: it reads the command line and the system file, makes the
directories, takes the role's lock, opens the journal, counts the start, and calls `serve(agent)`. What keeps an agent
from starting is one line on stderr and an exit code (`ExitCode`). An agent whose journal fails ends at once: it cannot
remember, so it must not speak.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from ha.core.machine import Effect, Note, Persist, Publish, Send
from ha.model.errors import AlreadyRunning, ConfigError, HaError, NotPermitted, PersistError
from ha.model.messages import EventRecord, EventsSaid
from ha.model.names import Agent
from ha.model.plan import Node, System
from ha.runtime import log
from ha.runtime.journal import Journal
from ha.runtime.loop import Loop, hold_signals
from ha.wire.codec import Codec
from ha.wire.sockets import Sockets
from ha.wire.switchboard import Switchboard

if TYPE_CHECKING:
    from ha.linux.locks import Lock
    from ha.linux.table import ProgressTable

EVENTS_WAITING = 256  # events kept while the node's Monitor is not there

boottime_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)


class ExitCode(IntEnum):
    """How an agent ends."""

    ENDED = 0  # as it was told to
    FAILED = 1  # what it needs was not to be had, or a journal failed; the line on stderr or in the log says why
    INVALID = 2  # wrong usage, or the system file does not pass
    UNKNOWN = 3  # the system file names no such node or place, or this role does not belong there
    NOT_PERMITTED = 4  # directory modes or rights
    RUNNING = 5  # another live process holds this role on this node


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of one node (docs/architecture.md, "On disk")."""

    run: str  # run_dir/NODE, 0711
    data: str  # data_dir/NODE, 0700

    @property
    def agents(self) -> str:
        """Sockets, locks and tables of the agents, 0700."""
        return self.run + "/agents"

    @property
    def processes(self) -> str:
        """One directory per copy below it, 0711."""
        return self.run + "/p"

    def make(self) -> None:
        """Make what is missing. Raises NotPermitted if a directory is another's, or others may write to it."""
        for path, mode in ((self.run, 0o711), (self.agents, 0o700), (self.processes, 0o711), (self.data, 0o700)):
            make_directory(path, mode)


def layout_of(system: System, name: str) -> Layout:
    """Return the directories of a node or place."""
    return Layout(f"{system.run_dir}/{name}", f"{system.data_dir}/{name}")


@dataclass(slots=True)
class Running:
    """What a started agent holds. `restored`: what its journal held, builtins only."""

    role: Agent
    system: System
    me: Node
    layout: Layout
    lock: Lock
    table: ProgressTable
    journal: Journal | None
    restored: dict[str, object]
    boots: int  # how often this role has started on this node, this start included; 0 without a journal
    incarnation: int  # random 63 bit
    loop: Loop
    board: Switchboard
    config: str = ""  # the system file
    linger_ms: int = 0  # at the end, how long what was said last may take to leave

    def attach(self, deliver: Callable[[Any], None]) -> None:
        """Give every port made so far to the loop; `deliver` takes each `Received`."""
        for port in self.board.ports:
            self.loop.attach(port, deliver)

    def close(self) -> None:
        """Close sockets, journal, table and lock, in this order."""
        self.board.sockets.close(self.linger_ms)
        self.loop.close()
        if self.journal is not None:
            self.journal.close()
        self.table.close()
        self.lock.release()


@dataclass(slots=True)
class AgentPorts:
    """`ha.runtime.agent.Ports` by sockets and journal. `handlers`: the effects that only this agent has, by type.

    Notes go to the log, and as events to the node's Monitor (kept while it is not there).
    """

    agent: Running
    handlers: dict[type[Effect], Callable[[Any], None]] = field(default_factory=dict)
    _events: deque[EventRecord] = field(default_factory=lambda: deque(maxlen=EVENTS_WAITING))
    _event_count: int = 0

    def now(self) -> int:
        """Return the loop's time."""
        return self.agent.loop.now()

    def persist(self, effects: Sequence[Persist]) -> None:
        """Write all with one fsync. Raises PersistError."""
        if self.agent.journal is None:
            raise PersistError(f"cannot remember {effects[0].key}: {self.agent.role} has no journal")
        items = [(effect.key, effect.value) for effect in effects]
        self.agent.journal.put_all(items, any(effect.sync for effect in effects))

    def carry_out(self, effect: Effect) -> None:
        """Send, publish, note, or call this agent's own handler."""
        match effect:
            case Send():
                now = self.now()
                self.agent.board.send(effect.role, effect.node, effect.body, now=now, request=effect.request)
            case Publish():
                self.agent.board.publish(effect.body, now=self.now())
                self.flush_events()  # broadcasts are beats: often enough for what waits
            case Note():
                self.note(effect)
            case _:
                self.handlers[type(effect)](effect)

    def note(self, note: Note) -> None:
        """Log it and tell the Monitor."""
        log.line(
            note.kind, subject=note.subject, from_=note.from_, to=note.to, reason=note.reason,
            epoch=note.epoch or None, request=note.request,
        )  # fmt: skip
        agent = self.agent
        self._event_count += 1
        self._events.append(
            EventRecord(
                id=f"{agent.me.name}:{agent.incarnation}:{self._event_count}", node=agent.me.name,
                seq=self._event_count, at=time.time(), kind=note.kind, subject=note.subject, from_=note.from_,
                to=note.to, reason=note.reason, epoch=note.epoch, request=note.request,
            )
        )  # fmt: skip
        self.flush_events()

    def flush_events(self) -> None:
        """Tell the node's Monitor what it has not been told; an agent that never publishes calls it now and then."""
        if not self._events or self.agent.role is Agent.WITNESS:
            return
        role = Agent.SPAWNER if self.agent.role is Agent.MASTER else Agent.MONITOR
        said = EventsSaid(tuple(self._events))
        if self.agent.board.send(role, self.agent.me.name, said, now=self.now()):
            self._events.clear()


def main(
    role: Agent,
    serve: Callable[[Running], None],
    argv: Sequence[str] | None = None,
    *,
    option: str = "--node",
    journal: bool = True,
    volatile: bool = False,
    belongs: Callable[[System, str], str] | None = None,
) -> int:
    """Start `role`, let it `serve` until its loop stops, and return the exit code.

    `option`: how the command line names the node. `journal`: open data_dir/NODE/ROLE.journal, or with `volatile`
    run_dir/NODE/agents/ROLE.journal. `belongs(system, name)`: why this role must not run there, or "".
    """
    gc.disable()  # nothing made while starting is garbage; `serve` runs with the collector on
    arguments = _arguments(role, argv, option)
    hold_signals()
    try:
        agent = begin(role, arguments.config, arguments.node, journal=journal, volatile=volatile, belongs=belongs)
    except HaError as error:
        sys.stderr.write(f"ha-{role}: {error}\n")
        return exit_code_of(error)
    except OSError as error:
        sys.stderr.write(f"ha-{role}: cannot start: {error}\n")
        return ExitCode.NOT_PERMITTED if isinstance(error, PermissionError) else ExitCode.FAILED
    try:
        serve(agent)
    except HaError as error:
        log.warning("agent.ended", reason=str(error))
        return ExitCode.FAILED
    except BaseException as error:
        log.crashed("agent.crashed", error)
        raise
    finally:
        agent.close()
    log.line("agent.ended")
    return ExitCode.ENDED


def begin(
    role: Agent,
    config: str,
    name: str,
    *,
    journal: bool = True,
    volatile: bool = False,
    belongs: Callable[[System, str], str] | None = None,
) -> Running:
    """Return an agent that holds its role and its journal, with a loop and no sockets yet; see `main`.

    Raises ConfigError, NotPermitted, AlreadyRunning, PersistError, HaError, OSError.
    """
    from ha.agents.files import load_system
    from ha.linux.locks import hold_role
    from ha.linux.table import ProgressTable

    os.umask(0o077)
    system = load_system(config)
    me = _place(system, name)
    refusal = belongs(system, name) if belongs is not None else ""
    if refusal:
        raise UnknownPlace(f"cannot run {role} on {name}: {refusal}")
    layout = layout_of(system, name)
    layout.make()
    lock = hold_role(layout.run, role)
    log.setup(role, name)
    set_title(role, name)
    opened: Journal | None = None
    restored: dict[str, object] = {}
    boots = 0
    if journal:
        opened, restored = Journal.open(f"{layout.agents if volatile else layout.data}/{role}.journal")
        boots = _count_start(opened, restored)
    incarnation = int.from_bytes(os.urandom(8), "big") >> 1
    table = ProgressTable.open(layout.agents + "/table")
    table.set_pid(role)
    nodes = (*system.nodes, *system.witnesses)
    codec = Codec(system=system.name, role=role, node=name, incarnation=incarnation, nodes=nodes)
    board = Switchboard(Sockets(codec, boottime_ns, silence_ms=system.timing.suspect_ms), system, me)

    def on_turn(now: int) -> None:
        table.turn(role, now)
        board.tend(now)

    loop = Loop(boottime_ns, on_turn)
    log.line("agent.started", pid=os.getpid(), boots=boots or None, incarnation=incarnation)
    return Running(role, system, me, layout, lock, table, opened, restored, boots, incarnation, loop, board, config)


class UnknownPlace(HaError):
    """The system file names no such node or place, or this role does not belong there."""


def settle_memory() -> None:
    """Leave what was loaded at the start out of every collection, and collect seldom; call before the loop runs.

    A full collection of the start's objects costs 5-10 ms, which is a late beat for nothing.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    gc.enable()


def set_title(role: Agent, name: str) -> None:
    """Show "ha: monitor a1" in ps; without setproctitle the command line stays as it is."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(f"ha: {role} {name}")


def make_directory(path: str, mode: int) -> None:
    """Make `path` with `mode`, or check that it is ours. Raises NotPermitted, OSError."""
    try:
        before = os.umask(0o022)  # what stands above is passed through by the users of the processes
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        finally:
            os.umask(before)
        os.mkdir(path, mode)
        os.chmod(path, mode)
    except FileExistsError:
        found = os.lstat(path)
        if found.st_uid != os.geteuid() or found.st_mode & 0o170000 != 0o040000:
            raise NotPermitted(
                f"cannot use {path}: it must be a directory of uid {os.geteuid()}, it is of uid {found.st_uid}"
            ) from None
        if found.st_mode & 0o777 != mode:
            os.chmod(path, mode)
    except PermissionError:
        raise NotPermitted(f"cannot make {path}: permission denied for uid {os.geteuid()}") from None


@dataclass(frozen=True, slots=True)
class _Arguments:
    config: str
    node: str


def _arguments(role: Agent, argv: Sequence[str] | None, option: str) -> _Arguments:
    import argparse

    parser = argparse.ArgumentParser(prog=f"ha-{role}", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the system file")
    parser.add_argument(option, required=True, metavar="NAME", dest="node", help="the name of this node or place")
    found = parser.parse_args(argv)  # wrong usage: exit code 2
    return _Arguments(found.config, found.node)


def _place(system: System, name: str) -> Node:
    try:
        me = system.place(name)
    except KeyError:
        known = ", ".join((*system.nodes, *system.witnesses))
        raise UnknownPlace(f"cannot start: {system.file} names no node or witness {name!r}; it names {known}") from None
    for address in me.addresses:
        # Until there are keys, nothing may listen where others could reach it.
        if not (address.startswith("127.") or address == "::1"):
            raise NotPermitted(f"cannot bind {address}: only addresses in 127.0.0.0/8 and ::1 pass without keys")
    return me


def _count_start(journal: Journal, restored: dict[str, object]) -> int:
    """Count this start on disk, before anything is said with it."""
    if journal.cut_bytes:
        log.warning("journal.cut", path=journal.path, bytes=journal.cut_bytes)
    before = restored.pop("boots", 0)
    boots = (before if isinstance(before, int) else 0) + 1
    journal.put("boots", boots)
    return boots


def exit_code_of(error: HaError) -> int:
    """Return the `ExitCode` of what kept an agent from starting."""
    match error:
        case ConfigError():
            return ExitCode.INVALID
        case UnknownPlace():
            return ExitCode.UNKNOWN
        case NotPermitted():
            return ExitCode.NOT_PERMITTED
        case AlreadyRunning():
            return ExitCode.RUNNING
        case _:
            return ExitCode.FAILED
