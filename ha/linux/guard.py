"""Guard: run_dir/NODE/agents/guard, the deadlines mapped (layout and verdict: `ha.core.guard`).

One writer, the Spawner. It writes a whole new list into the half that is not in use and then turns the `active` word
over; a Spawner killed in between leaves the old list whole. A renewal stores one word. Of another boot: empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from ha.core import guard
from ha.core.guard import GuardEntry
from ha.linux.clocks import boot_id
from ha.linux.mapped import WORD, MappedWords

_MAGIC = 0x4841_4755_4152_0001
_ACTIVE, _DEADLINE, _WRITTEN, _BYTES = 0, 1, 2, 3  # _BYTES: of the first half, then of the second
_HEAD_WORDS = 8
HALF_BYTES = 512 * 1024  # some 3,000 copies; the file is sparse
_TRIES = 16


class GuardFull(ValueError):
    """More copies than the table holds: the caller must not grant what it cannot guard."""


class GuardTable:
    """The mapped guard. `read` never fails: torn or foreign bytes are nobody's deadlines."""

    def __init__(self, mapped: MappedWords) -> None:
        self._mapped = mapped
        self._words = mapped.words

    @classmethod
    def open(cls, path: str) -> GuardTable:
        """Open run_dir/NODE/agents/guard, made or emptied if it is of another boot. Raises OSError."""
        return cls(MappedWords(path, _MAGIC, _HEAD_WORDS + 2 * HALF_BYTES // WORD, boot_id()))

    def close(self) -> None:
        """Unmap."""
        self._mapped.close()

    def write(self, entries: Sequence[GuardEntry], deadline_ns: int) -> None:
        """Replace the list and the shared deadline. Raises GuardFull; nothing changed then."""
        data = guard.encode(entries)
        if len(data) > HALF_BYTES:
            raise GuardFull(f"cannot guard {len(entries)} copies: {len(data)} bytes, at most {HALF_BYTES}")
        half = 1 - self._words[_ACTIVE] % 2
        start = _HEAD_WORDS * WORD + half * HALF_BYTES
        self._mapped.data[start : start + len(data)] = data
        self._words[_BYTES + half] = len(data)
        # A shorter right counts at once, a longer one only with its list: at no instant is a deadline too late.
        if deadline_ns < self._words[_DEADLINE]:
            self._words[_DEADLINE] = deadline_ns
        self._words[_ACTIVE] = half
        self._words[_DEADLINE] = deadline_ns
        self._words[_WRITTEN] += 1

    def extend(self, deadline_ns: int) -> None:
        """Move the shared deadline: a renewal of just the same rights."""
        self._words[_DEADLINE] = deadline_ns

    def read(self) -> tuple[GuardEntry, ...]:
        """Return the entries with their deadlines; empty when nothing was written in this boot."""
        for _ in range(_TRIES):
            written, half = self._words[_WRITTEN], self._words[_ACTIVE] % 2
            start = _HEAD_WORDS * WORD + half * HALF_BYTES
            size = min(self._words[_BYTES + half], HALF_BYTES)
            entries = guard.decode(bytes(self._mapped.data[start : start + size]), self._words[_DEADLINE])
            if entries is not None and self._words[_WRITTEN] == written:
                return entries
        return ()

    def overdue(self, now_ns: int) -> tuple[GuardEntry, ...]:
        """Return what must be frozen now."""
        return guard.verdict(self.read(), now_ns)
