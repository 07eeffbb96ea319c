"""What all tests share: cgroup trees of nodes that were killed cannot remove themselves, so the session does it."""

from __future__ import annotations

from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


def _trees() -> set[Path]:
    return {path for path in (*CGROUPS.glob("ha-*"), *CGROUPS.glob("unified/ha-*")) if path.is_dir()}


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = _trees()


def pytest_sessionfinish(session: pytest.Session) -> None:
    for tree in _trees() - session.config.stash[BEFORE]:
        for path in (*sorted(tree.rglob("*"), reverse=True), tree):
            if path.is_dir():
                try:
                    path.rmdir()
                except OSError:
                    print(f"left behind: {path} is not empty")


BEFORE = pytest.StashKey[set[Path]]()
