"""Recovery: what a Server does when something it wants up is not (design sections 2, 3 rule 7, and 6).

Escalation stays inside the tenant: a dead copy is restarted by its Monitor; one that died too often is restarted
together with what depends on it, once; then the tenant fails over; then it is failed, with an alarm. A dead copy
whose ready standby waits on the other side is not restarted but promoted there first.
"""

from __future__ import annotations

from ha.core import lease
from ha.core.graph import dependents
from ha.core.machine import Persist
from ha.core.server import moves
from ha.core.server.registers import set_register
from ha.core.server.state import (
    Place,
    Run,
    State,
    drained,
    eligible,
    needs_lease,
    process_started,
    seated,
    seated_peer,
    tenant_started,
    usable,
)
from ha.model.messages import LeaseRelease
from ha.model.names import process_of, tenant_of
from ha.model.plan import Process, Tenant
from ha.model.status import NodeState, OnDeath
from ha.model.status import State as Seen
from ha.model.timing import MS


def decide(state: State, now: int) -> None:
    """Look at every touched tenant: lost copies, lost or drained nodes, stops, failback."""
    if not seated(state, now) or not state.ordering or state.stopping:
        return
    touched = {name: keys for name, keys in state.dirty_tenants.items() if name in state.runs}
    state.dirty_tenants.clear()
    for name, keys in touched.items():
        run = state.runs[name]
        tenant = state.tenants.get(name)
        if tenant is None:
            _removed(state, name, run)
            continue
        if run.epoch and run.move is None:
            _active_side(state, tenant, run, keys, now)
        _exhausted(state, tenant, run, keys, now)


def _touched(run: Run, keys: set[str] | None) -> list[tuple[str, Place]]:
    """Return the placed copies that something happened to; None: to the whole tenant."""
    if keys is None:
        return sorted(run.places.items())
    return [(key, run.places[key]) for key in sorted(keys) if key in run.places]


def _active_side(state: State, tenant: Tenant, run: Run, keys: set[str] | None, now: int) -> None:
    if not tenant_started(state, tenant) or not needs_lease(tenant):
        _stopped(state, tenant, run, now)
        return
    lost, dead = _unfit(state, run, keys), _dead(state, run, keys)
    if dead:
        why = moves.may_fail_over(state, tenant, run, now, standby=True)
        if not why:
            _fail_over(state, tenant, f"{dead} died", now)
            return
        state.touch_process(process_of(dead))  # its order changes to a restart by the node
    if lost:
        _leave_nodes(state, tenant, run, lost, now)


def _removed(state: State, name: str, run: Run) -> None:
    """A tenant that is in the plan no more: its lease is given back when nothing of it runs, then it is forgotten."""
    for node, view in state.nodes.items():
        copies = state.table.copies(node).items()
        if view.state is not NodeState.DEAD and any(tenant_of(key) == name and one.state.runs for key, one in copies):
            return
    if run.epoch and run.move is None:
        moves.begin_release(state, name, "removed", heir="", planned=True, now=state.now)
    if not run.epoch:
        del state.runs[name]


def _stopped(state: State, tenant: Tenant, run: Run, now: int) -> None:
    """A stopped tenant's lease is given back when nothing exclusive runs any more."""
    for key, place in run.places.items():
        found = state.graph.found.get(process_of(key))
        if found is not None and not found[1].run_status.exclusive:
            continue
        seen = state.table.get(place.node, key)
        if seen is not None and seen.state.runs and state.nodes[place.node].state is not NodeState.DEAD:
            return
    moves.begin_release(state, tenant.name, "stopped", heir="", planned=True, now=now)


def _dead(state: State, run: Run, keys: set[str] | None) -> str:
    """Return an active copy that died and that its node does not restart, or an empty string."""
    for key, place in _touched(run, keys):
        seen = state.table.get(place.node, key)
        if seen is None or not place.fencing:
            continue
        if seen.state.runs:
            place.was_up = True
        order = state.nodes[place.node].orders.get(key)
        reported = order is not None and order.on_death is OnDeath.REPORT
        found = state.graph.found.get(process_of(key))
        if found is None or not process_started(state, *found):
            continue
        if place.was_up and reported and seen.state in (Seen.DOWN, Seen.BACKOFF) and seen.exit is not None:
            return key
    return ""


def _unfit(state: State, run: Run, keys: set[str] | None) -> list[str]:
    """Return the exclusive active copies whose node is dead, drained or no longer eligible."""
    lost = []
    for key, place in _touched(run, keys):
        found = state.graph.found.get(process_of(key))
        if not place.fencing or found is None or not process_started(state, *found):
            continue
        dead = state.nodes[place.node].state is NodeState.DEAD
        if dead or drained(state, place.node) or place.node not in eligible(state, found[1], state.side):
            lost.append(key)
    return lost


