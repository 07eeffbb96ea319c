"""Master and Watcher as real processes: each restarts the other, and a second ha-master takes over from the first."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha.linux import lean
from ha.linux.table import ProgressTable
from ha.model.names import Agent

pytestmark = pytest.mark.e2e
WAIT_S = 20.0
CONFIG = """
[system]
name = "demo"
run_dir = "{dir}/run"
data_dir = "{dir}/data"
tenants_dir = "tenants.d"
node_file = "{dir}/node.toml"
[ports]
state = 27701
command = 27702
vote = 27703
control = 27704
beat = 27705
[sides.a]
servers = ["a1"]
[sides.b]
servers = ["b1"]
[nodes.a1]
side = "a"
addresses = ["127.0.41.11"]
[nodes.b1]
side = "b"
addresses = ["127.0.41.21"]
[witnesses.w1]
addresses = ["127.0.41.50"]
"""


class NodeA1:
    """One node's agents, started by ha-master; whatever is left of them is killed by pidfd at the end."""

    def __init__(self, directory: Path) -> None:
        (directory / "tenants.d").mkdir()
        self.config = directory / "system.toml"
        self.config.write_text(CONFIG.format(dir=directory))
        self.run = str(directory / "run" / "a1")
        self.started: list[subprocess.Popen[str]] = []
        # setproctitle must not write over the environment, by which close() finds all that was started.
        self.environ = {**os.environ, "SPT_NOENV": "1", "HA_TEST_NODE": self.run}
        self.mark = f"HA_TEST_NODE={self.run}".encode()

    def master(self, *, node: str = "a1") -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "ha.agents.master", "--config", str(self.config), "--node", node]
        return self.start(argv)

    def start(self, argv: list[str]) -> subprocess.Popen[str]:
        made = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=self.environ)
        self.started.append(made)
        return made

    def holder(self, role: str) -> int:
        pid, pidfd = lean.open_holder(self.run, role)
        if pidfd >= 0:
            os.close(pidfd)
        return pid

    def turning(self, role: Agent, other_than: int = 0) -> int:
        """Wait until a process other than that one holds the role and its loop turns; return its pid."""

        def look() -> int:
            pid = self.holder(role.value)
            if pid in (0, other_than):
                return 0
            table = ProgressTable.open(self.run + "/agents/table")
            seen = table.read(role)
            table.close()
            return pid if seen.pid == pid and seen.turn_ns else 0

        return until(look, f"the {role} to turn")

    def kill(self, role: Agent) -> int:
        pid, pidfd = lean.open_holder(self.run, role.value)
        assert pid
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        return pid

    def close(self) -> None:
        """Kill all that inherited our mark, also those that hold no lock yet."""
        while pidfds := self._marked():
            for number in (signal.SIGSTOP, signal.SIGKILL):  # frozen first: none starts another meanwhile
                for pidfd in pidfds:
                    try:
                        signal.pidfd_send_signal(pidfd, number)
                    except ProcessLookupError:
                        continue
            for pidfd in pidfds:
                gone = select.poll()
                gone.register(pidfd, select.POLLIN)
                gone.poll(WAIT_S * 1_000)
                os.close(pidfd)
        for process in self.started:
            process.wait()

    def _marked(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                pidfd = os.pidfd_open(int(name))
            except OSError:
                continue
            try:
                ours = self.mark in Path("/proc", name, "environ").read_bytes() and not lean.ended(pidfd)
            except OSError:
                ours = False
            if ours:
                found.append(pidfd)
            else:
                os.close(pidfd)
        return found


def until(look: Callable[[], int], what: str) -> int:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        select.select([], [], [], 0.01)
    raise AssertionError(f"waited {WAIT_S} s for {what}")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeA1]:
    made = NodeA1(tmp_path)
    yield made
    made.close()


def test_master_and_watcher_restart_each_other(node: NodeA1) -> None:
    node.master()
    watcher = node.turning(Agent.WATCHER)
    node.kill(Agent.WATCHER)
    again = node.turning(Agent.WATCHER, watcher)
    first = node.kill(Agent.MASTER)
    node.turning(Agent.MASTER, first)
    assert node.holder("watcher") == again  # adopted, not started twice


def test_a_stuck_master_is_killed_and_started_again(node: NodeA1) -> None:
    node.master()
    node.turning(Agent.WATCHER)
    master = node.turning(Agent.MASTER)
    # The Watcher must have seen it turn: a stuck one that never did has longer.
    table = ProgressTable.open(node.run + "/agents/table")
    turn = table.read(Agent.WATCHER).turn_ns
    until(lambda: table.read(Agent.WATCHER).turn_ns > turn + 10**9, "the Watcher to look")
    table.close()
    os.kill(master, signal.SIGSTOP)  # our own child, not reaped: this pid is it
    node.turning(Agent.MASTER, master)


