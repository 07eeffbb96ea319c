"""Graph: who depends on whom, over all tenants: start and stop order, cycles, neighbours. Pure functions of the plan.

Process ids are `tenant/process`. The start order is the dependencies' order; the stop order is its reverse; among
what may start at the same time the higher tenant priority, then the higher process priority goes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ha.model.names import process_id
from ha.model.plan import Dependency, Process, Tenant


@dataclass(slots=True)
class Graph:
    """Dependencies both ways, and the rank of every process."""

    needs: dict[str, tuple[Dependency, ...]] = field(default_factory=dict)
    needed_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rank: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # sorts higher priority first
    found: dict[str, tuple[Tenant, Process]] = field(default_factory=dict)  # by process id

    def neighbours(self, process: str) -> list[str]:
        """Return what depends on the process and what it depends on."""
        return [*self.needed_by.get(process, ()), *(dep.id for dep in self.needs.get(process, ()))]


def graph_of(tenants: dict[str, Tenant]) -> Graph:
    """Return the graph of a plan."""
    graph = Graph()
    reverse: dict[str, list[str]] = {}
    for name in sorted(tenants):
        for process in tenants[name].processes:
            key = process_id(name, process.name)
            graph.needs[key] = process.depends_on
            graph.found[key] = (tenants[name], process)
            graph.rank[key] = (-tenants[name].priority, -process.priority, key)
            for dependency in process.depends_on:
                reverse.setdefault(dependency.id, []).append(key)
    graph.needed_by = {key: tuple(users) for key, users in reverse.items()}
    return graph


def dependents(graph: Graph, process: str) -> tuple[str, ...]:
    """Return everything that depends on the process, directly or not, nearest first."""
    found: dict[str, None] = {}
    queue = [process]
    for current in queue:
        for user in graph.needed_by.get(current, ()):
            if user not in found and user != process:
                found[user] = None
                queue.append(user)
    return tuple(found)
