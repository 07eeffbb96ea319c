"""Layout: where a word stands in the progress table, for `ha.linux.table` and for the Watcher, which imports no more.

One slot of SLOT_WORDS words an agent role, in the order of ROLE_NAMES; the Master's slot also holds what the Master is
about (`ha.core.watcher.Mode`). Changing any number changes MAGIC.
"""

from __future__ import annotations

MAGIC = 0x4841_5441_424C_0001
ROLE_NAMES = ("spawner", "monitor", "server", "master", "watcher", "witness")
SLOT_WORDS = 8
OWNER_SEQ, PID, TICKS, TURN, MASTER_SEQ, STATE, RESTARTS, MODE = range(SLOT_WORDS)
WORDS = SLOT_WORDS * len(ROLE_NAMES)


def base(role_name: str) -> int:
    """Return the first word of a role's slot."""
    return ROLE_NAMES.index(role_name) * SLOT_WORDS
