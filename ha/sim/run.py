"""Run: one seed: a system, tenants, faults for a while, then the demand that it converges."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ha.model.plan import Tenant
from ha.model.timing import PROFILES
from ha.sim import faults, operator
from ha.sim.invariants import Truth, leases_astray, unserved
from ha.sim.programs import GOOD, Habit, Violation
from ha.sim.tenants import draw_tenants, tenants_of
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


@dataclass(slots=True, frozen=True)
class Options:
    """What is drawn from the seed before a run. `commands`, `faults`: how likely each turn brings one."""

    shape: Shape
    tenants: tuple[Tenant, ...]
    habits: dict[str, Habit]
    faults: bool = True
    commands: bool = False


def usual(seed: int) -> Options:
    """Return the small call centre on two nodes a side, under faults."""
    return Options(Shape(), tenants_of(), {})


def harsh(seed: int) -> Options:
    """Return a system, tenants, habits, faults and commands drawn from the seed."""
    rng = random.Random(seed)
    per_side = rng.choice([1, 2, 2, 3])
    shape = Shape(
        per_side, rng.randint(1, min(2, per_side)), PROFILES[rng.choice(["default", "default", "fast"])], True
    )
    tenants, habits = draw_tenants(rng, ("one", "last"))
    kind = rng.choice(["faults", "commands", "both", "both"])
    return Options(shape, tenants, habits if rng.random() < 0.7 else {}, kind != "commands", kind != "faults")


def run(seed: int, minutes: float = 0.5, options: Options | None = None) -> Report:
    """Play one seed: boot, faults and commands for `minutes`, mend, converge."""
    chosen = options or usual(seed)
    world = World(seed, chosen.shape, chosen.tenants)
    world.programs.habits = dict(chosen.habits)
    thrown: list[str] = []
    failure = ""
    try:
        truth = Truth(world)
        world.run(8.0)
        until = world.kernel.now + int(minutes * 60e9)
        while world.kernel.now < until:
            world.run(world.kernel.between(50, 3000) / 1000)
            command = chosen.commands and (not chosen.faults or world.kernel.rng.random() < 0.5)
            what = operator.act(world, truth) if command else faults.throw(world)
            thrown.append(f"{world.kernel.now / 1e6:.1f} {what}")
        world.run(8.0)
        _mend(world, truth)
        failure = _converges(world)
    except Violation as violation:
        failure = str(violation)
    return Report(seed, world.kernel.events, world.kernel.now / 1e9, world.programs.activations, tuple(thrown), failure)


def _mend(world: World, truth: Truth) -> None:
    """Heal everything; what failed meanwhile is reset, as an operator would."""
    world.programs.habits = {name: Habit(connects=habit.connects) for name, habit in world.programs.habits.items()}
    faults.mend(world)
    world.run(3.0)
    operator.relent(world, truth)
    world.run(3.0)
    operator.reset_all(world)


def _converges(world: World) -> str:
    """Return what is still wrong `SETTLE_S` after everything was mended, or an empty string."""
    deadline = world.kernel.now + int(SETTLE_S * 1e9)
    why = ""
    while world.kernel.now < deadline:
        world.run(0.25)
        why = unserved(world) or leases_astray(world)
        if not why:
            world.run(2.0)
            why = unserved(world) or leases_astray(world)
            if not why:
                return ""
    return f"not converged {SETTLE_S:.0f} s after everything was mended: {why}"


__all__ = ["GOOD", "Options", "Report", "harsh", "run", "unserved", "usual"]
