"""Client: hactl and the Monitor's gateway of the simulated system: one Server after the other is asked, by one id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ha.model.messages import Ask, Told
from ha.model.names import Agent
from ha.model.timing import MS

if TYPE_CHECKING:
    from ha.sim.world import World

ELSEWHERE_MS = 300  # the gateway asks the next Server after this
UNKNOWN = 124


@dataclass(slots=True)
class Asked:
    """A request. `answers`: every final answer that came, in order; `exit` is that of the first."""

    id: str
    node: str
    verb: str
    args: dict[str, Any]
    at: int
    ends: int
    sent_to: list[str] = field(default_factory=list)
    begun: bool = False
    exit: int | None = None
    error: str = ""
    took: int = 0


class Client:
    """Asks through the Monitor of a node, as `ha.agents.gateway` does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: dict[str, Asked] = {}

    def ask(self, node: str, verb: str, *, ttl_ms: int = 10_000, **args: object) -> Asked:
        """Ask through the Monitor of `node`; the answer comes with time."""
        now = self.world.kernel.now
        one = Asked(f"r{len(self.asked)}", node, verb, dict(args), now, now + ttl_ms * MS)
        self.asked[one.id] = one
        self._try(one, ttl_ms)
        return one

    def told(self, server: str, told: Told) -> None:
        """An answer came."""
        one = self.asked.get(told.id)
        if one is None or one.exit is not None:
            return
        one.begun = True
        if told.final:
            body = msgspec.json.decode(told.body)
            one.exit, one.error = body["exit"], body["error"] or ""
            one.took = self.world.kernel.now - one.at

    def _try(self, one: Asked, ttl_ms: int) -> None:
        kernel = self.world.kernel
        if one.exit is not None:
            return
        if kernel.now >= one.ends:
            one.exit = UNKNOWN
            return
        if one.begun:
            kernel.at(one.ends, lambda: self._try(one, ttl_ms))
            return
        host = self.world.hosts[(Agent.MONITOR, one.node)]
        servers = sorted(self.world.system.servers(), key=lambda name: name[0] != one.node[0])
        rest = [name for name in servers if name not in one.sent_to] or servers
        if host.alive and not host.paused:
            one.sent_to.append(rest[0])
            line = msgspec.json.encode({"id": one.id, "verb": one.verb, "args": one.args, "ttl_ms": ttl_ms})
            self.world.say(host, Agent.SERVER, rest[0], Ask(one.id, line, True))
        kernel.after(ELSEWHERE_MS * MS, lambda: self._try(one, ttl_ms))
