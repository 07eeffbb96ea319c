"""A managed program that records when it acted: the evidence that nothing exclusive is ever active twice.

`recorder_program.py DIRECTORY` makes two kinds of entries there:

- `TENANT.PROCESS.COPY.NODE.PID.periods`: one record (epoch, first, last) a period in which it was active. `last` is
  moved on every TICK_MS, by a store into mapped memory that outlives any kill. What stands still for longer than
  GAP_MS, because it was frozen, say, did not act meanwhile: its next look begins another period;
- `log`: one line a transition, "boottime_ns tenant process copy node pid word epoch", of all programs together.

All times are CLOCK_BOOTTIME in nanoseconds, epochs are fencing numbers.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

RECORD = struct.Struct("<QQQ")
RECORDS = 2_048
TICK_MS = 10
GAP_MS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One program was active from `first_ns` to `last_ns` at the fencing number `epoch`."""

    process: str  # "tenant/process.copy"
    node: str
    pid: int
    epoch: int
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """A time in which a node as a whole was stopped: no timer of its own can freeze anything (design rule 11)."""

    node: str
    from_ns: int
    until_ns: int


class Recorder:
    """The file of one program."""

    def __init__(self, directory: Path, name: str) -> None:
        descriptor = os.open(directory / f"{name}.periods", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.ftruncate(descriptor, RECORD.size * RECORDS)
        self._map = mmap.mmap(descriptor, RECORD.size * RECORDS)
        os.close(descriptor)
        self._at = -1
        self._epoch = self._last = 0

    def acts(self, epoch: int) -> None:
        """Record that the program acts now."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._at < 0 or epoch != self._epoch or now - self._last > GAP_MS * 1_000_000:
            self._at = min(self._at + 1, RECORDS - 1)
            self._epoch = epoch
            RECORD.pack_into(self._map, self._at * RECORD.size, epoch, now, now)
        else:
            struct.pack_into("<Q", self._map, self._at * RECORD.size + 16, now)
        self._last = now

    def rests(self) -> None:
        """Record that it does not act any more."""
        self._epoch = self._last = 0


def periods(directory: Path) -> list[Period]:
    """Return all that is recorded, by time."""
    found = []
    for path in directory.glob("*.periods"):
        tenant, process, copy, node, pid = path.name.removesuffix(".periods").split(".")
        for epoch, first, last in RECORD.iter_unpack(path.read_bytes()):
            if first:
                key = f"{tenant}/{process}.{copy}"
                found.append(Period(process=key, node=node, pid=int(pid), epoch=epoch, first_ns=first, last_ns=last))
    return sorted(found, key=lambda period: period.first_ns)


def overlaps(found: Iterable[Period], uncovered: Iterable[Uncovered] = ()) -> list[tuple[Period, Period]]:
    """Return every two periods of one process, by different programs, that have a time in common."""
    windows = tuple(uncovered)
    by_process: dict[str, list[Period]] = {}
    for period in found:
        for part in _covered(period, windows):
            by_process.setdefault(period.process, []).append(part)
    bad = []
    for parts in by_process.values():
        parts.sort(key=lambda part: part.first_ns)
        for at, one in enumerate(parts):
            for other in parts[at + 1 :]:
                if other.first_ns > one.last_ns:
                    break
                if (one.node, one.pid) != (other.node, other.pid):
                    bad.append((one, other))
    return bad


def steps_back(found: Iterable[Period], uncovered: Iterable[Uncovered] = ()) -> list[tuple[Period, Period]]:
    """Return every period that began at a lower fencing number than one of the same process that began before it."""
    windows = tuple(uncovered)
    highest: dict[str, Period] = {}
    bad = []
    for period in sorted(found, key=lambda one: one.first_ns):
        if not _covered(period, windows):
            continue
        before = highest.get(period.process)
        if before is not None and period.epoch < before.epoch:
            bad.append((before, period))
        else:
            highest[period.process] = period
    return bad


def _covered(period: Period, windows: tuple[Uncovered, ...]) -> list[Period]:
    """Return what is left of a period outside of its node's windows."""
    parts = [period]
    for window in windows:
        if window.node != period.node:
            continue
        rest = []
        for part in parts:
            if part.last_ns < window.from_ns or part.first_ns > window.until_ns:
                rest.append(part)
                continue
            if part.first_ns < window.from_ns:
                rest.append(replace(part, last_ns=window.from_ns))
            if part.last_ns > window.until_ns:
                rest.append(replace(part, first_ns=window.until_ns))
        parts = rest
    return parts


def main(directory: Path) -> int:
    """Be what the agents say, and record it, until SIGTERM."""
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a program has no PYTHONPATH from its plan
    from ha import sdk

    place = [os.environ[key] for key in ("HA_TENANT", "HA_PROCESS", "HA_COPY", "HA_NODE")] + [str(os.getpid())]
    log = os.open(directory / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def say(word: str, epoch: int) -> None:
        line = f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {' '.join(place)} {word} {epoch}\n"
        os.write(log, line.encode())

    def end(_number: int, _frame: object) -> None:
        say("ended", 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    recorder = Recorder(directory, ".".join(place))
    agent = sdk.Agent()
    active, epoch = agent.active, agent.epoch
    say("active" if active else "standby", epoch)
    agent.ready()
    poller = select.poll()
    poller.register(agent.fileno(), select.POLLIN)
    while True:
        if active:
            recorder.acts(epoch)
        poller.poll(TICK_MS if active else 1_000)
        for change in agent.poll():
            active, epoch = change.role is sdk.Role.ACTIVE, change.epoch
            if not active:
                recorder.rests()
            say("active" if active else "standby", epoch)
            change.done()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
