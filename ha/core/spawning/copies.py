"""One copy on its way to what was ordered: start, role, freeze and thaw, stop, kill.

`reconcile` is level-triggered: it looks at what the copy is and at its order, and takes the next step, if one is due;
the outcome of that step brings it here again. So the latest order wins, and a stop during a start never hangs.

    DOWN -> SPAWNING -> RUNNING -> STOPPING -> KILLING -> DOWN
    ADOPTING ------------^                        (RUNNING: also NONE -> FREEZING -> FROZEN -> THAWING -> NONE)

Only `TreeGone` makes a copy DOWN. What died unasked (`dead`) waits for the Monitor; what we ended ourselves follows
its order at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ha.core.machine import Persist
from ha.core.spawning import rights, roles
from ha.core.spawning.ending import begin_stop, kill
from ha.core.spawning.events import Forget, KillTree, Spawn, Thaw
from ha.core.spawning.launch import command_of, environment_of, identity_of
from ha.core.spawning.state import Copy, Ice, Phase, SpawnerState
from ha.model import limits
from ha.model.status import Role, Wanted
from ha.model.timing import MS

FULL_PAUSE_MS = 50  # copies that leave within this share one full list of facts


class Want(StrEnum):
    """What an order comes to on this node."""

    DOWN = "down"
    KEEP = "keep"  # leave it as it is: plan not here yet, refused here, or its dependents still run
    VOID = "void"  # active at a number this node has let go of: nothing to be started for
    UP = "up"


class Goal(NamedTuple):
    """What a copy should be now."""

    want: Want
    role: Role = Role.STANDBY
    fencing: int = 0


def goal_of(state: SpawnerState, copy: Copy, now: int) -> Goal:
    """Return what the copy should be now."""
    order = copy.order
    if state.stopping:
        return Goal(Want.KEEP if _needed(state, copy) else Want.DOWN)
    if order is None or order.wanted is Wanted.DOWN:
        return Goal(Want.DOWN)
    found = state.processes.get(copy.id)
    if copy.refused or found is None or order.serial > found[0].serial or copy.number > found[1].copies:
        return Goal(Want.KEEP)
    if not found[1].run_status.exclusive:
        return Goal(Want.UP, Role.ACTIVE, order.fencing)
    if order.role is not Role.ACTIVE:
        return Goal(Want.UP, Role.STANDBY, order.fencing)
    right = rights.granted(state, copy, order.fencing, now)
    if right is not None:
        return Goal(Want.UP, Role.ACTIVE, right.fencing)
    if order.fencing <= state.void(copy.tenant):
        return Goal(Want.VOID)
    return Goal(Want.UP, Role.ACTIVE, order.fencing)


def reconcile(state: SpawnerState, copy: Copy, now: int) -> None:
    """Take the next step towards the order, if one is due."""
    was_waiting = state.waiting.pop(copy.key, 0) is None
    match copy.phase:
        case Phase.DOWN:
            _from_down(state, copy, goal_of(state, copy, now), now)
        case Phase.RUNNING if copy.ice is Ice.FROZEN:
            _from_frozen(state, copy, goal_of(state, copy, now), now)
        case Phase.RUNNING if copy.ice is Ice.NONE and copy.telling is None:
            _from_running(state, copy, goal_of(state, copy, now), now)
        case _:
            return  # an outcome is due, or a timer
    if copy.key in state.waiting and not was_waiting:
        rights.nudge(state, now)


# --- the next step -------------------------------------------------------------------------------


def _from_down(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> None:
    if goal.want is Want.DOWN and copy.order is None:
        _forget(state, copy, now)
    if goal.want is not Want.UP or copy.dead:
        return
    process = state.processes[copy.id][1]
    if process.run_status.exclusive and goal.role is Role.ACTIVE and not _may(state, copy, goal, now):
        return
    _start(state, copy, goal, now)


def _from_frozen(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> None:
    if state.lettings.get(copy.tenant) is not None and copy.fencing <= state.void(copy.tenant):
        return  # killed when the Relinquish has been answered
    if goal.want is Want.KEEP and not state.stopping:
        goal = Goal(Want.UP, Role.ACTIVE, copy.fencing)
    restart = copy.order is not None and copy.order.restart != copy.restart
    restart = restart or copy.fencing <= state.void(copy.tenant)
    if goal.want is not Want.UP or goal.role is not Role.ACTIVE or restart:
        kill(state, copy, now, planned=True, reason="frozen, and no longer to be active")
        return
    right = rights.granted(state, copy, copy.fencing, now)
    if right is None:
        state.waiting[copy.key] = None
        return
    state.set_timer(copy, None)
    state.set_ice(copy, Ice.THAWING)
    state.out.append(Thaw(copy.key, copy.instance))


def _from_running(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> None:
    order = copy.order
    if copy.acts and copy.fencing <= state.void(copy.tenant):
        _let_go(state, copy, now)
    elif goal.want is Want.DOWN:
        begin_stop(state, copy, now, "stop ordered")
    elif goal.want is not Want.UP or order is None:
        return
    elif order.restart != copy.restart:
        begin_stop(state, copy, now, "restart ordered")
    elif goal.role is not copy.role or copy.unsure:
        if goal.role is Role.STANDBY or not _exclusive(copy) or _may(state, copy, goal, now):
            _change_role(state, copy, goal, now)
    elif goal.fencing != copy.fencing:
        if not copy.acts:
            copy.fencing = goal.fencing
            state.touch(copy)
        elif goal.fencing > copy.fencing and _may(state, copy, goal, now):
            roles.tell_number(state, copy, goal.fencing, now)


def _change_role(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> None:
    if not roles.tell(state, copy, goal.role, goal.fencing, now):
        begin_stop(state, copy, now, f"restarted as {goal.role}: it cannot be told its role")


def _let_go(state: SpawnerState, copy: Copy, now: int) -> None:
    """The tenant is being relinquished: politely while there is time, else freeze."""
    letting = state.lettings.get(copy.tenant)
    if letting is None or now >= letting.until:
        copy.lapsed_at = now
        rights.freeze(state, copy, "relinquished")
    elif not roles.tell(state, copy, Role.STANDBY, copy.fencing, now):
        begin_stop(state, copy, now, "relinquished")


def _may(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> bool:
    """Return whether a right for this goal is there with `stall` left; if not, wait for it."""
    if rights.granted(state, copy, goal.fencing, now) is not None:
        return True
    state.waiting[copy.key] = None
    return False


def _exclusive(copy: Copy) -> bool:
    return copy.plan is not None and copy.plan.run_status.exclusive


# --- steps ---------------------------------------------------------------------------------------


def _start(state: SpawnerState, copy: Copy, goal: Goal, now: int) -> None:
    tenant, process = state.processes[copy.id]
    assert copy.order is not None, "only what is ordered is started"
    state.started_count += 1
    copy.instance = f"{state.incarnation:x}.{state.started_count}"
    copy.phase, copy.plan, copy.role, copy.fencing = Phase.SPAWNING, process, goal.role, goal.fencing
    copy.serial, copy.restart, copy.reset = tenant.serial, copy.order.restart, copy.order.reset
    copy.pid = copy.start_ticks = copy.watchdog_ms = copy.lapsed_at = 0
    copy.started_ns, copy.started_at = now, 0.0
    copy.exit, copy.planned, copy.dead, copy.notified, copy.spoke = None, True, False, False, False
    copy.status = copy.reason = ""
    state.inherited.pop(copy.key, None)
    state.touch(copy)
    state.save(copy)  # the intent, before the fork
    state.out.append(
        Spawn(
            copy.key, copy.instance, command_of(state, copy, process.command), process, goal.role, goal.fencing,
            environment_of(state, copy, process), identity_of(state, copy, goal.role, goal.fencing),
        )
    )  # fmt: skip


def timed_out(state: SpawnerState, copy: Copy, now: int) -> None:
    """The copy's timer ran out."""
    match copy.phase:
        case Phase.STOPPING:
            kill(state, copy, now, planned=True, reason="")
        case Phase.KILLING:
            if not copy.unkillable:
                copy.unkillable, copy.reason = True, "unkillable"
                state.note("unkillable", copy.key, reason=f"pid {copy.pid} is still there after SIGKILL")
                state.touch(copy)
            state.set_timer(copy, now + limits.KILL_CONFIRM_MS * MS)
            state.out.append(KillTree(copy.key, copy.instance))
        case Phase.RUNNING if copy.telling is not None:
            roles.failed(state, copy, now, "timed out")
        case Phase.RUNNING if copy.ice in (Ice.FROZEN, Ice.FREEZING):
            kill(state, copy, now, planned=True, reason="no right for kill_after")
        case _:
            return


def _forget(state: SpawnerState, copy: Copy, now: int) -> None:
    state.out += [Persist(f"copy/{copy.key}", None, sync=False), Forget(copy.key)]
    state.drop(copy)
    state.full_due = state.full_due if state.full_due is not None else now + FULL_PAUSE_MS * MS


def _needed(state: SpawnerState, copy: Copy) -> bool:
    """Return whether something that depends on the copy still runs here."""
    if state.forced:
        return False
    for user in state.graph.needed_by.get(copy.id, ()):
        for key in state.by_tenant.get(user.partition("/")[0], ()):
            other = state.copies[key]
            if other.id == user and other.phase is not Phase.DOWN:
                return True
    return False
