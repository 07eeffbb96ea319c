"""Fence: freeze, thaw and kill all of one copy, by its cgroup where it has one, else over its process tree.

Neither way raises for what is gone; "stopped" may be said only when `gone()`.
"""

from __future__ import annotations

from typing import Protocol

from ha.linux.cgroups import Cgroup, CgroupTree
from ha.linux.identity import Identity, alive
from ha.linux.outcome import Outcome
from ha.linux.tree import ProcessTree

FREEZE_WAIT_MS = 50  # far below `stall`: who freezes has others to freeze too


class Fence(Protocol):
    """All processes of one copy. `wait_ms`: longest time this call may take; LATE means ask again later."""

    def freeze(self, wait_ms: int = FREEZE_WAIT_MS) -> Outcome:
        """Stop all threads of all processes."""

    def thaw(self) -> Outcome:
        """Let all go on."""

    def kill(self, wait_ms: int = 0) -> Outcome:
        """SIGKILL all, frozen ones too."""

    def gone(self) -> bool:
        """Return whether no process is left."""

    def pids(self) -> tuple[int, ...]:
        """Return the pids of all processes, main or not."""

    def open_events(self) -> int | None:
        """Return a descriptor that shows EPOLLPRI when emptiness or frozenness changed; None: look again by timer."""

    def discard(self) -> None:
        """Give back what the kernel keeps for it, when it is gone."""


class CgroupFence:
    """By the cgroup freezer and cgroup.kill: nothing escapes, no pid is named."""

    def __init__(self, cgroup: Cgroup) -> None:
        self.cgroup = cgroup

    def freeze(self, wait_ms: int = FREEZE_WAIT_MS) -> Outcome:
        """Freeze and wait for cgroup.events."""
        return self.cgroup.freeze(wait_ms)

    def thaw(self) -> Outcome:
        """Thaw."""
        return self.cgroup.thaw()

    def kill(self, wait_ms: int = 0) -> Outcome:
        """Write cgroup.kill."""
        return self.cgroup.kill(wait_ms)

    def gone(self) -> bool:
        """Return whether the cgroup is unpopulated."""
        return not self.cgroup.populated()

    def pids(self) -> tuple[int, ...]:
        """Return cgroup.procs, of cgroups below too."""
        return self.cgroup.pids()

    def open_events(self) -> int | None:
        """Return cgroup.events, for `cgroups.read_events`."""
        return self.cgroup.open_events()

    def discard(self) -> None:
        """Remove the cgroup."""
        self.cgroup.remove()


class TreeFence:
    """By signals over session, cookie and descendants: what wiped its environment *and* escaped unseen is missed."""

    MINIMUM_MS = 20  # a pass over /proc takes some ms; less would never be DONE

    def __init__(self, tree: ProcessTree) -> None:
        self.tree = tree

    def freeze(self, wait_ms: int = FREEZE_WAIT_MS) -> Outcome:
        """SIGSTOP all."""
        return self.tree.freeze(max(wait_ms, self.MINIMUM_MS))

    def thaw(self) -> Outcome:
        """SIGCONT all."""
        return self.tree.thaw()

    def kill(self, wait_ms: int = 0) -> Outcome:
        """SIGSTOP all, SIGKILL all."""
        return self.tree.kill(max(wait_ms, self.MINIMUM_MS))

    def gone(self) -> bool:
        """Return whether two passes find nobody."""
        return self.tree.gone()

    def pids(self) -> tuple[int, ...]:
        """Return the live members."""
        return tuple(self.tree.members())

    def open_events(self) -> int | None:
        """Return None: signals have no events."""
        return None

    def discard(self) -> None:
        """Do nothing."""


def fence_for(
    tree: CgroupTree | None,
    copy: str,
    main: Identity | None,
    cookie: str,
    *,
    spare: frozenset[int] = frozenset(),
) -> Fence:
    """Return the fence of a copy: its cgroup if it has one that is in use or `main` is gone, else its process tree.

    A main process that runs outside (it was started before there were cgroups) is fenced by signals.
    """
    if tree is not None:
        cgroup = tree.cgroup(copy)
        if cgroup.exists() and (main is None or cgroup.populated() or not alive(main)):
            return CgroupFence(cgroup)
    return TreeFence(ProcessTree(main, cookie, spare))
