"""Orders: what every copy of this side should be, and telling the nodes (design sections 2 and 6).

Level-triggered: for each process that something happened to, the order of each copy is worked out anew from the plan,
the intents, the leases and what was seen, and sent if it differs. A copy that runs is not stopped because a dependency
went away; a copy that is to stop waits for those that depend on it and are to stop too.
"""

from __future__ import annotations

import msgspec

from ha.core.machine import Send
from ha.core.server import moves
from ha.core.server.needs import dependency_missing, role_here, stopping_user
from ha.core.server.places import acts_until_moved, adopt_places, place_of, waits_for_node
from ha.core.server.restarts import reset_number, restart_number
from ha.core.server.state import (
    MoveKind,
    NodeView,
    Place,
    Run,
    State,
    covered,
    process_started,
    seated,
    usable,
)
from ha.model import limits
from ha.model.messages import Order, Orders, OrdersAnswer
from ha.model.names import Agent, process_of, tenant_of
from ha.model.plan import Process, Tenant
from ha.model.status import NodeState, OnDeath, Role, Wanted
from ha.model.timing import MS

UNSTAMPED = (0, 0, 0)  # the generation of an order that differs from what the node was told


def settle(state: State, now: int) -> None:
    """Work out the orders of everything that was touched, and send what changed."""
    if not seated(state, now) or not _ready_to_order(state, now):
        return
    rank = state.graph.rank
    touched = sorted(state.dirty, key=lambda key: rank.get(key, (0, 0, key)))
    state.dirty.clear()
    changed: dict[str, dict[str, Order]] = {}
    for key in touched:
        found = state.graph.found.get(key)
        wanted = _orders_of(state, *found, now) if found else {}
        _replace(state, key, wanted, changed)
    for name in dict.fromkeys(tenant_of(key) for key in touched):
        if name in state.runs and state.runs[name].unsaved:
            moves.remember(state, name, state.runs[name])  # once, before anything is ordered or granted by it
    _send(state, changed, now)


def on_answer(state: State, node: str, answer: OrdersAnswer) -> None:
    """A node took orders: what it refused for good is kept to be shown, the rest is settled."""
    view = state.nodes.get(node)
    if view is None:
        return
    refused = dict(answer.refused)
    stale = [key for key, reason in refused.items() if reason == "stale"]
    for key, order in list(view.unanswered.items()):
        if order.generation <= answer.generation and key not in stale:
            del view.unanswered[key]
    view.digest = answer.digest
    if stale:
        view.full_sent = False
        state.dirty.update(dict.fromkeys(process_of(key) for key in stale))
    for key, reason in refused.items():
        if view.refused.get(key) != reason:
            state.note("refused", key, reason=f"{node}: {reason}")
    view.refused = {**{k: v for k, v in view.refused.items() if k not in view.orders}, **refused}


def resend(state: State, now: int) -> None:
    """Send again what a node has not answered."""
    if not state.ordering or not seated(state, now):
        return
    for node, view in state.nodes.items():
        there = view.state in (NodeState.UP, NodeState.SUSPECT)
        if there and not view.full_sent and _may_send_full(state, node, view, now):
            _send(state, {node: {}}, now)
        elif there and view.unanswered and now - view.asked_at >= limits.COMMAND_RETRY_MS * MS:
            _send(state, {node: dict(view.unanswered)}, now)


def _ready_to_order(state: State, now: int) -> bool:
    """What runs must be known before the first order: every node of the side was heard, or had the time to speak."""
    if state.ordering:
        return True
    if not state.plan:
        return False
    heard = all(
        view.state is NodeState.DEAD or (view.last_pull and state.table.synced(name))
        for name, view in state.nodes.items()
    )
    if heard or now >= max(state.seated_at, state.started) + 2 * state.system.timing.promise_ms * MS:
        state.ordering = True
        adopt_places(state)
        for name in state.tenants:
            state.touch(name)
    return state.ordering


def _orders_of(state: State, tenant: Tenant, process: Process, now: int) -> dict[str, tuple[str, Order]]:
    """Return copy key -> (node, order) of a process's copies on this side."""
    run = state.runs[tenant.name]
    if run.move is not None and run.move.kind is MoveKind.RELEASE and process.run_status.exclusive:
        return _as_they_are(state, run, f"{tenant.name}/{process.name}")
    orders = {}
    for key in tenant.copy_keys(process):
        role = role_here(state, tenant, process, run)
        runs_here = role is not None and process_started(state, tenant, process)
        place = place_of(state, tenant, process, key, role, now)
        if place is None:
            if runs_here:
                run.blocked[key] = f"no node of side {state.side} that is up may run it"
            continue
        there = (
            usable(state, place.node) or waits_for_node(state, process, run, place) or acts_until_moved(state, place)
        )
        wanted = Wanted.UP if runs_here and there else Wanted.DOWN
        wanted = _gated(state, tenant, process, key, place, wanted, role)
        orders[key] = (place.node, _order(state, tenant, process, key, place, wanted, role, now))
    return orders


