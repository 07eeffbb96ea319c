"""Orders: what every copy of this side should be, and telling the nodes (design sections 2 and 6).

Level-triggered: for each process that something happened to, the order of each copy is worked out anew from the plan,
the intents, the leases and what was seen, and sent if it differs. A copy that runs is not stopped because a dependency
went away; a copy that is to stop waits for those that depend on it and are to stop too.
"""

from __future__ import annotations

import msgspec

from ha.core.machine import Send
from ha.core.server import moves
from ha.core.server.state import (
    MoveKind,
    NodeView,
    Place,
    Run,
    State,
    drained,
    eligible,
    process_started,
    seated,
    usable,
)
from ha.model import limits
from ha.model.messages import CopyState, Order, Orders, OrdersAnswer
from ha.model.names import Agent, process_of, tenant_of
from ha.model.plan import Dependency, Process, Tenant, digest_of
from ha.model.status import NodeState, OnDeath, Role, RunStatus, Wanted
from ha.model.status import State as Seen
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


def dependency_missing(state: State, tenant: Tenant, process: Process) -> str:
    """Return what a copy of the process on this side still waits for, or an empty string."""
    for dependency in process.depends_on:
        reason = _unmet(state, tenant, dependency)
        if reason:
            return reason
    return ""


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
    for other_key, other_node, other in _copies_everywhere(state, tenant, process):
        place = (state.system.nodes[other_node].side, other_node, other_key)
        if place == mine or not _takes_part(state, tenant, process, other_key, other_node, other):
            continue
        done = other.restart == restart_target(state, tenant, process, place[0])
        if other.state is not Seen.READY or (place < mine and not done):
            return seen.restart
    return target


def _takes_part(state: State, tenant: Tenant, process: Process, key: str, node: str, copy: CopyState) -> bool:
    """Return whether a rolling restart waits for this copy: it runs, or is just being started again."""
    if copy.state.runs or copy.state is Seen.BACKOFF:
        return _believed(state, node)
    view = state.nodes.get(node)
    if view is not None:
        order = view.orders.get(key)
        return order is not None and order.wanted is Wanted.UP and copy.state is not Seen.FAILED
    if not _believed(state, node) or copy.state is Seen.FAILED or not process_started(state, tenant, process):
        return False
    # On the other side: down for the moment, unless it is cold here, or another node of that side has it.
    elsewhere = any(
        other_key == key and other_node != node and other.state.runs
        for other_key, other_node, other in _copies_everywhere(state, tenant, process)
        if state.system.nodes[other_node].side != state.side
    )
    cold_there = process.run_status is RunStatus.COLD and state.runs[tenant.name].epoch > 0
    return not elsewhere and not cold_there


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
        _adopt_places(state)
        for name in state.tenants:
            state.touch(name)
    return state.ordering


def _adopt_places(state: State) -> None:
    """Copies that run stay where they are."""
    for node in state.nodes:
        for key, copy in state.table.copies(node).items():
            tenant = tenant_of(key)
            if not copy.state.runs or tenant not in state.tenants:
                continue
            run = state.runs[tenant]
            place = run.places.get(key)
            if place is None:
                run.places[key] = Place(node, was_up=True)
            elif place.node == node:
                place.was_up = True


def _orders_of(state: State, tenant: Tenant, process: Process, now: int) -> dict[str, tuple[str, Order]]:
    """Return copy key -> (node, order) of a process's copies on this side."""
    run = state.runs[tenant.name]
    if run.move is not None and run.move.kind is MoveKind.RELEASE and process.run_status.exclusive:
        return _as_they_are(state, run, f"{tenant.name}/{process.name}")
    orders = {}
    for key in tenant.copy_keys(process):
        role = _role(state, tenant, process, run)
        runs_here = role is not None and process_started(state, tenant, process)
        place = _placed(state, tenant, process, key, role, now)
        if place is None:
            if runs_here:
                run.blocked[key] = f"no node of side {state.side} that is up may run it"
            continue
        there = usable(state, place.node) or _waits_for_node(state, process, run, place)
        wanted = Wanted.UP if runs_here and there else Wanted.DOWN
        wanted = _gated(state, tenant, process, key, place, wanted)
        orders[key] = (place.node, _order(state, tenant, process, key, place, wanted, role, now))
    return orders


def _as_they_are(state: State, run: Run, process: str) -> dict[str, tuple[str, Order]]:
    """While its tenant is let go, nothing new is said to a copy: its right decides."""
    return {
        key: (place.node, state.nodes[place.node].orders[key])
        for key, place in run.places.items()
        if process_of(key) == process and key in state.nodes[place.node].orders
    }


def _role(state: State, tenant: Tenant, process: Process, run: Run) -> Role | None:
    """Return the role of the process's copies on this side; None: they should not run."""
    if process.run_status is RunStatus.LOAD_SHARING:
        return Role.ACTIVE
    if run.epoch:
        return Role.ACTIVE
    return Role.STANDBY if process.run_status.standby_runs else None


