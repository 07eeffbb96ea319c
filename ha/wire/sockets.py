"""Sockets: ROUTER, DEALER, PUB and SUB with every option set, and never a call that blocks.

A full queue or a peer that is not there is a counted drop: everything agents say is level-triggered and said again.
Every address of a node is a link of its own: its own ROUTER, DEALER or SUB; what is said goes over all of them and
counts once at the receiver (`ha.wire.codec.Seen`). A link that stays silent is disconnected and connected anew, for a
connection that died without a word (a partition) would otherwise wait for TCP's backoff.

Options, and what happened without them: notes on ZeroMQ, section 2. No ZMTP heartbeats: with a stalled reader they
abort the process (libzmq #3937); no CONFLATE; LINGER 0, so that an end never waits; IMMEDIATE on DEALERs, so that
nothing is queued to a dead peer and delivered stale; MAXMSGSIZE, because a peer may announce 3 GiB.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from ha.core.machine import Received
from ha.model.errors import HaError, WireError
from ha.model.limits import MAX_CHUNK_BYTES
from ha.model.messages import Message
from ha.model.names import Agent
from ha.model.plan import Node
from ha.model.timing import MS
from ha.wire.codec import Codec, Seen
from ha.wire.routes import ANSWERED, Channel, Direction, Route, identity, topic

RECONNECT_MS = 30
RECONNECT_MAX_MS = 500
CONNECT_TIMEOUT_MS = 500
HANDSHAKE_MS = 2_000
TCP_GIVE_UP_MS = 2_000  # unacknowledged data this old ends the connection; it is made anew at once
QUEUE_MESSAGES = 1_000  # per peer and direction

Clock = Callable[[], int]  # CLOCK_BOOTTIME in nanoseconds
Socket = zmq.Socket[bytes]


def bind_endpoints(me: Node, port: int) -> tuple[str, ...]:
    """Return the endpoints to bind: one per address of this node, nothing else."""
    return tuple(f"tcp://{_host(address)}:{port}" for address in me.addresses)


def connect_endpoints(me: Node, peer: Node, port: int) -> tuple[str, ...]:
    """Return the endpoints to connect to: one per address of the peer.

    On loopback, where several nodes share a host, our own address of the same index is the source, so that nodes can
    be told apart (and cut) by address; elsewhere the kernel's routes decide.
    """
    made = []
    for index, address in enumerate(peer.addresses):
        source = me.addresses[min(index, len(me.addresses) - 1)]
        bound = f"{source}:0;" if source.startswith("127.") and address.startswith("127.") else ""
        made.append(f"tcp://{bound}{_host(address)}:{port}")
    return tuple(made)


class Sockets:
    """Makes the sockets of one agent. `drops`: messages not sent, by "channel:reason"."""

    def __init__(self, codec: Codec, clock: Clock, *, silence_ms: int) -> None:
        """`silence_ms`: a link this long without a due word is connected anew (the timing's `suspect`)."""
        self.codec = codec
        self.clock = clock
        self.silence_ns = silence_ms * MS
        self.drops: Counter[str] = Counter()
        self.refreshes: Counter[str] = Counter()
        self._context = zmq.Context(1)
        self._made: list[Socket] = []

    def router(self, channel: Channel, endpoints: Sequence[str]) -> RouterPort:
        """Bind a ROUTER to each endpoint. Raises HaError("cannot bind ...")."""
        return RouterPort(self, channel, [self._bound(zmq.ROUTER, endpoint) for endpoint in endpoints])

    def dealer(self, channel: Channel, role: Agent, node: str, endpoints: Sequence[str]) -> DealerPort:
        """Connect a DEALER to each endpoint of one agent of one node."""
        return DealerPort(self, channel, (role, node), [self._connected(zmq.DEALER, e) for e in endpoints], endpoints)

    def publisher(self, channel: Channel, endpoints: Sequence[str]) -> PubPort:
        """Bind one PUB to all endpoints. Raises HaError("cannot bind ...")."""
        socket = self._bound(zmq.PUB, *endpoints)
        return PubPort(self, channel, [socket])

    def subscriber(self, channel: Channel, role: Agent, node: str, endpoints: Sequence[str]) -> SubPort:
        """Connect a SUB to each endpoint of one agent of one node."""
        return SubPort(self, channel, (role, node), [self._connected(zmq.SUB, e) for e in endpoints], endpoints)

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket and end the context; blocks up to `linger_ms` for what is not sent yet, then drops it."""
        for socket in self._made:
            socket.close(linger_ms)
        self._context.term()

    def _new(self, kind: int) -> Socket:
        socket = self._context.socket(kind)
        self._made.append(socket)
        for option, value in (
            (zmq.LINGER, 0), (zmq.MAXMSGSIZE, MAX_CHUNK_BYTES), (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.SNDHWM, QUEUE_MESSAGES), (zmq.RCVHWM, QUEUE_MESSAGES), (zmq.TCP_MAXRT, TCP_GIVE_UP_MS),
            (zmq.SNDTIMEO, 0), (zmq.RECONNECT_IVL, RECONNECT_MS), (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS),
        ):  # fmt: skip
            socket.setsockopt(option, value)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if kind == zmq.DEALER:
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.IDENTITY, identity(self.codec.role, self.codec.node))
        return socket

    def _bound(self, kind: int, *endpoints: str) -> Socket:
        socket = self._new(kind)
        for endpoint in endpoints:
            if "[" in endpoint:
                socket.setsockopt(zmq.IPV6, 1)
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise HaError(f"cannot bind {endpoint}: {error.strerror or error}") from None
        return socket

    def _connected(self, kind: int, endpoint: str) -> Socket:
        socket = self._new(kind)
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        socket.connect(endpoint)
        return socket


class Port:
    """What an event loop needs of any port: its sockets, and what a message on one of them means."""

    def __init__(self, made: Sockets, route: Route, sockets: list[Socket]) -> None:
        self.made = made
        self.route = route
        self.sockets = sockets

    def accept(self, index: int, frames: list[bytes]) -> Received | None:
        """Return what came in on socket `index`; None: refused (counted in the codec) or heard already."""
        raise NotImplementedError  # pragma: no cover

    def tend(self, now: int) -> None:
        """Connect anew every link that is silent although it should speak; call about once a beat."""

    def _encode(self, body: Message, now: int, request: int) -> list[bytes] | None:
        try:
            return self.made.codec.encode(body, stream=self.route.channel.value, now=now, request=request)
        except WireError as error:
            self._drop(error.reason)
            return None

    def _drop(self, reason: str) -> None:
        self.made.drops[f"{self.route.channel.value}:{reason}"] += 1


class RouterPort(Port):
    """The asked side of a channel: a ROUTER per own address, so that one identity may come over each of them."""

    def __init__(self, made: Sockets, channel: Channel, sockets: list[Socket]) -> None:
        super().__init__(made, Route(channel, Direction.ASK), sockets)
        self._seen = Seen()

    def accept(self, index: int, frames: list[bytes]) -> Received | None:
        """See `Port.accept`; the identity frame must be the role and node of the header."""
        if not frames:
            return None
        try:
            message = self.made.codec.decode(frames[1:], self.route, frames[0])
        except WireError:
            return None
        return message if self._seen.fresh(message) else None

    def send(self, role: Agent, node: str, body: Message, *, now: int, request: int = 0) -> bool:
        """Answer, or say something to, an agent that has connected; return whether any link took it."""
        frames = self._encode(body, now, request)
        if frames is None:
            return False
        frames.insert(0, identity(role, node))
        sent = [_send(socket, frames) for socket in self.sockets]
        if not any(sent):
            self._drop("unroutable")
        return any(sent)


class _Links(Port):
    """A port to one agent of one node, over each of its addresses."""

    def __init__(
        self, made: Sockets, route: Route, peer: tuple[Agent, str], sockets: list[Socket], endpoints: Sequence[str]
    ) -> None:
        super().__init__(made, route, sockets)
        self.peer = peer
        self._endpoints = tuple(endpoints)
        self._seen = Seen()
        now = made.clock()
        self._heard = [now for _ in sockets]  # of each link, when it last spoke
        self._due = [0 for _ in sockets]  # of each link, since when it owes us a word; 0: it does not
        self._fresh = [now for _ in sockets]  # of each link, when it was last connected anew

    def heard_at(self) -> tuple[int, ...]:
        """Return when each link last brought a valid message (at first: when it was made)."""
        return tuple(self._heard)

    def refresh(self, index: int, now: int) -> None:
        """Disconnect and connect link `index`; what is queued on it is lost."""
        endpoint = self._endpoints[index]
        try:
            self.sockets[index].disconnect(endpoint)
        except zmq.ZMQError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # not connected: then there is nothing to end
                raise
        self.sockets[index].connect(endpoint)
        self._fresh[index] = now
        self._due[index] = 0
        self.made.refreshes[endpoint] += 1

    def tend(self, now: int) -> None:
        """See `Port.tend`. A link is given twice the silence after it was made anew."""
        silence = self.made.silence_ns
        for index, due in enumerate(self._due):
            if due and now - due > silence and now - self._fresh[index] > 2 * silence:
                self.refresh(index, now)

    def _take(self, index: int, message: Received) -> Received | None:
        self._heard[index] = self.made.clock()
        self._due[index] = 0
        return message if self._seen.fresh(message) else None


class DealerPort(_Links):
    """The asking side of a channel: a DEALER to each address of one agent."""

    def __init__(
        self, made: Sockets, channel: Channel, peer: tuple[Agent, str], sockets: list[Socket], endpoints: Sequence[str]
    ) -> None:
        super().__init__(made, Route(channel, Direction.ANSWER), peer, sockets, endpoints)
        # By ipc the kernel says when the peer ends.
        self._lossy = [not endpoint.startswith("ipc:") for endpoint in endpoints]

    def accept(self, index: int, frames: list[bytes]) -> Received | None:
        """See `Port.accept`; the header must be that of the agent we connected to."""
        try:
            message = self.made.codec.decode(frames, self.route, identity(*self.peer))
        except WireError:
            return None
        return self._take(index, message)

    def send(self, body: Message, *, now: int, request: int = 0) -> bool:
        """Say it over every link; return whether any took it."""
        frames = self._encode(body, now, request)
        if frames is None:
            return False
        took = False
        for index, socket in enumerate(self.sockets):
            if _send(socket, frames):
                took = True
                if self._lossy[index] and not self._due[index] and type(body) in ANSWERED:
                    self._due[index] = now
        if not took:
            self._drop("not-connected")
        return took


class PubPort(Port):
    """The broadcasting side of a channel."""

    def __init__(self, made: Sockets, channel: Channel, sockets: list[Socket]) -> None:
        super().__init__(made, Route(channel, Direction.PUBLISH), sockets)
        self._topic = topic(channel, made.codec.node)

    def publish(self, body: Message, *, now: int) -> None:
        """Broadcast; a subscriber whose queue is full misses it, and sees so by the sequence."""
        frames = self._encode(body, now, 0)
        if frames is not None and not _send(self.sockets[0], [self._topic, *frames]):
            self._drop("full")


class SubPort(_Links):
    """The listening side: a SUB to each address of one agent, whose beats are due all the time."""

    def __init__(
        self, made: Sockets, channel: Channel, peer: tuple[Agent, str], sockets: list[Socket], endpoints: Sequence[str]
    ) -> None:
        super().__init__(made, Route(channel, Direction.PUBLISH), peer, sockets, endpoints)
        for socket in sockets:
            socket.setsockopt(zmq.SUBSCRIBE, topic(channel, peer[1]))

    def accept(self, index: int, frames: list[bytes]) -> Received | None:
        """See `Port.accept`; topic and header must be those of the agent we connected to."""
        try:
            message = self.made.codec.decode_published(frames, self.route, self.peer)
        except WireError:
            return None
        return self._take(index, message)

    def tend(self, now: int) -> None:
        """See `Port.tend`: the silence counts from the last word, or from when the link was made anew."""
        silence = self.made.silence_ns
        for index, heard in enumerate(self._heard):
            if now - heard > silence and now - self._fresh[index] > 2 * silence:
                self.refresh(index, now)


def _send(socket: Socket, frames: list[bytes]) -> bool:
    try:
        socket.send_multipart(frames, zmq.DONTWAIT)
    except zmq.ZMQError as error:
        if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
            return False
        raise
    return True


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
