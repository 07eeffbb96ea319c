"""Routes: who may say what to whom, on which channel, in which direction; the codec refuses the rest.

A channel is one TCP port (and for `command` an ipc path too). The table below is `docs/architecture.md`, "Who says
what to whom", as data: a shell asks it which socket carries a body, a receiver asks it whether the sender may say
this here. A message that stands in no row never reaches a decision.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple

from ha.model import messages as m
from ha.model.names import Agent


class Channel(StrEnum):
    """The channels; the value is the name of the port in `ha.model.plan.Ports`."""

    VOTE = "vote"
    CONTROL = "control"
    COMMAND = "command"
    STATE = "state"
    BEAT = "beat"


class Direction(Enum):
    """How a body travels on its channel."""

    ASK = "ask"  # DEALER to ROUTER
    ANSWER = "answer"  # ROUTER back to the DEALER of that identity
    PUBLISH = "publish"  # PUB to SUB


class Route(NamedTuple):
    """Where a body goes."""

    channel: Channel
    direction: Direction


_S, _M, _SP, _MA, _W = Agent.SERVER, Agent.MONITOR, Agent.SPAWNER, Agent.MASTER, Agent.WITNESS
_ASK, _ANSWER = Direction.ASK, Direction.ANSWER

TABLE: tuple[tuple[Agent, Agent, Channel, Direction, tuple[type[m.Message], ...]], ...] = (
    (_S, _W, Channel.VOTE, _ASK, (m.VoteProbe, m.VoteClaim, m.VoteRenew, m.VoteRelease)),
    (_W, _S, Channel.VOTE, _ANSWER, (m.VoteReply,)),
    (_W, _W, Channel.VOTE, _ASK, (m.VoterHello,)),
    (_W, _W, Channel.VOTE, _ANSWER, (m.VoterState,)),
    (_SP, _S, Channel.CONTROL, _ASK, (m.Pull, m.Hello)),
    (_S, _SP, Channel.CONTROL, _ANSWER, (m.Grant,)),
    (_M, _S, Channel.CONTROL, _ASK, (m.Hello, m.Snapshot, m.Ask, m.EventsSaid)),
    (_S, _M, Channel.CONTROL, _ANSWER, (m.SnapshotRequest, m.Told, m.EventsSaid)),
    (_S, _S, Channel.CONTROL, _ASK, (m.PeerOffer, m.PeerShare, m.Ask)),
    (_S, _S, Channel.CONTROL, _ANSWER, (m.Told,)),
    (_S, _SP, Channel.COMMAND, _ASK, (m.Orders, m.Relinquish, m.PutPlan)),
    (_SP, _S, Channel.COMMAND, _ANSWER, (m.OrdersAnswer, m.Relinquished, m.Answer)),
    (_M, _SP, Channel.COMMAND, _ASK, (m.Watch, m.Revive)),
    (_SP, _M, Channel.COMMAND, _ANSWER, (m.Facts, m.Answer, m.EventsSaid)),
    (_MA, _SP, Channel.COMMAND, _ASK, (m.Agents, m.EventsSaid)),
    (_SP, _MA, Channel.COMMAND, _ANSWER, (m.AgentsAnswer, m.Answer)),
    (_M, _S, Channel.STATE, Direction.PUBLISH, (m.StateDelta, m.StateBeat, m.Snapshot, m.EventsSaid)),
    (_S, _S, Channel.BEAT, Direction.PUBLISH, (m.PeerBeat,)),
)
TOPICS = {Channel.STATE: "st", Channel.BEAT: "bt"}

_ROUTES = {
    (sender, receiver, body): Route(channel, direction)
    for sender, receiver, channel, direction, bodies in TABLE
    for body in bodies
    if direction is not Direction.PUBLISH
}
_ALLOWED = frozenset(
    (sender, receiver, channel, direction, body)
    for sender, receiver, channel, direction, bodies in TABLE
    for body in bodies
)

# Requests that are always answered: a link on which one stays unanswered is silent, and is connected anew.
ANSWERED: frozenset[type[m.Message]] = frozenset(
    {m.VoteProbe, m.VoteClaim, m.VoteRenew, m.VoteRelease, m.VoterHello, m.Pull, m.Orders, m.Relinquish, m.PutPlan}
)


def route(sender: Agent, receiver: Agent, body: type[m.Message]) -> Route | None:
    """Return the channel and direction (ask or answer) of a directed message; None: nobody says that."""
    return _ROUTES.get((sender, receiver, body))


def allowed(sender: Agent, receiver: Agent, on: Route, body: type[m.Message]) -> bool:
    """Return whether `sender` may say this to `receiver` there."""
    return (sender, receiver, on.channel, on.direction, body) in _ALLOWED


def topic(channel: Channel, node: str) -> bytes:
    """Return the PUB topic of a node, ended by a delimiter so that no topic is the start of another: b"st/a1/"."""
    return f"{TOPICS[channel]}/{node}/".encode()


def identity(role: Agent, node: str) -> bytes:
    """Return the routing id of an agent's DEALER: b"server/a1"."""
    return f"{role.value}/{node}".encode()
