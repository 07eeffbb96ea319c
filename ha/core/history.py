"""History: what a Monitor that was replaced must still know of a copy's deaths.

Without it a copy that dies all the time would get its full intensity again with each Monitor, and a copy that was
given up would be started again. One journal entry per copy that has died, `deaths/COPY`, written without a sync: it is
lost with the machine, and then the copy is, too.
"""

from __future__ import annotations

import msgspec

from ha.core.desk import Copy, Desk, Rest, say
from ha.core.machine import Persist
from ha.model.status import State

PREFIX = "deaths/"
KEPT = (Rest.GIVEN_UP, Rest.STAYS)  # ends that are over: they are not judged again


class History(msgspec.Struct, frozen=True, array_like=True):
    """One entry. `pid`, `start_ticks`, `started_ns`: the life that ended last; `over`: it is not started again."""

    reset: int
    restarts: int
    times: tuple[int, ...]
    row: int
    total: int
    pid: int
    start_ticks: int
    started_ns: int
    over: bool
    failed: bool
    reason: str


def remember(desk: Desk, copy: Copy) -> None:
    """Write down what was just decided about a copy; nothing while nothing has happened to it."""
    judged = copy.judged[0] if copy.judged else (0, 0, 0)
    deaths = copy.deaths
    history = History(
        copy.fact.reset, copy.restarts, tuple(deaths.times), deaths.row, deaths.total, *judged,
        copy.rest in KEPT, copy.rest is Rest.GIVEN_UP, copy.reason,
    )  # fmt: skip
    desk.effects.append(Persist(PREFIX + copy.fact.copy, history, sync=False))


def forget(desk: Desk, key: str) -> None:
    """The copy has left."""
    desk.effects.append(Persist(PREFIX + key, None, sync=False))


def recall(desk: Desk, copy: Copy, value: object) -> None:
    """Take in the entry of an earlier Monitor; one that is damaged, or from before a reset, is left out."""
    try:
        history = msgspec.convert(value, History)
    except msgspec.ValidationError:
        return
    fact, deaths = copy.fact, copy.deaths
    if history.reset != fact.reset:
        return
    copy.restarts = history.restarts
    deaths.times = [time for time in history.times if time <= desk.now]
    deaths.row, deaths.total = history.row, history.total
    life = (fact.pid, fact.start_ticks, fact.started_ns)
    if fact.state.runs or life != (history.pid, history.start_ticks, history.started_ns):
        return
    if history.over:
        copy.judged = (life, fact.exit)
        copy.rest = Rest.GIVEN_UP if history.failed else Rest.STAYS
        say(desk, copy, State.FAILED if history.failed else State.DOWN, history.reason)
    else:  # nobody knows whether it was acted upon: it is judged again, but counted once
        deaths.times = deaths.times[:-1]
        deaths.row = max(0, deaths.row - 1)
