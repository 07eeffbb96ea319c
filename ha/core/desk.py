"""Desk of the Monitor: its events and effects, the timers, and what it remembers of each copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

from ha.core.machine import Effect, Event, Note
from ha.core.probes import Probes, Run
from ha.core.restart import Act, Deaths, Decision
from ha.model import limits
from ha.model.messages import CopyState, Fact, Generation
from ha.model.plan import Log, Node, Probe, Process
from ha.model.status import Exit, State

STAY = Decision(Act.STAY)
Life = tuple[int, int, int]  # pid, start ticks, started_ns: one OS process, never another


class PidGone(Event, frozen=True):
    """The Monitor's own pidfd says that this OS process is gone (or was gone when it was to be watched)."""

    copy: str
    pid: int
    start_ticks: int


class StartProbe(Effect, frozen=True):
    """Run one probe, placeholders filled in; an exec one as `user` and `group` (empty: the agent's own)."""

    run: Run
    probe: Probe
    user: str = ""
    group: str = ""
    directory: str = "/"
    environment: tuple[tuple[str, str], ...] = ()


class CancelProbe(Effect, frozen=True):
    """End a run: it timed out, or its copy is no longer to be probed. Its result is not wanted."""

    run: Run


class WatchPid(Effect, frozen=True):
    """Open a pidfd, compare the start ticks after it, and say `PidGone` when the process ends."""

    copy: str
    pid: int
    start_ticks: int


class UnwatchPid(Effect, frozen=True):
    """Close the pidfd of this copy."""

    copy: str
    pid: int


class OpenLog(Effect, frozen=True):
    """Read the output of this copy into its log; done again at each start, with the rotation that holds then."""

    copy: str
    log: Log


class CloseLog(Effect, frozen=True):
    """The copy left the plan and runs no more: read what is left and close."""

    copy: str


class Timer(StrEnum):
    """What a copy waits for."""

    READY = "ready"  # its readiness timeout
    BACKOFF = "backoff"  # the restart
    FALLBACK = "fallback"  # a word of the Server about a reported death
    RETRY = "retry"  # the Spawner to do what it was asked
    AHEAD = "ahead"  # to have run for so long that its next restart is immediate again
    FACT = "fact"  # the Spawner to say how a process ended that our pidfd saw end


class Rest(StrEnum):
    """Why a dead copy is not running."""

    NONE = "none"  # it should not run, or never did
    UNJUDGED = "unjudged"  # the plan is not known yet
    REVIVING = "reviving"  # the Spawner was asked to start it
    BACKOFF = "backoff"
    REPORTED = "reported"  # the Server decides first
    STAYS = "stays"  # the policy says so
    GIVEN_UP = "given-up"


class Timers:
    """One heap for all copies; setting a timer again replaces it."""

    __slots__ = ("_heap", "_set")

    def __init__(self) -> None:
        self._set: dict[tuple[str, Timer], int] = {}
        self._heap: list[tuple[int, str, Timer]] = []

    def set(self, copy: str, timer: Timer, at: int) -> None:
        """Let it run out at `at`."""
        self._set[(copy, timer)] = at
        heappush(self._heap, (at, copy, timer))

    def clear(self, copy: str, *timers: Timer) -> None:
        """Forget these timers of the copy."""
        for timer in timers:
            self._set.pop((copy, timer), None)

    def left(self, copy: str, timer: Timer, now: int) -> int | None:
        """Return how long it still runs, or None if it is not set."""
        at = self._set.get((copy, timer))
        return None if at is None else max(0, at - now)

    def next_at(self) -> int | None:
        """Return when the first one runs out, or None."""
        while self._heap and self._set.get(self._heap[0][1:]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: int) -> list[tuple[str, Timer]]:
        """Take out and return those that have run out, in order of time."""
        due: list[tuple[str, Timer]] = []
        while (at := self.next_at()) is not None and at <= now:
            _, copy, timer = heappop(self._heap)
            del self._set[(copy, timer)]
            due.append((copy, timer))
        return due


@dataclass(slots=True)
class Copy:
    """One copy as the Monitor knows it. `process` None: not in the plan, or no plan yet."""

    fact: Fact
    deaths: Deaths
    process: Process | None = None
    state: State = State.DOWN
    reason: str = ""
    restarts: int = 0
    ready: bool = False
    rest: Rest = Rest.NONE
    life: Life | None = None
    judged: tuple[Life, Exit | None] | None = None  # the end that was decided about
    killing: str = ""  # why the Spawner was asked to end it
    gone: bool = False  # our pidfd saw the end, the Spawner has not said it
    frozen_at: int | None = None
    frozen_ns: int = 0  # of this life
    ready_left: int | None = None  # of the readiness timeout, while frozen
    decision: Decision = STAY
    ahead: tuple[Life, Generation] | None = None  # what the Spawner was told to restart at once

    def view(self) -> CopyState:
        """Return what is broadcast."""
        fact = self.fact
        return CopyState(
            copy=fact.copy, state=self.state, generation=fact.generation, serial=fact.serial, role=fact.role,
            fencing=fact.fencing, pid=fact.pid if self.state.runs else 0, started_at=fact.started_at,
            restarts=self.restarts, exit=Exit() if self.gone else fact.exit,
            reason=self.reason[: limits.MAX_REASON_CHARS], restart=fact.restart, reset=fact.reset,
            status=fact.status[: limits.STATUS_LINE_CHARS],
        )  # fmt: skip


@dataclass(slots=True)
class Desk:
    """What all copies share, and the effects of the current step. `dirty`: keys whose view may have changed."""

    node: Node
    now: int = 0
    plan_known: bool = False
    probes: Probes = field(default_factory=Probes)
    timers: Timers = field(default_factory=Timers)
    effects: list[Effect] = field(default_factory=list)
    dirty: dict[str, None] = field(default_factory=dict)
    freezes: int = 0


def say(desk: Desk, copy: Copy, state: State, reason: str) -> None:
    """Note a transition; the broadcast follows at the end of the step."""
    key = copy.fact.copy
    if (state, reason) == (copy.state, copy.reason):
        return
    if state is not copy.state:
        epoch = copy.fact.fencing >> 16
        desk.effects.append(Note("state", key, from_=copy.state, to=state, reason=reason, epoch=epoch))
    copy.state, copy.reason = state, reason
    desk.dirty[key] = None
