"""The driver: feeds a machine its events and carries out its effects, in order, through `Ports`.

This is the loop that `ha.core.machine` asks its users to write, and the only one: agents and simulator differ in
their `Ports`. Consecutive `Persist` effects are handed over together, so that they share one fsync; nothing after
them is done before they are on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol

from ha.core.machine import Effect, Event, Note, Persist, StateT, Step, Tick


class Machine(Protocol[StateT]):
    """What a machine's module offers besides `start`."""

    def step(self, state: StateT, event: Event, now: int) -> Step[StateT]:
        """Decide."""

    def wake_at(self, state: StateT) -> int | None:
        """Return when a Tick is wanted."""


class Ports(Protocol):
    """The world of one agent."""

    def now(self) -> int:
        """Return CLOCK_BOOTTIME in ns; never goes back."""

    def persist(self, effects: Sequence[Persist]) -> None:
        """Write all; on disk afterwards if any asked for `sync`. Raises PersistError: the agent ends."""

    def carry_out(self, effect: Effect) -> None:
        """Do any other effect; never blocks, never raises for what the world refuses: that comes back as an event."""


class Driver(Generic[StateT]):
    """One machine and its world. `state` is for looking only."""

    def __init__(self, machine: Machine[StateT], state: StateT, ports: Ports) -> None:
        self.machine = machine
        self.state = state
        self.ports = ports
        self._events: deque[Event] = deque()
        self._stepping = False

    def feed(self, event: Event) -> None:
        """Let the machine take `event` and carry out what it wants.

        An event that an effect brings at once is taken after all effects of the step at hand. Raises PersistError.
        """
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                self.state, effects = self.machine.step(self.state, self._events.popleft(), self.ports.now())
                self.do(effects)
        finally:
            self._stepping = False

    def tick(self) -> None:
        """Feed a Tick."""
        self.feed(Tick())

    def wake_at(self) -> int | None:
        """Return when the machine wants a Tick, in ns; None: not by time."""
        return self.machine.wake_at(self.state)

    def do(self, effects: Sequence[Effect]) -> None:
        """Carry out effects in order, notes last; also for those that a machine's `start` returned."""
        writes: list[Persist] = []
        notes: list[Note] = []
        for effect in effects:
            if isinstance(effect, Note):
                notes.append(effect)
                continue
            if isinstance(effect, Persist):
                writes.append(effect)
                continue
            if writes:
                self.ports.persist(writes)
                writes = []
            self.ports.carry_out(effect)
        if writes:
            self.ports.persist(writes)
        for note in notes:
            self.ports.carry_out(note)
