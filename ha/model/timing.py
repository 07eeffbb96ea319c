"""Timing: the durations of leases and beats, their profiles, and the inequalities they must keep.

All lease time is CLOCK_BOOTTIME. Machines take `now` as int nanoseconds of that clock; the durations
here are int milliseconds, as operators write them. Source: design section 3, rules 2 and 3.
"""

from __future__ import annotations

import msgspec

MS = 1_000_000  # nanoseconds in a millisecond: `now + timing.suspect_ms * MS`


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in milliseconds; `drift` is the largest relative rate error of any clock."""

    beat_ms: int = 90
    renew_every_ms: int = 90
    suspect_ms: int = 300
    freeze_after_ms: int = 600  # a holder's lease lasts this long from the send of its renewal
    stall_ms: int = 200  # worst accepted stall plus freeze latency
    rtt_ms: int = 20
    rtt_local_ms: int = 10
    drift: float = 0.001
    promise_ms: int = 900  # a voter grants nobody else for this long from the receipt of a renewal
    stagger_ms: int = 100
    kill_after_ms: int = 5_000
    startup_wait_ms: int = 30_000

    def broken_lines(self) -> tuple[str, ...]:
        """Return each safety inequality that does not hold, with its values; empty when all hold."""
        broken: list[str] = []
        least = (self.freeze_after_ms / (1 - self.drift) + self.stall_ms) * (1 + self.drift)
        if self.promise_ms < least:
            broken.append(
                "promise >= (freeze_after/(1-drift) + stall)*(1+drift) does not hold: "
                f"promise is {self.promise_ms}ms, the right side is {least:.1f}ms"
            )
        hops = 2 * (3 * self.renew_every_ms) + self.rtt_ms + self.rtt_local_ms
        if hops > self.freeze_after_ms:
            broken.append(
                "2*(3*renew_every) + rtt + rtt_local <= freeze_after does not hold: "
                f"the left side is {hops}ms, freeze_after is {self.freeze_after_ms}ms"
            )
        return tuple(broken)

    def sub_lease_ns(self, remaining_ns: int) -> int:
        """Return how long a node may count a sub-lease from its own send time, given what remained."""
        return int(remaining_ns * (1 - self.drift) / (1 + self.drift))

    def outlived_ns(self, remaining_ns: int) -> int:
        """Return how long after a reply its sub-lease has surely run out and been acted upon (rule 8)."""
        return int((remaining_ns / (1 - self.drift) + self.stall_ms * MS) * (1 + self.drift))


PROFILES: dict[str, Timing] = {
    "default": Timing(),
    "fast": Timing(
        beat_ms=25, renew_every_ms=25, suspect_ms=200, freeze_after_ms=290, stall_ms=150, promise_ms=450,
        stagger_ms=50, kill_after_ms=3_000,
    ),
    "wan": Timing(
        beat_ms=300, renew_every_ms=300, suspect_ms=1_200, freeze_after_ms=2_400, stall_ms=400, rtt_ms=400,
        rtt_local_ms=50, promise_ms=2_850, stagger_ms=500, kill_after_ms=10_000,
    ),
}  # fmt: skip
