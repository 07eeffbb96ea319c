from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha.core import guard as core
from ha.core.guard import GuardEntry
from ha.linux import guard, table
from ha.linux.guard import GuardFull, GuardTable
from ha.linux.identity import start_ticks
from ha.linux.locks import hold_role, lock_path, who_holds
from ha.linux.table import Progress, ProgressTable
from ha.model.errors import AlreadyRunning
from ha.model.names import Agent
from ha.model.status import AgentState
from tests.linux.conftest import Children, wait_for

# --- locks ---


def test_a_second_holder_is_refused_with_the_pid_of_the_first(node_dir: str) -> None:
    held = hold_role(node_dir, Agent.SPAWNER)
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()} holds"):
        hold_role(node_dir, Agent.SPAWNER)
    holder = who_holds(node_dir, Agent.SPAWNER)
    assert holder is not None
    assert (holder.pid, holder.start_ticks) == (os.getpid(), start_ticks(os.getpid()))
    hold_role(node_dir, Agent.MONITOR).release()
    held.release()
    assert who_holds(node_dir, Agent.SPAWNER) is None
    hold_role(node_dir, Agent.SPAWNER).release()


def test_a_lock_is_free_when_its_holder_was_killed_though_its_child_lives(node_dir: str) -> None:
    script = (
        "import sys; from ha.linux.locks import hold_role; from ha.linux.spawn import spawn_agent\n"
        "from ha.model.names import Agent\n"
        f"lock = hold_role({node_dir!r}, Agent.MASTER)\n"
        "child = spawn_agent(('/bin/sleep', '100'), {})\nprint(child.pid, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    child = int(process.stdout.readline())
    with pytest.raises(AlreadyRunning, match=f"pid {process.pid} "):
        hold_role(node_dir, Agent.MASTER)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert who_holds(node_dir, Agent.MASTER) is None
    hold_role(node_dir, Agent.MASTER).release()
    os.kill(child, signal.SIGKILL)


def test_a_lock_file_of_another_boot_or_with_rubbish_names_nobody(node_dir: str) -> None:
    path = Path(lock_path(node_dir, Agent.SERVER))
    for text in (f"{os.getpid()} {start_ticks(os.getpid())} {'0' * 36}", "rubbish", "", "1 2"):
        path.write_text(text)
        assert who_holds(node_dir, Agent.SERVER) is None
    path.unlink()
    assert who_holds(node_dir, Agent.SERVER) is None


# --- progress table ---


def test_what_one_process_writes_another_reads_at_once(node_dir: str, children: Children) -> None:
    path = f"{node_dir}/agents/table"
    mine, theirs = ProgressTable.open(path), ProgressTable.open(path)
    assert theirs.read(Agent.MONITOR) == Progress()
    mine.set_pid(Agent.MONITOR, 123, 456)
    mine.turn(Agent.MONITOR, 10**18)
    theirs.set_state(Agent.MONITOR, AgentState.UP, 3)
    assert mine.read(Agent.MONITOR) == Progress(123, 456, 10**18, 3, AgentState.UP)
    assert mine.read(Agent.SERVER) == Progress()
    mine.set_pid(Agent.MONITOR)
    assert theirs.read(Agent.MONITOR) == Progress(os.getpid(), start_ticks(os.getpid()) or 0, 0, 3, AgentState.UP)
    mine.close()
    theirs.close()


def test_a_pair_whose_writer_died_in_the_middle_reads_as_nobody_until_the_next_writes(node_dir: str) -> None:
    opened = ProgressTable.open(f"{node_dir}/agents/table")
    opened.set_pid(Agent.SPAWNER, 11, 12)
    base = table._base(Agent.SPAWNER)
    opened._words[base + table._OWNER_SEQ] |= 1
    opened._words[base + table._PID] = 99
    assert opened.read(Agent.SPAWNER).pid == 0
    opened.set_pid(Agent.SPAWNER, 21, 22)
    assert (opened.read(Agent.SPAWNER).pid, opened.read(Agent.SPAWNER).start_ticks) == (21, 22)
    opened.close()


def test_pid_and_start_time_never_mix_under_a_busy_writer(node_dir: str) -> None:
    path = f"{node_dir}/agents/table"
    script = (
        "from ha.linux.table import ProgressTable; from ha.model.names import Agent\n"
        f"t = ProgressTable.open({path!r})\nprint(flush=True)\n"
        "n = 1\nwhile True:\n  n += 1; t.set_pid(Agent.SERVER, n, n + 7)"
    )
    opened = ProgressTable.open(path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen: set[int] = set()

        def read_many() -> bool:
            for _ in range(1_000):
                progress = opened.read(Agent.SERVER)
                if progress.pid:
                    assert progress.start_ticks == progress.pid + 7
                    seen.add(progress.pid)
            return len(seen) > 20

        wait_for(read_many, "twenty different pairs")
        writer.kill()
    opened.close()


@pytest.mark.parametrize("change", ["boot", "size", "rubbish"])
def test_a_table_of_another_boot_or_layout_is_emptied(
    node_dir: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(node_dir) / "agents" / "table"
    first = ProgressTable.open(str(path))
    first.set_pid(Agent.MASTER, 5, 6)
    first.close()
    again = ProgressTable.open(str(path))
    assert again.read(Agent.MASTER).pid == 5
    again.close()
    if change == "boot":
        monkeypatch.setattr(table, "boot_id", lambda: "another")
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.write_bytes(b"\xff" * path.stat().st_size)
    emptied = ProgressTable.open(str(path))
    assert emptied.read(Agent.MASTER) == Progress()
    assert path.stat().st_mode & 0o777 == 0o600
    emptied.close()


# --- guard ---

ENTRIES = (
    GuardEntry("acme/acd.1", 65_536, core.SHARED, 10, 20, "cookie"),
    GuardEntry("acme/db.1", 65_537, 500),
)


def test_the_verdict_names_what_has_outlived_its_right(node_dir: str) -> None:
    opened = GuardTable.open(f"{node_dir}/agents/guard")
    assert opened.read() == ()
    opened.write(ENTRIES, 1_000)
    other = GuardTable.open(f"{node_dir}/agents/guard")
    assert other.read() == (GuardEntry("acme/acd.1", 65_536, 1_000, 10, 20, "cookie"), ENTRIES[1])
    assert other.overdue(499) == ()
    assert [entry.copy for entry in other.overdue(500)] == ["acme/db.1"]
    opened.extend(2_000)
    assert [entry.copy for entry in other.overdue(1_999)] == ["acme/db.1"]
    assert len(other.overdue(2_000)) == 2
    opened.write((), 0)
    assert other.read() == ()
    opened.close()
    other.close()


def test_a_list_half_written_by_a_killed_spawner_leaves_the_old_one_whole(node_dir: str) -> None:
    opened = GuardTable.open(f"{node_dir}/agents/guard")
    opened.write(ENTRIES, 1_000)
    half = 1 - opened._words[guard._ACTIVE]
    start = guard._HEAD_WORDS * 8 + half * guard.HALF_BYTES
    opened._mapped.data[start : start + 20] = b"\xff" * 20
    assert len(opened.read()) == 2
    opened.close()


def test_more_copies_than_fit_are_refused_and_change_nothing(node_dir: str) -> None:
    opened = GuardTable.open(f"{node_dir}/agents/guard")
    opened.write(ENTRIES, 1_000)
    with pytest.raises(GuardFull, match="cannot guard"):
        opened.write([GuardEntry("a/b.1", 1, cookie="c" * 200)] * 4_000, 1)
    assert len(opened.read()) == 2
    opened.close()


def test_a_guard_of_another_boot_is_empty(node_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = GuardTable.open(f"{node_dir}/agents/guard")
    opened.write(ENTRIES, 1_000)
    opened.close()
    monkeypatch.setattr(guard, "boot_id", lambda: "another")
    other = GuardTable.open(f"{node_dir}/agents/guard")
    assert other.read() == ()
    other.close()


NUMBER = st.integers(0, 2**64 - 1)
ENTRY = st.builds(
    GuardEntry, st.text(max_size=60), NUMBER, st.integers(1, 2**64 - 1), st.integers(0, 2**32 - 1), NUMBER,
    st.text(max_size=60),
)  # fmt: skip


@given(st.lists(ENTRY, max_size=5))
def test_every_list_comes_back_as_it_was(entries: list[GuardEntry]) -> None:
    assert core.decode(core.encode(entries) + b"\0" * 9, 7) == tuple(entries)


@given(st.lists(ENTRY, min_size=1, max_size=3), st.data())
def test_a_torn_list_is_no_list(entries: list[GuardEntry], data: st.DataObject) -> None:
    whole = core.encode(entries)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert core.decode(whole[:cut], 7) is None
    flipped = bytearray(whole)
    flipped[cut] ^= data.draw(st.integers(1, 255))
    decoded = core.decode(bytes(flipped), 7)
    assert decoded is None or decoded == tuple(entries)
