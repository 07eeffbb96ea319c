from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.runtime import log


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    log.setup("server", "a1", path=str(path))
    yield path
    for handler in logging.getLogger("ha").handlers:
        handler.close()
    logging.getLogger("ha").handlers.clear()


def test_a_line_is_key_value_and_stays_one_line(written: Path) -> None:
    log.line("tenant.moved", subject="acme", from_="a", to="b", reason='two words\n"quoted"', epoch=None, request="")
    (line,) = written.read_text().splitlines()
    assert line.endswith(
        'level=info agent=server node=a1 event=tenant.moved subject=acme from=a to=b reason="two words??quoted?"'
    )


def test_a_crash_has_its_traceback(written: Path) -> None:
    try:
        raise RuntimeError("boom")
    except RuntimeError as error:
        log.crashed("agent.crashed", error)
    assert "level=critical" in written.read_text()
    assert "RuntimeError: boom" in written.read_text()
