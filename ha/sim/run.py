"""Run: one seed: a system, tenants, faults for a while, then the demand that it converges."""

from __future__ import annotations

from dataclasses import dataclass

from ha.model.names import process_of
from ha.model.status import Role, RunStatus
from ha.sim import faults
from ha.sim.programs import Violation
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World

SETTLE_S = 20.0  # virtual seconds in which a mended system must have converged


@dataclass(slots=True, frozen=True)
class Report:
    """What came of a seed. `failure`: the violated invariant, or empty."""

    seed: int
    events: int
    seconds: float
    activations: int
    faults: tuple[str, ...]
    failure: str = ""


def run(seed: int, minutes: float = 0.5, shape: Shape | None = None) -> Report:
    """Play one seed: boot, faults for `minutes`, mend, converge."""
    world = World(seed, shape or Shape(), tenants_of())
    thrown: list[str] = []
    failure = ""
    try:
        world.run(8.0)
        until = world.kernel.now + int(minutes * 60e9)
        while world.kernel.now < until:
            world.run(world.kernel.between(50, 3000) / 1000)
            thrown.append(f"{world.kernel.now / 1e6:.1f} {faults.throw(world)}")
        world.run(8.0)
        faults.mend(world)
        failure = _converges(world)
    except Violation as violation:
        failure = str(violation)
    return Report(seed, world.kernel.events, world.kernel.now / 1e9, world.programs.activations, tuple(thrown), failure)


def _converges(world: World) -> str:
    """Return what is still wrong `SETTLE_S` after everything was mended, or an empty string."""
    deadline = world.kernel.now + int(SETTLE_S * 1e9)
    why = ""
    while world.kernel.now < deadline:
        world.run(0.25)
        why = unserved(world)
        if not why:
            world.run(2.0)
            why = unserved(world)
            if not why:
                return ""
    return f"not converged {SETTLE_S:.0f} s after everything was mended: {why}"


def unserved(world: World) -> str:
    """Return which process has not what its run status promises, by the ground truth; empty when all have."""
    running = [p for p in world.programs.running() if p.ready and not p.frozen]
    for tenant in tenants_of():
        for process in tenant.processes:
            name = f"{tenant.name}/{process.name}"
            copies = [p for p in running if process_of(p.copy) == name]
            active = [p for p in copies if p.role is Role.ACTIVE]
            sides = {world.system.nodes[p.node].side for p in copies}
            if process.run_status is RunStatus.LOAD_SHARING:
                if len(sides) != 2:
                    return f"{name} runs on sides {sorted(sides)}"
            elif len(active) != 1:
                return f"{name} has {len(active)} active copies"
            elif process.run_status.standby_runs and len(copies) != 2:
                return f"{name} has {len(copies)} copies"
    return ""
