"""Codec: header and body to frames and back; what does not pass is refused with a reason and counted.

    asked, answered    [header, body]            (on a ROUTER the identity precedes; it is passed in apart)
    published          [topic, header, body]     topic b"st/a1/"

Both frames are MessagePack arrays of typed structs (`ha.model.messages`). Trailing fields of a newer minor version
are ignored; missing ones have defaults. The reasons (stable counter names):

    frame-count      not that many frames
    oversize         header or body above its limit
    bad-header       not MessagePack, wrong types, a role or sequence that cannot be
    unknown-major    a protocol we do not speak
    other-system     a system of another name
    unknown-node     a node the system file does not name
    not-the-sender   role and node are not those of the connection or topic
    unknown-type     no such message
    not-here         that agent does not say this on this channel
    bad-body         not MessagePack, or not of that type

Source: design section 4, notes on ZeroMQ (wire rules).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ha.core.machine import Received
from ha.model import messages as m
from ha.model.errors import WireError
from ha.model.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES, SUPPORTED_MAJOR
from ha.model.names import Agent
from ha.wire.routes import Route, allowed, identity, topic

MAX_HEADER_BYTES = 1_024
# These grow with the plan, the copies of a node or an operator's question, and are bounded by a chunk.
CHUNKS: frozenset[type[m.Message]] = frozenset(
    {
        m.PutPlan,
        m.Snapshot,
        m.PeerShare,
        m.Told,
        m.Ask,
        m.Facts,
        m.Orders,
        m.OrdersAnswer,
        m.StateDelta,
        m.Pull,
        m.Grant,
    }
)

_AGENTS = {agent.value: agent for agent in Agent}
_ENCODER = msgspec.msgpack.Encoder()
_HEADER = msgspec.msgpack.Decoder(m.Header)
_BODIES: dict[str, msgspec.msgpack.Decoder[m.Message]] = {}  # made at first use: 31 decoders at import cost start-up
_BAD = (msgspec.MsgspecError, ValueError, RecursionError, MemoryError)  # all that a decoder raises on hostile bytes


class _Major(msgspec.Struct, frozen=True, array_like=True):
    """Only the version: the rest of another major's header may look different."""

    major: int


_MAJOR = msgspec.msgpack.Decoder(_Major)


def limit_of(body: type[m.Message]) -> int:
    """Return the largest encoded size of a body in bytes."""
    return MAX_CHUNK_BYTES if body in CHUNKS else MAX_FRAME_BYTES


