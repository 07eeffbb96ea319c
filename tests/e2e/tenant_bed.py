"""Bed: a Cluster with what tests of tenants need: programs that write what they are told, and short questions.

The programs append lines to one ledger file: `WORD TENANT/PROCESS NODE ROLE EPOCH PID`, so that what a process was
told, and in which order, is read from the processes themselves and not from the agents' word about them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cluster import ROOT, Cluster, Status

Copy = dict[str, Any]
SDK_PROGRAM = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from ha.sdk import connect
ledger = sys.argv[2]
me = os.environ["HA_TENANT"] + "/" + os.environ["HA_PROCESS"], os.environ["HA_NODE"]
def say(word, role, epoch):
    with open(ledger, "a") as out:
        out.write(f"{word} {me[0]} {me[1]} {role} {epoch} {os.getpid()}\\n")
agent = connect(
    on_active=lambda epoch: say("role", "active", epoch), on_standby=lambda epoch: say("role", "standby", epoch)
)
if len(sys.argv) > 3:
    agent.watchdog(float(sys.argv[3]))
agent.ready()
hang = ledger + ".hang"
while not os.path.exists(hang):
    agent.ping()
    time.sleep(0.05)
say("hung", agent.role.value, agent.epoch)
while True:
    time.sleep(1)
"""
LONG_S = 40.0


class Bed(Cluster):
    """A Cluster whose end is checked: no agent, no process, no directory is left."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ledger = self.directory / "ledger"
        self.program = self.directory / "program.py"
        self.program.write_text(SDK_PROGRAM)

    def __exit__(self, *_: object) -> None:
        self.close()
        left = {name: self.agents(name) for name in self.addresses if self.agents(name)}
        assert not left, f"agents are left: {left}"
        assert not self.managed(), f"processes are left: {self.managed()}"
        assert not self.directory.exists()

    # --- programs, as TOML values --------------------------------------------------------------------

    def sdk(self, *more: str) -> str:
        """`command` of a program that uses ha.sdk and is ready by notify; `more`: its watchdog in seconds."""
        return json.dumps([sys.executable, str(self.program), str(ROOT), str(self.ledger), *more])

    def shell(self, text: str) -> str:
        """`command` of a shell script; `say WORD` writes to the ledger, `rest` waits and takes signals."""
        say = f'say() {{ echo "$1 $HA_TENANT/$HA_PROCESS $HA_NODE $HA_ROLE $HA_EPOCH $$" >> {self.ledger}; }}; '
        rest = "rest() { while :; do sleep 1000 & wait $!; kill $!; done; }; "
        return json.dumps(["/bin/sh", "-c", say + rest + text])

    def plain(self) -> str:
        """`command` of a program that knows nothing of all this."""
        return '["/bin/sleep", "100000"]'

    def said(self, *words: str) -> list[list[str]]:
        """Return the ledger's lines, split, that hold all of these words."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [split for line in lines if set(words) <= set(split := line.split())]

    # --- questions -----------------------------------------------------------------------------------

    def ready(self, process: str, status: Status | None = None) -> dict[str, Copy]:
        """Return node -> ready copy of "tenant/process" (one copy a side)."""
        seen = status or self.status() or {}
        return {copy["node"]: copy for copy in self.copies(seen, process) if copy["state"] == "ready"}

    def active(self, process: str, status: Status | None = None) -> Copy:
        """Return the one ready active copy. Raises KeyError when there is none, or more than one."""
        found = [copy for copy in self.ready(process, status).values() if copy["role"] == "active"]
        if len(found) != 1:
            raise KeyError(f"{len(found)} active copies of {process}")
        return found[0]

    def ok(self, *tenants: str, timeout_s: float = LONG_S) -> Status:
        """Return the first status in which all these tenants are ok."""
        return self.wait(
            lambda status: all(status["tenants"][name]["state"] == "ok" for name in tenants),
            f"{', '.join(tenants)}: ok", timeout_s,
        )  # fmt: skip

    def gone(self, *tenants: str) -> Status:
        """Return the first status in which these tenants are not, and nothing of them runs."""
        return self.wait(
            lambda status: not set(tenants) & set(status["tenants"]) and not self.running(*tenants),
            f"{', '.join(tenants)}: gone", LONG_S,
        )  # fmt: skip

    def running(self, *tenants: str) -> dict[int, str]:
        """Return pid -> HA_SOCKET of everything that runs of these tenants, by the kernel's word."""
        return {
            pid: path for pid, path in self.managed().items() if Path(path).parent.name.partition(".")[0] in tenants
        }

    def pids(self, status: Status, but: tuple[str, ...] = ()) -> dict[tuple[str, str, int], int]:
        """Return (process, node, number) -> pid of every copy that runs, but for those tenants."""
        return {
            (f"{tenant}/{name}", copy["node"], copy["copy"]): copy["pid"]
            for tenant, one in status["tenants"].items() if tenant not in but
            for name, process in one["processes"].items() for copy in process["copies"] if copy["pid"]
        }  # fmt: skip

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = LONG_S) -> Any:
        """Return the first true value of the condition. Raises TimeoutError."""
        ends = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > ends:
                raise TimeoutError(f"not in {timeout_s} s: {what}\n{json.dumps(self.status())}\n{self.said()}")
            time.sleep(0.02)
        return value

    def json(self, *arguments: str, node: str = "", code: int = 0) -> Any:
        """Run `hactl --json ...`, assert its exit code, return what it printed: results, or the error."""
        ended = self.hactl("--json", *arguments, node=node)
        assert ended.returncode == code, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert not ended.stderr or len(ended.stderr.splitlines()) == 1, ended.stderr
        if ended.stderr:
            error = json.loads(ended.stderr)
            assert set(error) == {"exit", "error", "help", "request"}
            assert error["exit"] == code
            return error
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def done(self, *arguments: str, node: str = "") -> subprocess.CompletedProcess[str]:
        """Run hactl and assert that it ended with 0."""
        ended = self.hactl("--timeout", "40s", *arguments, node=node)
        assert ended.returncode == 0, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended

    @contextmanager
    def watched(self, look: Callable[[Status], object]) -> Iterator[list[Any]]:
        """Collect what `look` makes of each status while the block runs."""
        seen: list[Any] = []
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                status = self.status()
                if status is not None:
                    seen.append(look(status))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
