from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.agents.drop_in import DropIn, Files
from ha.runtime.loop import Loop


def boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(boottime)
    yield made
    made.close()


def until(loop: Loop, got: list[Files | None], count: int) -> None:
    end = time.monotonic() + 5
    while len(got) < count:
        assert time.monotonic() < end, got
        loop.turn(50)


def test_files_are_read_at_start_and_after_quiet_and_what_is_no_tenant_file_is_left_out(
    loop: Loop, tmp_path: Path
) -> None:
    (tmp_path / "acme.toml").write_bytes(b"1")
    (tmp_path / ".hidden.toml").write_bytes(b"x")
    (tmp_path / "acme.toml.swp").write_bytes(b"x")
    (tmp_path / "directory.toml").mkdir()
    got: list[Files | None] = []
    DropIn(loop, str(tmp_path), got.append).start()
    assert got == [{"acme": b"1"}]
    for number in range(3):
        (tmp_path / f"t{number}.toml").write_bytes(b"2")
    until(loop, got, 2)
    assert got[1] == {"acme": b"1", "t0": b"2", "t1": b"2", "t2": b"2"}
    (tmp_path / "acme.toml").unlink()
    until(loop, got, 3)
    assert "acme" not in (got[2] or {})


def test_a_change_that_changes_nothing_is_not_told(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_bytes(b"1")
    got: list[Files | None] = []
    drop_in = DropIn(loop, str(tmp_path), got.append)
    drop_in.start()
    drop_in.read()
    assert len(got) == 1


def test_a_directory_that_goes_away_is_told_as_none_and_found_again(loop: Loop, tmp_path: Path) -> None:
    directory = tmp_path / "tenants.d"
    directory.mkdir()
    got: list[Files | None] = []
    DropIn(loop, str(directory), got.append).start()
    directory.rename(tmp_path / "elsewhere")
    until(loop, got, 2)
    directory.mkdir()
    (directory / "acme.toml").write_bytes(b"1")
    until(loop, got, 3)
    assert got == [{}, None, {"acme": b"1"}]


def test_a_directory_that_never_gets_quiet_is_read_all_the_same(loop: Loop, tmp_path: Path) -> None:
    got: list[Files | None] = []
    DropIn(loop, str(tmp_path), got.append).start()
    number = 0

    def busy() -> None:
        nonlocal number
        number += 1
        (tmp_path / f"t{number}.toml").write_bytes(b"x")

    loop.call_every(50, busy)
    until(loop, got, 2)
