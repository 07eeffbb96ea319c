from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from ha.linux import identity
from ha.linux.clocks import boot_id
from ha.linux.identity import Identity, alive, ended, exit_of_zombie, open_verified, reap
from ha.model.status import Exit
from tests.linux.conftest import Children, wait_for


def test_a_live_process_is_opened_and_verified(children: Children) -> None:
    child = children.start("/bin/sleep", "100")
    mine = Identity.of(child.pid, child.pidfd)
    assert mine is not None
    assert mine.start_ticks == child.start_ticks
    fd = open_verified(mine)
    assert fd is not None
    os.close(fd)


def test_a_pid_of_another_start_time_boot_or_inode_is_never_opened(children: Children) -> None:
    child = children.start("/bin/sleep", "100")
    mine = Identity.of(child.pid, child.pidfd)
    assert mine is not None
    replace = msgspec.structs.replace
    assert open_verified(replace(mine, start_ticks=mine.start_ticks - 1)) is None
    assert open_verified(replace(mine, boot_id="0" * 36)) is None
    assert open_verified(replace(mine, pid=0)) is None
    if mine.inode:
        assert open_verified(replace(mine, inode=mine.inode + 1)) is None


RECYCLE = """
import os, sys
sys.path.insert(0, {root!r})
from ha.linux.identity import Identity, open_verified, inode_of
open("/proc/sys/kernel/ns_last_pid").close()
first = os.fork()
if first == 0:
    os._exit(0)
fd = os.pidfd_open(first)
old = Identity.of(first, fd)
os.waitpid(first, 0)
wrong = recycled = 0
for _ in range(300):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(first - 1))
    again = os.fork()
    if again == 0:
        os._exit(0)
    if again == first:
        recycled += 1
        got = open_verified(old)
        if got is not None:
            wrong += 1
            os.close(got)
    os.waitpid(again, 0)
print(recycled, wrong)
"""


@pytest.mark.root
def test_a_recycled_pid_is_never_adopted_even_within_one_clock_tick() -> None:
    fd = os.pidfd_open(os.getpid())
    inode = identity.inode_of(fd)
    os.close(fd)
    if not inode:
        pytest.skip("this kernel has no pidfs: only the start time tells processes apart")
    script = RECYCLE.format(root=os.getcwd())
    command = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"no PID namespace here: {result.stderr.strip()[-200:]}")
    recycled, wrong = map(int, result.stdout.split())
    assert recycled > 100
    assert wrong == 0


def test_reap_tells_code_and_signal_of_our_children(children: Children) -> None:
    clean, killed = children.start("/bin/sh", "-c", "exit 7"), children.start("/bin/sleep", "100")
    assert reap(killed.pidfd) is None
    os.kill(killed.pid, signal.SIGKILL)
    wait_for(lambda: ended(clean.pidfd) and ended(killed.pidfd), "two deaths")
    assert reap(clean.pidfd) == Exit(code=7)
    assert reap(killed.pidfd) == Exit(signal="SIGKILL")


def test_a_zombie_tells_its_exit_only_to_who_names_its_start_time(children: Children) -> None:
    child = children.start("/bin/sh", "-c", "exit 5")
    wait_for(lambda: ended(child.pidfd), "the death")
    assert exit_of_zombie(child.pid, child.start_ticks) == Exit(code=5)
    assert exit_of_zombie(child.pid, child.start_ticks + 1) is None
    assert not alive(Identity(child.pid, child.start_ticks, boot_id()))


@pytest.mark.parametrize("reaped_first", [False, True])
def test_the_exit_of_anothers_child_is_true_or_unknown_never_invented(reaped_first: bool) -> None:
    script = "import os,sys\nif os.fork() == 0:\n  sys.stdin.read(); os._exit(6)\n"
    script += "print(os.listdir, flush=True)\nsys.stdin.readline()\n" if not reaped_first else "os.wait()\n"
    read, write = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", script.replace("print(os.listdir, flush=True)\n", "import time; time.sleep(60)\n")],
        stdin=read, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read)
    pids: list[str] = []

    def born() -> bool:
        with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as file:
            pids[:] = file.read().split()
        return bool(pids)

    try:
        wait_for(born, "the grandchild")
        grandchild = int(pids[0])
        fd = os.pidfd_open(grandchild)
        known = Identity.of(grandchild, fd)
        assert reap(fd, known) is None
        os.close(write)
        write = -1
        wait_for(lambda: ended(fd), "its death")
        if reaped_first:
            parent.wait()
        assert reap(fd, known) in (Exit(code=6), Exit())
        if not reaped_first:
            assert reap(fd, known) == Exit(code=6)
        os.close(fd)
    finally:
        if write >= 0:
            os.close(write)
        parent.kill()
        parent.wait()
