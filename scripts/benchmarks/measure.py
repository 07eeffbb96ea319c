"""Measure: figures, medians, what /proc says, and the FIFO by which programs tell that they run."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number of one contestant. `samples` in `unit`; empty: not measured, `remark` says why."""

    figure: str
    who: str
    unit: str
    samples: tuple[float, ...] = ()
    remark: str = ""

    @property
    def p50(self) -> float | None:
        """Median, or None."""
        return percentile(self.samples, 0.5)

    @property
    def p99(self) -> float | None:
        """99th percentile (nearest rank), or None."""
        return percentile(self.samples, 0.99)


def repeated(figures: list[Figure]) -> Figure:
    """Return the same figure, measured several times, as one."""
    first = figures[0]
    return Figure(first.figure, first.who, first.unit, tuple(s for f in figures for s in f.samples), first.remark)


def percentile(samples: tuple[float, ...], rank: float) -> float | None:
    """Return the nearest-rank percentile, None of nothing."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(rank * len(ordered)) - 1)] if ordered else None


@dataclass(slots=True)
class Births:
    """A FIFO to which programs write "NAME PID" as their first deed; the instant is that of the arrival here."""

    path: Path
    fd: int = -1
    pids: dict[str, int] = field(default_factory=dict)  # the last pid of each program
    seen: list[tuple[str, int]] = field(default_factory=list)
    _rest: bytes = b""

    def __post_init__(self) -> None:
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # RDWR: never at its end

    def script(self, name: str, then: str = "exec sleep 100000") -> str:
        """Return the shell text of a program that reports its birth and goes on with `then`."""
        return f"#!/bin/sh\necho {name} $$ >{self.path}\n{then}\n"

    def wait(self, timeout_s: float) -> list[tuple[str, int]]:
        """Return the next births as (name, pid), an empty list when there is none in time."""
        if not select.select([self.fd], [], [], max(0.0, timeout_s))[0]:
            return []
        *lines, self._rest = (self._rest + os.read(self.fd, 65536)).split(b"\n")
        born = [(name.decode(), int(pid)) for name, pid in (line.split() for line in lines)]
        self.pids.update(born)
        self.seen += born
        return born

    def wait_for(self, names: set[str], timeout_s: float) -> bool:
        """Return whether all of these have been born, since ever, within the time."""
        ends = time.monotonic() + timeout_s
        while names - self.pids.keys():
            if time.monotonic() > ends:
                return False
            self.wait(0.2)
        return True

    def alive(self) -> set[int]:
        """Return the pids ever born that still run (their command is a sleep or a shell of ours)."""
        return {pid for _, pid in self.seen if is_sleep(pid)}

    def end_all(self) -> None:
        """End every program that was ever born and still runs, then close."""
        for pid in self.alive():
            kill(pid)
        os.close(self.fd)


def is_sleep(pid: int) -> bool:
    """Return whether that pid is (still) a program of ours: `sleep 100000`."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00100000\x00"
    except OSError:
        return False


def is_frozen(pid: int) -> bool:
    """Return whether the process is stopped, or in a frozen cgroup v2."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
            return True
        group = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
        roots = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
        events = (Path(root + group.removeprefix("0::")) / "cgroup.events" for root in roots)
        return any("frozen 1" in path.read_text() for path in events if path.exists())
    except (OSError, StopIteration):
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal by pidfd; one that is gone is left alone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def pss_mib(pid: int) -> float:
    """Return the proportional set size in MiB, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def children(pid: int) -> list[int]:
    """Return all descendants of a process."""
    try:
        direct = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return direct + [deeper for child in direct for deeper in children(child)]


def idle_percent(pids: list[int], seconds: float) -> float:
    """Return the share of one core that these processes use together, in percent."""
    before, began = sum(map(cpu_s, pids)), time.monotonic()
    time.sleep(seconds)
    return 100 * (sum(map(cpu_s, pids)) - before) / (time.monotonic() - began)
