"""Nodes: what a Server hears from the nodes of its side, and the rights it grants them (design rules 8, 9).

A node pulls its rights; it counts them from its own send time. Before a process is granted to another node the
Server waits until the last right it gave has surely run out, or has the node's word. A started Server does not know
what was granted before it: for one promise it takes every node of its side to hold every tenant.
"""

from __future__ import annotations

from ha.core import lease
from ha.core.machine import Received, Send
from ha.core.server.state import MoveKind, NodeView, State, drained, seated
from ha.model import limits
from ha.model.messages import Grant, Pull, PutPlan, Right
from ha.model.names import Agent, tenant_of
from ha.model.status import NodeState
from ha.model.timing import MS


def on_pull(state: State, event: Received, pull: Pull, now: int) -> None:
    """Take a node's beat and answer with its rights."""
    view = state.nodes.get(event.node)
    if view is None:
        return
    if event.incarnation != view.incarnation:
        view.incarnation = event.incarnation
        view.full_sent = False
        view.digest = ""
        view.unanswered.clear()
    before = view.pull
    view.pull, view.last_pull = pull, now
    if before is None or before.leaving != pull.leaving:
        _touch_all(state)
    if not seated(state, now):
        state.out.append(Send(Agent.SPAWNER, event.node, Grant(False), event.request))
        return
    _set_state(state, event.node, view, now)
    _give_plan(state, event.node, view, now)
    if view.full_sent and not view.unanswered and view.digest and pull.orders_digest != view.digest:
        view.full_sent = False  # the node lost orders: it gets them all again
        _touch_all(state)
    state.out.append(Send(Agent.SPAWNER, event.node, _grant(state, event.node, view, pull, now), event.request))


def rights_of(state: State, node: str, now: int) -> tuple[Right, ...]:
    """Return what may be active on the node now: exclusive copies placed there of tenants held and not on the move."""
    rights = []
    for name, run in sorted(state.runs.items()):
        if not run.epoch or not lease.valid(state.book, name, now):
            continue
        if run.move is not None and (run.move.kind is MoveKind.RELEASE or node in run.move.nodes):
            continue
        rights += [
            Right(key, place.fencing) for key, place in run.places.items() if place.node == node and place.fencing
        ]
    return tuple(sorted(rights, key=lambda right: right.copy))


def _grant(state: State, node: str, view: NodeView, pull: Pull, now: int) -> Grant:
    rights = rights_of(state, node, now)
    if rights != view.rights or not view.rights_version:
        state.counter += 1
        view.right_tenants = tuple(dict.fromkeys(tenant_of(right.copy) for right in rights))
        view.rights, view.rights_version = rights, (state.boots << 32) + state.counter
    remaining = {name: lease.valid_until(state.book, name) - now for name in view.right_tenants}
    most = max(remaining.values(), default=0)
    short = tuple(sorted((name, left) for name, left in remaining.items() if left < most))
    for name, left in remaining.items():
        view.granted[name] = max(view.granted.get(name, 0), now + state.system.timing.outlived_ns(left))
    known = pull.rights_version == view.rights_version
    return Grant(True, most, view.rights_version, None if known else rights, short)


def outstanding(state: State, tenant: str, now: int, only: tuple[str, ...] | None = None) -> dict[str, int]:
    """Return the nodes that may still act for the tenant, with the instant at which they surely no longer can."""
    found = {}
    for node, view in state.nodes.items():
        until = view.granted.get(tenant, 0)
        if until > now and (only is None or node in only):
            found[node] = until
    return found


def assume_granted(state: State, tenant: str, now: int) -> None:
    """Every node of the side may hold the tenant: what was granted before is not known (rule 9)."""
    until = now + state.system.timing.outlived_ns(state.system.timing.freeze_after_ms * MS)
    for view in state.nodes.values():
        view.granted[tenant] = max(view.granted.get(tenant, 0), until)


def detect(state: State, now: int) -> None:
    """Turn silence into suspect and dead. A Server that was late itself gives no new verdicts (rule 12)."""
    if now < state.distrust_until:
        return
    for name, view in state.nodes.items():
        _set_state(state, name, view, now)
        if view.state is NodeState.DEAD and not view.given_up and now >= _given_up_at(state, view):
            view.given_up = True
            _touch_all(state)


def next_detection(state: State) -> int | None:
    """Return when the next silence turns into a verdict."""
    timing = state.system.timing
    instants = []
    for view in state.nodes.values():
        if view.state is NodeState.UP:
            instants.append(view.last_pull + timing.suspect_ms * MS)
        elif view.state is NodeState.SUSPECT:
            instants.append(view.last_pull + timing.freeze_after_ms * MS)
        elif view.state is NodeState.DEAD and not view.given_up:
            instants.append(_given_up_at(state, view))
    return min(instants, default=None)


def _given_up_at(state: State, view: NodeView) -> int:
    """Return when a dead node is given up: its agents may all be dead and back soon, and its copies run on."""
    return (view.last_pull or max(state.started, state.seated_at)) + limits.NODE_GIVEN_UP_MS * MS


def _set_state(state: State, name: str, view: NodeView, now: int) -> None:
    timing = state.system.timing
    silent = now - view.last_pull
    if not view.last_pull:
        start = max(state.started, state.seated_at)
        new = NodeState.UNKNOWN if now - start < timing.promise_ms * MS else NodeState.DEAD
    elif silent >= timing.freeze_after_ms * MS:
        new = NodeState.DEAD
    elif silent >= timing.suspect_ms * MS:
        new = NodeState.SUSPECT
    else:
        new = NodeState.UP
    if new is view.state:
        return
    heard = f"last heard {silent // MS} ms ago" if view.last_pull else "never heard"
    if state.seat_epoch and not (view.state is NodeState.UNKNOWN and new is NodeState.UP):
        state.note("node", name, from_=view.state.value, to=new.value, reason=heard)
    view.state = new
    view.given_up = view.given_up and new is NodeState.DEAD
    if new is NodeState.DEAD:
        view.full_sent = False
    _touch_all(state)


def _give_plan(state: State, name: str, view: NodeView, now: int) -> None:
    if not state.plan or view.pull is None or view.pull.plan_digest == state.plan_digest:
        return
    if now - view.plan_sent_at >= limits.COMMAND_RETRY_MS * MS or not view.plan_sent_at:
        view.plan_sent_at = now
        state.out.append(Send(Agent.SPAWNER, name, PutPlan(state.plan_digest, state.plan)))


def give_plan_to_all(state: State, now: int) -> None:
    """A new plan goes to every node that is there, at once."""
    for name, view in state.nodes.items():
        view.plan_sent_at = 0
        if view.state in (NodeState.UP, NodeState.SUSPECT) and seated(state, now):
            _give_plan(state, name, view, now)


def shown_state(state: State, name: str) -> NodeState:
    """Return a node's state with drains taken into account, as beats and `hactl status` show it."""
    view = state.nodes[name]
    if view.state in (NodeState.UP, NodeState.SUSPECT) and drained(state, name):
        busy = any(place.node == name for run in state.runs.values() for place in run.places.values())
        runs = any(copy.state.runs for copy in state.table.copies(name).values())
        return NodeState.DRAINING if busy or runs else NodeState.DRAINED
    return view.state


def _touch_all(state: State) -> None:
    for name in state.tenants:
        state.touch(name)