def _as_they_are(state: State, run: Run, process: str) -> dict[str, tuple[str, Order]]:
    """While its tenant is let go, nothing new is said to a copy: its right decides."""
    return {
        key: (place.node, state.nodes[place.node].orders[key])
        for key, place in run.places.items()
        if process_of(key) == process and key in state.nodes[place.node].orders
    }


def _gated(
    state: State, tenant: Tenant, process: Process, key: str, place: Place, wanted: Wanted, role: Role | None
) -> Wanted:
    """Hold a start back until what it needs is ready, a stop until what needs it is down."""
    run = state.runs[tenant.name]
    run.blocked.pop(key, None)
    seen = state.table.get(place.node, key)
    before = state.nodes[place.node].orders.get(key)
    ordered_up = before is not None and before.wanted is Wanted.UP
    if wanted is Wanted.UP:
        if seen is not None and seen.state.runs:
            return Wanted.UP
        if role is Role.STANDBY and not covered(state, tenant.name, state.now):
            # Also after a failover: the lost copy comes back when the other side has taken over, not in its way.
            run.blocked[key] = f"no side holds {tenant.name} yet, and a standby stands by for somebody"
            return Wanted.DOWN
        if ordered_up:
            return Wanted.UP
        missing = dependency_missing(state, tenant, process)
        if missing:
            run.blocked[key] = missing
            return Wanted.DOWN
        return Wanted.UP
    if seen is not None and seen.state.runs and (ordered_up or before is None):
        user = stopping_user(state, tenant, process)
        if user:
            run.blocked[key] = f"waits for {user} to stop"
            return Wanted.UP
    return Wanted.DOWN


def _order(
    state: State, tenant: Tenant, process: Process, key: str, place: Place, wanted: Wanted, role: Role | None, now: int
) -> Order:
    view = state.nodes[place.node]
    before = view.orders.get(key)
    active = process.run_status.exclusive and role is Role.ACTIVE
    watched = active and process.on_failure == "failover" and process.run_status.standby_runs
    report = watched and not moves.may_fail_over(state, tenant, state.runs[tenant.name], now, standby=True)
    order = Order(
        copy=key, wanted=wanted, generation=before.generation if before else UNSTAMPED, serial=tenant.serial,
        role=role, fencing=place.fencing if active else 0,
        on_death=OnDeath.REPORT if report else OnDeath.RESTART,
        restart=restart_number(state, tenant, process, key, place.node),
        reset=reset_number(state, tenant.name, process.name) + state.runs[tenant.name].escalated.get(f"n/{key}", 0),
    )  # fmt: skip
    if before is not None and before.role is not role:
        place.was_up = False
    return order


def _replace(
    state: State, process: str, wanted: dict[str, tuple[str, Order]], changed: dict[str, dict[str, Order]]
) -> None:
    """Put a process's new orders in place of its old ones; nodes it left are told to stop it."""
    for node, view in state.nodes.items():
        for key in sorted(view.by_process.get(process, ())):
            if key not in wanted or wanted[key][0] != node:
                view.by_process[process].discard(key)
                old = view.orders.pop(key)
                stop = Order(key, Wanted.DOWN, UNSTAMPED, old.serial, restart=old.restart, reset=old.reset)
                changed.setdefault(node, {})[key] = stop
    for key, (node, order) in wanted.items():
        view = state.nodes[node]
        if view.orders.get(key) != order:
            order = msgspec.structs.replace(order, generation=UNSTAMPED)
            changed.setdefault(node, {})[key] = order
            view.orders[key] = order
            view.by_process.setdefault(process, set()).add(key)


def _may_send_full(state: State, node: str, view: NodeView, now: int) -> bool:
    """A node's first orders name all its copies, so what runs there must be known."""
    if view.pull is None or view.pull.plan_digest != state.plan_digest:
        return False
    return state.table.synced(node) or now - max(state.seated_at, state.started) > 2_000 * MS


def _send(state: State, changed: dict[str, dict[str, Order]], now: int) -> None:
    for node, orders in changed.items():
        view = state.nodes[node]
        if view.state not in (NodeState.UP, NodeState.SUSPECT):
            continue
        full = not view.full_sent
        if full:
            if not _may_send_full(state, node, view, now):
                continue
            orders = dict(view.orders)
            view.full_sent = True
            view.unanswered.clear()
        elif not orders:
            continue
        generation = state.generation()
        stamped = []
        for key, order in orders.items():
            # An order said again keeps its generation: nodes act on a new one.
            new = msgspec.structs.replace(order, generation=generation) if order.generation == UNSTAMPED else order
            if key in view.orders:
                view.orders[key] = new
            view.unanswered[key] = new
            stamped.append(new)
        view.asked_at = now
        parts = [stamped[i : i + limits.MAX_BATCH] for i in range(0, len(stamped), limits.MAX_BATCH)] or [[]]
        whole = full and len(parts) == 1
        state.out.extend(Send(Agent.SPAWNER, node, Orders(generation, tuple(part), whole)) for part in parts)
