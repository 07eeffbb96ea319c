"""Ending an instance: stop by command or signal with grace, kill of the whole tree, what follows when all is gone."""

from __future__ import annotations

from ha.core.spawning.events import KillTree, Signal, StopCommand
from ha.core.spawning.launch import command_of, environment_of, identity_of
from ha.core.spawning.state import Copy, Ice, Phase, SpawnerState
from ha.model import limits
from ha.model.status import Role
from ha.model.timing import MS


def begin_stop(state: SpawnerState, copy: Copy, now: int, reason: str) -> None:
    """Stop a running copy: command or signal, grace, then the tree is killed."""
    plan = copy.plan
    if plan is None or copy.ice is not Ice.NONE or plan.stop.grace_ms <= 0:
        kill(state, copy, now, planned=True, reason=reason)
        return
    copy.phase, copy.planned, copy.reason, copy.telling = Phase.STOPPING, True, reason, None
    state.touch(copy)
    state.save(copy)
    state.set_timer(copy, now + plan.stop.grace_ms * MS)
    if plan.stop.command:
        role = copy.role or Role.STANDBY
        state.out.append(
            StopCommand(
                copy.key, copy.instance, command_of(state, copy, plan.stop.command),
                environment_of(state, copy, plan), identity_of(state, copy, role, copy.fencing), plan.stop.grace_ms,
            )
        )  # fmt: skip
    else:
        state.out.append(Signal(copy.key, copy.instance, plan.stop.signal))


def kill(state: SpawnerState, copy: Copy, now: int, *, planned: bool, reason: str) -> None:
    """End the whole tree of an instance."""
    copy.stop_telling()
    copy.phase, copy.planned = Phase.KILLING, planned
    if reason:
        copy.reason = reason
    state.touch(copy)
    state.save(copy)
    state.set_timer(copy, now + limits.KILL_CONFIRM_MS * MS)
    state.out.append(KillTree(copy.key, copy.instance))


def gone(state: SpawnerState, copy: Copy) -> None:
    """Nothing of the instance is left."""
    if not copy.planned:
        copy.dead = True
    copy.phase, copy.instance, copy.role, copy.fencing = Phase.DOWN, "", None, 0
    copy.telling, copy.unsure, copy.spoke, copy.unkillable = None, False, False, False
    copy.watchdog_ms = 0
    state.inherited.pop(copy.key, None)
    state.set_timer(copy, None)
    state.set_ice(copy, Ice.NONE)
    if state.stopping and copy.plan is not None:
        for dependency in copy.plan.depends_on:
            state.dirty.update(state.by_tenant.get(dependency.tenant, {}))
