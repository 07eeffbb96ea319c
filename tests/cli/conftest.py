from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha.cli.main import run
from tests.cli.gateway import Gateway, Script

Hactl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    opened: list[Gateway] = []

    def make(node: str = "a1", **scripts: Script) -> Gateway:
        opened.append(Gateway(tmp_path, scripts, node))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def hactl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Hactl:
    """Return what runs hactl in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["--config", str(tmp_path / "system.toml"), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