class Codec:
    """One agent's end of the wire. `refused`: how many frames were refused, by reason."""

    __slots__ = ("_seq", "incarnation", "node", "nodes", "refused", "role", "system")

    def __init__(self, *, system: str, role: Agent, node: str, incarnation: int, nodes: Iterable[str]) -> None:
        """`nodes`: every node and witness place of the system file; `incarnation`: random per process start."""
        self.system = system
        self.role = role
        self.node = node
        self.incarnation = incarnation
        self.nodes = frozenset(nodes)
        self.refused: Counter[str] = Counter()
        self._seq: dict[str, int] = {}

    def encode(self, body: m.Message, *, stream: str, now: int, request: int = 0, epoch: int = 0) -> list[bytes]:
        """Return [header, body], with the next sequence of `stream`. Raises WireError("oversize")."""
        name = type(body).__name__
        data = _ENCODER.encode(body)
        if len(data) > limit_of(type(body)):
            raise WireError("oversize", f"cannot send {name}: {len(data)} bytes, at most {limit_of(type(body))} pass")
        seq = self._seq[stream] = self._seq.get(stream, 0) + 1
        header = m.Header(
            SUPPORTED_MAJOR, name, self.system, self.node, self.role.value, self.incarnation, epoch, stream, seq, now,
            request,
        )  # fmt: skip
        return [_ENCODER.encode(header), data]

    def decode(self, frames: Sequence[bytes], on: Route, sender: bytes) -> Received:
        """Return what `frames` [header, body] say. `sender`: identity of the peer, as the socket knows it.

        Raises WireError, and counts it in `refused`, for anything that does not pass; never anything else.
        """
        try:
            return self._decode(frames, on, sender)
        except WireError as error:
            self.refused[error.reason] += 1
            raise

    def decode_published(self, frames: Sequence[bytes], on: Route, sender: tuple[Agent, str]) -> Received:
        """Return what `frames` [topic, header, body] say; the topic must be the sender's. Raises WireError."""
        role, node = sender
        if len(frames) != 3:
            self.refused["frame-count"] += 1
            raise WireError("frame-count", f"{len(frames)} frames, expected topic, header, body")
        if frames[0] != topic(on.channel, node):
            self.refused["not-the-sender"] += 1
            raise WireError("not-the-sender", f"topic {frames[0][:64]!r} is not that of {node}")
        return self.decode(frames[1:], on, identity(role, node))

    def _decode(self, frames: Sequence[bytes], on: Route, sender: bytes) -> Received:
        if len(frames) != 2:
            raise WireError("frame-count", f"{len(frames)} frames, expected header, body")
        header = _header(frames[0])
        role = _AGENTS.get(header.role)
        if role is None or header.seq < 1 or header.incarnation < 0 or header.request < 0:
            raise WireError("bad-header", f"role {header.role[:64]!r}, seq {header.seq}")
        if header.system != self.system:
            raise WireError("other-system", f"system {header.system[:64]!r}, this is {self.system!r}")
        if header.node not in self.nodes:
            raise WireError("unknown-node", f"node {header.node[:64]!r} is not in the system file")
        if sender != identity(role, header.node):
            raise WireError("not-the-sender", f"{sender[:64]!r} says it is {header.role}/{header.node}")
        body_type = m.TYPES.get(header.type)
        if body_type is None:
            raise WireError("unknown-type", f"type {header.type[:64]!r}")
        if not allowed(role, self.role, on, body_type):
            raise WireError("not-here", f"{role} does not say {header.type} on {on.channel}")
        body = _body(header.type, body_type, frames[1])
        return Received(role, header.node, header.incarnation, header.seq, header.request, body)


class Seen:
    """Which sequences came already: a message sent over every address of a node counts once.

    Per sender it keeps the incarnation, the highest sequence and a window of 64 below it: one link may be slower than
    the other, and what comes later than the window is dropped (everything is level-triggered).
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[tuple[Agent, str], tuple[int, int, int]] = {}

    def fresh(self, message: Received) -> bool:
        """Return whether this message is new, and remember it."""
        key = (message.role, message.node)
        incarnation, last, window = self._last.get(key, (-1, 0, 0))
        if incarnation != message.incarnation:
            self._last[key] = (message.incarnation, message.seq, 1)
            return True
        ahead = message.seq - last
        if ahead > 0:
            window = ((window << ahead) | 1) & 0xFFFF_FFFF_FFFF_FFFF if ahead < 64 else 1
            self._last[key] = (incarnation, message.seq, window)
            return True
        bit = 1 << -ahead if ahead > -64 else 0
        if not bit or window & bit:
            return False
        self._last[key] = (incarnation, last, window | bit)
        return True


def _header(data: bytes) -> m.Header:
    if len(data) > MAX_HEADER_BYTES:
        raise WireError("oversize", f"header of {len(data)} bytes")
    try:
        header = _HEADER.decode(data)
    except _BAD as error:
        _refuse_major(data)
        raise WireError("bad-header", f"cannot decode a header: {error}") from None
    if header.major != SUPPORTED_MAJOR:
        raise WireError("unknown-major", f"version {header.major}, this is {SUPPORTED_MAJOR}")
    return header


def _refuse_major(data: bytes) -> None:
    try:
        major = _MAJOR.decode(data).major
    except _BAD:
        return
    if major != SUPPORTED_MAJOR:
        raise WireError("unknown-major", f"version {major}, this is {SUPPORTED_MAJOR}")


def _body(name: str, body_type: type[m.Message], data: bytes) -> m.Message:
    if len(data) > limit_of(body_type):
        raise WireError("oversize", f"{name} of {len(data)} bytes")
    decoder = _BODIES.get(name)
    if decoder is None:
        decoder = _BODIES[name] = msgspec.msgpack.Decoder(body_type)
    try:
        return decoder.decode(data)
    except _BAD as error:
        raise WireError("bad-body", f"cannot decode {name}: {error}") from None
