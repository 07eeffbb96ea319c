"""Plans: from tenant files to the plan every node gets (design section 7)."""

from __future__ import annotations

from ha.core.graph import graph_of
from ha.core.machine import Persist
from ha.core.server.nodes import give_plan_to_all
from ha.core.server.state import Check, Checked, Run, State
from ha.model.messages import CatalogEntry
from ha.model.plan import Tenant, digest_of, encode_plan


def restore(state: State, restored: dict[str, object]) -> None:
    pass


def on_directory(state: State, files: dict[str, bytes] | None, now: int) -> None:
    if files is not None:
        state.out.append(Check("catalog", files))


def on_checked(state: State, checked: Checked, now: int) -> None:
    take_plan(state, checked.tenants, now)


def merge(state: State, entries: tuple[CatalogEntry, ...], now: int) -> None:
    pass


def pending(state: State) -> list[object]:
    return []


def apply(state: State, confirm: bool, now: int) -> str:
    return ""


def take_plan(state: State, tenants: tuple[Tenant, ...], now: int) -> None:
    """Make these tenants the plan: what changed is looked at again, what is gone is stopped."""
    data = encode_plan(tenants)
    digest = digest_of(data)
    if digest == state.plan_digest:
        return
    before, state.tenants = state.tenants, {tenant.name: tenant for tenant in tenants}
    state.plan, state.plan_digest = data, digest
    old_graph, state.graph = state.graph, graph_of(state.tenants)
    for name in sorted({*before, *state.tenants}):
        state.runs.setdefault(name, Run())
        if before.get(name) != state.tenants.get(name):
            for process in before[name].processes if name in before else ():
                key = f"{name}/{process.name}"
                state.dirty[key] = None
                state.dirty.update(dict.fromkeys(old_graph.neighbours(key)))
            state.touch(name)
    give_plan_to_all(state, now)
