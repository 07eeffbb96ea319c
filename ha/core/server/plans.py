"""Plans: from tenant files to the plan that every node gets (design section 7).

The directory is compiled together with everything that stands already, so that errors across files show; only files
that pass become versions of the catalogue. The plan is then compiled from the catalogue alone. A catalogue that does
not pass as a whole leaves the plan as it was.
"""

from __future__ import annotations

import msgspec

from ha.core import catalog
from ha.core.graph import graph_of
from ha.core.machine import Persist, Send
from ha.core.server import complaints
from ha.core.server.nodes import give_plan_to_all
from ha.core.server.restarts import restart_digest
from ha.core.server.state import Check, Checked, Run, State
from ha.model.digest import digest_of
from ha.model.errors import Finding
from ha.model.messages import CatalogEntry, PeerShare
from ha.model.names import Agent
from ha.model.plan import Process, Tenant, decode_plan, encode_plan


def restore(state: State, restored: dict[str, object]) -> None:
    """Take plan and catalogue from the journal; both are compiled anew in the first step, the directory read later."""
    plan = restored.get("plan")
    if isinstance(plan, bytes):
        state.plan, state.plan_digest = plan, digest_of(plan)
        state.tenants = {tenant.name: tenant for tenant in decode_plan(plan)}
        state.graph = graph_of(state.tenants)
        for name in state.tenants:
            state.runs.setdefault(name, Run())
            state.touch(name)
    for key, value in restored.items():
        if key.startswith("cat/"):
            entry = msgspec.convert(value, CatalogEntry)
            state.catalog.entries[entry.name] = entry
    state.catalog_digest = catalog.digest(state.catalog)
    own = restored.get("own")
    if isinstance(own, dict):
        state.catalog.own = {str(name): str(digest) for name, digest in own.items()}


def first(state: State) -> None:
    """The first thing a started Server does about its plan: compile what it remembers."""
    if state.catalog.entries:
        state.out.append(Check("catalog", catalog.alive(state.catalog)))


def on_directory(state: State, files: dict[str, bytes] | None, now: int) -> None:
    """The directory was read: compile it over everything that stands."""
    state.directory = files
    state.directory_read = True
    state.out.append(Check("directory", {**catalog.alive(state.catalog), **(files or {})}))


def on_checked(state: State, checked: Checked, now: int) -> None:
    """Files were compiled."""
    if checked.purpose == "directory":
        _note_findings(state, checked.findings)
        state.findings, state.failed_files = checked.findings, checked.failed
        _take_directory(state, confirmed=False)
    else:
        _take_catalog(state, checked, now)
    complaints.say(state, now)


def merge(state: State, entries: tuple[CatalogEntry, ...], now: int) -> None:
    """Take another Server's versions."""
    changed = catalog.merge(state.catalog, entries)
    if changed:
        _keep(state, changed)
        state.out.append(Check("catalog", catalog.alive(state.catalog)))
        if state.pending_removal:
            _take_directory(state, confirmed=False)
        complaints.say(state, now)


def pending(state: State) -> list[dict[str, object]]:
    """Return what the directory would change and does not: broken files, and removals that wait."""
    waiting: list[dict[str, object]] = [
        {"file": finding.file, "change": "refused", "reason": str(finding)} for finding in state.findings
    ]
    waiting += [
        {"file": f"{name}.toml", "change": "refused", "reason": why}
        for name, why in sorted(state.catalog.refused.items())
    ]
    if state.pending_removal:
        held = catalog.look(_copy(state.catalog), state.node, state.directory, frozenset(state.failed_files))
        for name in held.waiting:
            tenant = state.tenants.get(name)
            stops = [f"{name}/{process.name}" for process in tenant.processes] if tenant else []
            waiting.append({"file": f"{name}.toml", "change": "removed", "stops": stops, "reason": "apply --confirm"})
    return waiting


def apply(state: State, confirm: bool, now: int) -> str:
    """Do what waits for a confirmation. Return why not, or an empty string."""
    if not state.directory_read:
        return "the tenants directory has not been read yet"
    if state.pending_removal and not confirm:
        return f"{state.pending_removal}; hactl apply --confirm removes them"
    _take_directory(state, confirmed=confirm)
    complaints.say(state, now)
    return ""


