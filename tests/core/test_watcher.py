"""The Watcher's machine."""

from __future__ import annotations

import subprocess
import sys

from ha.core import watcher
from ha.core.care import LOOK_EVERY_MS, MS
from ha.core.watcher import Do, Looked, MasterDied, Mode, NotStarted, Started, WatcherState
from ha.model.limits import MASTER_YIELD_MS, STUCK_AFTER_MS

LOOK = LOOK_EVERY_MS * MS
S = 1_000 * MS


def watching(pid: int = 5) -> WatcherState:
    state, todo = watcher.start(0)
    assert todo == [Do.LOOK]
    state, todo = watcher.step(state, Looked(pid, 1, Mode.RUN), 0)
    assert todo == []
    return state


def died(state: WatcherState, now: int, *, mode: Mode = Mode.RUN, then: int = 0) -> list[Do]:
    """The Master 5 dies; what follows when the lock then is held by `then`."""
    _, todo = watcher.step(state, MasterDied(5), now)
    assert todo == [Do.LOOK]
    return watcher.step(state, Looked(then, 0, mode), now)[1]


def test_a_dead_master_is_started_at_once() -> None:
    assert died(watching(), 60 * S) == [Do.START]


def test_it_starts_a_master_when_there_is_none_at_its_own_start() -> None:
    state, _ = watcher.start(0)
    assert watcher.step(state, Looked(0, 0, Mode.RUN), 0)[1] == [Do.START]


def test_a_master_that_another_one_started_is_adopted() -> None:
    state = watching()
    assert died(state, 60 * S, then=6) == []
    assert state.master.pid == 6


def test_nothing_is_started_while_a_started_one_has_no_lock_yet() -> None:
    state = watching()
    assert died(state, 60 * S) == [Do.START]
    watcher.step(state, Started(6), 60 * S)
    for half_second in range(1, 10):
        now = 60 * S + half_second * LOOK
        assert watcher.step(state, None, now)[1] == [Do.LOOK]
        assert watcher.step(state, Looked(0, 0, Mode.RUN), now)[1] == []


def test_it_ends_with_a_master_that_ended_on_purpose() -> None:
    state = watching()
    assert died(state, 60 * S, mode=Mode.ENDED) == [Do.END]
    assert watcher.step(state, None, 70 * S)[1] == []


def test_a_master_that_dies_while_it_stops_the_node_is_started_again() -> None:
    for mode in (Mode.STOP, Mode.DETACH):
        assert died(watching(), 60 * S, mode=mode) == [Do.START]


def test_a_second_master_has_time_to_take_the_lock_from_one_that_steps_aside() -> None:
    state = watching()
    assert died(state, 60 * S, mode=Mode.HANDOVER) == []
    assert watcher.wake_at(state) <= 60 * S + LOOK
    late = 60 * S + MASTER_YIELD_MS * MS
    assert watcher.step(state, Looked(0, 0, Mode.HANDOVER), late - 1)[1] == []
    assert watcher.step(state, Looked(0, 0, Mode.HANDOVER), late)[1] == [Do.START]


def test_a_stuck_master_is_killed_once_and_then_started() -> None:
    state = watching()
    killed, now = 0, 0
    while now < 3 * STUCK_AFTER_MS * MS:
        now = watcher.wake_at(state)
        todo = watcher.step(state, None, now)[1]
        killed += todo.count(Do.KILL)
        if Do.LOOK in todo:
            watcher.step(state, Looked(5, 1, Mode.RUN), now)
    assert killed == 1
    assert died(state, now) == [Do.START]


def test_a_watcher_that_slept_itself_kills_nobody() -> None:
    state = watching()
    assert watcher.step(state, None, 60 * S)[1] == [Do.LOOK]


def test_a_failed_start_is_tried_again_after_its_delay_without_a_spin() -> None:
    state = watching()
    now, starts, ticks = 60 * S, 0, 0
    died(state, now)
    watcher.step(state, NotStarted(), now)
    while now < 70 * S:
        now = max(now, watcher.wake_at(state))
        ticks += 1
        if Do.LOOK in watcher.step(state, None, now)[1] and watcher.step(state, Looked(0, 0, Mode.RUN), now)[1]:
            starts += 1
            watcher.step(state, NotStarted(), now)
    assert 3 <= starts <= 6  # after 0.2, 0.4, 0.8, 1.6, 3.2 s
    assert ticks < 40


def test_late_events_change_nothing() -> None:
    state = watching()
    assert watcher.step(state, MasterDied(4), S)[1] == []
    assert watcher.step(state, NotStarted(), S)[1] == []
    assert state.master.pid == 5


def test_its_machine_imports_nothing_heavy() -> None:
    program = (
        "import sys, ha.core.watcher; print(sorted({'msgspec', 'dataclasses', 'zmq', 'ctypes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"
