"""Spawner: the executable that starts and stops every managed process of its node; `python -m ha.agents.spawner`.

It binds the command channel on each address of the node and by ipc for Monitor and Master, pulls rights from every
Server of its side, and carries out what `ha.core.spawner` decides. Copies: `ha.agents.processes`; their sockets:
`ha.agents.talk`. At SIGTERM, SIGINT and SIGUSR1 it ends and leaves the copies as they are: a successor adopts them.
"""

from __future__ import annotations

import os
import pwd
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ha.agents import common
from ha.agents.files import load_node_file
from ha.agents.processes import Processes
from ha.agents.talk import Talk
from ha.core import spawner
from ha.core.guard import SHARED, GuardEntry
from ha.core.machine import Event
from ha.core.spawning import events as ev
from ha.core.spawning.household import STARTED_HERE
from ha.core.spawning.rights import servers_of
from ha.core.spawning.state import SpawnerState
from ha.core.watcher import Mode
from ha.linux import identity as ids
from ha.linux.cgroups import CgroupTree
from ha.linux.clocks import boot_id
from ha.linux.guard import GuardFull, GuardTable
from ha.linux.locks import who_holds
from ha.linux.spawn import SpawnError, spawn_agent
from ha.model.digest import digest_of
from ha.model.errors import HaError
from ha.model.names import Agent
from ha.model.plan import NodeFile, System
from ha.runtime import log
from ha.runtime.agent import Driver
from ha.wire.routes import Channel

PARENTS_EVERY_MS = 500  # Master and Watcher are looked for; the Spawner is only their last resort
GOODBYE_MS = 100
LONG_PAST = 1  # a deadline that was never there: 0 means "shared" in the table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the processes of one node until told to end; return an exit code of `common.ExitCode`."""
    return common.main(Agent.SPAWNER, serve, argv, volatile=True, belongs=_belongs)


def serve(agent: common.Running) -> None:
    """Work until the loop stops. Raises HaError."""
    _raise_descriptors()
    shell = Shell(agent, load_node_file(agent.config, agent.system))
    loop = agent.loop
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        loop.on_signal(number, loop.stop)
    loop.on_signal(signal.SIGHUP, lambda: log.line("reread.nothing", reason="a Spawner reads its files at its start"))
    shell.begin()
    common.settle_memory()
    loop.run()
    shell.remove_tree()


def tree_name(system: System, node: str) -> str:
    """Return the name of a node's cgroup tree: systems of one name on one host are told apart by their run_dir."""
    return f"ha-{system.name}-{node}-{digest_of(system.run_dir.encode())[:6]}"


