"""Master: the executable `ha-master --config FILE --node NAME`, in the foreground.

It starts Watcher and Spawner, has the Spawner start the others, and lets `ha.core.master` decide. A live one on the
same node is asked to step aside (SIGUSR2, by its pidfd after its identity was compared), then killed if it does not.
`--resume` is how the Watcher starts it: it ends quietly when another one is there already, and goes on with a stop
that was begun.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from ha.agents import common, files
from ha.core import master
from ha.core.master import Asked, Died, Holds, NotStarted, Turned, Wish
from ha.core.watcher import Mode
from ha.linux import identity
from ha.linux.locks import who_holds
from ha.linux.spawn import SpawnError, spawn_agent
from ha.model.errors import AlreadyRunning, HaError
from ha.model.limits import MASTER_YIELD_MS
from ha.model.names import Agent
from ha.model.plan import System
from ha.model.status import AgentState
from ha.runtime import log
from ha.runtime.agent import Driver
from ha.wire.routes import Channel

TAKEOVERS = 3  # a Watcher may start a Master just when we asked one to step aside
WISHES = {
    signal.SIGTERM: Wish.STOP,
    signal.SIGINT: Wish.STOP,
    signal.SIGUSR1: Wish.DETACH,
    signal.SIGUSR2: Wish.STEP_ASIDE,
    signal.SIGHUP: Wish.REREAD,
}
LEFTOVERS = ("view.sock", "operate.sock", "agents/spawner.sock")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agents of a node until told to stop; return an exit code of `common.ExitCode`."""
    import argparse

    parser = argparse.ArgumentParser(prog="ha-master", allow_abbrev=False, description="Run the agents of one node.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the system file")
    parser.add_argument("--node", required=True, metavar="NAME", help="the name of this node")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(argv)  # wrong usage: exit code 2
    config = os.path.abspath(found.config)
    _keep_importable()
    try:
        agent = _begin(config, found.node, found.resume)
        files.keep(config, agent.layout.agents, agent.system)
    except AlreadyRunning as error:
        return common.ExitCode.ENDED if found.resume else _refused(str(error), common.ExitCode.RUNNING)
    except HaError as error:
        return _refused(str(error), common.exit_code_of(error))
    except OSError as error:
        permission = isinstance(error, PermissionError)
        return _refused(
            f"cannot start: {error}", common.ExitCode.NOT_PERMITTED if permission else common.ExitCode.FAILED
        )
    shell = _Shell(agent, config)
    try:
        shell.run(found.resume)
    except BaseException as error:
        log.crashed("agent.crashed", error)
        raise
    finally:
        agent.close()
    log.line("agent.ended", code=shell.code)
    return shell.code


def _keep_importable() -> None:
    """Let the agents, which start in "/", find this package where we found it, also from a checkout."""
    root = os.path.abspath(__file__)
    for _ in range(3):  # ha/agents/master.py
        root = os.path.dirname(root)
    path = os.environ.get("PYTHONPATH", "")
    if os.path.basename(root) != "site-packages" and root not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = root + (os.pathsep + path if path else "")


def _begin(config: str, name: str, resume: bool) -> common.Running:
    """Return the agent with the Master's lock held, taken over from another one if need be."""
    for _ in range(TAKEOVERS):
        try:
            return common.begin(Agent.MASTER, config, name, journal=False, belongs=_belongs)
        except AlreadyRunning:
            if resume:
                raise
            _take_over(config, name)
    return common.begin(Agent.MASTER, config, name, journal=False, belongs=_belongs)


def _belongs(system: System, name: str) -> str:
    return "" if name in system.nodes else f"it is a witness place; run ha-witness --name {name}"


def _take_over(config: str, name: str) -> None:
    """Have the live Master of this node step aside, within MASTER_YIELD_MS or by SIGKILL."""
    from ha.agents.files import load_system

    holder = who_holds(common.layout_of(load_system(config), name).run, Agent.MASTER)
    pidfd = identity.open_verified(holder) if holder is not None else None
    if holder is None or pidfd is None:
        return  # it ended just now
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    try:
        _print(sys.stdout, f"ha: node {name} has a Master already, pid {holder.pid}; taking over")
        identity.send(pidfd, signal.SIGUSR2)
        if not waiter.poll(MASTER_YIELD_MS):
            identity.send(pidfd, signal.SIGKILL)
            waiter.poll(MASTER_YIELD_MS)
    finally:
        os.close(pidfd)


@dataclass(slots=True)
class _Watched:
    """A live agent. `sure`: its identity was compared, so it may be signalled."""

    pid: int
    pidfd: int
    sure: bool


