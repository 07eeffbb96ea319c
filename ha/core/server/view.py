"""View: the object of `hactl --json status`, from what a Server knows. Keys are only ever added."""

from __future__ import annotations

from typing import Any

from ha import __version__
from ha.core import lease
from ha.core.server import complaints, nodes
from ha.core.server.state import Run, State, held_back, needs_lease, register, seated, seated_peer, tenant_started
from ha.model.messages import CopyState, EventRecord, StateBeat
from ha.model.plan import Process, Tenant
from ha.model.status import NodeState, Role, RunStatus, TenantState
from ha.model.status import State as Seen
from ha.model.timing import MS


def status(state: State, now: int) -> dict[str, Any]:
    """Return the whole status; `complete` is False when a side or node could not be asked."""
    stale = [node for node in state.system.nodes if not _heard(state, node, now)]
    other = seated_peer(state, state.other, now)
    alarms = _alarms(state, stale, now)
    return {
        "schema": 1,
        "system": state.system.name,
        "node": state.node,
        "source": "server",
        "complete": not stale and (other is not None or state.other not in state.system.sides),
        "plan": {"version": _plan_version(state), "errors": [_finding(f) for f in complaints.findings(state)]},
        "arbitration": {
            "mode": "witness",
            "voters": {voter: _voter(state, voter, now) for voter in state.system.voters},
        },
        "sides": {side: _side(state, side, now) for side in sorted(state.system.sides)},
        "tenants": {name: _tenant(state, state.tenants[name], now) for name in sorted(state.tenants)},
        "alarms": alarms,
    }


def event(record: EventRecord) -> dict[str, Any]:
    """Return one line of `hactl --json events`."""
    return {
        "id": record.id, "node": record.node, "seq": record.seq, "time": timestamp(record.at), "kind": record.kind,
        "subject": record.subject, "from": record.from_, "to": record.to, "reason": record.reason,
        "epoch": record.epoch, "request": record.request,
    }  # fmt: skip


def active_side(state: State, tenant: str, now: int) -> str | None:
    """Return the side that holds the tenant validly, as far as this Server knows."""
    run = state.runs.get(tenant)
    if run is not None and run.epoch and lease.valid(state.book, tenant, now):
        return state.side
    for name in sorted(state.peers):
        peer = state.peers[name]
        fresh = now - peer.at < state.system.timing.freeze_after_ms * MS
        if fresh and peer.beat.valid_ms > 0 and any(held.tenant == tenant for held in peer.beat.held):
            return peer.beat.side
    return None


def timestamp(seconds: float) -> str | None:
    """Return wall-clock seconds as ISO 8601 with milliseconds in UTC; None for 0. Civil-from-days, Howard Hinnant."""
    if seconds <= 0:
        return None
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    days += 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    hour, minute, second = rest // 3600, rest % 3600 // 60, rest % 60
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{int((seconds - whole) * 1000):03}Z"


def _heard(state: State, node: str, now: int) -> bool:
    heard = state.monitors.get(node)
    return heard is not None and now - heard[1] < state.system.timing.freeze_after_ms * MS


def _plan_version(state: State) -> int:
    return sum(entry.serial for entry in state.catalog.entries.values())


def _finding(finding: Any) -> dict[str, Any]:
    return {key: getattr(finding, key) for key in ("file", "line", "column", "code", "text", "help")}


def _voter(state: State, voter: str, now: int) -> dict[str, Any]:
    seen = state.book.seen.get(voter)
    silent = None if seen is None else (now - seen) // MS
    timing = state.system.timing
    if silent is None or silent >= timing.freeze_after_ms:
        word = "dead"
    elif silent >= timing.suspect_ms:
        word = "suspect"
    else:
        word = "waiting" if voter in state.book.refusing else "up"
    return {"state": word, "seen_ms": silent}


def _side(state: State, side: str, now: int) -> dict[str, Any]:
    if side == state.side:
        server: str | None = state.node if seated(state, now) else None
    else:
        peer = seated_peer(state, side, now)
        server = next((name for name, one in state.peers.items() if one is peer), None) if peer else None
    return {"server": server, "nodes": {name: _node(state, side, name, now) for name in state.system.nodes_of(side)}}


