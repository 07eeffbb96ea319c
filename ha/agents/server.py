"""Server: the executable that controls one side; `python -m ha.agents.server --config FILE --node NAME`.

It gives `ha.core.server.machine` its ears and hands:

    binds      control ROUTER (Spawners, Monitors, other Servers ask here), beat PUB
    connects   vote DEALER to each voter, command DEALER to each Spawner of its side,
               control DEALER to each other Server
    listens    SUB to the state of every Monitor and to the beat of every other Server

Which of them carries a body follows from its type (`ha.wire.routes`). Besides, it reads the node's tenants directory
and compiles tenant files when the machine asks for it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from ha.agents import common
from ha.agents.drop_in import DropIn
from ha.core.machine import Effect, Send
from ha.core.server import machine
from ha.core.server.state import Check, Checked, Directory, Exit, State, Stopping
from ha.model.messages import VoteClaim, VoteProbe, VoteRenew
from ha.model.names import Agent
from ha.model.plan import System
from ha.model.timing import MS
from ha.runtime import log
from ha.runtime.agent import Driver
from ha.wire.routes import Channel

GOODBYE_MS = 100  # at the end, how long a release may take to leave
FIRST_CONNECT_MS = 20  # at the start, how long the first renewal waits for its connections
SLEW_EVERY_MS = 1_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the Server of one node until it is told to end; return an exit code of `common.ExitCode`."""
    return common.main(Agent.SERVER, serve, argv, belongs=_belongs)


def serve(agent: common.Running) -> None:
    """Control the side until the loop stops."""
    _connect(agent)
    ports = _ServerPorts(agent)
    loop = agent.loop
    state = machine.start(agent.me.name, agent.system, agent.boots, agent.restored, loop.now())
    driver: Driver[State] = Driver(machine, state, ports)
    drop_in = DropIn(loop, agent.system.tenants_dir, lambda files: driver.feed(Directory(files)))
    ports.handlers[Check] = lambda check: driver.feed(_checked(agent.system, check))
    ports.handlers[Exit] = lambda _exit: loop.stop()
    agent.attach(driver.feed)
    agent.linger_ms = GOODBYE_MS
    loop.set_machine(driver.wake_at, driver.tick)
    loop.on_signal(signal.SIGTERM, lambda: driver.feed(Stopping()))
    loop.on_signal(signal.SIGINT, lambda: driver.feed(Stopping()))
    loop.on_signal(signal.SIGUSR1, loop.stop)
    loop.on_signal(signal.SIGHUP, drop_in.read)
    ports.watch_clock()
    common.settle_memory()
    # What the journal holds is renewed before anything else is read (design section 3, rule 9).
    agent.board.await_connections(Channel.VOTE, FIRST_CONNECT_MS)
    driver.tick()
    loop.call_at(loop.now(), drop_in.start)
    loop.run()


class _ServerPorts(common.AgentPorts):
    """The ports of every agent, but: no vote leaves while the clock is slewed beyond `drift` (rule 2)."""

    slewed = False

    def carry_out(self, effect: Effect) -> None:
        """See `common.AgentPorts.carry_out`."""
        if self.slewed and isinstance(effect, Send) and isinstance(effect.body, VoteProbe | VoteClaim | VoteRenew):
            return
        super().carry_out(effect)

    def watch_clock(self) -> None:
        """Look at the clock's rate now and every second."""
        from ha.linux.clocks import slewed

        drift, loop = self.agent.system.timing.drift, self.agent.loop

        def look() -> None:
            now_slewed = slewed(drift)
            if now_slewed != self.slewed:
                self.slewed = now_slewed
                log.warning("clock.slewed" if now_slewed else "clock.steady", drift=drift)
            loop.call_at(loop.now() + SLEW_EVERY_MS * MS, look)

        look()


def _connect(agent: common.Running) -> None:
    board, system, me = agent.board, agent.system, agent.me
    others = [name for name in system.servers() if name != me.name]
    board.listen(Channel.CONTROL)
    board.broadcast(Channel.BEAT)
    for voter in system.voters:
        board.ask(Channel.VOTE, Agent.WITNESS, voter)
    for node in system.nodes_of(me.side):
        board.ask(Channel.COMMAND, Agent.SPAWNER, node)
    for name in others:
        board.ask(Channel.CONTROL, Agent.SERVER, name)
    board.hear(Channel.STATE, Agent.MONITOR, sorted(system.nodes))
    board.hear(Channel.BEAT, Agent.SERVER, others)


def _checked(system: System, check: Check) -> Checked:
    """Compile the files; the compiler and TOML are loaded at the first need."""
    from ha.config.check import check_files

    result = check_files(check.files, system)
    return Checked(check.purpose, result.tenants, result.findings, result.names, result.failed)


def _belongs(system: System, name: str) -> str:
    servers = system.servers()
    return "" if name in servers else f"it is not among the servers {', '.join(servers)}"


if __name__ == "__main__":
    sys.exit(main())
