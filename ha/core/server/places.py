"""Places: on which node of this side each copy belongs.

A copy stays where it is while its node may run it; else it goes to the node with the fewest copies. Only a move inside
the side (`moves.begin_inner`) takes an exclusive active copy away from its node.
"""

from __future__ import annotations

from ha.core.server.state import (
    Place,
    Run,
    State,
    drained,
    eligible,
    usable,
)
from ha.model.names import tenant_of
from ha.model.plan import Process, Tenant
from ha.model.status import NodeState, Role


def place_of(state: State, tenant: Tenant, process: Process, key: str, role: Role | None, now: int) -> Place | None:
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
        and waits_for_node(state, process, run, place)
        and place.node in eligible(state, process, state.side)
    ):
        return place
    node = _choose(state, tenant, process, key)
    if node is None:
        return place
    run.places[key] = Place(node)
    return _with_fencing(state, tenant, run, key, run.places[key], exclusive_here)


def adopt_places(state: State) -> None:
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


def waits_for_node(state: State, process: Process, run: Run, place: Place) -> bool:
    """Return whether a copy that needs no right stays on its dead node: if only the agents died, it runs on."""
    view = state.nodes[place.node]
    needs_right = process.run_status.exclusive and run.epoch > 0
    return view.state is NodeState.DEAD and not view.given_up and not needs_right and not drained(state, place.node)


def acts_until_moved(state: State, place: Place) -> bool:
    """An active copy on a drained node goes on until its tenant could be moved; a node that ends waits for nobody."""
    view = state.nodes[place.node]
    leaving = view.pull is not None and view.pull.leaving
    return place.fencing > 0 and not leaving and view.state in (NodeState.UP, NodeState.SUSPECT)


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