def _leave_nodes(state: State, tenant: Tenant, run: Run, lost: list[str], now: int) -> None:
    nodes = tuple(sorted({run.places[key].node for key in lost}))
    alive = all(state.nodes[node].state is not NodeState.DEAD for node in nodes)
    reason = f"node {', '.join(nodes)} is {'drained' if alive else 'lost'}"
    processes = [state.graph.found[process_of(key)][1] for key in lost]
    inside = all(_other_node(state, process) for process in processes)
    waits = any(process.run_status.standby_runs for process in processes)
    if alive:
        over = moves.refusal_to_move(state, tenant, standby=True, now=now)
    else:
        over = moves.may_fail_over(state, tenant, run, now, standby=inside)
    if not over and (waits or not inside):
        heir = moves.heir_of(state, now)
        moves.begin_release(state, tenant.name, reason, heir=heir, planned=alive, now=now)
    elif inside:
        moves.begin_inner(state, tenant.name, nodes, reason, planned=alive, now=now)
    else:
        for process in processes:
            run.blocked[f"{tenant.name}/{process.name}.1"] = f"{reason}; {over}"


def _other_node(state: State, process: Process) -> bool:
    return any(usable(state, node) for node in eligible(state, process, state.side))


def _fail_over(state: State, tenant: Tenant, reason: str, now: int) -> None:
    heir = moves.heir_of(state, now)
    moves.begin_release(state, tenant.name, reason, heir=heir, planned=False, now=now)


def _exhausted(state: State, tenant: Tenant, run: Run, keys: set[str] | None, now: int) -> None:
    """A copy died too often: its dependents with it, then the other side, then failed."""
    for key, place in _touched(run, keys):
        seen = state.table.get(place.node, key)
        found = state.graph.found.get(process_of(key))
        if seen is None or seen.state is not Seen.FAILED or found is None:
            continue
        process = found[1]
        order = state.nodes[place.node].orders.get(key)
        if order is None or seen.reset != order.reset or run.move is not None:
            continue
        last = run.escalated.get(key)
        if last is None or now - last > process.restart.period_ms * MS * 2:
            _with_dependents(state, tenant, run, key, now)
        elif run.epoch and process.run_status.exclusive:
            why = moves.may_fail_over(state, tenant, run, now, standby=False)
            if not why:
                run.escalated[f"n/{key}"] = run.escalated.get(f"n/{key}", 0) + 1
                _fail_over(state, tenant, f"{key} died too often", now)
            else:
                set_register(state, f"failed/{tenant.name}", f"{key} died too often; {why}", now)
                state.note("failed", tenant.name, reason=f"{key} died too often; {why}", epoch=run.epoch)


def _with_dependents(state: State, tenant: Tenant, run: Run, key: str, now: int) -> None:
    """First escalation: a fresh start of the copy, together with what depends on it in this tenant."""
    run.escalated[key] = now
    run.escalated[f"n/{key}"] = run.escalated.get(f"n/{key}", 0) + 1
    users = [u for u in dependents(state.graph, process_of(key)) if u.startswith(f"{tenant.name}/")]
    text = ", ".join(users) or "nothing depends on it"
    state.note("escalate", key, from_="process", to="dependents", reason=text)
    for user in users:
        set_register(state, f"restart/{user}@{state.side}", "now", now)
    state.touch(tenant.name)


def fail_back(state: State, now: int) -> None:
    """`failback = "auto"`: a tenant away from home goes back when its home has stood ready for long enough."""
    if not seated(state, now) or state.stopping:
        return
    for name, run in state.runs.items():
        tenant = state.tenants.get(name)
        if tenant is None or not run.epoch or run.move is not None:
            continue
        if tenant.failback != "auto" or tenant.home == state.side:
            continue
        held = moves.may_fail_over(state, tenant, run, now, standby=True)
        if held:
            run.home_ready_since = 0
        elif not run.home_ready_since:
            run.home_ready_since = now
        elif now - run.home_ready_since >= tenant.failback_after_ms * MS:
            run.home_ready_since = 0
            moves.begin_release(
                state, name, "failback to its home", heir=moves.heir_of(state, now), planned=True, now=now
            )


def give_back_all(state: State, now: int) -> bool:
    """This Server ends: release every tenant and the seat. Return whether all is given back."""
    for name, run in state.runs.items():
        if run.epoch and run.move is None:
            tenant = state.tenants.get(name)
            away = tenant is None or moves.refusal_to_move(state, tenant, standby=False, now=now)
            peer = seated_peer(state, state.other, now)
            heir = moves.heir_of(state, now) if peer is not None and not away else _successor(state, now)
            moves.begin_release(state, name, "its Server ends", heir=heir, planned=True, now=now)
    return not any(run.epoch for run in state.runs.values())


def _successor(state: State, now: int) -> str:
    """Return another candidate of this side that beats, or an empty string."""
    limit = state.system.timing.suspect_ms * MS
    for node in state.system.sides[state.side]:
        peer = state.peers.get(node)
        if node != state.node and peer is not None and now - peer.at < limit:
            return node
    return ""


def release_seat(state: State, now: int) -> None:
    """Give the seat to the next candidate."""
    if not state.seat_epoch:
        return
    state.out.append(Persist(f"held/{state.seat}", None))
    one = LeaseRelease(state.seat, state.seat_epoch, _successor(state, now))
    state.out.extend(lease.release(state.book, (one,)))
    state.seat_epoch = 0
