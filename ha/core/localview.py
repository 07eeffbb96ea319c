"""Local view: `hactl status` as far as one node knows, for when no Server answers.

The shape is that of contract/status.json5; what only Servers and voters know (leases, the other side, who is active)
is null or "unknown", `source` is "monitor" and `complete` is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ha.core.monitor import State as Monitor
from ha.model.messages import CopyState
from ha.model.names import process_id, split_copy
from ha.model.plan import System, Tenant
from ha.model.status import TenantState, Wanted

Json = dict[str, Any]


def render(
    monitor: Monitor, system: System, tenants: tuple[Tenant, ...], version: str, at: Mapping[float, str]
) -> Json:
    """Return the answer to `status`. `at`: ISO time of each started_at, since the core knows no calendar."""
    node = monitor.node
    return {
        "schema": 1,
        "system": system.name,
        "node": node.name,
        "source": "monitor",
        "complete": False,
        "plan": {"version": max((tenant.serial for tenant in tenants), default=0), "errors": []},
        "arbitration": {"mode": "witness", "voters": {}},
        "sides": {side: _side(monitor, system, side, version) for side in sorted(system.sides)},
        "tenants": {tenant.name: _tenant(monitor, tenant, at) for tenant in tenants},
        "alarms": [
            {
                "id": "no-server", "since": None, "severity": "critical", "subject": node.name,
                "text": "no Server answers this node", "help": "hactl status on another node; hactl doctor",
            }
        ],
    }  # fmt: skip


def _side(monitor: Monitor, system: System, side: str, version: str) -> Json:
    nodes: Json = {}
    for name in system.nodes_of(side):
        own = name == monitor.node.name
        nodes[name] = {
            "state": "up" if own else "unknown",
            "lease_ms": None,
            "as_of_ms": 0 if own else None,
            "freezes": monitor.desk.freezes if own else 0,
            "late_ticks": monitor.late_ticks if own else 0,
            "version": version if own else "",
            "links": {},
            "agents": {
                agent.role: {"pid": agent.pid, "state": agent.state, "restarts": agent.restarts}
                for agent in (monitor.agents if own else ())
            },
        }
    return {"server": None, "nodes": nodes}


def _tenant(monitor: Monitor, tenant: Tenant, at: Mapping[float, str]) -> Json:
    copies = [copy for copy in monitor.said.values() if copy.copy.startswith(f"{tenant.name}/")]
    return {
        "home": tenant.home,
        "priority": tenant.priority,
        "wanted": "started" if tenant.enabled else "stopped",
        "active_side": None,
        "epoch": max((copy.fencing >> 16 for copy in copies), default=0),
        "state": TenantState.UNKNOWN,
        "held": False,
        "processes": {
            process.name: {
                "run_status": process.run_status,
                "priority": process.priority,
                "depends_on": [{"process": need.id, "where": need.where} for need in process.depends_on],
                "copies": [
                    _copy(monitor, copy, at)
                    for copy in copies
                    if copy.copy.rpartition(".")[0] == process_id(tenant.name, process.name)
                ],
            }
            for process in tenant.processes
        },
    }


def _copy(monitor: Monitor, copy: CopyState, at: Mapping[float, str]) -> Json:
    known = monitor.copies.get(copy.copy)
    return {
        "node": monitor.node.name,
        "side": monitor.node.side,
        "copy": split_copy(copy.copy)[2],
        "role": copy.role,
        "wanted": known.fact.wanted if known else Wanted.DOWN,
        "state": copy.state,
        "pid": copy.pid or None,
        "epoch": copy.fencing >> 16,
        "started_at": at.get(copy.started_at),
        "restarts": copy.restarts,
        "exit": copy.exit.to_json() if copy.exit else None,
        "reason": copy.reason,
    }
