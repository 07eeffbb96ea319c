"""Call distributor: knows which human agents are free, and gives a call to the one who has waited longest.

One line a message over TCP; NAME, SKILL and CALLID hold no blanks. Every answer ends with the epoch of this copy.

    it says first       ROLE active|standby EPOCH              and again at each change
    LOGIN NAME SKILL    OK EPOCH  |  STANDBY EPOCH             this connection is that agent's
    READY               OK EPOCH                               I take calls
    PAUSE               OK EPOCH                               I take none
    LOGOUT              OK EPOCH
    ROUTE SKILL CALLID  AGENT NAME CALLID EPOCH                the agent hears CALL CALLID EPOCH
                        NONE CALLID EPOCH                      nobody is free: ask again
                        STANDBY CALLID EPOCH                   this copy is not active
                        STALE CALLID EPOCH                     active, but its right does not hold now: ask again
    BYE CALLID          OK EPOCH                               the agent hears END CALLID EPOCH, then says READY
    STATS               STATS {json} EPOCH
    anything else       ERROR why EPOCH

Run status hot, but without a replication of its state yet (that comes with a later issue): a standby that becomes
active knows no logins. The agents log in again within milliseconds, and calls in progress go on; what is lost is which
call an agent had, so an agent may be offered a second one. ROUTE is idempotent per CALLID.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from lines import Connection, RoleServer
from program import Loop, arguments, log


@dataclass(slots=True, eq=False)
class HumanAgent:
    """A person at a desk. `calls`: those given and not ended."""

    name: str
    skill: str
    connection: Connection
    ready: bool = False
    call: str = ""


class Distributor:
    """The protocol of this module, for one copy."""

    def __init__(self, loop: Loop, bind: str, port: int) -> None:
        self._agents: dict[Connection, HumanAgent] = {}
        self._waiting: OrderedDict[str, HumanAgent] = OrderedDict()  # ready, longest first
        self._calls: dict[str, HumanAgent] = {}
        self._routed = self._refused = 0
        self._server = RoleServer(loop, bind, port, self._said, self._closed, self._changed)
        self._seat = self._server.seat
        self._commands: dict[str, tuple[Callable[..., str], int]] = {  # and how many words they take
            "LOGIN": (self._login, 2), "READY": (self._ready, 0), "PAUSE": (self._pause, 0),
            "LOGOUT": (self._logout, 0), "ROUTE": (self._route, 2), "BYE": (self._bye, 1), "STATS": (self._stats, 0),
        }  # fmt: skip
        self._seat.ready()

    def _said(self, connection: Connection, line: str) -> None:
        name, *words = line.split() or [""]
        command, count = self._commands.get(name, (None, 0))
        if command is None:
            answer = f"ERROR unknown command {name[:20]!r}"
        elif len(words) != count:
            answer = f"ERROR {name} takes {count} words, not {len(words)}"
        else:
            answer = command(connection, *words)
        connection.send(f"{answer} {self._seat.epoch}")

    def _login(self, connection: Connection, name: str, skill: str) -> str:
        if not self._seat.active:
            return "STANDBY"
        for other in [one for one in self._agents.values() if one.name == name and one.connection is not connection]:
            self._leave(other)  # the same person from another desk: the newer login counts
        self._leave(self._agents.get(connection))
        self._agents[connection] = HumanAgent(name, skill, connection)
        return "OK"

    def _ready(self, connection: Connection) -> str:
        agent = self._agents.get(connection)
        if agent is None:
            return "ERROR log in first"
        agent.ready = True
        if not agent.call:
            self._waiting[agent.name] = agent
        return "OK"

    def _pause(self, connection: Connection) -> str:
        agent = self._agents.get(connection)
        if agent is None:
            return "ERROR log in first"
        agent.ready = False
        self._waiting.pop(agent.name, None)
        return "OK"

    def _logout(self, connection: Connection) -> str:
        self._leave(self._agents.get(connection))
        return "OK"

    def _route(self, _: Connection, skill: str, call: str) -> str:
        if not self._seat.active:
            self._refused += 1
            return f"STANDBY {call}"
        if not self._seat.may_act():
            self._refused += 1
            return f"STALE {call}"
        if known := self._calls.get(call):
            return f"AGENT {known.name} {call}"
        agent = next((one for one in self._waiting.values() if one.skill == skill), None)
        if agent is None:
            return f"NONE {call}"
        del self._waiting[agent.name]
        agent.call, agent.ready = call, False
        self._calls[call] = agent
        self._routed += 1
        agent.connection.send(f"CALL {call} {self._seat.epoch}")
        return f"AGENT {agent.name} {call}"

    def _bye(self, _: Connection, call: str) -> str:
        if agent := self._calls.pop(call, None):
            agent.call = ""
            agent.connection.send(f"END {call} {self._seat.epoch}")
            if agent.ready and agent.connection in self._agents:
                self._waiting[agent.name] = agent
        return "OK"

    def _stats(self, _: Connection) -> str:
        found = {"agents": len(self._agents), "waiting": len(self._waiting), "calls": len(self._calls),
                 "routed": self._routed, "refused": self._refused, "active": self._seat.active}  # fmt: skip
        return "STATS " + json.dumps(found, separators=(",", ":"))

    def _leave(self, agent: HumanAgent | None) -> None:
        if agent:
            self._agents.pop(agent.connection, None)
            self._waiting.pop(agent.name, None)
            if agent.call:
                self._calls.pop(agent.call, None)

    def _closed(self, connection: Connection) -> None:
        self._leave(self._agents.get(connection))

    def _changed(self) -> None:
        """A copy that is no longer active forgets: its agents log in at the other one."""
        if not self._seat.active:
            for agent in tuple(self._agents.values()):
                self._leave(agent)


def main() -> None:
    """Run until SIGTERM."""
    args = arguments("call distributor", 5110).parse_args()
    loop = Loop()
    Distributor(loop, args.bind, args.port)
    loop.run()
    log("stopped")


if __name__ == "__main__":
    main()
