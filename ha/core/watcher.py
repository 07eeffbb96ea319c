"""The Watcher's machine: keeps one Master alive, and ends with it when it was stopped on purpose.

Laws. A Master whose lock another live process holds is never started beside it: the holder is adopted. `Mode` is what
the Master wrote into the progress table before it began to end; while it is stopping a dead Master is started again
and resumes the stop; while it hands over to a second ha-master, that one has MASTER_YIELD_MS to take the lock; once
it has ended, the Watcher ends too. The Watcher touches no managed process.

Not `msgspec` like the other machines, and without `ha.core.machine`: see `ha.core.care` for what that saves.
"""

from __future__ import annotations

from enum import Enum

from ha.core.care import LATE_MS, LOOK_EVERY_MS, MS, Health, Ward
from ha.model.limits import MASTER_YIELD_MS


class Mode(Enum):
    """What the Master of this node is about; kept in the progress table."""

    RUN = 0
    STOP = 1
    DETACH = 2
    ENDED = 3
    HANDOVER = 4  # another ha-master asked it to step aside


class Looked:
    """What lock and table say. `pid` 0: nobody holds the Master's lock; `turn`: its progress counter."""

    __slots__ = ("mode", "pid", "turn")

    def __init__(self, pid: int, turn: int, mode: Mode) -> None:
        self.pid = pid
        self.turn = turn
        self.mode = mode


class MasterDied:
    """The pidfd of that pid became readable."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


class Started:
    """StartMaster worked; that process may still find that it is not needed, and end."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


class NotStarted:
    """StartMaster failed."""

    __slots__ = ()


class Do(Enum):
    """What the shell is to do, in order."""

    LOOK = "read lock and table, and say Looked"
    START = "start the Master"
    KILL = "SIGKILL the Master by its pidfd"
    END = "end with exit code 0"


Event = Looked | MasterDied | Started | NotStarted


class WatcherState:
    """All of a Watcher."""

    __slots__ = ("alone_at", "ended", "looked_at", "master", "mode")

    def __init__(self, now: int) -> None:
        self.master = Ward("master")
        self.mode = Mode.RUN
        self.looked_at = now
        self.alone_at = now  # since when there has been no Master, if there is none
        self.ended = False


def start(now: int) -> tuple[WatcherState, list[Do]]:
    """Return the state of a Watcher that knows nothing yet, and that it wants to look."""
    return WatcherState(now), [Do.LOOK]


def step(state: WatcherState, event: Event | None, now: int) -> tuple[WatcherState, list[Do]]:
    """Decide; `event` None is a tick."""
    if state.ended:
        return state, []
    master = state.master
    if type(event) is Looked:
        state.mode = event.mode
        master.seen(event.pid, now)
        master.turned(event.pid, event.turn, now)
        if not event.pid and not master.pid:
            return _without(state, now)
    elif type(event) is MasterDied:
        if master.died(event.pid, now):
            state.alone_at = now
            return state, [Do.LOOK]  # did it end on purpose? has another one taken over already?
    elif type(event) is Started:
        master.seen(event.pid, now)
    elif type(event) is NotStarted:
        master.not_started(now)
    elif event is None and now >= wake_at(state):
        return _tick(state, now)
    return state, []


def wake_at(state: WatcherState) -> int:
    """Return when a tick is wanted."""
    look = state.looked_at + LOOK_EVERY_MS * MS
    start_at = state.master.wake_at()
    return look if start_at is None or start_at <= state.looked_at else min(look, start_at)


def _tick(state: WatcherState, now: int) -> tuple[WatcherState, list[Do]]:
    late = now - state.looked_at - LOOK_EVERY_MS * MS
    if late > LATE_MS * MS:
        state.master.excuse(late)
    state.looked_at = now
    if state.master.stuck(now):
        return state, [Do.KILL, Do.LOOK]
    state.master.vanished(now)
    return state, [Do.LOOK]


def _without(state: WatcherState, now: int) -> tuple[WatcherState, list[Do]]:
    """Nobody is the Master: that is meant so, or one is started as soon as it may be."""
    if state.mode is Mode.ENDED and state.master.health is Health.DEAD:
        state.ended = True
        return state, [Do.END]
    handing_over = state.mode is Mode.HANDOVER and now < state.alone_at + MASTER_YIELD_MS * MS
    if handing_over or not state.master.may_start(now):
        return state, []
    state.master.begin(now)
    return state, [Do.START]