def _node(state: State, side: str, name: str, now: int) -> dict[str, Any]:
    beat = state.beats.get(name)
    heard = state.monitors.get(name)
    lease_ms = None
    if side == state.side:
        word = nodes.shown_state(state, name).value
        valid = lease.valid_until(state.book, state.seat)
        if state.nodes[name].rights:
            lease_ms = max(0, (valid - now) // MS)
        pull = state.nodes[name].pull
        late = pull.late_ticks if pull else 0
        freezes = pull.freezes if pull else 0
    else:
        peer = seated_peer(state, side, now)
        word = dict(peer.beat.nodes).get(name, "unknown") if peer else "unknown"
        late = beat.late_ticks if isinstance(beat, StateBeat) else 0
        freezes = beat.freezes if isinstance(beat, StateBeat) else 0
    agents = beat.agents if isinstance(beat, StateBeat) else ()
    return {
        "state": word,
        "lease_ms": lease_ms,
        "as_of_ms": None if heard is None else (now - heard[1]) // MS,
        "freezes": freezes,
        "late_ticks": late,
        "version": __version__,
        "links": {
            address: "up" if _heard(state, name, now) else "down" for address in state.system.nodes[name].addresses
        },
        "agents": {
            a.role: {"pid": a.pid, "state": "dead" if word == "dead" else a.state, "restarts": a.restarts}
            for a in agents
        },
    }


def _tenant(state: State, tenant: Tenant, now: int) -> dict[str, Any]:
    run = state.runs[tenant.name]
    side = active_side(state, tenant.name, now)
    started = tenant_started(state, tenant)
    return {
        "home": tenant.home,
        "priority": tenant.priority,
        "wanted": "started" if started else "stopped",
        "active_side": side,
        "epoch": _epoch(state, tenant.name, run),
        "state": tenant_state(state, tenant, now).value,
        "held": held_back(state, tenant.name),
        "processes": {process.name: _process(state, tenant, process, now) for process in tenant.processes},
    }


def _epoch(state: State, tenant: str, run: Run) -> int:
    if run.epoch:
        return run.epoch
    epochs = [held.epoch for peer in state.peers.values() for held in peer.beat.held if held.tenant == tenant]
    return max([*epochs, run.seen.epoch if run.seen else 0])


def tenant_state(state: State, tenant: Tenant, now: int) -> TenantState:
    """Return how the tenant is, over both sides."""
    if register(state, f"failed/{tenant.name}"):
        return TenantState.FAILED
    copies = _all_copies(state, tenant)
    if not tenant_started(state, tenant):
        return TenantState.STOPPED if not any(c.state.runs for _, c in copies.values()) else TenantState.MOVING
    side = active_side(state, tenant.name, now)
    if state.runs[tenant.name].move is not None:
        return TenantState.MOVING
    if needs_lease(tenant) and side is None:
        # A side that is not heard may well hold it: that is for the voters to know.
        heard = seated_peer(state, state.other, now) is not None
        return TenantState.NO_LEASE if heard else TenantState.UNKNOWN
    lacking = [process for process in tenant.processes if process.enabled and not _serves(state, tenant, process)]
    if lacking:
        return TenantState.STARTING if not any(_broken(state, tenant, p) for p in lacking) else TenantState.DEGRADED
    full = all(_full(state, tenant, process) for process in tenant.processes if process.enabled)
    return TenantState.OK if full else TenantState.DEGRADED


def _all_copies(state: State, tenant: Tenant) -> dict[tuple[str, str], tuple[str, CopyState]]:
    found = {}
    for node in state.system.nodes:
        for process in tenant.processes:
            for key in tenant.copy_keys(process):
                copy = state.table.get(node, key)
                if copy is not None:
                    found[(node, key)] = (node, copy)
    return found


def _of(state: State, tenant: Tenant, process: Process) -> list[tuple[str, str, CopyState]]:
    keys = tenant.copy_keys(process)
    return [
        (node, key, copy)
        for node in sorted(state.system.nodes)
        for key in keys
        if (copy := state.table.get(node, key)) is not None
    ]


def _serves(state: State, tenant: Tenant, process: Process) -> bool:
    if register(state, f"wanted/{tenant.name}/{process.name}") == "stopped":
        return True
    return any(
        c.state is Seen.READY and c.role is Role.ACTIVE for n, _, c in _of(state, tenant, process) if _alive(state, n)
    )


def _broken(state: State, tenant: Tenant, process: Process) -> bool:
    return any(c.state in (Seen.FAILED, Seen.BACKOFF, Seen.FROZEN) for _, _, c in _of(state, tenant, process))


def _full(state: State, tenant: Tenant, process: Process) -> bool:
    """Both sides have what the run status promises."""
    if process.run_status is RunStatus.COLD or register(state, f"wanted/{tenant.name}/{process.name}") == "stopped":
        return True
    for side in state.system.sides:
        ready = [n for n, _, c in _of(state, tenant, process) if c.state is Seen.READY and _alive(state, n)]
        wanted = process.copies if process.run_status is RunStatus.LOAD_SHARING else 1
        if sum(1 for node in ready if state.system.nodes[node].side == side) < wanted:
            return False
    return True


def _alive(state: State, node: str) -> bool:
    return _heard(state, node, state.now)


def _process(state: State, tenant: Tenant, process: Process, now: int) -> dict[str, Any]:
    copies = [_copy(state, node, key, copy, now) for node, key, copy in _of(state, tenant, process) if _shown(copy)]
    return {
        "run_status": process.run_status.value,
        "priority": process.priority,
        "depends_on": [{"process": d.id, "where": d.where} for d in process.depends_on],
        "copies": copies,
        "waits_for": state.runs[tenant.name].blocked.get(f"{tenant.name}/{process.name}.1", ""),
    }


def _shown(copy: CopyState) -> bool:
    return copy.state is not Seen.DOWN or copy.exit is not None or bool(copy.reason)


def _copy(state: State, node: str, key: str, copy: CopyState, now: int) -> dict[str, Any]:
    side = state.system.nodes[node].side
    order = state.nodes[node].orders.get(key) if side == state.side else None
    wanted = order.wanted.value if order else ("up" if copy.state.runs else "down")
    alive = _heard(state, node, now)
    return {
        "node": node, "side": side, "copy": int(key.rpartition(".")[2]),
        "role": copy.role.value if copy.role and copy.state.runs and alive else None, "wanted": wanted,
        "state": copy.state.value if alive else "unknown", "pid": copy.pid or None, "epoch": copy.fencing >> 16,
        "started_at": timestamp(copy.started_at), "restarts": copy.restarts,
        "exit": copy.exit.to_json() if copy.exit else None, "reason": copy.reason,
    }  # fmt: skip


def _alarms(state: State, stale: list[str], now: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def alarm(severity: str, subject: str, text: str, help_: str) -> None:
        found.append({"id": f"{subject}:{text[:40]}", "since": None, "severity": severity, "subject": subject,
                      "text": text, "help": help_})  # fmt: skip

    for voter in state.system.voters:
        seen = _voter(state, voter, now)
        if seen["state"] != "up":
            why = state.book.refusing.get(voter, "it does not answer")
            alarm(
                "warning",
                voter,
                f"the Witness on {voter} is {seen['state']}: {why}",
                f"see that ha-witness runs on {voter}",
            )
    for node in stale:
        if node not in state.nodes or state.nodes[node].state is not NodeState.UP:
            alarm("critical", node, f"node {node} is not heard", f"see that ha-master runs on {node}")
    for name, tenant in sorted(state.tenants.items()):
        why = register(state, f"failed/{name}")
        if why:
            alarm("critical", name, f"{name} has failed: {why}", f"mend the cause, then: hactl reset {name}")
        elif tenant_started(state, tenant) and tenant_state(state, tenant, now) is TenantState.NO_LEASE:
            alarm("critical", name, f"no side holds {name}", "a majority of voters must answer; see arbitration above")
        for node, key, copy in ((n, k, c) for p in tenant.processes for n, k, c in _of(state, tenant, p)):
            if copy.state is Seen.FAILED:
                alarm(
                    "critical", f"{key} on {node}", f"{key} on {node} has failed: {copy.reason}", f"hactl reset {name}"
                )
    for finding in complaints.findings(state):
        alarm("warning", finding.file, f"{finding}", "the last good version stays; mend the file")
    for node, complaint in complaints.everywhere(state):
        if complaint.waits:
            alarm(
                "warning", "tenants", complaint.waits, f"hactl --node {node} diff; hactl --node {node} apply --confirm"
            )
        for name, why in complaint.refused.items():
            alarm("warning", f"{name}.toml", f"the edit of {name}.toml on {node} is not in force: {why}",
                  f"mend it, or: hactl --node {node} apply --confirm")  # fmt: skip
    for view in state.nodes.values():
        for key, reason in sorted(view.refused.items()):
            alarm("warning", key, f"{key} was refused: {reason}", "see the node file's policy, and hactl check")
    return found