def test_a_second_ha_master_takes_over_from_the_first(node: NodeA1) -> None:
    first = node.master()
    node.turning(Agent.MASTER)
    watcher = node.turning(Agent.WATCHER)
    second = node.master()
    assert first.wait(WAIT_S) == 0
    assert node.turning(Agent.MASTER, first.pid) == second.pid
    assert node.holder("watcher") == watcher
    assert second.poll() is None


def test_a_second_ha_master_kills_a_first_one_that_does_not_answer(node: NodeA1) -> None:
    first = node.master()
    node.turning(Agent.MASTER)
    node.turning(Agent.WATCHER)
    first.send_signal(signal.SIGSTOP)
    second = node.master()
    assert first.wait(WAIT_S) == -signal.SIGKILL
    until(lambda: int(node.holder("master") not in (0, first.pid)), "a new Master")
    assert second.poll() is None or node.holder("master")


def test_a_stop_ends_everything_and_leaves_no_socket(node: NodeA1) -> None:
    first = node.master()
    for role in (Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR, Agent.SERVER, Agent.WITNESS):
        node.turning(role)
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGTERM)
    assert first.wait(WAIT_S) == 0
    assert node._marked() == []
    left = {path.name for path in Path(node.run).rglob("*")}
    assert not {name for name in left if name.endswith(".sock")} | (left & {"p", "out"})


def test_a_detach_ends_the_agents_and_a_new_ha_master_starts_them(node: NodeA1) -> None:
    first = node.master()
    for role in (Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR, Agent.SERVER, Agent.WITNESS):
        node.turning(role)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(WAIT_S) == 0
    assert node._marked() == []
    node.master()
    node.turning(Agent.SERVER)


def test_all_agents_killed_at_once_come_back_with_one_ha_master(node: NodeA1) -> None:
    first = node.master()
    for role in (Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR, Agent.SERVER, Agent.WITNESS):
        node.turning(role)
    node.close()
    node.master()
    for role in (Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR, Agent.SERVER, Agent.WITNESS):
        node.turning(role)
    assert node.turning(Agent.MASTER, first.pid)


def test_master_and_watcher_killed_at_once_come_back_by_the_spawner(node: NodeA1) -> None:
    first = node.master()
    spawner, watcher = node.turning(Agent.SPAWNER), node.turning(Agent.WATCHER)
    signal_both(node, watcher)
    node.turning(Agent.MASTER, first.pid)
    node.turning(Agent.WATCHER, watcher)
    assert node.holder("spawner") == spawner


def test_a_resumed_master_ends_quietly_when_one_is_there(node: NodeA1) -> None:
    node.master()
    master = node.turning(Agent.MASTER)
    argv = [sys.executable, "-m", "ha.agents.master", "--config", str(node.config), "--node", "a1", "--resume"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert node.holder("master") == master


def test_the_watcher_finds_its_directory_by_itself_and_starts_a_master(node: NodeA1) -> None:
    """The Spawner starts it so when Master and Watcher are both dead."""
    node.master()
    watcher, master = node.turning(Agent.WATCHER), node.turning(Agent.MASTER)
    signal_both(node, watcher)
    argv = [sys.executable, "-m", "ha.agents.watcher", "--config", str(node.config), "--node", "a1"]
    node.start(argv)
    node.turning(Agent.MASTER, master)
    assert node.turning(Agent.WATCHER, watcher)


def signal_both(node: NodeA1, watcher: int) -> None:
    """Kill the Watcher first, frozen, so that it cannot start a Master in between."""
    os.kill(watcher, signal.SIGSTOP)
    node.kill(Agent.MASTER)
    node.kill(Agent.WATCHER)


@pytest.mark.parametrize(
    ("text", "node_name", "code", "said"),
    [
        ('[system]\nname = "Demo"\nbad = 1\n', "a1", 2, "unknown"),
        (None, "zz", 3, "names no node"),
        (None, "w1", 3, "witness place"),
    ],
)
def test_what_keeps_it_from_starting_is_said_with_its_exit_code(
    node: NodeA1, text: str | None, node_name: str, code: int, said: str
) -> None:
    if text is not None:
        node.config.write_text(text)
    argv = [sys.executable, "-m", "ha.agents.master", "--config", str(node.config), "--node", node_name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert all(line.startswith("ha-master: ") for line in done.stderr.splitlines())


def test_the_watcher_is_small(node: NodeA1) -> None:
    node.master()
    watcher = node.turning(Agent.WATCHER)
    with open(f"/proc/{watcher}/maps", encoding="ascii") as maps:
        mapped = maps.read()
    assert not {name for name in ("msgspec", "zmq", "libzmq", "msgpack", "_ctypes") if name in mapped}
    with open(f"/proc/{watcher}/oom_score_adj", encoding="ascii") as score:
        assert os.geteuid() != 0 or score.read().strip() in ("-1000", "0")