def _note_findings(state: State, findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        if finding not in state.findings:
            state.note("plan-refused", finding.file, reason=str(finding))


def _take_directory(state: State, *, confirmed: bool) -> None:
    before = dict(state.catalog.own)
    broken = frozenset(state.failed_files)
    seen = catalog.look(state.catalog, state.node, state.directory, broken, confirmed=confirmed)
    if seen.why and seen.why != state.pending_removal:
        state.note("removal-waits", "tenants", reason=seen.why)
    state.pending_removal = seen.why
    if state.catalog.own != before:
        state.out.append(Persist("own", dict(state.catalog.own)))
    if seen.changed:
        _keep(state, seen.changed)
        for server in state.system.servers():
            if server != state.node:
                state.out.append(Send(Agent.SERVER, server, PeerShare((), seen.changed)))
        state.out.append(Check("catalog", catalog.alive(state.catalog)))
    elif not state.plan:
        state.out.append(Check("catalog", catalog.alive(state.catalog)))


def _take_catalog(state: State, checked: Checked, now: int) -> None:
    if checked.failed and state.plan:
        _note_findings(state, checked.findings)
        state.findings = tuple(dict.fromkeys((*state.findings, *checked.findings)))
        return
    entries = state.catalog.entries
    serials = {tenant: entries[file].serial for file, tenant in checked.names.items() if file in entries}
    take_plan(
        state,
        tuple(msgspec.structs.replace(tenant, serial=serials.get(tenant.name, 0)) for tenant in checked.tenants),
        now,
    )


def take_plan(state: State, tenants: tuple[Tenant, ...], now: int) -> None:
    """Make these tenants the plan: what changed is looked at again, what is gone is stopped."""
    data = encode_plan(tenants)
    digest = digest_of(data)
    if digest == state.plan_digest:
        return
    before, state.tenants = state.tenants, {tenant.name: tenant for tenant in tenants}
    state.plan, state.plan_digest = data, digest
    state.out.append(Persist("plan", data))
    old_graph, state.graph = state.graph, graph_of(state.tenants)
    for name in sorted({*before, *state.tenants}):
        run = state.runs.setdefault(name, Run())
        old, new = before.get(name), state.tenants.get(name)
        if old == new:
            continue
        for process in old.processes if old else ():
            key = f"{name}/{process.name}"
            state.dirty[key] = None
            state.dirty.update(dict.fromkeys(old_graph.neighbours(key)))
        run.next_try = 0
        state.touch(name)
        changes = "; ".join(f"{process} {what}" for process, what in differences(old, new))
        versions = [str(tenant.serial) if tenant else "" for tenant in (old, new)]
        state.note("plan", name, from_=versions[0], to=versions[1], reason=changes)
    give_plan_to_all(state, now)


def differences(old: Tenant | None, new: Tenant | None) -> list[tuple[str, str]]:
    """Return (process, what will happen) between two versions of a tenant: start, stop, restart or adjust."""
    olds = {process.name: process for process in old.processes} if old else {}
    news = {process.name: process for process in new.processes} if new else {}
    found = []
    for name in sorted({*olds, *news}):
        if name not in news:
            found.append((name, "stop"))
        elif name not in olds:
            found.append((name, "start"))
        elif old is not None and new is not None:
            what = _difference(old, new, olds[name], news[name])
            if what:
                found.append((name, what))
    return found


def _difference(old: Tenant, new: Tenant, before: Process, after: Process) -> str:
    if restart_digest(old, before) != restart_digest(new, after):
        return "restart"
    return "adjust" if before != after else ""


def _keep(state: State, changed: tuple[CatalogEntry, ...]) -> None:
    state.catalog_digest = catalog.digest(state.catalog)
    for entry in changed:
        state.out.append(Persist(f"cat/{entry.name}", entry, sync=entry is changed[-1]))


def _copy(state: catalog.State) -> catalog.State:
    return catalog.State(dict(state.entries), dict(state.own), dict(state.refused))
