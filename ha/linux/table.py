"""Table: the progress table run_dir/NODE/agents/table, one slot an agent role, read without a message.

Each field has one writer: the agent itself writes pid, start_ticks and turn_ns, the Master (of all roles, its own
included) state and restarts. A field is one word and cannot tear; pid and start_ticks belong together, as do state and
restarts, so a sequence word that is odd while its writer writes goes around each pair. A writer that died in between
leaves it odd: the pair then reads as 0 until the next one writes.
"""

from __future__ import annotations

import os

import msgspec

from ha.linux import layout
from ha.linux.clocks import boot_id
from ha.linux.identity import Identity, start_ticks
from ha.linux.mapped import MappedWords
from ha.model.names import Agent
from ha.model.status import AgentState

ROLES = tuple(Agent(name) for name in layout.ROLE_NAMES)
_STATES: tuple[AgentState | None, ...] = (
    None, AgentState.STARTING, AgentState.UP, AgentState.STUCK, AgentState.DEAD,
)  # fmt: skip
_TRIES = 64
_base, _OWNER_SEQ, _PID = layout.base, layout.OWNER_SEQ, layout.PID  # the names this module's tests know


class Progress(msgspec.Struct, frozen=True):
    """One agent's slot. pid 0: never said; turn_ns: CLOCK_BOOTTIME of its last loop turn, 0: none yet."""

    pid: int = 0
    start_ticks: int = 0
    turn_ns: int = 0
    restarts: int = 0
    state: AgentState | None = None

    @property
    def identity(self) -> Identity | None:
        """Who it is, for `open_verified`."""
        return Identity(self.pid, self.start_ticks, boot_id()) if self.pid else None


class ProgressTable:
    """The mapped table. Open it once; reading and writing cost no system call."""

    def __init__(self, words: MappedWords) -> None:
        self._mapped = words
        self._words = words.words

    @classmethod
    def open(cls, path: str) -> ProgressTable:
        """Open run_dir/NODE/agents/table, made or emptied if it is of another boot. Raises OSError."""
        return cls(MappedWords(path, layout.MAGIC, layout.WORDS, boot_id()))

    def close(self) -> None:
        """Unmap."""
        self._mapped.close()

    def set_pid(self, role: Agent, pid: int | None = None, ticks: int | None = None) -> None:
        """Say who runs this role (default: we), with no turn yet. Written by the agent itself, at its start."""
        pid = os.getpid() if pid is None else pid
        ticks = (start_ticks(pid) or 0) if ticks is None else ticks
        base = layout.base(role)
        self._words[base + layout.TURN] = 0
        self._write_pair(base + layout.OWNER_SEQ, base + layout.PID, (pid, ticks))

    def turn(self, role: Agent, now_ns: int) -> None:
        """Say that the loop turned. Written by the agent itself."""
        self._words[layout.base(role) + layout.TURN] = now_ns

    def set_state(self, role: Agent, state: AgentState, restarts: int) -> None:
        """Say how the Master sees it. Written by the Master."""
        base = layout.base(role)
        self._write_pair(base + layout.MASTER_SEQ, base + layout.STATE, (_STATES.index(state), restarts))

    def set_mode(self, mode: int) -> None:
        """Say what this node's Master is about (a value of `ha.core.watcher.Mode`). Written by the Master."""
        self._words[layout.base(Agent.MASTER) + layout.MODE] = mode

    def mode(self) -> int:
        """Return what the Master said last; 0 (it runs) in a fresh table."""
        return self._words[layout.base(Agent.MASTER) + layout.MODE]

    def read(self, role: Agent) -> Progress:
        """Return the slot; a pair whose writer is in the middle of it, for good, reads as 0 or None."""
        base = layout.base(role)
        pid, ticks = self._read_pair(base + layout.OWNER_SEQ, base + layout.PID)
        state, restarts = self._read_pair(base + layout.MASTER_SEQ, base + layout.STATE)
        known = _STATES[state] if state < len(_STATES) else None
        return Progress(pid, ticks, self._words[base + layout.TURN], restarts, known)

    def _write_pair(self, seq: int, at: int, values: tuple[int, int]) -> None:
        odd = self._words[seq] | 1
        self._words[seq] = odd
        self._words[at], self._words[at + 1] = values
        self._words[seq] = odd + 1

    def _read_pair(self, seq: int, at: int) -> tuple[int, int]:
        for _ in range(_TRIES):
            before = self._words[seq]
            values = (self._words[at], self._words[at + 1])
            if before % 2 == 0 and self._words[seq] == before:
                return values
        return 0, 0
