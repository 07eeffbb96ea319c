"""The shape of every machine: `step(state, event, now) -> Step(state, effects)`.

Laws. A machine is total and deterministic: no clock, no random, no I/O, no logging, no iteration over
sets. `now` is int nanoseconds of CLOCK_BOOTTIME and never goes back. A late or doubled event changes
nothing. The state is handed on in a line: `step` may update it in place and returns it, the caller must
not use the old one afterwards (a copy per event would cost more than the decision). Effects are carried out
in order: a `Persist` before a `Send` is on disk before the message leaves; if it fails, nothing after it
happens and the agent ends, because an agent that cannot remember must not speak.
Random numbers and facts of the host come in as events or constructor arguments.

A machine's module offers `start(...) -> State`, `step(state, event, now)`, and `wake_at(state) -> int | None`:
the instant at which it wants a `Tick` (a Tick may come earlier or later at any time and must be harmless).
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import msgspec

from ha.model.messages import Message
from ha.model.names import Agent

StateT = TypeVar("StateT")


class Event(msgspec.Struct, frozen=True):
    """Base of what machines are told."""


class Effect(msgspec.Struct, frozen=True):
    """Base of what machines want done."""


class Tick(Event, frozen=True):
    """Time passed."""


class Received(Event, frozen=True):
    """A message came in; the codec has checked its type, the shell that `role`/`node` is who sent it."""

    role: Agent
    node: str
    incarnation: int
    seq: int
    request: int
    body: Message


class Send(Effect, frozen=True):
    """Send to one agent; which socket carries it follows from the body's type (`ha.model.messages`)."""

    role: Agent
    node: str
    body: Message
    request: int = 0


class Publish(Effect, frozen=True):
    """Broadcast on the agent's PUB socket."""

    body: Message


class Persist(Effect, frozen=True):
    """Remember `value` (MessagePack-able; None: forget) under `key` in this agent's journal.

    `sync`: fsync before the next effect; without it the write may be lost with the machine, not with the agent.
    """

    key: str
    value: object
    sync: bool = True


class Note(Effect, frozen=True):
    """An event for `hactl events` and the log: a transition, never a per-tick line.

    Notes are carried out after all other effects of their step: telling must not delay doing.
    """

    kind: str
    subject: str
    from_: str = ""
    to: str = ""
    reason: str = ""
    epoch: int = 0
    request: str = ""


class Step(NamedTuple, Generic[StateT]):
    """What a step returns."""

    state: StateT
    effects: list[Effect]
