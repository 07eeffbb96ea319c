"""The Watcher's reading of locks and table agrees with those who write them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ha.core.watcher import Mode
from ha.linux import lean
from ha.linux.locks import hold_role, who_holds
from ha.linux.table import ProgressTable
from ha.model.names import Agent


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "agents").mkdir(mode=0o700)
    return str(tmp_path)


def test_it_finds_the_holder_of_a_lock_that_another_module_wrote(run: str) -> None:
    assert lean.open_holder(run, "master") == (0, -1)
    lock = hold_role(run, Agent.MASTER)
    pid, pidfd = lean.open_holder(run, "master")
    os.close(pidfd)
    assert pid == os.getpid()
    lock.release()
    assert lean.open_holder(run, "master") == (0, -1)


def test_a_dead_holder_or_a_reused_pid_is_nobody(run: str) -> None:
    program = f"from ha.linux.locks import *; lock = hold_role({run!r}, 'master'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        pid, pidfd = lean.open_holder(run, "master")
        assert (pid, lean.ended(pidfd)) == (holder.pid, False)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        holder.wait(10)
        assert lean.ended(pidfd)
        os.close(pidfd)
    assert lean.open_holder(run, "master") == (0, -1)
    path = Path(run, "agents", "master.lock")
    for line in (f"{os.getpid()} 1 {lean.boot_id()}", f"{os.getpid()} {lean.start_ticks(os.getpid())} other", "x", ""):
        path.write_text(line)
        assert lean.open_holder(run, "master") == (0, -1)


def test_table_and_lean_table_are_one(run: str) -> None:
    table, view = ProgressTable.open(run + "/agents/table"), lean.LeanTable(run)
    assert view.mode() == Mode.RUN.value
    table.set_pid(Agent.MASTER)
    table.turn(Agent.MASTER, 12)
    table.set_mode(Mode.ENDED.value)
    assert (view.turn_of("master", os.getpid()), view.turn_of("master", 1)) == (12, 0)
    assert view.mode() == Mode.ENDED.value
    view.enter("watcher")
    view.turn("watcher", 34)
    seen = table.read(Agent.WATCHER)
    assert (seen.pid, seen.turn_ns, seen.start_ticks) == (os.getpid(), 34, lean.start_ticks(os.getpid()))
    table.close()


def test_a_watchers_own_lock_is_read_by_the_others(run: str) -> None:
    from ha.agents.watcher import _hold

    fd = _hold(run)
    holder = who_holds(run, Agent.WATCHER)
    os.close(fd)
    assert holder is not None
    assert holder.pid == os.getpid()
