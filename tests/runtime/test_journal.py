from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha.model.errors import PersistError
from ha.runtime import journal as journals
from ha.runtime.journal import MAGIC, Journal


def reopen(path: Path) -> dict[str, object]:
    journal, restored = Journal.open(str(path))
    journal.close()
    return restored


class Thing(msgspec.Struct):
    name: str
    data: bytes


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal, restored = Journal.open(str(path))
    assert restored == {}
    journal.put("boots", 3)
    journal.put("lease/acme", ("a1", 5, False), sync=False)
    journal.put("thing", Thing("x", b"\x00\xff"))
    journal.put("boots", None)
    journal.close()
    assert reopen(path) == {"lease/acme": ["a1", 5, False], "thing": {"name": "x", "data": b"\x00\xff"}}
    assert path.stat().st_mode & 0o777 == 0o600


OPERATIONS = st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 2**64 - 1) | st.text(max_size=9)))


def states_of(operations: list[tuple[str, object]]) -> list[dict[str, object]]:
    state: dict[str, object] = {}
    states: list[dict[str, object]] = [{}]
    for key, value in operations:
        state.pop(key, None)
        if value is not None:
            state[key] = value
        states.append(dict(state))
    return states


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, st.integers(0, 100_000), st.integers(0, 255), st.sampled_from(["cut", "flip", "append"]))
def test_any_damage_of_the_tail_restores_a_prefix(
    operations: list[tuple[str, object]], at: int, byte: int, how: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "j")
        journal, _ = Journal.open(str(path))
        for key, value in operations:
            journal.put(key, value, sync=False)
        journal.close()
        data = bytearray(path.read_bytes())
        at = len(MAGIC) + at % (len(data) - len(MAGIC) + 1)
        if how == "cut":
            del data[at:]
        elif how == "flip" and at < len(data):
            data[at] ^= byte
        else:
            data += bytes([byte]) * (at % 50)
        path.write_bytes(data)
        restored = reopen(path)
        assert restored in states_of(operations)
        assert reopen(path) == restored


@pytest.mark.parametrize("length", range(len(MAGIC) + 1))
def test_a_torn_first_write_is_an_empty_journal(tmp_path: Path, length: int) -> None:
    path = tmp_path / "j"
    path.write_bytes(MAGIC[:length])
    journal, restored = Journal.open(str(path))
    assert restored == {}
    journal.put("a", 1)
    journal.close()
    assert reopen(path) == {"a": 1}


def test_the_cut_tail_is_told_and_writing_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal, _ = Journal.open(str(path))
    journal.put("a", 1)
    journal.close()
    with path.open("ab") as file:
        file.write(b"\x00\x00\x00\x10torn")
    journal, restored = Journal.open(str(path))
    assert (restored, journal.cut_bytes) == ({"a": 1}, 8)
    journal.put("b", 2)
    journal.close()
    assert reopen(path) == {"a": 1, "b": 2}


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"precious, but no journal")
    with pytest.raises(PersistError, match="not a journal"):
        Journal.open(str(path))
    assert path.read_bytes() == b"precious, but no journal"


def test_garbage_is_compacted_while_running_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal, _ = Journal.open(str(path))
    journal.put("kept", "k" * 1000)
    for number in range(2_000):
        journal.put("changing", [number, "x" * 100], sync=False)
    assert journal.size_bytes == path.stat().st_size < 2 * journals.COMPACT_MIN_BYTES
    journal.put("after", True)
    journal.close()
    assert reopen(path) == {"kept": "k" * 1000, "changing": [1_999, "x" * 100], "after": True}
    assert os.listdir(tmp_path) == ["j"]


def test_garbage_is_compacted_at_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal, _ = Journal.open(str(path))
    for number in range(10):
        journal.put("changing", number)
    journal.close()
    before = path.stat().st_size
    monkeypatch.setattr(journals, "COMPACT_MIN_BYTES", 0)
    assert reopen(path) == {"changing": 9}
    assert path.stat().st_size < before


def test_a_compaction_that_does_not_fit_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    (tmp_path / "j.tmp").mkdir()
    journal, _ = Journal.open(str(path))
    for number in range(2_000):
        journal.put("changing", [number, "x" * 100], sync=False)
    journal.close()
    assert path.stat().st_size > journals.COMPACT_MIN_BYTES
    assert reopen(path)["changing"] == [1_999, "x" * 100]


@pytest.mark.parametrize("failing", ["write", "fdatasync"])
def test_a_failed_write_or_sync_ends_the_journal_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "j"
    journal, _ = Journal.open(str(path))
    journal.put("a", 1)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(PersistError, match="No space left"):
            journal.put("b", 2)
    with pytest.raises(PersistError, match="No space left"):
        journal.put("c", 3)
    journal.close()
    assert reopen(path)["a"] == 1


def test_what_is_no_regular_file_is_not_read_without_end() -> None:
    with pytest.raises(PersistError, match="no regular file"):
        Journal.open("/dev/full")


def test_many_puts_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = Journal.open(str(tmp_path / "j"))
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    journal.put_all([(f"k{n}", n) for n in range(50)])
    journal.put_all([("x", 1)], sync=False)
    assert len(calls) == 1
    journal.close()
