"""Kernel: virtual time. One heap of calls, ordered by instant, then by the order in which they were asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush


@dataclass(slots=True)
class Kernel:
    """True time in ns, and what will happen. `rng` draws every random number of a run."""

    seed: int
    now: int = 0
    events: int = 0
    heap: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    count: int = 0
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.rng.seed(self.seed)

    def at(self, instant: int, call: Callable[[], None]) -> None:
        """Call at an instant; the past means now."""
        self.count += 1
        heappush(self.heap, (max(instant, self.now), self.count, call))

    def after(self, delay: int, call: Callable[[], None]) -> None:
        """Call after a delay in ns."""
        self.at(self.now + delay, call)

    def run_until(self, instant: int) -> None:
        """Let everything happen that is due by `instant`."""
        while self.heap and self.heap[0][0] <= instant:
            when, _, call = heappop(self.heap)
            self.now = when
            self.events += 1
            call()
        self.now = instant

    def between(self, low: int, high: int) -> int:
        """Return a random integer in [low, high]."""
        return self.rng.randint(low, high)


@dataclass(slots=True, frozen=True)
class Clock:
    """A node's CLOCK_BOOTTIME: its own offset, and a rate that is a little wrong (ppm)."""

    offset: int
    ppm: int

    def local(self, true: int) -> int:
        """Return what the clock shows at a true instant."""
        return self.offset + true + true * self.ppm // 1_000_000

    def true(self, local: int) -> int:
        """Return the first true instant at which the clock shows at least `local`."""
        guess = (local - self.offset) * 1_000_000 // (1_000_000 + self.ppm)
        while self.local(guess) < local:
            guess += 1
        return guess