def _placed(state: State, tenant: Tenant, process: Process, key: str, role: Role | None, now: int) -> Place | None:
    """Return the copy's place, a new one if it has none or may leave the one it has; None: nowhere."""
    run = state.runs[tenant.name]
    place = run.places.get(key)
    exclusive_here = process.run_status.exclusive and run.epoch > 0
    if place is not None and (usable(state, place.node) and place.node in eligible(state, process, state.side)):
        return _with_fencing(state, tenant, run, key, place, exclusive_here)
    if place is not None and place.fencing and exclusive_here:
        return place  # only a move inside the side may take it away (moves.begin_inner)
    if (
        place is not None
        and _waits_for_node(state, process, run, place)
        and place.node in eligible(state, process, state.side)
    ):
        return place
    node = _choose(state, tenant, process, key)
    if node is None:
        return place
    run.places[key] = Place(node)
    return _with_fencing(state, tenant, run, key, run.places[key], exclusive_here)


def _waits_for_node(state: State, process: Process, run: Run, place: Place) -> bool:
    """Return whether a copy that needs no right stays on its dead node: if only the agents died, it runs on."""
    view = state.nodes[place.node]
    needs_right = process.run_status.exclusive and run.epoch > 0
    return view.state is NodeState.DEAD and not view.given_up and not needs_right and not drained(state, place.node)


def _with_fencing(state: State, tenant: Tenant, run: Run, key: str, place: Place, active: bool) -> Place:
    if active and not place.fencing:
        place.fencing = (run.epoch << 16) + run.inner
        place.was_up = False
        run.unsaved = True
    return place


def _choose(state: State, tenant: Tenant, process: Process, key: str) -> str | None:
    """Return the node for a copy: where it runs already, else the one with fewest copies; ties by name."""
    nodes = [node for node in eligible(state, process, state.side) if usable(state, node)]
    if not nodes:
        return None
    siblings = tenant.copy_keys(process)
    run = state.runs[tenant.name]

    def load(node: str) -> tuple[bool, int, int, str]:
        seen = state.table.get(node, key)
        same = sum(1 for other in siblings if other in run.places and run.places[other].node == node)
        every = sum(1 for r in state.runs.values() for place in r.places.values() if place.node == node)
        return not (seen and seen.state.runs), same, every, node

    return min(nodes, key=load)


def _gated(state: State, tenant: Tenant, process: Process, key: str, place: Place, wanted: Wanted) -> Wanted:
    """Hold a start back until what it needs is ready, a stop until what needs it is down."""
    run = state.runs[tenant.name]
    run.blocked.pop(key, None)
    seen = state.table.get(place.node, key)
    before = state.nodes[place.node].orders.get(key)
    ordered_up = before is not None and before.wanted is Wanted.UP
    if wanted is Wanted.UP:
        if ordered_up or (seen is not None and seen.state.runs):
            return Wanted.UP
        missing = dependency_missing(state, tenant, process)
        if missing:
            run.blocked[key] = missing
            return Wanted.DOWN
        return Wanted.UP
    if seen is not None and seen.state.runs and (ordered_up or before is None):
        user = _stopping_user(state, tenant, process)
        if user:
            run.blocked[key] = f"waits for {user} to stop"
            return Wanted.UP
    return Wanted.DOWN


def _stopping_user(state: State, tenant: Tenant, process: Process) -> str:
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
            role = _role(state, *found, run)
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


def _unmet(state: State, tenant: Tenant, dependency: Dependency) -> str:
    """Return why a dependency is not met, or an empty string (design section 2)."""
    found = state.graph.found.get(dependency.id)
    if found is None:
        return f"{dependency.id} is not in the plan"
    other, process = found
    own = other.name == tenant.name
    if own:
        role = _role(state, other, process, state.runs[other.name])
        if role is None or not process.enabled:
            return ""  # cold, and its tenant is active elsewhere: nothing to wait for here
    same_side = own or dependency.where == "same-side"
    for key, node, copy in _copies_everywhere(state, other, process):
        if same_side and state.system.nodes[node].side != state.side:
            continue
        if copy.state is not Seen.READY or not _believed(state, node):
            continue
        if own or process.run_status is RunStatus.LOAD_SHARING or copy.role is Role.ACTIVE:
            return ""
        del key
    return f"{dependency.id} is not ready" + (f" on side {state.side}" if same_side else "")


def _believed(state: State, node: str) -> bool:
    """What a Monitor last said counts while it is heard."""
    heard = state.monitors.get(node)
    return heard is not None and state.now - heard[1] < state.system.timing.freeze_after_ms * MS


def _copies_everywhere(state: State, tenant: Tenant, process: Process) -> list[tuple[str, str, CopyState]]:
    found = []
    keys = tenant.copy_keys(process)
    for node in state.table.nodes():
        if node in state.system.nodes:
            found += [(key, node, copy) for key in keys if (copy := state.table.get(node, key)) is not None]
    return found


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
