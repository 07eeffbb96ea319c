"""Monitor: the executable that watches every copy of its node; `python -m ha.agents.monitor`.

It broadcasts states on each address of the node, listens to the local Spawner by ipc, is known to every Server of both
sides, keeps a pidfd of each running copy, runs the probes, reads the output of the copies into their logs, keeps the
node's event log, and answers `hactl` on this node. Decisions: `ha.core.monitor`.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ha import __version__
from ha.agents import common
from ha.agents.eventlog import EventLog, iso, to_json
from ha.agents.files import load_node_file
from ha.agents.gateway import NO_AGENT, USAGE, Asked, Gateway
from ha.agents.logs import Logs
from ha.agents.prober import Prober
from ha.core import monitor
from ha.core.desk import CancelProbe, CloseLog, OpenLog, PidGone, StartProbe, UnwatchPid, WatchPid
from ha.core.localview import render
from ha.core.machine import Note, Persist, Received
from ha.core.policy import refusal
from ha.core.probes import Run
from ha.linux.clocks import boot_id
from ha.linux.identity import Identity, open_verified
from ha.linux.table import ROLES
from ha.model import limits
from ha.model.digest import digest_of
from ha.model.errors import PersistError
from ha.model.messages import AgentSeen, EventRecord, EventsSaid, Told
from ha.model.names import Agent, process_of, tenant_of
from ha.model.plan import NodeFile, System, Tenant, decode_plan
from ha.runtime import log
from ha.runtime.agent import Driver
from ha.wire.routes import Channel

if TYPE_CHECKING:
    from ha.agents.hooks import Hooks

AGENTS_EVERY_MS = 500
EVENTS_A_LINE = 200  # of an answer to `hactl events`
HOOKS_LOOK_BACK_S = 10.0
LOG_LINES = 100  # `hactl logs` without a number


@dataclass(slots=True)
class _Ports(common.AgentPorts):
    """Notes go into this node's own event log, which says them to the Servers."""

    events: EventLog | None = None
    deaf: bool = False  # the journal failed

    def note(self, note: Note) -> None:
        """Keep it."""
        assert self.events is not None, "set at the start"
        self.events.note(note)

    def persist(self, effects: Sequence[Persist]) -> None:
        """Remember deaths; a Monitor that cannot goes on, for no safety rests on it."""
        if self.agent.journal is None or self.deaf:
            return
        try:
            common.AgentPorts.persist(self, effects)
        except PersistError as error:
            self.deaf = True
            log.warning("deaths.forgotten", reason=error)


def main(argv: Sequence[str] | None = None) -> int:
    """Watch one node until SIGTERM, SIGINT or SIGUSR1; return an exit code of `common.ExitCode`."""
    return common.main(Agent.MONITOR, serve, argv, volatile=True, belongs=_belongs)


def serve(agent: common.Running) -> None:
    """Watch until the loop stops. Raises HaError."""
    shell = Shell(agent, load_node_file(agent.config, agent.system))
    loop = agent.loop
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        loop.on_signal(number, loop.stop)
    loop.on_signal(signal.SIGHUP, lambda: log.line("reread.nothing", reason="a Monitor reads its files at its start"))
    common.settle_memory()
    try:
        loop.run()
    finally:
        shell.close()


