"""Care: whether a watched agent is alive, dead or stuck, and when it may be started again.

Shared by Master and Watcher. Laws:
- a start follows a death at once; the k-th death in a row within EARLY_MS of its start delays the next start to
  AGENT_RESTART_FLOOR_MS * 2**(k-1), at most AGENT_RESTART_MAX_MS, after the start before;
- stuck is who runs and whose progress counter has not moved for STUCK_AFTER_MS *of the watcher's own good time*: a
  watcher that was itself late (`excuse`) blames nobody for that time (design section 3, rule 12);
- only the death of the very pid that is known counts; a late or doubled one changes nothing.

Imports neither msgspec, dataclasses nor typing: they are most of what a Watcher would weigh (measured: 2.9 MiB private
for a bare interpreter, +4.1 with msgspec, +2.6 with dataclasses), and the Watcher should be the last thing the kernel
has a reason to end.
"""

from __future__ import annotations

from enum import Enum

from ha.model.limits import (
    AGENT_RESTART_FLOOR_MS,
    AGENT_RESTART_MAX_MS,
    AGENT_START_TIMEOUT_MS,
    STUCK_AFTER_MS,
)

MS = 1_000_000
EARLY_MS = 2_000  # a death sooner than this after the start counts as "at once"
LOOK_EVERY_MS = 500  # locks and progress are read this often
LATE_MS = 200  # a look later than this is not good time


class Health(Enum):
    """How a watched agent is; the values are those of `ha.model.status.AgentState`."""

    STARTING = "starting"
    UP = "up"
    STUCK = "stuck"
    DEAD = "dead"


class Ward:
    """One watched agent. Times are ns of CLOCK_BOOTTIME; `pid` 0: nobody, or not known yet."""

    __slots__ = ("early_deaths", "health", "next_start_at", "pid", "restarts", "role", "started_at", "starts", "turn")

    def __init__(self, role: str) -> None:
        self.role = role
        self.pid = 0
        self.health = Health.DEAD
        self.starts = 0
        self.restarts = 0
        self.started_at = 0
        self.next_start_at = 0
        self.early_deaths = 0
        self.turn = (0, 0)  # (progress counter, when it was seen to change); (0, ...): not since the start

    def may_start(self, now: int) -> bool:
        """Return whether it is dead, and its delay is over."""
        return self.health is Health.DEAD and now >= self.next_start_at

    def begin(self, now: int) -> None:
        """Note that it is being started."""
        self.health = Health.STARTING
        self.restarts += 1 if self.starts else 0
        self.starts += 1
        self.pid = 0
        self.started_at = now
        self.turn = (0, now)

    def seen(self, pid: int, now: int) -> bool:
        """Note that the agent runs as `pid`; return whether that is news. Another pid than before is another start."""
        if pid in (0, self.pid):
            return False
        if self.health is not Health.STARTING or self.pid:
            # Found, or started by somebody else: adopted, nothing of ours.
            self.restarts += 1 if self.starts else 0
            self.starts += 1
            self.started_at = now
        self.pid = pid
        self.health = Health.STARTING
        self.turn = (0, now)
        return True

    def turned(self, pid: int, counter: int, now: int) -> bool:
        """Note the progress counter of its loop; return whether it was found to be up just now."""
        if pid != self.pid or not counter or counter == self.turn[0]:
            return False
        self.turn = (counter, now)
        if self.health is not Health.STARTING:
            return False
        self.health = Health.UP
        return True

    def stuck(self, now: int) -> bool:
        """Return whether it just became stuck: kill it. A starting one has AGENT_START_TIMEOUT_MS."""
        if not self.pid or self.health is Health.STUCK:
            return False
        patience_ms = STUCK_AFTER_MS if self.health is Health.UP else AGENT_START_TIMEOUT_MS
        if now - self.turn[1] <= patience_ms * MS:
            return False
        self.health = Health.STUCK
        return True

    def vanished(self, now: int) -> bool:
        """Return whether a start has brought nothing in AGENT_START_TIMEOUT_MS; it is then dead."""
        if self.health is not Health.STARTING or self.pid or now - self.started_at <= AGENT_START_TIMEOUT_MS * MS:
            return False
        self._dead(now)
        return True

    def excuse(self, late_ns: int) -> None:
        """Leave out time that the watcher itself missed."""
        self.turn = (self.turn[0], self.turn[1] + late_ns)

    def died(self, pid: int, now: int) -> bool:
        """Note a death; return False for that of a stranger, or one already known."""
        if not pid or pid != self.pid:
            return False
        self._dead(now)
        return True

    def not_started(self, now: int) -> None:
        """Note that a start failed."""
        if self.health is Health.STARTING and not self.pid:
            self._dead(now)

    def wake_at(self) -> int | None:
        """Return when it may be started again, None unless it is dead."""
        return self.next_start_at if self.health is Health.DEAD else None

    def _dead(self, now: int) -> None:
        self.pid = 0
        self.health = Health.DEAD
        early = now - self.started_at < EARLY_MS * MS
        self.early_deaths = self.early_deaths + 1 if early else 0
        doublings = min(self.early_deaths - 1, 16)
        delay_ms = min(AGENT_RESTART_FLOOR_MS << doublings, AGENT_RESTART_MAX_MS) if self.early_deaths else 0
        self.next_start_at = max(now, self.started_at + delay_ms * MS)
