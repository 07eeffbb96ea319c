from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha.linux.cgroups import CgroupTree
from ha.linux.identity import send
from ha.linux.spawn import Spawned, SpawnRequest, spawn

WAIT_S = 10.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait on a condition, bounded."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.001)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def cgroups() -> Iterator[CgroupTree]:
    tree, reason = CgroupTree.find(f"ha-test-{os.getpid()}")
    if tree is None:
        pytest.skip(f"no usable cgroup v2: {reason}")
    yield tree
    for copy in tree.copies():
        cgroup = tree.cgroup(copy)
        cgroup.kill(5_000)
    wait_for(tree.remove, "an empty cgroup tree")


class Children:
    """Starts processes and ends what is left of them."""

    def __init__(self) -> None:
        self.spawned: list[Spawned] = []

    def start(self, *argv: str, **options: object) -> Spawned:
        options.setdefault("environment", {"PATH": "/usr/bin:/bin"})
        child = spawn(SpawnRequest(argv=argv, **options))  # type: ignore[arg-type]
        self.spawned.append(child)
        return child

    def close(self) -> None:
        for child in self.spawned:
            send(child.pidfd, 9)
            try:
                os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
            except ChildProcessError:
                pass
            os.close(child.pidfd)


@pytest.fixture
def children() -> Iterator[Children]:
    started = Children()
    yield started
    started.close()


@pytest.fixture
def node_dir(tmp_path: Path) -> str:
    (tmp_path / "agents").mkdir(mode=0o700)
    return str(tmp_path)


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A directory that other users may reach, which tmp_path is not."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="ha-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
