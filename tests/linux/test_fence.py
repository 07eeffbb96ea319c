from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from ha.linux.cgroups import CgroupTree, read_events
from ha.linux.fence import CgroupFence, Fence, TreeFence, fence_for
from ha.linux.identity import Identity, ended, read_stat
from ha.linux.outcome import Outcome
from ha.linux.tree import ProcessTree, find_cookies
from tests.linux.conftest import Children, wait_for

COPY = "acme/acd.1"
# A main process that ignores SIGTERM, and a double-forked grandchild in a session of its own that counts in a file.
ESCAPE = """
trap '' TERM
cd {dir}
( setsid {extra} sh -c 'trap "" TERM; echo $$ > escaped; while :; do echo x >> count; sleep 0.002; done' & ) &
while :; do sleep 0.01; done
"""


@pytest.fixture(params=["cgroup", "signals"])
def escaped(request: pytest.FixtureRequest, children: Children, tmp_path: Path) -> tuple[Fence, int, int, Path]:
    """(fence, main pid, pid of the escaped daemon, file it counts in)."""
    tree: CgroupTree | None = None
    fd = None
    if request.param == "cgroup":
        found = request.getfixturevalue("cgroups")
        assert isinstance(found, CgroupTree)
        tree = found
        fd = tree.cgroup(COPY).create()
    cookie = f"cookie-{os.getpid()}-{time.monotonic_ns()}"
    child = children.start(
        "/bin/sh", "-c", ESCAPE.format(dir=tmp_path, extra=""), cgroup=fd,
        environment={"PATH": "/usr/bin:/bin", "HA_INSTANCE": cookie},
    )  # fmt: skip
    if fd is not None:
        os.close(fd)
    main = Identity.of(child.pid, child.pidfd)
    fence = fence_for(tree, COPY, main, cookie)
    assert isinstance(fence, CgroupFence if tree else TreeFence)
    wait_for(lambda: (tmp_path / "count").exists() and (tmp_path / "escaped").read_text().strip(), "the daemon")
    pid = int((tmp_path / "escaped").read_text())
    stat = read_stat(pid)
    assert stat is not None
    assert stat.session != child.pid, "it must have escaped, or the test proves nothing"
    wait_for(lambda: pid in fence.pids(), "the daemon in the tree")
    return fence, child.pid, pid, tmp_path / "count"


def test_an_escaped_daemon_is_frozen_and_goes_on_after_the_thaw(escaped: tuple[Fence, int, int, Path]) -> None:
    fence, _, _, count = escaped
    assert fence.freeze(2_000) is Outcome.DONE
    size = count.stat().st_size
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        assert count.stat().st_size == size
    assert not fence.gone()
    assert fence.thaw() is Outcome.DONE
    wait_for(lambda: count.stat().st_size > size, "the count going on")
    fence.kill(2_000)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_kill_leaves_nothing_frozen_or_not(
    escaped: tuple[Fence, int, int, Path], frozen: bool, children: Children
) -> None:
    fence, main, daemon, _ = escaped
    if frozen:
        assert fence.freeze(2_000) is Outcome.DONE
    assert fence.kill(5_000) is Outcome.DONE
    assert ended(children.spawned[0].pidfd)
    assert fence.gone()
    assert fence.pids() == ()
    for pid in (main, daemon):
        stat = read_stat(pid)
        assert stat is None or stat.state == "Z"
    fence.discard()
    assert fence.freeze(10) is Outcome.GONE
    assert fence.thaw() is Outcome.GONE
    assert fence.kill(10).reached


def test_an_escaped_daemon_is_found_by_cookie_after_its_main_died(
    escaped: tuple[Fence, int, int, Path], children: Children
) -> None:
    fence, main, daemon, _ = escaped
    os.kill(main, signal.SIGKILL)
    wait_for(lambda: ended(children.spawned[0].pidfd), "the death of main")
    assert daemon in fence.pids()
    assert not fence.gone()
    assert fence.kill(5_000) is Outcome.DONE
    assert fence.gone()


def test_signals_find_an_escaped_daemon_that_wiped_its_environment_once_seen(
    children: Children, tmp_path: Path
) -> None:
    cookie = f"cookie-{time.monotonic_ns()}"
    child = children.start(
        "/bin/sh", "-c", ESCAPE.format(dir=tmp_path, extra="env -i PATH=/usr/bin:/bin"),
        environment={"PATH": "/usr/bin:/bin", "HA_INSTANCE": cookie},
    )  # fmt: skip
    tree = ProcessTree(Identity.of(child.pid, child.pidfd), cookie)
    seen = tree.members()
    wait_for(lambda: (tmp_path / "escaped").exists() and (tmp_path / "escaped").read_text().strip(), "the daemon")
    daemon = int((tmp_path / "escaped").read_text())
    # Whether the scan above saw it before it escaped is a race that no test may rely on; a second copy of the
    # knowledge is what a running Spawner has.
    stat = read_stat(daemon)
    assert stat is not None
    tree._known[daemon] = stat.start_ticks
    assert seen is not None
    assert tree.kill(5_000) is Outcome.DONE
    assert tree.gone()
    after = read_stat(daemon)
    assert after is None or after.state == "Z"


