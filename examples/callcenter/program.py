"""What every program of the call centre shares: one loop, JSON log lines, SIGTERM, and its seat in the duplex system.

A program is one thread around one `Loop`. `Seat` is the use of `ha.sdk` in a program's own loop: it tells the role,
says ready, and answers whether the role and epoch still hold.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    from ha.sdk import Agent
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from ha.sdk import Agent

CHECK_EVERY_S = 0.1  # the agent is asked about the epoch at most this often


def arguments(what: str, port: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have; `port` is the default."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDR", help="address to listen at")
    parser.add_argument("--port", type=int, default=port, help="port to listen at (%(default)s)")
    return parser


def addresses(text: str) -> tuple[tuple[str, int], ...]:
    """Return "host:port,host:port" as pairs. Raises ValueError."""
    pairs = [one.rpartition(":") for one in text.split(",") if one.strip()]
    return tuple((host.strip(), int(port)) for host, _, port in pairs)


def log(event: str, **fields: object) -> None:
    """Print one JSON line: time, event, fields."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, separators=(",", ":"))
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader is gone; the service goes on


def fail(text: str) -> None:
    """Print why and exit 1."""
    sys.exit(f"{os.path.basename(sys.argv[0])}: {text}")


class Loop:
    """Readiness callbacks and timers in one thread, until SIGTERM or SIGINT. Times are seconds of time.monotonic."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self.stopping = False
        reader, self._writer = socket.socketpair()
        reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self.watch(reader, lambda _: reader.recv(64))

    def stop(self) -> None:
        """Let `run` return after the callback that runs now."""
        self.stopping = True

    def watch(
        self, what: socket.socket | Agent, call: Callable[[int], object], events: int = selectors.EVENT_READ
    ) -> None:
        """Call `call(events)` whenever `what` is ready; watching it again changes callback and events."""
        if what.fileno() in self._selector.get_map():
            self._selector.modify(what, events, call)
        else:
            self._selector.register(what, events, call)

    def forget(self, what: socket.socket) -> None:
        """Watch it no more."""
        if what.fileno() in self._selector.get_map():
            self._selector.unregister(what)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, that much later. There is no cancel: a callback that is no longer wanted does nothing."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._number), call))

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call again and again, first after `seconds`."""

        def again() -> None:
            call()
            self.every(seconds, call)

        self.after(seconds, again)

    def run(self, until: float | None = None) -> None:
        """Run until `stop`, a signal, or `until` (time.monotonic)."""
        while not self.stopping and (until is None or time.monotonic() < until):
            limits = [moment for moment in (until, self._timers[0][0] if self._timers else None) if moment is not None]
            wait = max(0.0, min(limits) - time.monotonic()) if limits else None
            for key, events in self._selector.select(wait):
                if key.fileobj.fileno() >= 0 and not self.stopping:  # type: ignore[union-attr]
                    key.data(events)
            while self._timers and self._timers[0][0] <= time.monotonic() and not self.stopping:
                heapq.heappop(self._timers)[2]()


class Seat:
    """This copy's place: `active`, `epoch`; `on_role` is called at the start and at each change of them."""

    def __init__(self, loop: Loop, on_role: Callable[[], None] | None = None) -> None:
        self._agent = Agent()
        self._on_role = on_role
        self._valid = True
        self._checked = 0.0
        loop.watch(self._agent, lambda _: self._poll())
        self.active, self.epoch = self._agent.active, self._agent.epoch

    def ready(self) -> None:
        """Say that this copy serves."""
        self._agent.ready()
        log("ready", role="active" if self.active else "standby", epoch=self.epoch, pid=os.getpid())
        if self._on_role:
            self._on_role()

    def may_act(self) -> bool:
        """Return whether this copy is active and its epoch still holds.

        While no agent is connected the role stands: the node's guards freeze what has lost its right.
        """
        if not self.active or not self._agent.connected:
            return self.active
        if not self._valid or time.monotonic() - self._checked >= CHECK_EVERY_S:
            self._valid = self._agent.check_epoch(0.2)
            self._checked = time.monotonic()
            self._poll()  # a role change may have come in with the answer
        return self._valid and self.active

    def _poll(self) -> None:
        for change in self._agent.poll():
            self.active, self.epoch = change.role == "active", change.epoch
            self._checked = 0.0
            log("role", role=str(change.role), epoch=change.epoch)
            if self._on_role:
                self._on_role()
            change.done()
