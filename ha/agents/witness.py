"""Witness: the executable of a voter; `python -m ha.agents.witness`, alone in the third place as `ha-witness`.

It binds the vote channel on each address of its place, connects to the other voters, and lets `ha.core.witness`
decide. It has no other port, starts nothing and is asked by nobody else.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from ha.agents import common
from ha.core import witness
from ha.model.names import Agent
from ha.model.plan import System
from ha.runtime import log
from ha.runtime.agent import Driver
from ha.wire.routes import Channel


def main(argv: Sequence[str] | None = None, *, option: str = "--node") -> int:
    """Run the voter of one place until SIGTERM or SIGINT; return an exit code of `common.ExitCode`."""
    return common.main(Agent.WITNESS, serve, argv, option=option, belongs=_belongs)


def main_alone() -> int:
    """Run `ha-witness --config FILE --name NAME`, the voter of the third place."""
    return main(option="--name")


def serve(agent: common.Running) -> None:
    """Vote until the loop stops."""
    board, loop, name = agent.board, agent.loop, agent.me.name
    state = witness.start(name, agent.system, agent.boots, agent.restored, loop.now())
    driver = Driver(witness, state, common.AgentPorts(agent))
    board.listen(Channel.VOTE)
    for voter in agent.system.voters:
        if voter != name:
            board.ask(Channel.VOTE, Agent.WITNESS, voter)
    agent.attach(driver.feed)
    loop.set_machine(driver.wake_at, driver.tick)
    loop.on_signal(signal.SIGTERM, loop.stop)
    loop.on_signal(signal.SIGINT, loop.stop)
    loop.on_signal(signal.SIGUSR1, loop.stop)
    loop.on_signal(signal.SIGHUP, lambda: log.line("reread.nothing", reason="a Witness reads only the system file"))
    common.settle_memory()
    loop.run()


def _belongs(system: System, name: str) -> str:
    return "" if name in system.voters else f"it is not among the voters {', '.join(system.voters)}"


if __name__ == "__main__":
    sys.exit(main())