class _Shell:
    """The Master's world: pidfds, locks, the table, and two programs it starts. Ports of `ha.runtime.agent`."""

    def __init__(self, agent: common.Running, config: str) -> None:
        self.agent = agent
        self.config = config
        self.code: int = common.ExitCode.ENDED
        self._watched: dict[Agent, _Watched] = {}
        self._others: list[int] = []  # pidfds of children that found their role taken, until they are reaped
        self._ports = common.AgentPorts(
            agent,
            {
                master.Look: lambda _: self._look(), master.Watch: self._watch, master.StartAgent: self._start,
                master.SignalAgent: self._signal, master.Show: self._show, master.Announce: self._announce,
                master.Say: self._say, master.Clean: lambda _: self._clean(), master.End: self._end,
            },
        )  # fmt: skip

    def run(self, resume: bool) -> None:
        """Keep the agents until the machine ends."""
        agent = self.agent
        begun = Mode(agent.table.mode())
        mode = begun if resume and begun in (Mode.STOP, Mode.DETACH) else Mode.RUN
        restarts = agent.table.read(Agent.MASTER).restarts + 1 if resume else 0
        agent.table.set_state(Agent.MASTER, AgentState.UP, restarts)
        found = {role: self._find(role) for role in master.wanted_roles(agent.system, agent.me.name)}
        holders = {role: pid for role, pid in found.items() if pid}
        state, effects = master.start(agent.system, agent.me.name, mode, holders, agent.loop.now())
        self._driver: Driver[master.MasterState] = Driver(master, state, self._ports)
        agent.board.ask(Channel.COMMAND, Agent.SPAWNER, agent.me.name, (f"ipc://{agent.layout.agents}/spawner.sock",))
        agent.attach(self._driver.feed)
        agent.loop.set_machine(self._driver.wake_at, self._driver.tick)
        for number, wish in WISHES.items():
            agent.loop.on_signal(number, partial(self._driver.feed, Asked(wish=wish)))
        agent.loop.call_every(1_000, self._ports.flush_events)
        self._driver.do(effects)
        common.settle_memory()
        agent.loop.run()

    # --- who runs --------------------------------------------------------------------------------

    def _look(self) -> None:
        """Say who holds the roles that nobody is known for, and how far the loops of the others are."""
        for role in master.wanted_roles(self.agent.system, self.agent.me.name):
            known = self._watched.get(role)
            if known is None or not known.sure:
                pid = self._find(role)
                if pid:
                    self._driver.feed(Holds(role=role, pid=pid))
                known = self._watched.get(role)
            if known is not None and known.sure:
                progress = self.agent.table.read(role)
                if progress.pid == known.pid:
                    self._driver.feed(Turned(role=role, pid=known.pid, counter=progress.turn_ns))

    def _find(self, role: Agent) -> int:
        """Return the pid that holds the role's lock and keep its pidfd; 0: nobody."""
        holder = who_holds(self.agent.layout.run, role)
        pidfd = identity.open_verified(holder) if holder is not None else None
        if holder is None or pidfd is None:
            return 0
        self._keep(role, _Watched(holder.pid, pidfd, sure=True))
        return holder.pid

    def _keep(self, role: Agent, watched: _Watched) -> None:
        self._forget(role)
        self._watched[role] = watched
        self.agent.loop.add_fd(watched.pidfd, lambda _: self._readable(role, watched))

    def _forget(self, role: Agent) -> None:
        known = self._watched.pop(role, None)
        if known is not None:
            self.agent.loop.remove_fd(known.pidfd)
            if identity.reap(known.pidfd) is None and role in master.OWN:
                self._others.append(known.pidfd)  # a child of ours that was not needed; it ends soon
            else:
                os.close(known.pidfd)
        for pidfd in self._others[:]:
            if identity.reap(pidfd) is not None:
                self._others.remove(pidfd)
                os.close(pidfd)

    def _readable(self, role: Agent, watched: _Watched) -> None:
        """The agent has ended."""
        if self._watched.get(role) is watched:
            self._forget(role)
        self._driver.feed(Died(role=role, pid=watched.pid))

    # --- effects ---------------------------------------------------------------------------------

    def _watch(self, effect: master.Watch) -> None:
        known = self._watched.get(effect.role)
        if known is not None and known.pid == effect.pid:
            return
        try:
            pidfd = os.pidfd_open(effect.pid)
        except OSError:
            self._driver.feed(Died(role=effect.role, pid=effect.pid))
            return
        # The Spawner's word for it: good enough to see it die, not to signal it.
        self._keep(effect.role, _Watched(effect.pid, pidfd, sure=False))

    def _start(self, effect: master.StartAgent) -> None:
        role = effect.role
        pid = self._find(role)
        if pid:
            self._driver.feed(Holds(role=role, pid=pid))
            return
        argv = [sys.executable, "-m", f"ha.agents.{role}", "--config", self.config, "--node", self.agent.me.name]
        if role is Agent.WATCHER:
            argv += ["--run", self.agent.layout.run]
        try:
            spawned = spawn_agent(tuple(argv), dict(os.environ))
        except SpawnError as error:
            self._driver.feed(NotStarted(role=role, reason=str(error)))
            return
        self._keep(role, _Watched(spawned.pid, spawned.pidfd, sure=True))
        self._driver.feed(Holds(role=role, pid=spawned.pid))

    def _signal(self, effect: master.SignalAgent) -> None:
        known = self._watched.get(effect.role)
        if known is not None and known.pid == effect.pid and known.sure:
            identity.send(known.pidfd, signal.Signals[effect.name])

    def _show(self, effect: master.Show) -> None:
        self.agent.table.set_state(effect.role, effect.state, effect.restarts)

    def _announce(self, effect: master.Announce) -> None:
        self.agent.table.set_mode(effect.mode.value)

    def _say(self, effect: master.Say) -> None:
        name, system = self.agent.me.name, self.agent.system.name
        if effect.up:
            _print(sys.stdout, f"ha: node {name} of {system} is up, {effect.up} agents; hactl --node {name} status")
        else:
            _print(sys.stderr, f"ha: node {name} of {system}: {effect.text}")

    def _clean(self) -> None:
        import shutil  # with four compression modules, and only here

        layout = self.agent.layout
        for name in LEFTOVERS:
            try:
                os.unlink(f"{layout.run}/{name}")
            except OSError:
                continue
        shutil.rmtree(layout.processes, ignore_errors=True)

    def _end(self, effect: master.End) -> None:
        self.code = effect.code
        self.agent.loop.stop()


def _refused(text: str, code: int) -> int:
    for line in text.splitlines():
        _print(sys.stderr, f"ha-master: {line}")
    return code


def _print(stream: TextIO, text: str) -> None:
    """Write a line; a terminal that has gone away is no reason to end."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    sys.exit(main())
