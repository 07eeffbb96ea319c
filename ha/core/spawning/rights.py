"""Rights: pulling them, counting them from our own send time, and freezing what has none left.

Rules 2, 8 and 10 of design section 3, on the node's side:

- a right is counted from the send of the Pull it answers, never prolonged by the answer to an older Pull;
- a copy that the newest list of a Server does not name keeps the deadline it had, to act on, but is not started,
  promoted or thawed by it;
- nothing is started, promoted or thawed with less than `stall` left;
- an acting copy is frozen at its deadline; after a thaw the deadline is read again.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ha.core.machine import Received, Send
from ha.core.spawning.events import Deadline, Freeze, SetDeadlines
from ha.core.spawning.state import Copy, Grantor, Ice, Phase, SpawnerState
from ha.model import limits
from ha.model.messages import Grant, Holding, Pull
from ha.model.names import Agent
from ha.model.timing import MS

PULLS_KEPT = 64  # unanswered Pulls of one Server that an answer may still pair with
NUDGES = 10  # fast Pulls after a right was found missing; then the beat has to do


class Owned(NamedTuple):
    """A right: until when (ns) and at which number."""

    fencing: int
    deadline: int


def servers_of(state: SpawnerState) -> tuple[str, ...]:
    """Return the nodes where a Server of this side may run."""
    return state.system.sides.get(state.node.side, ())


def tick(state: SpawnerState, now: int) -> None:
    """Pull if it is time."""
    if now < state.next_pull:
        return
    timing = state.system.timing
    if state.last_pull and now - state.next_pull > timing.stall_ms * MS:
        state.late_ticks += 1
    state.last_pull = now
    every = timing.beat_ms
    if state.waiting and state.nudges > 0:
        state.nudges -= 1
        every = min(every, limits.NUDGE_RETRY_MS)
    state.next_pull = now + every * MS
    holdings = _holdings(state)
    for server in servers_of(state):
        grantor = state.grantors.setdefault(server, Grantor())
        state.request += 1
        grantor.asked[state.request] = now
        if len(grantor.asked) > PULLS_KEPT:
            del grantor.asked[next(iter(grantor.asked))]
        pull = Pull(
            state.boot, grantor.version, holdings, state.orders_digest, state.plan_digest,
            bool(state.leaving), state.late_ticks, state.freezes,
        )  # fmt: skip
        state.out.append(Send(Agent.SERVER, server, pull, state.request))


def nudge(state: SpawnerState, now: int) -> None:
    """A right is missing: pull at once, at most every NUDGE_RETRY_MS."""
    state.nudges = NUDGES
    state.next_pull = min(state.next_pull, max(now, state.last_pull + limits.NUDGE_RETRY_MS * MS))


def take_grant(state: SpawnerState, event: Received, grant: Grant, now: int) -> None:
    """Apply the answer to a Pull; only a seated Server grants, and only the newest answer of each counts."""
    grantor = state.grantors.get(event.node)
    sent = grantor.asked.pop(event.request, None) if grantor else None
    if grantor is None or sent is None or sent <= grantor.applied_sent:
        return
    if event.incarnation != grantor.incarnation:
        grantor.incarnation, grantor.version = event.incarnation, 0
    grantor.seated = grant.seated
    if not grant.seated:
        return
    state.seated_at = now
    if grant.rights is None and (grant.version != grantor.version or not grantor.version):
        grantor.version = 0  # a list we do not have: the next Pull asks for it
        return
    grantor.applied_sent = sent
    for request in [old for old, at in grantor.asked.items() if at <= sent]:
        del grantor.asked[request]
    if grant.rights is not None:
        _take_list(state, grantor, grant)
    timing = state.system.timing
    until = sent + timing.sub_lease_ns(grant.remaining_ns)
    short = {tenant: sent + timing.sub_lease_ns(min(ns, grant.remaining_ns)) for tenant, ns in grant.short}
    # A renewal of just the same rights moves the one deadline that all share; anything else is looked at line by line.
    same = (
        grant.rights is None and state.primary == event.node and until >= grantor.until and not (short or grantor.short)
    )
    state.primary, grantor.until, grantor.short = event.node, until, short
    for table in (state.waiting, state.icy):
        state.dirty.update(table)
    state.guard_dirty.update(state.own_lines if same else dict.fromkeys(state.guard))
    refresh(state, now)


def _take_list(state: SpawnerState, grantor: Grantor, grant: Grant) -> None:
    listed = {right.copy: right.fencing for right in grant.rights or ()}
    for key, fencing in grantor.rights.items():
        if key in state.guard and listed.get(key, 0) < fencing:
            deadline = grantor.short.get(state.copies[key].tenant, grantor.until) if key in state.copies else 0
            state.inherited[key] = max(state.inherited.get(key, (0, 0)), (fencing, deadline))
    grantor.rights = listed
    grantor.version = grant.version
    for key, fencing in listed.items():
        copy = state.copies.get(key)
        if copy is not None and (copy.fencing != fencing or not copy.acts):
            state.dirty[key] = None


def granted(state: SpawnerState, copy: Copy, at_least: int, now: int) -> Owned | None:
    """Return the right to start, promote or thaw the copy at a number not below `at_least`; None: not now."""
    least = max(at_least, state.void(copy.tenant) + 1)
    best: Owned | None = None
    for grantor in state.grantors.values():
        fencing = grantor.rights.get(copy.key, 0)
        if fencing >= least:
            owned = Owned(fencing, grantor.short.get(copy.tenant, grantor.until))
            best = owned if best is None else max(best, owned)
    if best is None or best.deadline - now < state.system.timing.stall_ms * MS:
        return None
    return best


def deadline_of(state: SpawnerState, copy: Copy) -> int:
    """Return until when the copy may act at its number, by all that was granted; 0: never was."""
    least = copy.acting_fencing
    fencing, deadline = state.inherited.get(copy.key, (0, 0))
    latest = deadline if fencing >= least else 0
    for grantor in state.grantors.values():
        if grantor.rights.get(copy.key, -1) >= least:
            latest = max(latest, grantor.short.get(copy.tenant, grantor.until))
    return latest


def refresh(state: SpawnerState, now: int) -> None:
    """Bring deadlines and guard table up to date for the copies that changed, and freeze what is over."""
    primary = state.grantors.get(state.primary)
    shared_ns = primary.until if primary else 0
    if state.guard_dirty or shared_ns != state.shared_ns:
        lines: list[Deadline] = []
        for key in state.guard_dirty:
            _refresh_one(state, key, primary, lines)
        state.guard_dirty = {}
        if lines or (state.guard and shared_ns != state.shared_ns):
            state.out.append(SetDeadlines(tuple(lines), shared_ns))
        state.shared_ns = shared_ns
        _find_next(state)
    sweep(state, now)


def _refresh_one(state: SpawnerState, key: str, primary: Grantor | None, lines: list[Deadline]) -> None:
    state.acting_shared.pop(key, None)
    state.acting_own.pop(key, None)
    copy = state.copies.get(key)
    if copy is None or not copy.acts or not copy.pid:
        state.own_lines.pop(key, None)
        if state.guard.pop(key, None) is not None:
            lines.append(Deadline(key, "", 0, 0))
        return
    deadline = deadline_of(state, copy)
    shared = primary is not None and deadline == primary.until and deadline > 0
    if copy.phase in (Phase.RUNNING, Phase.STOPPING) and copy.ice in (Ice.NONE, Ice.THAWING):
        if shared:
            state.acting_shared[key] = None
        else:
            state.acting_own[key] = deadline
    if shared:
        state.own_lines.pop(key, None)
    else:
        state.own_lines[key] = None
    line = Deadline(
        key, copy.instance, copy.pid, 0 if shared else deadline, shared, copy.acting_fencing, copy.start_ticks
    )
    if state.guard.get(key) != line:
        state.guard[key] = line
        lines.append(msgspec.structs.replace(line, deadline_ns=deadline) if shared else line)


def _find_next(state: SpawnerState) -> None:
    state.next_deadline = min(state.acting_own.values(), default=None)
    if state.acting_shared and (state.next_deadline is None or state.shared_ns < state.next_deadline):
        state.next_deadline = state.shared_ns


def sweep(state: SpawnerState, now: int) -> None:
    """Freeze every acting copy whose deadline has passed."""
    if state.next_deadline is None or now < state.next_deadline:
        return
    over = [(key, deadline) for key, deadline in state.acting_own.items() if now >= deadline]
    if now >= state.shared_ns:
        over += [(key, state.shared_ns) for key in state.acting_shared]
    for key, deadline in over:
        copy = state.copies[key]
        copy.lapsed_at = min(now, deadline or now)
        state.freezes += 1
        freeze(state, copy, "right lapsed")
        state.acting_own.pop(key, None)
        state.acting_shared.pop(key, None)
    _find_next(state)


def freeze(state: SpawnerState, copy: Copy, reason: str) -> None:
    """Stop the tree of an acting copy, and what is being told to it; `lapsed_at` starts kill_after."""
    if copy.ice in (Ice.FREEZING, Ice.FROZEN):
        return
    copy.stop_telling()
    copy.reason = reason
    state.set_ice(copy, Ice.FREEZING)
    if copy.phase is Phase.RUNNING:
        state.set_timer(copy, copy.lapsed_at + state.system.timing.kill_after_ms * MS)
    state.out.append(Freeze(copy.key, copy.instance))
    state.note("freeze", copy.key, reason=reason, epoch=copy.fencing >> 16)


def _holdings(state: SpawnerState) -> tuple[Holding, ...]:
    if state.holdings is None:
        state.holdings = tuple(
            Holding(key, copy.acting_fencing, copy.ice is Ice.FROZEN) for key, copy in state.copies.items() if copy.acts
        )
    return state.holdings
