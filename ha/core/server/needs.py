"""Needs: what a copy waits for before it starts, and before it stops (design section 2, `depends_on`)."""

from __future__ import annotations

from ha.core.server.state import (
    Run,
    State,
    process_started,
    usable,
)
from ha.model.messages import CopyState
from ha.model.plan import Dependency, Process, Tenant
from ha.model.status import NodeState, Role, RunStatus
from ha.model.status import State as Seen
from ha.model.timing import MS


def dependency_missing(state: State, tenant: Tenant, process: Process) -> str:
    """Return what a copy of the process on this side still waits for, or an empty string."""
    for dependency in process.depends_on:
        reason = _unmet(state, tenant, dependency)
        if reason:
            return reason
    return ""


def stopping_user(state: State, tenant: Tenant, process: Process) -> str:
    """Return something that depends on the process here, should stop and still runs; empty: nothing."""
    for user in state.graph.needed_by.get(f"{tenant.name}/{process.name}", ()):
        found = state.graph.found.get(user)
        if found is None:
            continue
        run = state.runs[found[0].name]
        for key in found[0].copy_keys(found[1]):
            place = run.places.get(key)
            if place is None:
                continue
            role = role_here(state, *found, run)
            stays = role is not None and process_started(state, *found) and usable(state, place.node)
            seen = state.table.get(place.node, key)
            if (
                not stays
                and seen is not None
                and seen.state.runs
                and state.nodes[place.node].state is not NodeState.DEAD
            ):
                return user
    return ""


def role_here(state: State, tenant: Tenant, process: Process, run: Run) -> Role | None:
    """Return the role of the process's copies on this side; None: they should not run."""
    if process.run_status is RunStatus.LOAD_SHARING:
        return Role.ACTIVE
    if run.epoch:
        return Role.ACTIVE
    return Role.STANDBY if process.run_status.standby_runs else None


def copies_everywhere(state: State, tenant: Tenant, process: Process) -> list[tuple[str, str, CopyState]]:
    """Return (key, node, copy) of every copy of the process that any Monitor tells of, by node."""
    found = []
    keys = tenant.copy_keys(process)
    for node in state.table.nodes():
        if node in state.system.nodes:
            found += [(key, node, copy) for key in keys if (copy := state.table.get(node, key)) is not None]
    return found


def _unmet(state: State, tenant: Tenant, dependency: Dependency) -> str:
    """Return why a dependency is not met, or an empty string (design section 2)."""
    found = state.graph.found.get(dependency.id)
    if found is None:
        return f"{dependency.id} is not in the plan"
    other, process = found
    own = other.name == tenant.name
    if own:
        role = role_here(state, other, process, state.runs[other.name])
        if role is None or not process.enabled:
            return ""  # cold, and its tenant is active elsewhere: nothing to wait for here
    same_side = own or dependency.where == "same-side"
    for key, node, copy in copies_everywhere(state, other, process):
        if same_side and state.system.nodes[node].side != state.side:
            continue
        if copy.state is not Seen.READY or not believed(state, node):
            continue
        if own or process.run_status is RunStatus.LOAD_SHARING or copy.role is Role.ACTIVE:
            return ""
        del key
    return f"{dependency.id} is not ready" + (f" on side {state.side}" if same_side else "")


def believed(state: State, node: str) -> bool:
    """What a Monitor last said counts while it is heard."""
    heard = state.monitors.get(node)
    return heard is not None and state.now - heard[1] < state.system.timing.freeze_after_ms * MS
