"""Places real SIP calls at a rate, and reports how they went.

    python caller.py --to 127.0.0.11:5100,127.0.0.21:5100 --rate 20 --count 200 --hold 0.5

Each call is tried at the next address when one is not answered in time, refused by the network, or answered 5xx: it
counts as failed only when every try failed. An answered call that did not last its hold time counts as dropped. With
`--count 0` it runs until SIGTERM, then ends its calls. Prints one JSON line each `--every` seconds, and a last one:

    {"final", "seconds", "attempted", "answered", "failed", "dropped", "retried", "queued", "in_progress",
     "setup_p50_ms", "setup_p95_ms", "longest_gap_ms", "addresses": {address: answered}, "why": {reason: count}}

`longest_gap_ms`: between two answers, the idle time before the first and after the last left out; null below two.
Exit code 0: no call failed or was dropped; 1 otherwise.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import sip
from program import Loop, addresses
from uac import OVER, Leg, LegState

REST_S = 1.0  # an address that failed is not a call's first choice for this long
DRAIN_S = 2.0  # how long the end waits for the answers to BYE
SETUPS_KEPT = 100_000


@dataclass(slots=True, eq=False)
class Target:
    """An address calls are placed at, by a socket of its own so that the network's refusal is known at once."""

    address: sip.Address
    sock: socket.socket
    legs: dict[str, Leg] = field(default_factory=dict)
    rest_until: float = 0.0
    answered: int = 0

    def __str__(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


@dataclass(slots=True, eq=False)
class Placed:
    """One call of the report: its tries so far. `settled`: counted as answered or failed."""

    started_at: float
    tries: int = 0
    settled: bool = False


@dataclass(slots=True)
class Report:
    """What happened since the start."""

    started_at: float
    counts: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    setups: list[float] = field(default_factory=list)
    last_answer: float | None = None
    longest_gap: float | None = None

    def answered(self, setup: float, now: float) -> None:
        """Count an answer."""
        self.counts["answered"] += 1
        if len(self.setups) < SETUPS_KEPT:
            self.setups.append(setup)
        if self.last_answer is not None:
            self.longest_gap = max(self.longest_gap or 0.0, now - self.last_answer)
        self.last_answer = now

    def render(self, targets: list[Target], *, final: bool, in_progress: int) -> dict[str, object]:
        """Return the object that is printed."""
        ordered = sorted(self.setups)
        names = ("attempted", "answered", "failed", "dropped", "retried", "queued")
        return {
            "final": final, "seconds": round(time.monotonic() - self.started_at, 3),
            **{name: self.counts[name] for name in names}, "in_progress": in_progress,
            "setup_p50_ms": _percentile(ordered, 0.50), "setup_p95_ms": _percentile(ordered, 0.95),
            "longest_gap_ms": None if self.longest_gap is None else round(self.longest_gap * 1000, 1),
            "addresses": {str(target): target.answered for target in targets}, "why": dict(self.why),
        }  # fmt: skip


def _percentile(ordered: list[float], part: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1000, 2) if ordered else None


class Caller:
    """Places calls until told to stop; `done` is set once the last is over."""

    def __init__(self, loop: Loop, options: argparse.Namespace) -> None:
        self._loop, self._options = loop, options
        self._targets = [Target(address, self._socket(options.bind, address)) for address in options.to]
        for target in self._targets:
            loop.watch(target.sock, partial(self._receive, target))
        self._turn = itertools.count()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Target, Leg]] = []
        self._timer_set: float | None = None
        self._placed: dict[Leg, Placed] = {}
        self._in_progress = 0
        self._next_at = time.monotonic()
        self.stopped = False
        self.report = Report(self._next_at)
        self._place()
        if options.every:
            loop.every(options.every, lambda: self.print(final=False))

    @property
    def done(self) -> bool:
        """Whether no more calls will be placed and none is in progress."""
        return self.stopped and not self._in_progress

    def print(self, *, final: bool) -> None:
        """Print the report as one line."""
        print(json.dumps(self.report.render(self._targets, final=final, in_progress=self._in_progress)), flush=True)

    def stop(self) -> None:
        """Place no more calls and end those in progress."""
        self.stopped = True
        now = time.monotonic()
        for target in self._targets:
            for leg in tuple(target.legs.values()):
                leg.hang_up(now)
                self._step(target, leg)

    # --- placing --------------------------------------------------------------------------------------

    def _socket(self, bind: str, address: sip.Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((bind, 0))
        sock.connect(address)
        sock.setblocking(False)
        return sock

    def _place(self) -> None:
        """Place what is due: the rate is kept on average, a late loop does not lower it."""
        while not self.stopped and self._next_at <= time.monotonic():
            self._next_at += 1 / self._options.rate
            self.report.counts["attempted"] += 1
            self._in_progress += 1
            self._try(Placed(time.monotonic()))
            if self.report.counts["attempted"] == self._options.count:
                self.stopped = True
        if not self.stopped:
            self._loop.after(self._next_at - time.monotonic(), self._place)

    def _try(self, call: Placed) -> None:
        now = time.monotonic()
        first = next(self._turn) % len(self._targets)
        rotated = self._targets[first:] + self._targets[:first]
        target = min(rotated, key=lambda one: one.rest_until if one.rest_until > now else 0.0)
        call.tries += 1
        local = target.sock.getsockname()
        leg = Leg(user=self._options.user, local=local, remote=target.address, hold=self._options.hold)
        target.legs[leg.call_id] = leg
        self._placed[leg] = call
        leg.start(now)
        self._step(target, leg)
        self._loop.after(self._options.answer_timeout, partial(self._unanswered, target, leg))

    def _unanswered(self, target: Target, leg: Leg) -> None:
        if leg.state in (LegState.CALLING, LegState.PROCEEDING):
            leg.give_up(time.monotonic(), f"no answer within {self._options.answer_timeout} s")
            self._step(target, leg)

    # --- what comes of it -----------------------------------------------------------------------------

    def _receive(self, target: Target, _events: int) -> None:
        for _ in range(64):
            try:
                data = target.sock.recv(65536)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._refused(target)
                continue
            try:
                message, parts = sip.parse(data)
            except sip.Malformed:
                self.report.why["malformed answer"] += 1
                continue
            if leg := target.legs.get(parts.call_id):
                leg.receive(message, parts, time.monotonic())
                self._step(target, leg)

    def _refused(self, target: Target) -> None:
        """Nobody listens there any more: nothing that waits for a word from there will get one."""
        for leg in tuple(target.legs.values()):
            leg.unreachable()
            self._step(target, leg)

    def _step(self, target: Target, leg: Leg) -> None:
        """Send what the leg wants, count what became of it, and be back when it is due."""
        refused = False
        for data in leg.out:
            try:
                target.sock.send(data)
            except ConnectionRefusedError:
                refused = True  # the word about an earlier datagram; this one was not sent
            except OSError as error:
                self.report.why[f"cannot send: {error.strerror}"] += 1
        leg.out.clear()
        self._count(target, leg)
        if leg.state in OVER:
            target.legs.pop(leg.call_id, None)
            self._placed.pop(leg, None)
        elif (due := leg.wake_at()) is not None:
            heapq.heappush(self._timers, (due, next(self._order), target, leg))
            self._arm()
        if refused:
            self._refused(target)

    def _count(self, target: Target, leg: Leg) -> None:
        call = self._placed.get(leg)
        if call is None:
            return
        now = time.monotonic()
        if not call.settled and leg.state is LegState.UP:
            call.settled = True
            target.answered += 1
            self.report.answered(now - call.started_at, now)
            self.report.counts["queued"] += "X-Queue" in leg.answer_headers
        elif not call.settled and leg.state in (LegState.FAILED, LegState.GIVEN_UP):
            del self._placed[leg]
            target.rest_until = now + REST_S
            self._failed(call, leg)
        if call.settled and leg.state in (LegState.ENDED, LegState.DROPPED):
            self._in_progress -= 1
            if leg.state is LegState.DROPPED:
                self.report.counts["dropped"] += 1
                self.report.why[leg.why] += 1

    def _failed(self, call: Placed, leg: Leg) -> None:
        self.report.why[leg.why] += 1
        temporary = leg.code == 0 or leg.code >= 500
        if temporary and call.tries < self._options.tries and not self._loop.stopping:
            self.report.counts["retried"] += 1
            self._try(call)
        else:
            self.report.counts["failed"] += 1
            self._in_progress -= 1

    def _arm(self) -> None:
        if self._timers and (self._timer_set is None or self._timers[0][0] < self._timer_set):
            self._timer_set = self._timers[0][0]
            self._loop.after(self._timer_set - time.monotonic(), self._tick)

    def _tick(self) -> None:
        self._timer_set = None
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, target, leg = heapq.heappop(self._timers)
            due = leg.wake_at()
            if due is not None and due <= now:
                leg.tick(now)
                self._step(target, leg)
        self._arm()


def main() -> None:
    """Place the calls, print the report, exit 0 or 1."""
    parser = argparse.ArgumentParser(description="places SIP calls")
    parser.add_argument("--to", type=addresses, required=True, metavar="HOST:PORT,...", help="the IVRs' addresses")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDR", help="address to call from")
    parser.add_argument("--user", default="100", help="whom to call (%(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="calls a second (%(default)s)")
    parser.add_argument("--count", type=int, default=0, help="how many; 0: until SIGTERM")
    parser.add_argument("--hold", type=float, default=0.5, metavar="SECONDS", help="from answer to BYE (%(default)s)")
    parser.add_argument(
        "--answer-timeout", type=float, default=1.5, metavar="SECONDS", help="then the next address is tried"
    )
    parser.add_argument("--tries", type=int, default=6, help="how many addresses a call is tried at (%(default)s)")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between lines; 0: only the last")
    options = parser.parse_args()
    if not options.to or options.rate <= 0:
        parser.error("--to needs an address and --rate must be above 0")
    loop = Loop()
    caller = Caller(loop, options)
    while not loop.stopping and not caller.done:
        loop.run(until=time.monotonic() + 0.05)
    caller.stop()
    loop.stopping = False
    drain_until = time.monotonic() + DRAIN_S
    while not caller.done and time.monotonic() < drain_until and not loop.stopping:
        loop.run(until=time.monotonic() + 0.02)
    caller.print(final=True)
    counts = caller.report.counts
    sys.exit(1 if counts["failed"] or counts["dropped"] else 0)


if __name__ == "__main__":
    main()
