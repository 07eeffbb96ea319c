"""Hosts: the agents of the simulated nodes. Each is the real machine behind a simulated `Ports`.

An agent that is paused hears nothing and does nothing until it goes on; one that died is started again after a while
with what its disk held. What was written without `sync` is lost when the node is lost, not when the agent is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ha.core.machine import Effect, Event, Note, Persist, Publish, Received, Send, Tick
from ha.model.messages import Message
from ha.model.names import Agent
from ha.runtime.agent import Driver
from ha.sim.kernel import Clock, Kernel


@dataclass(slots=True)
class Disk:
    """A journal: what is there, and what would survive the loss of the node."""

    now: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)

    def write(self, effects: Sequence[Persist]) -> None:
        """Write in order; one `sync` makes everything before it durable too."""
        for effect in effects:
            if effect.value is None:
                self.now.pop(effect.key, None)
            else:
                self.now[effect.key] = msgspec.to_builtins(effect.value)
        if any(effect.sync for effect in effects):
            self.durable = dict(self.now)

    def lose_tail(self) -> None:
        """The node was lost: only what was synced is left."""
        self.now = dict(self.durable)


class Host:
    """One agent of one node, and its world."""

    def __init__(
        self, kernel: Kernel, role: Agent, node: str, clock: Clock, make: Callable[[Host, int], Driver[Any]],
        act: Callable[[Host, Effect, int], None],
    ) -> None:  # fmt: skip
        self.kernel, self.role, self.node, self.clock = kernel, role, node, clock
        self.make, self.act = make, act
        self.disk = Disk()
        self.driver: Driver[Any] | None = None
        self.incarnation = 0
        self.boots = 0
        self.paused = False
        self.queue: list[Event] = []
        self.seq = 0
        self.busy_until = 0
        self.wake = 0
        self.story: list[tuple[int, Note]] = []

    # --- Ports ---------------------------------------------------------------------------------------

    def now(self) -> int:
        """Return the node's own clock."""
        return self.clock.local(self.kernel.now)

    def persist(self, effects: Sequence[Persist]) -> None:
        """Write; a sync takes a while, and everything after it leaves later."""
        self.disk.write(effects)
        if any(effect.sync for effect in effects):
            cost = self.kernel.between(150_000, 1_500_000)
            if self.kernel.rng.random() < 0.005:
                cost += self.kernel.between(5, 60) * 1_000_000
            self.busy_until = max(self.busy_until, self.kernel.now) + cost

    def carry_out(self, effect: Effect) -> None:
        """Hand the effect to the world."""
        if isinstance(effect, Note):
            self.story.append((self.kernel.now, effect))
        self.act(self, effect, max(self.kernel.now, self.busy_until))

    # --- life ----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """The agent runs (perhaps paused)."""
        return self.driver is not None

    def start(self) -> None:
        """Start, or start again, with what the disk holds."""
        self.boots = int(self.disk.now.get("boots", 0)) + 1
        self.disk.now["boots"] = self.disk.durable["boots"] = self.boots
        self.incarnation = self.kernel.between(1, 1 << 62)
        self.seq = 0
        self.paused = False
        self.queue.clear()
        self.busy_until = 0
        self.driver = self.make(self, self.now())
        self.feed(Tick())

    def kill(self) -> None:
        """The agent is gone; its disk stays."""
        self.driver = None
        self.queue.clear()

    def pause(self, on: bool) -> None:
        """Stand still, or go on with what came meanwhile."""
        self.paused = on
        if not on and self.alive:
            waiting, self.queue = self.queue, []
            for event in waiting:
                self.feed(event)
            self.feed(Tick())

    def feed(self, event: Event) -> None:
        """Let the machine take an event, now or when the pause is over."""
        if self.driver is None:
            return
        if self.paused:
            if not isinstance(event, Tick):
                self.queue.append(event)
            return
        self.driver.feed(event)
        self._arm()

    def receive(self, role: Agent, node: str, incarnation: int, seq: int, request: int, body: Message) -> None:
        """A message came in."""
        self.feed(Received(role, node, incarnation, seq, request, body))

    def _arm(self) -> None:
        if self.driver is None:
            return
        wanted = self.driver.wake_at()
        if wanted is None:
            return
        instant = self.clock.true(wanted)
        self.wake += 1
        mark = self.wake

        def turn() -> None:
            if mark == self.wake and self.driver is not None and not self.paused:
                self.feed(Tick())

        # A loop is never exactly on time.
        self.kernel.at(max(instant, self.kernel.now + 20_000) + self.kernel.between(0, 400_000), turn)


__all__ = ["Disk", "Host", "Publish", "Send"]
