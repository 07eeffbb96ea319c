"""Across files: what only all tenants together and the system can show. Findings go to the reports of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ha.config.positions import Path
from ha.config.report import did_you_mean, dotted, in_order, shown
from ha.config.tenant import Loaded
from ha.model.errors import Finding
from ha.model.names import process_id
from ha.model.plan import Process, System


def check_tenants(files: Mapping[str, Loaded], system: System) -> tuple[Finding, ...]:
    """Return what is wrong between the files and with the system, and add it to their reports.

    A cycle is reported in each file that has a part in it; an unknown process in the file that depends on it.
    """
    before = {key: len(loaded.report.findings) for key, loaded in files.items()}
    owners = _owners(files)
    for loaded in owners.values():
        if loaded.tenant is None:
            continue
        for process in loaded.tenant.processes:
            _dependencies(loaded, process, owners)
            _nodes(loaded, process, system)
    _cycles(owners)
    return in_order(finding for key, loaded in files.items() for finding in loaded.report.findings[before[key] :])


def _owners(files: Mapping[str, Loaded]) -> dict[str, Loaded]:
    """Return the file of each tenant; of two, the one whose name is the tenant's, and the other is reported."""
    owners: dict[str, Loaded] = {}
    for key in sorted(files, key=lambda key: (files[key].stem != files[key].name, key)):
        loaded = files[key]
        first = owners.setdefault(loaded.name, loaded)
        if first is not loaded and loaded.tenant is not None:
            text = f'the tenant "{loaded.name}" is that of {first.report.file} too'
            loaded.report.add("duplicate-tenant", ("tenant", "name"), text, "remove one file, or give it its own name")
    return owners


def _dependencies(loaded: Loaded, process: Process, owners: Mapping[str, Loaded]) -> None:
    for number, dependency in enumerate(process.depends_on):
        path = _entry(loaded, process, number)
        owner = owners.get(dependency.tenant)
        if owner is None:
            text = f'{dotted(path)}: there is no tenant "{dependency.tenant}"'
            loaded.report.add("unknown-process", path, text, did_you_mean(dependency.tenant, owners, kind="tenants"))
        elif owner.tenant is not None and owner.tenant.process(dependency.process) is None:
            names = [known.name for known in owner.tenant.processes]
            if any(_lost(owner, broken) for broken in owner.report.broken if broken[:1] == ("process",)):
                continue  # it may be the one whose table or name was bad
            text = f'{dotted(path)}: "{dependency.id}" is no process'
            help = did_you_mean(dependency.process, names, kind=f"processes of {dependency.tenant}")
            loaded.report.add("unknown-process", path, text, help)


def _lost(owner: Loaded, broken: Path) -> bool:
    """Return whether a finding at this path kept a process, or all of them, out of the tenant."""
    return len(broken) == 1 or owner.tenant is None or owner.tenant.process(str(broken[1])) is None


def _entry(loaded: Loaded, process: Process, number: int) -> Path:
    """Return the path of a dependency's entry; of the array where bad entries shifted the numbers."""
    path: Path = ("process", process.name, "depends_on")
    return (*path, number) if not _bad_entries(loaded, path) else path


def _bad_entries(loaded: Loaded, path: Path) -> bool:
    """Return whether entries were left out; findings of this module itself do not count."""
    entries = sum(1 for known in loaded.report.positions.values if known[:-1] == path)
    process = loaded.tenant.process(str(path[1])) if loaded.tenant else None
    return process is None or len(process.depends_on) != entries


def _nodes(loaded: Loaded, process: Process, system: System) -> None:
    labels = {label for node in system.nodes.values() for label in node.labels}
    unknown = False
    for number, label in enumerate(process.on if system.nodes else ()):
        if label not in labels:
            unknown = True
            path: Path = ("process", process.name, "on", number)
            help = did_you_mean(label, labels, kind="labels of nodes")
            loaded.report.add("unknown-label", path, f"{dotted(path)} = {shown(label)}: no node carries it", help)
    for side in () if unknown else sorted(system.sides):
        nodes = [system.nodes[name] for name in system.nodes_of(side)]
        if nodes and not any(set(process.on) <= set(node.labels) for node in nodes):
            wanted = ", ".join(process.on)
            text = f"process.{process.name}.on: no node of side {side} carries {wanted}"
            help = f"add the labels to a node of side {side} in the system file, or ask for fewer"
            loaded.report.add("no-node", ("process", process.name, "on"), text, help)


# --- cycles ---------------------------------------------------------------------------------------


def _cycles(owners: Mapping[str, Loaded]) -> None:
    """Report one cycle for each group of processes that wait for each other."""
    needs: dict[str, list[str]] = {}
    for name in sorted(owners):
        tenant = owners[name].tenant
        for process in tenant.processes if tenant else ():
            needs[process_id(name, process.name)] = [dependency.id for dependency in process.depends_on]
    for group in _groups(needs):
        cycle = _shortest(needs, group)
        reported: set[str] = set()
        for turn, start in enumerate(cycle):
            tenant_name, _, process_name = start.partition("/")
            loaded = owners[tenant_name]
            found = loaded.tenant.process(process_name) if loaded.tenant else None
            if found is None or tenant_name in reported:
                continue
            reported.add(tenant_name)
            after = cycle[(turn + 1) % len(cycle)]
            number = next(n for n, dependency in enumerate(found.depends_on) if dependency.id == after)
            text = "processes wait for each other: " + " -> ".join([*cycle[turn:], *cycle[:turn], start])
            loaded.report.add("cycle", _entry(loaded, found, number), text, "remove one of these dependencies")


def _groups(needs: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """Yield the strongly connected components that hold a cycle (Tarjan, without recursion)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    for root in needs:
        if root in order:
            continue
        work: list[tuple[str, Iterator[str]]] = [(root, iter(needs[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            fresh = next((name for name in rest if name in needs and (name not in order or name in on_stack)), None)
            if fresh is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    group = [stack.pop()]
                    while group[-1] != node:
                        group.append(stack.pop())
                    on_stack.difference_update(group)
                    if len(group) > 1 or node in needs[node]:
                        yield sorted(group)
            elif fresh in order:
                low[node] = min(low[node], order[fresh])
            else:
                order[fresh] = low[fresh] = len(order)
                stack.append(fresh)
                on_stack.add(fresh)
                work.append((fresh, iter(needs[fresh])))


def _shortest(needs: Mapping[str, list[str]], group: list[str]) -> list[str]:
    """Return a shortest cycle through the first process of a group, beginning with it."""
    start, members = group[0], set(group)
    came: dict[str, str] = {}
    queue = [start]
    for node in queue:
        for name in needs[node]:
            if name == start:
                cycle = [node]
                while cycle[-1] != start:
                    cycle.append(came[cycle[-1]])
                return cycle[::-1]
            if name in members and name not in came:
                came[name] = node
                queue.append(name)
    return [start]
