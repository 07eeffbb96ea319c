"""Outcome: how an effect on a process tree ended; "gone" is an answer, not an error."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What came of a freeze, thaw or kill."""

    DONE = "done"
    GONE = "gone"  # nothing of it was there (any more)
    LATE = "late"  # asked for, but not reached within the wait; it may still come
    REFUSED = "refused"  # the kernel refused

    @property
    def reached(self) -> bool:
        """What was wanted holds: nothing of it runs on."""
        return self in (Outcome.DONE, Outcome.GONE)
