"""Restarts: the numbers by which copies are told to start again, or to forget their deaths.

An order names the restart number its copy should run with; a copy that runs with another one is stopped and started.
The number is a digest of what only a restart can change, with the operator's counter above it: so edits are
level-triggered, and a restarted Server comes to the same number.
"""

from __future__ import annotations

from ha.core.server.needs import believed, copies_everywhere
from ha.core.server.state import (
    State,
    process_started,
)
from ha.model.digest import digest_of
from ha.model.messages import CopyState
from ha.model.plan import Process, Tenant
from ha.model.status import RunStatus, Wanted
from ha.model.status import State as Seen


def restart_number(state: State, tenant: Tenant, process: Process, key: str, node: str) -> int:
    """Return the restart number of a copy: what was asked for, and a digest of what only a restart can change.

    A rolling restart moves on one copy at a time: a copy takes the new number when those before it have it, ready.
    """
    asked = state.registers.get(f"restart/{tenant.name}/{process.name}")
    target = restart_target(state, tenant, process, state.side)
    seen = state.table.get(node, key)
    if asked is None or not asked.value.startswith("rolling") or seen is None or seen.restart == target:
        return target
    if not seen.state.runs:
        return target
    mine = (state.side, node, key)
    for other_key, other_node, other in copies_everywhere(state, tenant, process):
        place = (state.system.nodes[other_node].side, other_node, other_key)
        if place == mine or not _takes_part(state, tenant, process, other_key, other_node, other):
            continue
        done = other.restart == restart_target(state, tenant, process, place[0])
        if other.state is not Seen.READY or (place < mine and not done):
            return seen.restart
    return target


def restart_target(state: State, tenant: Tenant, process: Process, side: str) -> int:
    """Return the restart number that all copies of a side end up with."""
    asked = state.registers.get(f"restart/{tenant.name}/{process.name}")
    here = state.registers.get(f"restart/{tenant.name}/{process.name}@{side}")
    asked_for = (asked.serial if asked else 0) + (here.serial if here else 0)
    return (asked_for << 32) + restart_digest(tenant, process)


def restart_digest(tenant: Tenant, process: Process) -> int:
    """Return a number that changes when the process has to be started again for its plan to take effect."""
    text = repr((
        process.command, process.user, process.group, process.working_directory, process.umask,
        sorted(process.environment.items()), process.environment_file, sorted(tenant.environment.items()),
        process.limits, process.run_status.exclusive, process.ready.by,
    ))  # fmt: skip
    return int(digest_of(text.encode())[:8], 16)


def reset_number(state: State, tenant: str, process: str) -> int:
    """Return the reset number of a process's copies: how often somebody asked to forget its deaths."""
    own = state.registers.get(f"reset/{tenant}/{process}")
    all_ = state.registers.get(f"reset/{tenant}")
    return (own.serial if own else 0) + (all_.serial if all_ else 0)


def _takes_part(state: State, tenant: Tenant, process: Process, key: str, node: str, copy: CopyState) -> bool:
    """Return whether a rolling restart waits for this copy: it runs, or is just being started again."""
    if copy.state.runs or copy.state is Seen.BACKOFF:
        return believed(state, node)
    view = state.nodes.get(node)
    if view is not None:
        order = view.orders.get(key)
        return order is not None and order.wanted is Wanted.UP and copy.state is not Seen.FAILED
    if not believed(state, node) or copy.state is Seen.FAILED or not process_started(state, tenant, process):
        return False
    # On the other side: down for the moment, unless it is cold here, or another node of that side has it.
    elsewhere = any(
        other_key == key and other_node != node and other.state.runs
        for other_key, other_node, other in copies_everywhere(state, tenant, process)
        if state.system.nodes[other_node].side != state.side
    )
    cold_there = process.run_status is RunStatus.COLD and state.runs[tenant.name].epoch > 0
    return not elsewhere and not cold_there
