"""Invariants held against the ground truth while a simulated system runs; the first that breaks ends the run.

Two active copies never (`ha.sim.programs`); here: epochs of a lease only grow from claim to claim; a fencing number is
never given to copies of one process on two nodes, and never falls; a side has one seated Server; a held tenant changes
its side only by command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ha.core.machine import Effect, Note
from ha.core.server.state import seated
from ha.core.spawning import events as sp
from ha.model.names import Agent, process_of
from ha.model.plan import Tenant
from ha.model.status import Role
from ha.model.timing import MS
from ha.sim.hosts import Host
from ha.sim.programs import Violation

if TYPE_CHECKING:
    from ha.sim.world import World

LOOK_EVERY_MS = 20


class Truth:
    """Watches one world. `held`: tenant -> since when its hold must be obeyed; `excused`: no more than one command."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.epochs: dict[str, tuple[int, str]] = {}  # lease -> (highest epoch claimed, by whom)
        self.fences: dict[str, tuple[int, str]] = {}  # process -> (highest number told, on which node)
        self.held: dict[str, int] = {}
        self.excused_until = 0
        world.programs.watch = self.told
        world.noted = self.noted
        self._look()

    def told(self, effect: Effect, node: str) -> None:
        """A copy is started, or told its role."""
        if not isinstance(effect, sp.Spawn | sp.TellRole) or effect.role is not Role.ACTIVE or not effect.fencing:
            return
        process = process_of(effect.copy)
        if isinstance(effect, sp.Spawn) and not effect.process.run_status.exclusive:
            return
        number, before = self.fences.get(process, (0, ""))
        if effect.fencing < number or (effect.fencing == number and before != node):
            raise Violation(f"{process} gets {effect.fencing:#x} on {node} after {number:#x} on {before}")
        self.fences[process] = (effect.fencing, node)

    def noted(self, host: Host, note: Note) -> None:
        """An agent told an event."""
        if host.role is not Agent.SERVER:
            return
        if note.kind == "claimed" or (note.kind == "seat" and note.reason == "claimed"):
            lease = note.subject if note.kind == "claimed" else f"seat/{note.subject}"
            epoch, by = self.epochs.get(lease, (0, ""))
            if note.epoch <= epoch:
                raise Violation(f"{host.node} claims {lease} at epoch {note.epoch}, {by} had {epoch}")
            self.epochs[lease] = (note.epoch, host.node)
        moved = note.kind == "claimed" and note.from_ not in ("", note.to)
        now = self.world.kernel.now
        if moved and now > self.excused_until and self.held.get(note.subject, now) < now:
            raise Violation(f"{note.subject} is held and goes from {note.from_} to {note.to}: {note.reason}")

    def _look(self) -> None:
        for side, nodes in self.world.system.sides.items():
            seats = [node for node in nodes if self._seated(node)]
            if len(seats) > 1:
                raise Violation(f"side {side} has Servers seated on {seats}")
        self.world.kernel.after(LOOK_EVERY_MS * MS, self._look)

    def _seated(self, node: str) -> bool:
        host = self.world.hosts[(Agent.SERVER, node)]
        return host.driver is not None and seated(host.driver.state, host.now())


def unserved(world: World) -> str:
    """Return what is not as its run status and the operator's word promise, by the ground truth; empty: all is."""
    running = [p for p in world.programs.running() if p.ready and not p.frozen]
    tenants = world.wanted_tenants()
    names = {f"{t.name}/{p.name}" for t in tenants for p in t.processes}
    off = _off(world, tenants)
    idle = _waiting(tenants, off)
    for program in world.programs.running():
        if process_of(program.copy) not in names:
            return f"{program.copy} still runs on {program.node}, it is in no file"
    for tenant in tenants:
        for process in tenant.processes:
            name = f"{tenant.name}/{process.name}"
            copies = [p for p in running if process_of(p.copy) == name]
            active = [p for p in copies if p.role is Role.ACTIVE]
            if name in idle - off:
                continue
            if name in off:
                every = [p.node for p in world.programs.running() if process_of(p.copy) == name]
                if every:
                    return f"{name} is stopped and runs on {every}"
            elif not process.run_status.exclusive:
                sides = [world.system.nodes[p.node].side for p in active]
                if sorted(sides) != sorted([*"ab"] * process.copies):
                    return f"{name} runs on sides {sides}, wanted are {process.copies} copies a side"
            elif len(active) != 1:
                return f"{name} has {len(active)} active copies"
            elif len(copies) != (2 if process.run_status.standby_runs else 1):
                return f"{name} has {len(copies)} copies"
    return ""


def _off(world: World, tenants: tuple[Tenant, ...]) -> set[str]:
    """Return the processes that are not to run."""
    return {
        f"{t.name}/{p.name}" for t in tenants for p in t.processes
        if not p.enabled or t.name in world.stopped or f"{t.name}/{p.name}" in world.stopped
    }  # fmt: skip


def _waiting(tenants: tuple[Tenant, ...], off: set[str]) -> set[str]:
    """Return what is off, and what depends on it: that may run, if it did before, or wait."""
    found = set(off)
    while True:
        more = {
            f"{t.name}/{p.name}" for t in tenants for p in t.processes if any(d.id in found for d in p.depends_on)
        } - found
        if not more:
            return found
        found |= more


def leases_astray(world: World) -> str:
    """Return a lease that is held for a tenant that does not exist or is stopped, or an empty string."""
    wanted = {t.name for t in world.wanted_tenants() if t.name not in world.stopped}
    for (role, node), host in world.hosts.items():
        if role is Agent.SERVER and host.driver is not None:
            for name, run in host.driver.state.runs.items():
                if run.epoch and name not in wanted:
                    return f"{node} still holds {name}"
    return ""


__all__ = ["Truth", "leases_astray", "unserved"]
