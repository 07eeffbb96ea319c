"""Lean: role locks and progress table as the Watcher reads them, with nothing imported that is not needed for it.

The same files as `ha.linux.locks` and `ha.linux.table` write (a test holds them together); those import msgspec, which
would double the Watcher's memory. Reading only, but for the Watcher's own slot.
"""

from __future__ import annotations

import os
import select

from ha.linux import layout
from ha.linux.mapped import MappedWords

LINE_BYTES = 80
_TICKS_AFTER_NAME = 19  # field 22 of /proc/PID/stat, counted behind the name's closing bracket


def boot_id() -> str:
    """Return this boot's id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(4_096)
    except OSError:
        return 0
    return int(data[data.rfind(b")") + 2 :].split()[_TICKS_AFTER_NAME])


def open_holder(run_dir_node: str, role_name: str) -> tuple[int, int]:
    """Return (pid, pidfd) of the live process that holds a role's lock; (0, -1) if nobody does.

    The pidfd is opened first and compared after, so that a reused pid is never taken for the holder.
    """
    try:
        with open(f"{run_dir_node}/agents/{role_name}.lock", "rb", buffering=0) as file:
            words = (file.read(LINE_BYTES) or b"").split()
    except OSError:
        return 0, -1
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()) or words[2].decode() != boot_id():
        return 0, -1
    pid = int(words[0])
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return 0, -1
    if start_ticks(pid) == int(words[1]) and not ended(pidfd):
        return pid, pidfd
    os.close(pidfd)
    return 0, -1


def ended(pidfd: int) -> bool:
    """Return whether the process has ended, reaped or not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


class LeanTable:
    """The progress table, as far as the Watcher needs it."""

    def __init__(self, run_dir_node: str) -> None:
        """Open it, made or emptied if it is of another boot. Raises OSError."""
        self._words = MappedWords(f"{run_dir_node}/agents/table", layout.MAGIC, layout.WORDS, boot_id()).words

    def enter(self, role_name: str) -> None:
        """Say that this process is the role, with no turn yet."""
        base = layout.base(role_name)
        odd = self._words[base + layout.OWNER_SEQ] | 1
        self._words[base + layout.TURN] = 0
        self._words[base + layout.OWNER_SEQ] = odd
        self._words[base + layout.PID], self._words[base + layout.TICKS] = os.getpid(), start_ticks(os.getpid())
        self._words[base + layout.OWNER_SEQ] = odd + 1

    def turn(self, role_name: str, now_ns: int) -> None:
        """Say that the loop turned."""
        self._words[layout.base(role_name) + layout.TURN] = now_ns

    def turn_of(self, role_name: str, pid: int) -> int:
        """Return the progress counter of that process in that role; 0: none, or the slot is another's."""
        base = layout.base(role_name)
        turn = self._words[base + layout.TURN]
        return turn if self._words[base + layout.PID] == pid else 0

    def mode(self) -> int:
        """Return what the Master is about."""
        return self._words[layout.base("master") + layout.MODE]