def test_strangers_are_never_members(children: Children) -> None:
    stranger = children.start("/bin/sleep", "100", environment={"HA_INSTANCE": "another"})
    mine = children.start("/bin/sleep", "100", environment={"HA_INSTANCE": "mine"})
    main = Identity.of(mine.pid, mine.pidfd)
    assert main is not None
    assert set(ProcessTree(main, "mine").members()) == {mine.pid}
    other_start = Identity(stranger.pid, stranger.start_ticks - 1, main.boot_id)
    assert ProcessTree(other_start, "gone").members() == {}
    assert ProcessTree(other_start, "").members() == {}
    assert find_cookies()["mine"] == [mine.pid]


def test_a_fork_storm_ends(escaped: tuple[Fence, int, int, Path], children: Children) -> None:
    fence = escaped[0]
    storm = "i=0; while [ $i -lt 100 ]; do (sh -c 'sleep 100' &); i=$((i+1)); done; sleep 100"
    if not isinstance(fence, CgroupFence):
        fence.kill(5_000)
        pytest.skip("the storm is started into a cgroup")
    fd = fence.cgroup.create()
    children.start("/bin/sh", "-c", storm, cgroup=fd)
    os.close(fd)
    wait_for(lambda: len(fence.pids()) > 60, "the storm")
    assert fence.kill(5_000) is Outcome.DONE
    assert fence.pids() == ()


def test_cgroup_events_wake_a_poller_when_the_last_process_dies(children: Children, cgroups: CgroupTree) -> None:
    cgroup = cgroups.cgroup(COPY)
    fd = cgroup.create()
    child = children.start("/bin/sleep", "100", cgroup=fd)
    os.close(fd)
    events = cgroup.open_events()
    assert events is not None
    assert read_events(events).populated
    epoll = select.epoll()
    epoll.register(events, select.EPOLLPRI)
    assert epoll.poll(0) == []
    os.kill(child.pid, signal.SIGKILL)
    assert epoll.poll(10)[0][0] == events
    wait_for(lambda: not read_events(events).populated, "populated 0")
    epoll.close()
    os.close(events)


def test_a_tree_is_found_again_and_names_its_copies(cgroups: CgroupTree) -> None:
    for copy in ("acme/acd.2", "system/sip-proxy.1"):
        os.close(cgroups.cgroup(copy).create())
    again, reason = CgroupTree.find(os.path.basename(cgroups.root))
    assert again is not None, reason
    assert again.root == cgroups.root
    assert again.copies() == ("acme/acd.2", "system/sip-proxy.1")
    below = f"{cgroups.cgroup('acme/acd.2').path}/own/deeper"
    os.makedirs(below)
    assert cgroups.cgroup("acme/acd.2").remove()
    assert not cgroups.cgroup("acme/acd.2").exists()


def test_a_main_process_outside_the_cgroup_is_fenced_by_signals(children: Children, cgroups: CgroupTree) -> None:
    child = children.start("/bin/sleep", "100")
    os.close(cgroups.cgroup(COPY).create())
    assert isinstance(fence_for(cgroups, COPY, Identity.of(child.pid), "c"), TreeFence)
    assert isinstance(fence_for(None, COPY, None, "c"), TreeFence)


def test_a_host_without_cgroup_v2_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha.linux.cgroups.MOUNTS", ("/nowhere",))
    assert CgroupTree.find("ha-x-y") == (None, "no cgroup v2 is mounted")


@pytest.mark.parametrize("frozen", [False, True])
def test_what_starts_in_a_cgroup_that_was_killed_lives(cgroups: CgroupTree, children: Children, frozen: bool) -> None:
    cgroup = cgroups.cgroup(COPY)
    for _ in range(3):
        fd = cgroup.create()
        child = children.start("/bin/sleep", "100", cgroup=fd)
        os.close(fd)
        assert cgroup.pids() == (child.pid,)
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        assert not poll.poll(50), "it was ended by the kill of its predecessor"
        if frozen:
            assert cgroup.freeze(2_000) is Outcome.DONE
        assert cgroup.kill(2_000) is Outcome.DONE
        assert poll.poll(2_000)
