"""Figures of one node beside peers: restart, 1,000 programs, a killed supervisor, an escaped child, footprint."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Births, Figure, idle_percent, is_frozen, kill, pss_mib
from benchmarks.peers import Peer, write_scripts

AGE_S = 1.2  # s6 and runit restart what has run for less than a second only after that second: kill only older ones
RESTART_TIMEOUT_S = 15.0
UP_TIMEOUT_S = 60.0


@contextmanager
def running(peer: Peer, count: int, then: str = "exec sleep 100000") -> Iterator[tuple[Births, float]]:
    """Run `count` programs under the peer; yields births and how many seconds it took until all were born."""
    directory = Path(tempfile.mkdtemp(prefix="ha-bench-"))
    births = Births(directory / "births")
    names = [f"p{n}" for n in range(count)]
    try:
        try:
            peer.prepare(directory, write_scripts(directory, {name: births.script(name, then) for name in names}))
            began = time.monotonic()
            peer.start()
            if not births.wait_for(set(names), UP_TIMEOUT_S):
                raise TimeoutError(f"{peer.name}: only {len(births.pids)} of {count} programs came up")
            yield births, time.monotonic() - began
        finally:
            peer.stop()
    finally:
        births.end_all()
        shutil.rmtree(directory, ignore_errors=True)


def crash(peer: Peer, kills: int, programs: int = 20) -> Figure:
    """Kill -9 programs in turn: ms from the kill until the next one of the same name has said its pid."""
    samples = []
    with running(peer, programs) as (births, _):
        born = dict.fromkeys(births.pids, time.monotonic())
        for number in range(kills):
            name = f"p{number % programs}"
            time.sleep(max(0.0, born[name] + AGE_S - time.monotonic()))
            old = births.pids[name]
            began = time.monotonic_ns()
            kill(old)
            while births.pids[name] == old:
                if not births.wait(RESTART_TIMEOUT_S):
                    raise TimeoutError(f"{peer.name}: {name} was not restarted")
            samples.append((time.monotonic_ns() - began) / 1e6)
            born[name] = time.monotonic()
    return Figure("crash -> restarted", peer.name, "ms", tuple(samples))


def many(peer: Peer, count: int = 1_000) -> Figure:
    """Seconds from the start of the supervisor until every one of `count` programs has said its pid."""
    with running(peer, count) as (_, seconds):
        return Figure(f"{count} programs started", peer.name, "s", (seconds,))


def killed_supervisor(peer: Peer, count: int = 10) -> Figure:
    """Kill -9 the supervisor, start it again: how many programs more than wanted run (and how many were lost)."""
    with running(peer, count) as (births, _):
        while len(before := births.alive()) < count:  # each says its pid just before it becomes a sleep
            time.sleep(0.02)
        peer.kill()
        peer.start()
        settled = time.monotonic() + 5.0
        while time.monotonic() < settled:
            births.wait(0.2)
        alive = {pid for pid in births.alive() if not is_frozen(pid)}  # a frozen one does nothing any more
        remark = f"{len(before & alive)} of {count} untouched, {len(alive - before)} new"
        return Figure("supervisor killed: duplicates", peer.name, "processes", (float(len(alive) - count),), remark)


def escaped_child(peer: Peer) -> Figure:
    """A program starts a child in a session of its own; it is stopped: how many are left after it."""
    then = "setsid sh -c 'echo child $$ >FIFO; exec sleep 100000' &\nexec sleep 100000"
    directory = Path(tempfile.mkdtemp(prefix="ha-bench-"))
    births = Births(directory / "births")
    try:
        text = births.script("p0", then.replace("FIFO", str(births.path)))
        peer.prepare(directory, write_scripts(directory, {"p0": text}))
        peer.start()
        try:
            if not births.wait_for({"p0", "child"}, UP_TIMEOUT_S):
                raise TimeoutError(f"{peer.name}: the child did not come up")
            time.sleep(AGE_S)  # supervisord counts a program as started after a second
            peer.stop_program("p0")
            left = len(births.alive())
        finally:
            peer.stop()
        return Figure("escaped child after stop: left", peer.name, "processes", (float(left),))
    finally:
        births.end_all()
        shutil.rmtree(directory, ignore_errors=True)


def footprint(peer: Peer, count: int, seconds: float = 10.0) -> list[Figure]:
    """Memory (PSS, MiB) and idle CPU (percent of a core) of the supervisor with `count` sleeping programs."""
    with running(peer, count):
        time.sleep(2.0)
        pids = peer.pids()
        return [
            Figure(f"memory (PSS), {count} programs", peer.name, "MiB", (sum(map(pss_mib, pids)),)),
            Figure(f"idle CPU, {count} programs", peer.name, "% of a core", (idle_percent(pids, seconds),)),
        ]


def attempt(figure: str, peer: Peer, run: Callable[[], Figure | list[Figure]]) -> list[Figure]:
    """Return what was measured, or one figure without samples that says why not."""
    missing = peer.missing()
    if missing:
        return [Figure(figure, peer.name, "", remark=f"not here: {missing}")]
    try:
        found = run()
    except NotImplementedError:
        return [Figure(figure, peer.name, "", remark="it has no such thing")]
    except (OSError, TimeoutError, AssertionError) as error:
        return [Figure(figure, peer.name, "", remark=f"failed: {error}")]
    return found if isinstance(found, list) else [found]
