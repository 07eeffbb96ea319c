"""Fixtures for tests of the whole system: clusters that leave nothing behind, and load beside them.

A test that kills agents asks the recorders (`recorder_program.py`) afterwards whether anything exclusive acted twice.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.cluster import Cluster, Status

from ha.linux.table import ProgressTable
from ha.model.names import Agent
from tests.e2e.recorder_program import Period, Uncovered, overlaps, periods, steps_back

QUIET_S = 1.5
AGENTS = ("master", "watcher", "spawner", "monitor", "server")
TENANT = """
[tenant]
home = "{home}"
[process.acd]
{command}
run_status = "warm"
ready = {{by = "notify"}}
depends_on = ["db"]
[process.db]
{command}
ready = {{by = "notify"}}
[process.ivr]
{command}
run_status = "load_sharing"
ready = {{by = "notify"}}
"""
RECORDER = Path(__file__).with_name("recorder_program.py")

MakeCluster = Callable[..., "Recorded"]


class Recorded(Cluster):
    """A cluster whose processes record when they act. `uncovered`: when nothing on a node could freeze anything.

    Not covered are a node that is stopped as a whole, one of which all agents are dead, and, as long as Watcher and
    Master do not read the guard table (design rule 11), one without a Spawner.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.records = self.directory / "records"
        self.records.mkdir()
        self.uncovered: list[Uncovered] = []

    def recorder(self) -> str:
        """Return the `command` of a process that records when it acts, as TOML."""
        return f'command = ["{sys.executable}", "{RECORDER}", "{self.records}"]'

    def exclusive(self) -> list[Period]:
        """Return the recorded periods of processes of which only one may act."""
        return [period for period in periods(self.records) if "/ivr." not in period.process]

    def doubles(self) -> list[tuple[Period, Period]]:
        """Return where an exclusive process acted twice at once, or went back to a lower fencing number."""
        found = self.exclusive()
        return overlaps(found, self.uncovered) + steps_back(found, self.uncovered)

    def without_spawner(self, node: str, since_ns: int) -> None:
        """Wait until the loop of a node's Spawner turns from now on, and note that until then it was uncovered."""
        now = boottime_ns()
        path = f"{self.run_dir}/{node}/agents/table"

        def turned() -> bool:
            table = ProgressTable.open(path)
            try:
                slot = table.read(Agent.SPAWNER)
                return slot.turn_ns > now and slot.pid == self.agent(node, "spawner")
            finally:
                table.close()

        until(turned, f"the Spawner of {node} works")
        self.uncovered.append(Uncovered(node=node, from_ns=since_ns, until_ns=boottime_ns()))


def boottime_ns() -> int:
    """Return the clock of the records."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def cluster() -> Iterator[MakeCluster]:
    """Make clusters; at the end of the test all is ended, and nothing may be left."""
    yield from _factory()


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[MakeCluster]:
    """Make clusters that live as long as the tests of a module."""
    yield from _factory()


@pytest.fixture
def busy() -> Iterator[Callable[[int], None]]:
    """Start loops that eat a processor each; they end with the test."""
    loops: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> None:
        loops.extend(subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(count))

    yield start
    for loop in loops:
        loop.send_signal(signal.SIGKILL)
        loop.wait()


def _factory() -> Iterator[MakeCluster]:
    made: list[Recorded] = []

    def make(**options: Any) -> Recorded:
        made.append(Recorded(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert [left for one in made for left in leftovers(one)] == []


def leftovers(cluster: Cluster) -> list[str]:
    """Return what is left of a cluster that was closed: processes, agents, directories, cgroups."""
    found = [f"process {pid} {socket}" for pid, socket in cluster.managed().items()]
    marks = (str(cluster.directory).encode(), b"\0")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in cluster.managed():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marks[0] in words:
                found.append(f"agent {entry.name} {words.replace(marks[1], b' ').decode(errors='replace')}")
    if cluster.directory.exists():
        found.append(f"directory {cluster.directory}")
    return found


def two_tenants(make: MakeCluster) -> Recorded:
    """Return a started cluster with the tenants acme (home a) and bell (home b), of recorders, all well."""
    cluster = make()
    for name, home in (("acme", "a"), ("bell", "b")):
        cluster.write_tenant(name, TENANT.format(home=home, command=cluster.recorder()))
    cluster.start()
    cluster.wait(settled, "all is well", 60)
    return cluster


def calm(cluster: Cluster, node: str = "") -> Status:
    """Forget the moves of earlier tests, which are bounded, and return the status when all has long been well.

    Long: what an agent's death leads to shows within a promise, when nothing changes for QUIET_S it is over.
    """
    for tenant in ("acme", "bell"):
        cluster.ask(node or next(iter(cluster.nodes)), "reset", {"target": tenant})
    ends = time.monotonic() + 60
    quiet_since, seen = time.monotonic(), {}
    while time.monotonic() < ends:
        status = cluster.status(node)
        now = cluster.managed()
        if status is None or not settled(status) or now != seen:
            quiet_since, seen = time.monotonic(), now
        elif time.monotonic() - quiet_since > QUIET_S:
            return status
        time.sleep(0.05)
    return cluster.wait(settled, "all is well", 1, node)


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of the condition. Raises TimeoutError."""
    ends = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > ends:
            raise TimeoutError(f"not in {timeout_s} s: {what}")
        time.sleep(0.01)
    return value


def settled(status: Status) -> bool:
    """Whether every tenant is well and every agent is up."""
    nodes = [node for side in status["sides"].values() for node in side["nodes"].values()]
    return (
        bool(status["tenants"])
        and all(tenant["state"] == "ok" for tenant in status["tenants"].values())
        and all(node["state"] == "up" for node in nodes)
        and all(agent["state"] == "up" for node in nodes for agent in node["agents"].values())
    )
