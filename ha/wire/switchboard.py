"""Switchboard: all ports of one agent; which of them carries a body follows from the route table.

An agent's shell names what it binds, whom it asks and whom it listens to; after that a machine's `Send` and `Publish`
need no more than role, node and body. What nobody says (no row in `ha.wire.routes`), and what goes to somebody this
agent has no port to, is a counted drop, like every other message that cannot leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import zmq

from ha.model.messages import Message
from ha.model.names import Agent
from ha.model.plan import Node, System
from ha.model.timing import MS
from ha.wire.routes import Channel, Direction, route
from ha.wire.sockets import (
    DealerPort,
    Port,
    PubPort,
    RouterPort,
    Sockets,
    bind_endpoints,
    connect_endpoints,
)


class Switchboard:
    """See the module. `ports`: every port made so far, for the event loop to attach."""

    def __init__(self, sockets: Sockets, system: System, me: Node) -> None:
        self.sockets = sockets
        self.system = system
        self.me = me
        self.ports: list[Port] = []
        self._routers: dict[Channel, RouterPort] = {}
        self._dealers: dict[tuple[Channel, Agent, str], DealerPort] = {}
        self._publisher: PubPort | None = None
        self._tended = 0

    def listen(self, channel: Channel, *extra: str) -> RouterPort:
        """Bind a ROUTER to the channel's port on each of this node's addresses, and to `extra` endpoints (ipc)."""
        port = self.sockets.router(channel, (*bind_endpoints(self.me, self._number(channel)), *extra))
        self._routers[channel] = port
        self.ports.append(port)
        return port

    def ask(self, channel: Channel, role: Agent, node: str, endpoints: Sequence[str] | None = None) -> DealerPort:
        """Connect to `role` on `node`: to each of its addresses, or to `endpoints` (ipc)."""
        port = self.sockets.dealer(channel, role, node, endpoints or self._to(channel, node))
        self._dealers[channel, role, node] = port
        self.ports.append(port)
        return port

    def broadcast(self, channel: Channel) -> PubPort:
        """Bind a PUB to the channel's port on each of this node's addresses."""
        port = self._publisher = self.sockets.publisher(channel, bind_endpoints(self.me, self._number(channel)))
        return port

    def hear(self, channel: Channel, role: Agent, nodes: Iterable[str]) -> None:
        """Subscribe to `role` on each of the nodes, over each of their addresses."""
        for node in nodes:
            self.ports.append(self.sockets.subscriber(channel, role, node, self._to(channel, node)))

    def send(self, role: Agent, node: str, body: Message, *, now: int, request: int = 0) -> bool:
        """Send by the port its route names; return whether it left. False is a counted drop."""
        way = route(self.sockets.codec.role, role, type(body))
        if way is None:
            self.sockets.drops[f"{type(body).__name__}:no-route"] += 1
            return False
        if way.direction is Direction.ASK:
            dealer = self._dealers.get((way.channel, role, node))
            if dealer is not None:
                return dealer.send(body, now=now, request=request)
        else:
            router = self._routers.get(way.channel)
            if router is not None:
                return router.send(role, node, body, now=now, request=request)
        self.sockets.drops[f"{way.channel.value}:no-port"] += 1
        return False

    def publish(self, body: Message, *, now: int) -> None:
        """Broadcast on this agent's PUB."""
        if self._publisher is None:
            self.sockets.drops["publish:no-port"] += 1
            return
        self._publisher.publish(body, now=now)

    def await_connections(self, channel: Channel, at_most_ms: int) -> None:
        """Wait until every DEALER of a channel has its connection; only at an agent's start, since it blocks."""
        poller = zmq.Poller()
        for (of, _, _), port in self._dealers.items():
            for socket in port.sockets if of is channel else ():
                poller.register(socket, zmq.POLLOUT)
        until = self.sockets.clock() + at_most_ms * MS
        while poller.sockets and (left := until - self.sockets.clock()) > 0:
            for socket, _ in poller.poll(-(-left // MS)):
                poller.unregister(socket)

    def tend(self, now: int) -> None:
        """Connect silent links anew; cheap, so that it may be called at every turn of the loop."""
        if now - self._tended < self.sockets.silence_ns // 2:
            return
        self._tended = now
        for port in self.ports:
            port.tend(now)

    def _number(self, channel: Channel) -> int:
        number: int = getattr(self.system.ports, channel.value)
        return number

    def _to(self, channel: Channel, node: str) -> tuple[str, ...]:
        return connect_endpoints(self.me, self.system.place(node), self._number(channel))
