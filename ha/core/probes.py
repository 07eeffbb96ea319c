"""Probes: when each configured check runs, and what its results mean. Verdicts are transitions only.

Every probe of every copy has its own place in one heap, so that a hung one delays no other; at most
`limits.PROBES_AT_ONCE` run at a time, what is due beyond that starts in order as the others end. A probe never
runs twice at the same time; one that overruns its interval runs again as soon as it has ended. A run that
exceeds its timeout is a failure. Until it first passes, an *eager* probe (readiness) is repeated after 10, 20, 40,
... ms up to its interval, so that readiness is seen soon after it is there. While a copy is suspended (frozen),
its time stands still.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from ha.model import limits
from ha.model.plan import Probe
from ha.model.timing import MS

EAGER_FIRST_MS = 10
HEAP_SLACK = 64  # stale entries the heap may hold before it is rebuilt, beside as many as are valid


class Verdict(StrEnum):
    """What a probe's results say; `PASSES` and `FAILS` are told once, when they become so."""

    PASSES = "passes"
    FAILS = "fails"


class Run(NamedTuple):
    """One run of one probe; `nth`: its place in the plan; `number` tells this run from every other."""

    copy: str
    nth: int
    number: int


class Told(NamedTuple):
    """A verdict with the last result's reason."""

    copy: str
    nth: int
    verdict: Verdict
    reason: str


class Turn(NamedTuple):
    """What is due: runs to start, runs to cancel (timed out), and the verdicts of those."""

    start: tuple[Run, ...]
    cancel: tuple[Run, ...]
    told: tuple[Told, ...]


@dataclass(slots=True)
class _Probe:
    spec: Probe
    next_at: int  # when it is due; while suspended: how long until then
    eager: bool
    eager_ms: int = EAGER_FIRST_MS
    number: int = 0  # of the current or last run
    running: bool = False
    queued: bool = False
    deadline: int = 0  # of the current run
    row: int = 0  # equal results in a row, > 0 passes, < 0 failures
    verdict: Verdict | None = None


@dataclass(slots=True)
class _Copy:
    probes: list[_Probe]
    suspended: bool = False


