"""Moves: giving a tenant back, and moving its copies to another node of the side (design rules 7 and 8).

A lease is released only by its holder, and only when every node with a sub-lease has let go or its sub-lease has
run out; the release is journalled before it is sent. A grace period never delays it: freeze, release, then stop.
"""

from __future__ import annotations

from ha.core import lease
from ha.core.machine import Persist, Send
from ha.core.server.nodes import outstanding
from ha.core.server.state import (
    Move,
    MoveKind,
    Run,
    State,
    eligible,
    held_back,
    peer_name,
    register,
    seated_peer,
    usable,
)
from ha.model import limits
from ha.model.messages import LeaseRef, LeaseRelease, PeerOffer, Relinquish
from ha.model.names import Agent
from ha.model.plan import Process, Tenant
from ha.model.status import Role
from ha.model.status import State as Seen
from ha.model.timing import MS


def refusal_to_move(state: State, tenant: Tenant, *, standby: bool, now: int) -> str:
    """Return why the other side cannot take the tenant now, or an empty string. `standby`: it must stand ready."""
    peer = seated_peer(state, state.other, now)
    if peer is None:
        return f"side {state.other} has no Server that answers"
    if register(state, f"drain-side/{state.other}"):
        return f"side {state.other} is drained"
    up = {name for name, seen in peer.beat.nodes if seen == "up"}
    for process in tenant.processes:
        if not process.run_status.exclusive or not process.enabled:
            continue
        nodes = [node for node in eligible(state, process, state.other) if node in up]
        if not nodes:
            return f"no node of side {state.other} that is up may run {tenant.name}/{process.name}"
        if standby and process.run_status.standby_runs and not standby_ready(state, tenant, process):
            return f"the standby of {tenant.name}/{process.name} on side {state.other} is not ready"
    return ""


def standby_ready(state: State, tenant: Tenant, process: Process) -> bool:
    """Return whether a copy of the process stands ready on the other side."""
    for node in state.system.nodes_of(state.other):
        for key in tenant.copy_keys(process):
            copy = state.table.get(node, key)
            if copy and copy.state is Seen.READY and copy.role is Role.STANDBY:
                return True
    return False


def may_fail_over(state: State, tenant: Tenant, run: Run, now: int, *, standby: bool) -> str:
    """Return why the tenant is not moved without an operator, or an empty string."""
    if held_back(state, tenant.name):
        return "held by the operator"
    if now < state.distrust_until:
        return "this Server was late itself"
    if moves_left(run, now) <= 0:
        return f"moved {run.moves} times within {limits.TENANT_MOVES_PERIOD_MS // 1000} s"
    return refusal_to_move(state, tenant, standby=standby, now=now)


def moves_left(run: Run, now: int) -> int:
    """Return how many unplanned moves are left in the present period."""
    if now - run.moves_since > limits.TENANT_MOVES_PERIOD_MS * MS:
        run.moves = 0
    return limits.TENANT_MOVES - run.moves


def begin_release(state: State, tenant: str, reason: str, *, heir: str, planned: bool, now: int) -> None:
    """Ask every node with a sub-lease to let go; `finish` gives the lease back when they have."""
    run = state.runs[tenant]
    if not run.epoch or (run.move is not None and run.move.kind is MoveKind.RELEASE):
        return
    polite = limits.RELINQUISH_POLITE_MS if planned else 0
    waiting = outstanding(state, tenant, now)
    run.move = Move(MoveKind.RELEASE, reason, planned, heir, polite, waiting)
    to = f"heir {heir}" if heir else ""
    state.note("release", tenant, from_=state.side, to=to, reason=reason, epoch=run.epoch)
    _ask(state, tenant, run, now)
    finish(state, tenant, now)


def begin_inner(state: State, tenant: str, nodes: tuple[str, ...], reason: str, *, planned: bool, now: int) -> None:
    """Ask these nodes to let the tenant's copies go, so that other nodes of the side may run them."""
    run = state.runs[tenant]
    if run.move is not None:
        return
    polite = limits.RELINQUISH_POLITE_MS if planned else 0
    waiting = outstanding(state, tenant, now, only=nodes)
    run.move = Move(MoveKind.INNER, reason, planned, "", polite, waiting, nodes)
    state.note("move", tenant, from_=",".join(nodes), to=f"side {state.side}", reason=reason, epoch=run.epoch)
    _ask(state, tenant, run, now)
    finish(state, tenant, now)


