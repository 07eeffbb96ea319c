"""Restart policy of one copy: restart now, later, not at all, or give it up.

`always` restarts after any end, `on-failure` after an unclean one (a code other than 0, any signal, an unknown
end), `never` not at all. The first restart is immediate; the next wait backoff, 2*backoff, 4*backoff, ... up to
backoff_max, spread by +-jitter; a run of `stable` starts the row over. `intensity` restarts are allowed within
`period`, the next unplanned death exhausts the policy. Planned deaths never come here.
Source: systemd.service(5) Restart=, Erlang/OTP supervisor (intensity, period).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ha.model.digest import number_of
from ha.model.plan import Restart
from ha.model.status import Exit
from ha.model.timing import MS

MAX_DOUBLINGS = 40  # 2**40 times any backoff is beyond any backoff_max


class Act(StrEnum):
    """What to do about a death."""

    NOW = "now"
    LATER = "later"
    STAY = "stay"
    GIVE_UP = "give-up"


class Decision(NamedTuple):
    """`at`: when to restart, ns of the caller's clock (NOW: the time of death; else 0)."""

    act: Act
    at: int = 0
    reason: str = ""


@dataclass(slots=True)
class Deaths:
    """What the policy remembers of one copy. `times`: unplanned deaths, ns, oldest first, at most intensity + 1."""

    seed: str
    times: list[int] = field(default_factory=list)
    row: int = 0  # restarts since the last stable run
    total: int = 0  # all decided restarts, so that each jitter is another

    def forget(self) -> None:
        """Start over, as `hactl reset` wants it."""
        self.times.clear()
        self.row = 0

    def shift(self, ns: int) -> None:
        """Let the window stand still: the copy was frozen for `ns`."""
        self.times = [time + ns for time in self.times]


def on_death(deaths: Deaths, policy: Restart, exit: Exit | None, ran_ns: int, now: int) -> Decision:
    """Decide about an unplanned death at `now`; `ran_ns`: how long the copy ran, frozen time left out."""
    if policy.policy == "never":
        return Decision(Act.STAY, reason=f"{ended(exit)}, and restart is never")
    if policy.policy == "on-failure" and exit is not None and exit.clean:
        return Decision(Act.STAY, reason="ended by itself")
    oldest = now - policy.period_ms * MS
    deaths.times = [*(time for time in deaths.times if time >= oldest), now][-(policy.intensity + 1) :]
    if len(deaths.times) > policy.intensity:
        span = f"{policy.period_ms / 1000:g}s"
        reason = f"{len(deaths.times)} unplanned deaths within {span}, intensity is {policy.intensity}; {ended(exit)}"
        return Decision(Act.GIVE_UP, reason=reason)
    if ran_ns >= policy.stable_ms * MS:
        deaths.row = 0
    delay = backoff_ns(policy, deaths.row, unit(deaths.seed, deaths.total))
    deaths.row += 1
    deaths.total += 1
    if delay == 0:
        return Decision(Act.NOW, now, ended(exit))
    return Decision(Act.LATER, now + delay, f"{ended(exit)}, restart in {delay // MS}ms")


def at_once_next(deaths: Deaths, policy: Restart, ran_ns: int, now: int) -> bool:
    """Return whether `on_death` would restart now at any unplanned death from here on (an unclean one, if it asks)."""
    if policy.policy == "never":
        return False
    oldest = now - policy.period_ms * MS
    room = sum(1 for time in deaths.times if time >= oldest) < policy.intensity
    return room and (deaths.row == 0 or ran_ns >= policy.stable_ms * MS)


def backoff_ns(policy: Restart, row: int, spread: float) -> int:
    """Return the delay before restart number `row` (from 0) of a row; `spread` in [0, 1) places it in the jitter."""
    if row == 0:
        return 0
    base = min(policy.backoff_ms << min(row - 1, MAX_DOUBLINGS), policy.backoff_max_ms)
    return int(base * (1 + policy.jitter * (2 * spread - 1)) * MS)


def unit(seed: str, count: int) -> float:
    """Return a number in [0, 1) that looks random and is the same for the same arguments."""
    return number_of(f"{seed}#{count}".encode()) / 2**64


def ended(exit: Exit | None) -> str:
    """Return how a process ended, in words."""
    if exit is None or (exit.code is None and exit.signal is None):
        return "ended, nobody saw how"
    return f"ended with code {exit.code}" if exit.code is not None else f"ended by {exit.signal}"