class Probes:
    """The schedule of all probes of a node. Times are ns of one clock."""

    __slots__ = ("_at_once", "_copies", "_heap", "_heap_bound", "_numbers", "_queue", "_running")

    def __init__(self, at_once: int = limits.PROBES_AT_ONCE) -> None:
        self._at_once = at_once
        self._copies: dict[str, _Copy] = {}
        self._heap: list[tuple[int, str, int]] = []
        self._queue: deque[tuple[str, int]] = deque()
        self._running: dict[tuple[str, int], None] = {}
        self._numbers = 0
        self._heap_bound = HEAP_SLACK

    def add(self, copy: str, specs: tuple[Probe, ...], eager: bool, now: int) -> tuple[Run, ...]:
        """Begin to probe a copy that runs, from its initial delays on; return old runs to cancel."""
        cancelled = self.remove(copy)
        probes = [_Probe(spec, now + spec.initial_delay_ms * MS, eager) for spec in specs]
        self._copies[copy] = _Copy(probes)
        for index, probe in enumerate(probes):
            heappush(self._heap, (probe.next_at, copy, index))
        return cancelled

    def remove(self, copy: str) -> tuple[Run, ...]:
        """Forget a copy; return its runs to cancel."""
        cancelled = self._cancel_all(copy)
        self._copies.pop(copy, None)
        return cancelled

    def suspend(self, copy: str, now: int) -> tuple[Run, ...]:
        """Let a copy's time stand still; return its runs to cancel: they say nothing."""
        entry = self._copies.get(copy)
        if entry is None or entry.suspended:
            return ()
        cancelled = self._cancel_all(copy)
        entry.suspended = True
        for probe in entry.probes:
            probe.next_at = max(0, probe.next_at - now)
        return cancelled

    def resume(self, copy: str, now: int) -> None:
        """Let a copy's time go on where it stood."""
        entry = self._copies.get(copy)
        if entry is None or not entry.suspended:
            return
        entry.suspended = False
        for index, probe in enumerate(entry.probes):
            probe.next_at += now
            heappush(self._heap, (probe.next_at, copy, index))

    def done(self, run: Run, ok: bool, reason: str, now: int) -> Told | None:
        """Take in the end of a run; a late or unknown one changes nothing. Return a verdict that is new."""
        probe = self._probe(run.copy, run.nth)
        if probe is None or not probe.running or probe.number != run.number:
            return None
        return self._ended(run.copy, run.nth, probe, ok, reason, now)

    def turn(self, now: int, grace_ns: int = 0) -> Turn:
        """Return what is due at `now`.

        `grace_ns` above 0: the agent itself was late; overdue runs get that long again instead of a verdict.
        """
        cancel: list[Run] = []
        told: list[Told] = []
        for copy, index in list(self._running):
            probe = self._copies[copy].probes[index]
            if probe.deadline > now:
                continue
            if grace_ns:
                probe.deadline = now + grace_ns
            else:
                cancel.append(Run(copy, index, probe.number))
                news = self._ended(copy, index, probe, False, f"no answer within {probe.spec.timeout_ms}ms", now)
                if news:
                    told.append(news)
        self._enqueue(now)
        return Turn(self._start(now), tuple(cancel), tuple(told))

    def wake_at(self) -> int | None:
        """Return when `turn` should be called next (0: now), or None."""
        self._tidy()
        if self._queue and len(self._running) < self._at_once:
            return 0
        times = [self._copies[copy].probes[index].deadline for copy, index in self._running]
        if self._heap:
            times.append(self._heap[0][0])
        return min(times, default=None)

    def passes(self, copy: str) -> bool:
        """Return whether every probe of the copy passes; False for a copy without probes."""
        entry = self._copies.get(copy)
        return entry is not None and bool(entry.probes) and all(p.verdict is Verdict.PASSES for p in entry.probes)

    def specs(self, copy: str) -> tuple[Probe, ...] | None:
        """Return the probes a copy is checked with now, or None."""
        entry = self._copies.get(copy)
        return tuple(probe.spec for probe in entry.probes) if entry else None

    def _probe(self, copy: str, index: int) -> _Probe | None:
        entry = self._copies.get(copy)
        return entry.probes[index] if entry and 0 <= index < len(entry.probes) else None

    def _valid(self, at: int, copy: str, index: int) -> bool:
        entry = self._copies.get(copy)
        probe = self._probe(copy, index)
        return (
            entry is not None and probe is not None and not entry.suspended
            and not probe.running and not probe.queued and probe.next_at == at
        )  # fmt: skip

    def _tidy(self) -> None:
        while self._heap and not self._valid(*self._heap[0]):
            heappop(self._heap)
        if len(self._heap) > self._heap_bound:
            self._heap = [entry for entry in self._heap if self._valid(*entry)]
            heapify(self._heap)
            self._heap_bound = 2 * len(self._heap) + HEAP_SLACK

    def _enqueue(self, now: int) -> None:
        self._tidy()
        while self._heap and self._heap[0][0] <= now:
            _, copy, index = heappop(self._heap)
            self._copies[copy].probes[index].queued = True
            self._queue.append((copy, index))
            self._tidy()

    def _start(self, now: int) -> tuple[Run, ...]:
        started: list[Run] = []
        while self._queue and len(self._running) < self._at_once:
            copy, index = self._queue.popleft()
            probe = self._probe(copy, index)
            if probe is None or not probe.queued:
                continue
            probe.queued, probe.running = False, True
            self._numbers += 1
            probe.number = self._numbers
            probe.deadline = now + probe.spec.timeout_ms * MS
            self._running[(copy, index)] = None
            started.append(Run(copy, index, probe.number))
        return tuple(started)

    def _ended(self, copy: str, index: int, probe: _Probe, ok: bool, reason: str, now: int) -> Told | None:
        self._running.pop((copy, index), None)
        probe.running = False
        if ok or not probe.eager:
            probe.eager = False
            probe.next_at = max(probe.next_at + probe.spec.interval_ms * MS, now)
        else:
            probe.next_at = now + min(probe.eager_ms, probe.spec.interval_ms) * MS
            probe.eager_ms *= 2
        heappush(self._heap, (probe.next_at, copy, index))
        probe.row = max(probe.row, 0) + 1 if ok else min(probe.row, 0) - 1
        new = probe.verdict
        if probe.row >= probe.spec.successes:
            new = Verdict.PASSES
        elif probe.row <= -probe.spec.failures:
            new = Verdict.FAILS
        if new is probe.verdict or new is None:
            return None
        probe.verdict = new
        return Told(copy, index, new, reason)

    def _cancel_all(self, copy: str) -> tuple[Run, ...]:
        entry = self._copies.get(copy)
        cancelled: list[Run] = []
        for index, probe in enumerate(entry.probes if entry else ()):
            probe.queued = False
            if probe.running:
                probe.running = False
                self._running.pop((copy, index), None)
                cancelled.append(Run(copy, index, probe.number))
        return tuple(cancelled)