class Shell:
    """Turns what happens into events of the machine, and its effects into what is done."""

    def __init__(self, agent: common.Running, node_file: NodeFile) -> None:
        """Bind and connect. Raises HaError, OSError."""
        self._agent = agent
        self._loop = agent.loop
        self._agents: dict[str, tuple[int, int]] = {}  # role -> pid, pidfd
        self._parents: tuple[int, int] = (-1, -1)
        self._lines: dict[str, ev.Deadline] = {}
        self._shared_ns = 0
        self._guard_due = False
        self.guard = GuardTable.open(f"{agent.layout.agents}/guard")
        trees, reason = CgroupTree.find(tree_name(agent.system, agent.me.name))
        self._trees = trees
        if trees is None:
            log.warning("cgroups.none", reason=reason)
        talk = Talk(agent.loop, agent.system.run_dir, agent.me.name, self.feed, self.state)
        self.processes = Processes(agent.loop, talk, node_file.policy, trees, self.feed, self.state)
        self._ports = self._make_ports()
        user = _user_name()
        state = spawner.start(
            agent.me, agent.system, node_file.policy, boot_id(), agent.incarnation, agent.restored, self._loop.now(),
            guard=self._guarded(), plan=self._read_plan(), agent_user=user,
        )  # fmt: skip
        self.driver: Driver[SpawnerState] = Driver(spawner, state, self._ports)
        board, layout = agent.board, agent.layout
        board.listen(Channel.COMMAND, f"ipc://{layout.agents}/spawner.sock")
        for server in servers_of(state):
            board.ask(Channel.CONTROL, Agent.SERVER, server)

    def begin(self) -> None:
        """Freeze what has no right left, adopt the rest, then listen."""
        self.driver.tick()
        self._write_guard()  # what an earlier boot or Spawner left there is over
        self._agent.attach(self.driver.feed)
        for role in STARTED_HERE:
            self._find_agent(role)
        self._look_at_parents()
        self._loop.set_machine(self.driver.wake_at, self.driver.tick)
        self._loop.call_every(PARENTS_EVERY_MS, self._look_at_parents)
        self._loop.call_every(PARENTS_EVERY_MS, self._ports.flush_events)

    def feed(self, event: Event) -> None:
        """Let the machine take an event."""
        self.driver.feed(event)

    def state(self) -> SpawnerState:
        """Return the machine's state, for looking only."""
        return self.driver.state

    def _make_ports(self) -> common.AgentPorts:
        ports, processes = common.AgentPorts(self._agent), self.processes
        ports.handlers = {
            ev.Spawn: processes.spawn,
            ev.Adopt: processes.adopt,
            ev.Signal: processes.signal,
            ev.StopCommand: processes.stop_command,
            ev.TellRole: processes.tell,
            ev.Freeze: processes.freeze,
            ev.Thaw: processes.thaw,
            ev.KillTree: processes.kill,
            ev.Forget: processes.forget,
            ev.SetDeadlines: self._set_deadlines,
            ev.SpawnAgent: self._spawn_agent,
            ev.SignalAgent: self._signal_agent,
            ev.KeepPlan: self._keep_plan,
            ev.End: self._end,
        }
        return ports

    # --- guard table -----------------------------------------------------------------------------

    def _guarded(self) -> dict[str, int]:
        """Return the deadlines of the table whose line is of the instance that the journal knows."""
        found: dict[str, int] = {}
        for entry in self.guard.read():
            record = self._agent.restored.get(f"copy/{entry.copy}")
            if isinstance(record, list) and len(record) > 1 and record[1] == entry.cookie:
                found[entry.copy] = entry.deadline_ns
        return found

    def _set_deadlines(self, effect: ev.SetDeadlines) -> None:
        """A moved shared deadline is one store; new lines are written once a turn.

        Until then a new copy has no line, which a successor takes for a deadline that has passed.
        """
        for line in effect.entries:
            if line.instance:
                self._lines[line.copy] = line
            else:
                self._lines.pop(line.copy, None)
        self._shared_ns = effect.shared_ns
        if effect.entries and not self._guard_due:
            self._guard_due = True
            self._loop.call_at(self._loop.now(), self._write_guard)
        elif not self._guard_due:
            self.guard.extend(effect.shared_ns)

    def _write_guard(self) -> None:
        self._guard_due = False
        entries = [
            GuardEntry(
                line.copy, line.fencing, SHARED if line.shared else line.deadline_ns or LONG_PAST, line.pid,
                line.start_ticks, line.instance,
            )
            for line in self._lines.values()
        ]  # fmt: skip
        try:
            self.guard.write(entries, self._shared_ns)
        except GuardFull as error:
            raise HaError(str(error)) from None

    # --- agents ----------------------------------------------------------------------------------

    def _spawn_agent(self, effect: ev.SpawnAgent) -> None:
        if self._find_agent(Agent(effect.role)):
            return
        system, name = self._agent.system, self._agent.me.name
        argv = [sys.executable, "-m", f"ha.agents.{effect.role}", "--config", system.file, "--node", name]
        if effect.role == Agent.WATCHER:
            argv += ["--run", self._agent.layout.run]
        try:
            spawned = spawn_agent(tuple(argv), dict(os.environ))
        except SpawnError as error:
            self.feed(ev.AgentSpawnFailed(effect.role, str(error)))
            return
        self._watch_agent(effect.role, spawned.pid, spawned.pidfd)

    def _find_agent(self, role: Agent) -> bool:
        """Take on an agent that holds its role already; return whether there is one."""
        holder = who_holds(self._agent.layout.run, role)
        pidfd = ids.open_verified(holder) if holder is not None else None
        if holder is None or pidfd is None:
            return False
        self._watch_agent(role, holder.pid, pidfd)
        return True

    def _watch_agent(self, role: str, pid: int, pidfd: int) -> None:
        self._agents[role] = (pid, pidfd)
        self.feed(ev.AgentSpawned(role, pid))

        def ended(_: int) -> None:
            exit = ids.reap(pidfd)
            if exit is None:
                return
            self._loop.remove_fd(pidfd)
            os.close(pidfd)
            if self._agents.get(role) == (pid, pidfd):
                del self._agents[role]
            self.feed(ev.AgentExited(role, pid, exit.signal or f"code {exit.code}"))

        self._loop.add_fd(pidfd, ended)

    def _signal_agent(self, effect: ev.SignalAgent) -> None:
        pid, pidfd = self._agents.get(effect.role, (0, -1))
        if pid == effect.pid:
            ids.send(pidfd, signal.Signals[effect.signal])

    def remove_tree(self) -> None:
        """Give the node's cgroups back, if no copy runs: an agent that only ends leaves them to the next one."""
        if self._trees is not None and not self.processes.running:
            self._trees.remove()

    def _look_at_parents(self) -> None:
        """Say when Master or Watcher come or go; a node that is being ended needs neither."""
        if self._agent.table.mode() != Mode.RUN.value:
            return
        pids = []
        for role in (Agent.MASTER, Agent.WATCHER):
            holder = who_holds(self._agent.layout.run, role)
            pids.append(holder.pid if holder is not None else 0)
        master, watcher = pids
        if master != self._parents[0]:
            self.feed(ev.MasterState(master))
        if watcher != self._parents[1]:
            self.feed(ev.WatcherState(watcher))
        self._parents = (master, watcher)

    def _end(self, _: ev.End) -> None:
        self._agent.linger_ms = GOODBYE_MS
        self._loop.stop()

    # --- plan ------------------------------------------------------------------------------------

    def _keep_plan(self, effect: ev.KeepPlan) -> None:
        """Write plan.mp. Without it the Monitor knows no plan, so a failure ends this agent."""
        self.processes.forget_accounts()
        path = self._plan_path()
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(effect.tenants)
                file.flush()
                os.fdatasync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise HaError(f"cannot write {path}: {error.strerror}") from None

    def _read_plan(self) -> bytes:
        try:
            return self._plan_path().read_bytes()
        except OSError:
            return b""

    def _plan_path(self) -> Path:
        return Path(self._agent.layout.data, "plan.mp")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _user_name() -> str:
    uid = os.geteuid()
    if uid == 0:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _raise_descriptors() -> None:
    """Three descriptors a copy: a thousand need more than the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _belongs(system: System, name: str) -> str:
    return "" if name in system.nodes else "it is a witness place"


if __name__ == "__main__":
    sys.exit(main())