class Shell:
    """Turns what happens into events of the machine, and its effects into what is done."""

    def __init__(self, agent: common.Running, node_file: NodeFile) -> None:
        """Bind, connect, and begin. Raises HaError."""
        self._agent = agent
        self._loop = agent.loop
        self._policy = node_file.policy
        self._pidfds: dict[str, tuple[int, int]] = {}  # copy -> pid, pidfd
        self._tenants: tuple[Tenant, ...] = ()
        self._agents: tuple[AgentSeen, ...] = ()
        self._hooks: Hooks | None = None
        me, system, layout = agent.me, agent.system, agent.layout
        servers = _servers(system, me.side)
        self._events = EventLog(layout.data, me.name, agent.incarnation, self._wake_events)
        self._logs = Logs(self._loop, layout.run, layout.data)
        self._prober = Prober(self._loop, self._probed, me.name)
        ports = _Ports(agent, events=self._events)
        ports.handlers = {
            StartProbe: self._prober.start,
            CancelProbe: lambda effect: self._prober.cancel(effect.run),
            WatchPid: self._watch,
            UnwatchPid: lambda effect: self._unwatch(effect.copy),
            OpenLog: lambda effect: self._logs.open(effect.copy, effect.log),
            CloseLog: lambda effect: self._logs.close(effect.copy),
            monitor.ReadPlan: self._read_plan,
        }
        state = monitor.start(me, system.timing, servers, self._loop.now(), _of_this_boot(agent))
        self.driver = Driver(monitor, state, ports)
        board = agent.board
        board.broadcast(Channel.STATE)
        board.ask(Channel.COMMAND, Agent.SPAWNER, me.name, (f"ipc://{layout.agents}/spawner.sock",))
        for server in servers:
            board.ask(Channel.CONTROL, Agent.SERVER, server)
        agent.attach(self._deliver)
        self._gateway = Gateway(
            self._loop, layout.run, node_file, servers, local=self._answer_local, fallback=self._answer_alone,
            send=lambda node, ask: board.send(Agent.SERVER, node, ask, now=self._loop.now()),
        )  # fmt: skip
        self._loop.set_machine(self.driver.wake_at, self.driver.tick)
        self._loop.call_every(AGENTS_EVERY_MS, self._look_at_agents)

    def close(self) -> None:
        """End probes and clients; the copies go on."""
        self._gateway.close()
        self._prober.close()
        if self._hooks is not None:
            self._hooks.close()
        self._logs.close_all()
        for copy in list(self._pidfds):
            self._unwatch(copy)
        self._flush_events()
        self._events.close()

    # --- events in ---

    def _deliver(self, message: Received) -> None:
        match message.body:
            case EventsSaid() if message.node == self._agent.me.name:
                self._events.take(message.body.events)
            case Told():
                self._gateway.told(message.node, message.body)
            case _:
                self.driver.feed(message)

    def _probed(self, run: Run, ok: bool, reason: str) -> None:
        self.driver.feed(monitor.ProbeDone(run, ok, reason))

    def _look_at_agents(self) -> None:
        seen = []
        for role in ROLES:
            slot = self._agent.table.read(role)
            if slot.pid:
                seen.append(AgentSeen(role, slot.pid, slot.state or "up", slot.restarts))
        if tuple(seen) != self._agents:
            self._agents = tuple(seen)
            self.driver.feed(monitor.AgentsKnown(self._agents))

    # --- effects out ---

    def _watch(self, effect: WatchPid) -> None:
        self._unwatch(effect.copy)
        gone = PidGone(effect.copy, effect.pid, effect.start_ticks)
        pidfd = open_verified(Identity(effect.pid, effect.start_ticks, boot_id()))
        if pidfd is None:
            self.driver.feed(gone)
            return
        self._pidfds[effect.copy] = (effect.pid, pidfd)

        def ended(_: int) -> None:
            self._unwatch(effect.copy)
            self.driver.feed(gone)

        self._loop.add_fd(pidfd, ended)

    def _unwatch(self, copy: str) -> None:
        known = self._pidfds.pop(copy, None)
        if known is not None:
            self._loop.remove_fd(known[1])
            os.close(known[1])

    def _read_plan(self, effect: monitor.ReadPlan) -> None:
        try:
            with open(f"{self._agent.layout.data}/plan.mp", "rb") as file:
                data = file.read()
            if digest_of(data) != effect.digest:
                return  # another one by now: the Spawner's facts will say so, and the machine asks again
            self._tenants = decode_plan(data)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("plan.unreadable", reason=error)
            return
        self._set_hooks()
        tenants = tuple(self._permitted(tenant) for tenant in self._tenants)
        self.driver.feed(monitor.PlanKnown(tenants, effect.digest))

    def _set_hooks(self) -> None:
        """Hooks are loaded with the first plan that has any."""
        hooked = {tenant.name: tenant for tenant in self._tenants if tenant.on_event}
        if self._hooks is None and hooked:
            from ha.agents.hooks import Hooks

            self._hooks = Hooks(self._loop, self._policy, pwd.getpwuid(os.geteuid()).pw_name)
            self._events.followers.append(self._hooks.on_event)
        if self._hooks is not None:
            # A tenant's first events may come before its plan reaches this node.
            new = hooked.keys() - self._hooks.tenants.keys()
            self._hooks.tenants = hooked
            for event in self._events.recent(HOOKS_LOOK_BACK_S):
                if tenant_of(event.subject) in new:
                    self._hooks.on_event(event)

    def _permitted(self, tenant: Tenant) -> Tenant:
        """Leave out the commands this node's policy refuses: a copy of an older plan may still run."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        processes = tuple(
            process
            if refusal(self._policy, tenant, process, user) is None
            else msgspec.structs.replace(
                process, probes=tuple(probe for probe in process.probes if probe.kind != "exec")
            )
            for process in tenant.processes
        )
        return msgspec.structs.replace(tenant, processes=processes)

    def _wake_events(self) -> None:
        self._loop.call_at(self._loop.now(), self._flush_events)

    def _flush_events(self) -> None:
        for batch in self._events.flush():
            self._agent.board.publish(EventsSaid(batch), now=self._loop.now())

    # --- hactl ---

    def _answer_local(self, asked: Asked) -> bool:
        if asked.request.verb != "logs":
            return False
        args = asked.request.args
        name, number = str(args.get("target") or ""), args.get("copy")
        wanted = f"{name}.{number}" if number else name
        copies = [key for key in self.driver.state.copies if wanted in (key, process_of(key))]
        if not copies:
            asked.answer(exit=NO_AGENT, error=f"no copy {wanted} on {self._agent.me.name}")
            return True
        lines = args.get("lines", LOG_LINES)
        if not isinstance(lines, int):
            asked.answer(exit=USAGE, error=f"lines is no number: {lines!r}")
            return True
        for key in copies:
            self._say_lines(asked, key, self._logs.tail(key, lines) or [])
            if args.get("follow"):
                self._follow_log(asked, key)
        if not args.get("follow"):
            asked.answer()
        return True

    def _say_lines(self, asked: Asked, key: str, lines: list[str]) -> None:
        asked.answer({"copy": key, "node": self._agent.me.name, "lines": lines}, final=False)

    def _follow_log(self, asked: Asked, key: str) -> None:
        rest = b""

        def follow(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > limits.LOG_READ_BYTES:
                lines, rest = [*lines, rest], b""
            if lines:
                self._say_lines(asked, key, [line.decode(errors="replace") for line in lines])

        end = self._logs.follow(key, follow)
        if end is not None:
            asked.connection.closers.append(end)

    def _answer_alone(self, asked: Asked) -> bool:
        match asked.request.verb:
            case "status":
                state = self.driver.state
                times = {copy.started_at: iso(copy.started_at) for copy in state.said.values() if copy.started_at}
                asked.answer(render(state, self._agent.system, self._tenants, __version__, times))
            case "events":
                self._answer_events(asked)
            case _:
                return False
        return True

    def _answer_events(self, asked: Asked) -> None:
        since = str(asked.request.args.get("since") or "")
        follow = bool(asked.request.args.get("follow"))
        limit = asked.request.args.get("limit")
        events = self._events.since(since, limit if isinstance(limit, int) and limit > 0 else limits.EVENTS_KEEP)
        for at in range(0, len(events), EVENTS_A_LINE):
            asked.answer(events[at : at + EVENTS_A_LINE], final=False)
        if not follow:
            asked.answer()
        else:

            def say(event: EventRecord) -> None:
                asked.answer([to_json(event)], final=False)

            self._events.followers.append(say)
            asked.connection.closers.append(lambda: self._events.followers.remove(say))


def _of_this_boot(agent: common.Running) -> dict[str, object]:
    """Return what the journal held, and say in it which boot this is: times of another boot mean nothing."""
    if agent.journal is None:
        return {}
    if agent.restored.get("boot") == boot_id():
        return agent.restored
    agent.journal.put_all(((key, None) for key in agent.restored), sync=False)
    agent.journal.put("boot", boot_id(), sync=False)
    return {}


def _servers(system: System, side: str) -> tuple[str, ...]:
    """Return every node where a Server may run, those of this side first."""
    own = system.sides.get(side, ())
    return (*own, *(node for node in system.servers() if node not in own))


def _belongs(system: System, name: str) -> str:
    return "" if name in system.nodes else "it is a witness place, no node"


if __name__ == "__main__":
    sys.exit(main())