def on_relinquished(state: State, node: str, tenant: str, fencing: int, now: int) -> None:
    """A node's word: it will never again run the tenant at or below `fencing`."""
    run = state.runs.get(tenant)
    view = state.nodes.get(node)
    if run is None or view is None or run.move is None or fencing < _highest(run):
        return
    view.granted.pop(tenant, None)
    run.move.waiting.pop(node, None)
    finish(state, tenant, now)


def finish(state: State, tenant: str, now: int) -> None:
    """Carry out a move whose nodes have all let go."""
    run = state.runs[tenant]
    move = run.move
    if move is None:
        return
    for node, until in list(move.waiting.items()):
        if now >= until:
            del move.waiting[node]
            state.nodes[node].granted.pop(tenant, None)
    if move.waiting:
        return
    run.move = None
    if move.kind is MoveKind.INNER:
        _place_anew(state, tenant, run)
    else:
        _release(state, tenant, run, move, now)
    state.touch(tenant)


def retry(state: State, now: int) -> None:
    """Ask again nodes that have not answered, and finish what time has finished."""
    for tenant, run in state.runs.items():
        if run.move is not None:
            if now - run.move.asked_at >= limits.COMMAND_RETRY_MS * MS:
                _ask(state, tenant, run, now)
            finish(state, tenant, now)


def next_finish(state: State) -> int | None:
    """Return when the next sub-lease of a moving tenant runs out."""
    return min((u for run in state.runs.values() if run.move for u in run.move.waiting.values()), default=None)


def _highest(run: Run) -> int:
    """Return the highest fencing number any copy of this holding may have."""
    return (run.epoch << 16) + run.inner


def _ask(state: State, tenant: str, run: Run, now: int) -> None:
    assert run.move is not None
    run.move.asked_at = now
    body = Relinquish(tenant, _highest(run), run.move.polite_ms)
    state.out.extend(Send(Agent.SPAWNER, node, body) for node in sorted(run.move.waiting))


def _place_anew(state: State, tenant: str, run: Run) -> None:
    """The copies that have to move get a new place by the placement, at a higher fencing number."""
    for key in [key for key, place in run.places.items() if place.fencing and not usable(state, place.node)]:
        del run.places[key]
    run.inner += 1
    remember(state, tenant, run)


def _release(state: State, tenant: str, run: Run, move: Move, now: int) -> None:
    if not move.planned:
        if moves_left(run, now) == limits.TENANT_MOVES:
            run.moves_since = now
        run.moves += 1
    age = (now - run.moves_since) // MS if run.moves else 0
    release = LeaseRelease(tenant, run.epoch, move.heir, run.moves, age)
    state.out.append(Persist(f"held/{tenant}", None))
    state.out.extend(lease.release(state.book, (release,)))
    if move.heir and move.heir in state.system.servers():
        state.out.append(Send(Agent.SERVER, move.heir, PeerOffer((LeaseRef(tenant, run.epoch),))))
    state.note("released", tenant, from_=state.side, to=move.heir, reason=move.reason, epoch=run.epoch)
    forget(run)
    # The heir alone may claim for one promise; afterwards anybody may, this side last.
    run.next_try = now + (state.system.timing.promise_ms + state.system.timing.stagger_ms) * MS


def forget(run: Run) -> None:
    """The lease is not ours: copies keep their place, as standbys or not at all."""
    run.epoch = run.inner = 0
    run.move = None
    for place in run.places.values():
        place.fencing = 0
        place.was_up = False


def remember(state: State, tenant: str, run: Run) -> None:
    """Journal what this Server holds: epoch, moves inside the side, and where every exclusive copy may be active."""
    places = {key: [place.node, place.fencing] for key, place in sorted(run.places.items()) if place.fencing}
    run.unsaved = False
    value = {"epoch": run.epoch, "inner": run.inner, "places": places}
    # Unsynced: it outlives the agent; a node that is lost has to claim anew anyway.
    state.out.append(Persist(f"held/{tenant}", value, sync=False))


def heir_of(state: State, now: int) -> str:
    """Return the node whose Server should take a tenant from us: the other side's seat, else empty."""
    return peer_name(state, state.other, now)
