"""What the demo tells and how it waits: measured lines, checks, role changes heard on the spot, calls counted."""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.callcenter.demo_system import NODES, System

Json = dict[str, Any]
POLL_S = 0.05
SAY_EVERY_S = 2.0  # how often a wait says what it sees


class Failed(Exception):
    """A check did not hold, or what was waited for did not come."""


class Story:
    """Prints the demo line by line; `failures`: checks that did not hold."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._colour = sys.stdout.isatty()
        self._number = 0
        self.failures: list[str] = []

    def title(self, text: str) -> None:
        """Begin a step."""
        self._number += 1
        print(f"\n{self._paint(1, f'{self._number}. {text}')}", flush=True)

    def say(self, text: str) -> None:
        """Print a line, after the time since the demo's begin."""
        print(f"  {time.monotonic() - self._began:6.2f} s  {text}", flush=True)

    def check(self, holds: bool, text: str, otherwise: str = "") -> None:
        """Print a checked claim; one that does not hold fails the demo, which goes on."""
        self.say(f"{self._paint(32, 'ok') if holds else self._paint(31, 'NOT SO')}  {text}")
        if not holds:
            self.failures.append(text + (f": {otherwise}" if otherwise else ""))
            if otherwise:
                self.say(f"        {otherwise}")

    def wait(self, what: str, found: Callable[[], Any], seen: Callable[[], str], timeout: float = 30.0) -> Any:
        """Return the first true `found()`; now and then `seen()` is printed, if it changed. Raises Failed."""
        began, last = time.monotonic(), ""
        say_at = began + SAY_EVERY_S
        while not (result := found()):
            now = time.monotonic()
            if now > began + timeout:
                raise Failed(f"{what}: not within {timeout:.0f} s; last seen: {seen()}")
            if now > say_at and (text := seen()) != last:
                self.say(f"    waiting for {what}: {text}")
                last, say_at = text, now + SAY_EVERY_S
            time.sleep(POLL_S)
        return result

    def _paint(self, code: int, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


class Eye:
    """hactl's view of the system, remembered so that waiting can tell what it saw last."""

    def __init__(self, system: System, story: Story) -> None:
        self._system, self._story = system, story
        self.seen: Json = {}
        self.asked: set[str] = set(NODES)  # nodes to ask, the first that answers counts

    def look(self) -> Json:
        """Return the status; {} while nobody answers."""
        for node in sorted(self.asked):
            if found := self._system.status(node):
                self.seen = found
                return found
        return {}

    def copies(self, tenant: str) -> list[Json]:
        """Return the tenant's copies as last seen, each with the name and run status of its process."""
        processes = self.seen.get("tenants", {}).get(tenant, {}).get("processes", {})
        return [
            {**copy, "process": name, "run_status": process["run_status"]}
            for name, process in processes.items()
            for copy in process["copies"]
        ]

    def active(self, tenant: str, process: str) -> Json:
        """Return the active copy as last seen. Raises Failed."""
        for copy in self.copies(tenant):
            if copy["process"] == process and copy["role"] == "active" and copy["state"] == "ready":
                return copy
        raise Failed(f"hactl shows no ready active copy of {tenant}/{process}")

    def settled(self, *tenants: str) -> bool:
        """Look, and return whether the tenants are ok with every wanted copy ready, standbys included."""
        status = self.look()
        return all(
            status.get("tenants", {}).get(tenant, {}).get("state") == "ok"
            and all(copy["state"] == "ready" for copy in self.copies(tenant) if copy["wanted"] == "up")
            for tenant in tenants
        )

    def wait(self, what: str, holds: Callable[[], bool], *tenants: str, timeout: float = 30.0) -> float:
        """Wait by status until `holds()`; return the milliseconds it took."""
        began = time.monotonic()
        self._story.wait(what, holds, lambda: self._summary(tenants), timeout)
        return (time.monotonic() - began) * 1000

    def _summary(self, tenants: tuple[str, ...]) -> str:
        if not self.seen:
            return "no agent answers yet"
        parts = []
        for tenant in tenants or tuple(self.seen["tenants"]):
            up = [copy for copy in self.copies(tenant) if copy["wanted"] == "up"]
            ready = sum(copy["state"] == "ready" for copy in up)
            state = self.seen["tenants"].get(tenant, {}).get("state", "not known")
            parts.append(f"{tenant} {state}, {ready}/{len(up)} ready")
        return "; ".join(parts)


class RoleWatch:
    """Connections to a service at all nodes, to hear `ROLE active EPOCH` the moment a copy says it."""

    def __init__(self, system: System, port: int) -> None:
        self._where = {node: (system.address(node), port) for node in NODES}
        self._selector = selectors.DefaultSelector()
        self._open: dict[str, socket.socket] = {}
        self.epoch = 0  # the highest that said it was active
        self.node = ""

    def hear(self, epoch_above: int, timeout: float = 20.0) -> tuple[float, str, int]:
        """Return (when, node, epoch) of the first copy that says it is active above that epoch. Raises Failed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._connect()
            for key, _ in self._selector.select(0.01):
                self._read(key.data)
            if self.epoch > epoch_above:
                return time.monotonic(), self.node, self.epoch
        raise Failed(f"no distributor became active above epoch {epoch_above} within {timeout:.0f} s")

    def close(self) -> None:
        """Close all connections."""
        for node in tuple(self._open):
            self._drop(node)
        self._selector.close()

    def _connect(self) -> None:
        for node in self._where.keys() - self._open.keys():
            try:
                self._open[node] = socket.create_connection(self._where[node], timeout=0.2)
            except OSError:
                continue
            self._selector.register(self._open[node], selectors.EVENT_READ, node)

    def _read(self, node: str) -> None:
        try:
            data = self._open[node].recv(4096)
        except OSError:
            data = b""
        if not data:
            self._drop(node)
        for line in data.decode().splitlines():
            match line.split():
                case ["ROLE", "active", epoch] if int(epoch) > self.epoch:
                    self.epoch, self.node = int(epoch), node

    def _drop(self, node: str) -> None:
        sock = self._open.pop(node)
        self._selector.unregister(sock)
        sock.close()


class Calls:
    """A running caller.py and what it has reported so far."""

    def __init__(self, system: System, tenant: str, port: int, *, count: int = 0) -> None:
        log = f"caller-{tenant}"
        self._file = system.logs / f"{log}.jsonl"
        self._process = system.run(
            "caller.py", "--to", system.addresses(port), "--rate", 20, "--hold", 0.5, "--every", 0.05, "--count", count,
            "--bind", f"{system.net}.1", log=log,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The caller's pid."""
        return self._process.pid

    def report(self) -> Json:
        """Return its latest line; zeros before the first."""
        return _last_line(self._file) or dict.fromkeys(
            ("attempted", "answered", "failed", "dropped", "retried", "queued"), 0
        )

    def since(self, earlier: Json) -> Json:
        """Return how much the counts grew."""
        now = self.report()
        return {
            key: now[key] - earlier[key] for key in ("attempted", "answered", "failed", "dropped", "retried", "queued")
        }

    def grown(self, earlier: Json, by: int = 10) -> bool:
        """Return whether that many more calls were answered."""
        return bool(self.since(earlier)["answered"] >= by)

    def end(self) -> Json:
        """Stop it, unless it has ended, and return its final report."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=15)
        return self.report()

    def wait(self) -> Json:
        """Wait for its own end and return its final report."""
        self._process.wait(timeout=30)
        return self.report()


def end_process(process: subprocess.Popen[bytes], timeout: float = 15.0) -> int:
    """SIGTERM; return the exit code. Raises subprocess.TimeoutExpired."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait(timeout)


def told(calls: Json) -> str:
    """Return counts as a sentence."""
    text = f"{calls['answered']} calls answered, {calls['failed']} failed, {calls['dropped']} cut off"
    if calls["retried"]:
        text += f", {calls['retried']} tried again at another address"
    return text + (f", {calls['queued']} waited in the queue first" if calls["queued"] else "")


def _last_line(file: Path) -> Json:
    if not file.exists():
        return {}
    for line in reversed(file.read_text(errors="replace").splitlines(keepends=True)[-3:]):
        if line.startswith("{") and line.endswith("}\n"):
            found: Json = json.loads(line)
            return found
    return {}
