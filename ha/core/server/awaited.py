"""Awaited: when a request that waits (`--wait`, `switchover`) has come true."""

from __future__ import annotations

from ha.core.server import restarts, view
from ha.core.server.state import State, Wait, process_started, register
from ha.model.messages import CopyState
from ha.model.plan import Process, Tenant
from ha.model.status import Role, RunStatus
from ha.model.status import State as Seen

DONE: dict[str, object] = {"exit": 0, "error": None, "result": None}


def outcome(state: State, wait: Wait, now: int) -> dict[str, object] | None:
    """Return the answer of a request whose wish has come true or cannot any more; None: not yet."""
    tenant = state.tenants.get(wait.target.partition("/")[0])
    if tenant is not None and register(state, f"failed/{tenant.name}") and wait.kind != "stopped":
        why = register(state, f"failed/{tenant.name}")
        return {"exit": 1, "error": f"{tenant.name} has failed: {why}", "result": None}
    if wait.kind == "drained":
        return DONE if not missing(state, wait) else None
    if tenant is None:
        return None if wait.kind == "never" else DONE
    return DONE if not missing(state, wait) else None


def missing(state: State, wait: Wait) -> str:
    """Return what is still missing, in words; empty when nothing is."""
    if wait.kind == "never":
        return "following"
    if wait.kind == "drained":
        return _busy(state, wait.target)
    name, _, process = wait.target.partition("/")
    tenant = state.tenants.get(name)
    if tenant is None:
        return ""
    for one in tenant.processes:
        if process and one.name != process:
            continue
        lacks = {"started": _started, "stopped": _stopped, "restarted": _restarted, "moved": _moved}[wait.kind](
            state, tenant, one, wait
        )
        if lacks:
            return f"{name}/{one.name} {lacks}"
    if wait.kind == "moved" and view.active_side(state, name, state.now) != wait.detail:
        return f"side {wait.detail} has not claimed {name} yet"
    return ""


def _copies(state: State, tenant: Tenant, process: Process) -> list[tuple[str, CopyState]]:
    return [
        (node, copy)
        for node in sorted(state.system.nodes)
        for key in tenant.copy_keys(process)
        if (copy := state.table.get(node, key)) is not None
    ]


def _started(state: State, tenant: Tenant, process: Process, wait: Wait) -> str:
    if not process_started(state, tenant, process):
        return ""
    ready = [copy for _, copy in _copies(state, tenant, process) if copy.state is Seen.READY]
    if process.run_status is RunStatus.LOAD_SHARING:
        return "" if ready else "has no ready copy"
    return "" if any(copy.role is Role.ACTIVE for copy in ready) else "has no active copy that is ready"


def _stopped(state: State, tenant: Tenant, process: Process, wait: Wait) -> str:
    running = [node for node, copy in _copies(state, tenant, process) if copy.state.runs]
    return f"still runs on {', '.join(running)}" if running else ""


def _restarted(state: State, tenant: Tenant, process: Process, wait: Wait) -> str:
    for node, copy in _copies(state, tenant, process):
        if copy.state is Seen.DOWN and copy.role is None:
            continue
        number = restarts.restart_target(state, tenant, process, state.system.nodes[node].side)
        if copy.restart != number or copy.state is not Seen.READY:
            return f"is not restarted on {node} yet"
    return ""


def _moved(state: State, tenant: Tenant, process: Process, wait: Wait) -> str:
    if not process.run_status.exclusive or not process_started(state, tenant, process):
        return ""
    for node, copy in _copies(state, tenant, process):
        if state.system.nodes[node].side == wait.detail and copy.role is Role.ACTIVE and copy.state is Seen.READY:
            return ""
    return f"is not active on side {wait.detail} yet"


def _busy(state: State, target: str) -> str:
    nodes = [target] if target in state.system.nodes else list(state.system.nodes_of(target))
    running = [node for node in nodes if any(copy.state.runs for copy in state.table.copies(node).values())]
    return f"copies still run on {', '.join(running)}" if running else ""
