"""Telling a running copy its role: by command, by signal, by the control socket; what cannot be told is restarted.

The number a copy acts at is journalled before it is told; a promotion that failed or timed out ends the copy, which is
then started as active; a demotion that failed freezes and ends it, and it is started as standby.
"""

from __future__ import annotations

from ha.core.spawning import rights
from ha.core.spawning.ending import kill
from ha.core.spawning.events import Method, RoleTold, TellRole
from ha.core.spawning.launch import command_of, environment_of, identity_of
from ha.core.spawning.state import Copy, SpawnerState
from ha.model.plan import RoleChange
from ha.model.status import Role
from ha.model.timing import MS


def tell(state: SpawnerState, copy: Copy, role: Role, fencing: int, now: int) -> bool:
    """Tell the role; return False if there is no way to (then it has to be restarted with the other HA_ROLE)."""
    change = _change(copy, role)
    method = _method(copy, change)
    if method is None:
        return False
    _send(state, copy, role, fencing, now, method, change or RoleChange())
    return True


def tell_number(state: SpawnerState, copy: Copy, fencing: int, now: int) -> None:
    """An active copy goes on at a higher number; if it can only be signalled, or not told, that is just noted."""
    change = _change(copy, Role.ACTIVE)
    method = _method(copy, change)
    if method is Method.SIGNAL and copy.spoke:
        method = Method.SOCKET
    if method in (Method.COMMAND, Method.SOCKET):
        _send(state, copy, Role.ACTIVE, fencing, now, method, change or RoleChange())
        return
    copy.fencing = fencing
    state.touch(copy)
    state.save(copy)


def told(state: SpawnerState, copy: Copy, event: RoleTold, now: int) -> None:
    """The copy answered; an answer to what was told before changes nothing."""
    if copy.telling is not event.role or copy.telling_fencing != event.fencing:
        return
    if not event.ok:
        failed(state, copy, now, event.reason or "refused")
        return
    state.set_timer(copy, None)
    copy.role, copy.fencing = event.role, event.fencing
    copy.telling, copy.unsure, copy.reason = None, False, ""
    state.touch(copy)
    state.note("role", copy.key, to=event.role, epoch=event.fencing >> 16)


def failed(state: SpawnerState, copy: Copy, now: int, reason: str) -> None:
    """The copy did not take its role: end it, its order starts it with that role."""
    role = copy.telling
    verb = "promote" if role is Role.ACTIVE else "demote"
    state.note(f"{verb}-failed", copy.key, reason=reason)
    state.set_timer(copy, None)
    if role is Role.STANDBY and copy.acts:
        copy.lapsed_at = now
        rights.freeze(state, copy, f"{verb} failed: {reason}")
    kill(state, copy, now, planned=True, reason=f"{verb} failed: {reason}")


def _send(
    state: SpawnerState, copy: Copy, role: Role, fencing: int, now: int, method: Method, change: RoleChange
) -> None:
    assert copy.plan is not None, "a running copy has its plan"
    copy.telling, copy.telling_fencing = role, fencing
    state.touch(copy)
    state.save(copy)
    state.set_timer(copy, now + change.timeout_ms * MS)
    command = command_of(state, copy, change.command) if method is Method.COMMAND else ()
    state.out.append(
        TellRole(
            copy.key, copy.instance, role, fencing, method, change.timeout_ms, command,
            change.signal if method is Method.SIGNAL else "",
            environment_of(state, copy, copy.plan), identity_of(state, copy, role, fencing),
        )
    )  # fmt: skip


def _change(copy: Copy, role: Role) -> RoleChange | None:
    if copy.plan is None:
        return None
    return copy.plan.promote if role is Role.ACTIVE else copy.plan.demote


def _method(copy: Copy, change: RoleChange | None) -> Method | None:
    if change is not None and change.command:
        return Method.COMMAND
    if change is not None and change.signal:
        return Method.SIGNAL
    # A program that spoke once connects again (after a restart of the Spawner, say), and is told then.
    return Method.SOCKET if copy.spoke or (change is not None and change.socket) else None
