"""What scenarios share: a booted system and waiting on conditions in virtual time."""

from __future__ import annotations

from collections.abc import Callable

from ha.model.names import Agent
from ha.model.plan import Tenant
from ha.sim.client import Asked
from ha.sim.invariants import Truth, leases_astray, unserved
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World


def booted(seed: int, shape: Shape | None = None, tenants: tuple[Tenant, ...] | None = None) -> World:
    """Return a system whose tenants all stand as promised, with the invariants watched."""
    world = World(seed, shape or Shape(), tenants_of() if tenants is None else tenants)
    Truth(world)
    converge(world, 10)
    return world


def converge(world: World, seconds: float) -> None:
    """Let time pass until everything is as promised."""
    until(world, seconds, lambda: not unserved(world) and not leases_astray(world), lambda: unserved(world))


def until(
    world: World, seconds: float, true: Callable[[], object], why: Callable[[], str] = lambda: "not true in time"
) -> None:
    """Let time pass until the condition holds."""
    end = world.kernel.now + int(seconds * 1e9)
    while not true():
        assert world.kernel.now < end, f"seed {world.kernel.seed}: {why()}"
        world.run(0.05)


def ask(world: World, verb: str, node: str = "a1", seconds: float = 10, **args: object) -> Asked:
    """Ask as hactl would, and wait for the answer."""
    one = world.client.ask(node, verb, ttl_ms=int(seconds * 1000), **args)
    until(world, seconds + 1, lambda: one.exit is not None, lambda: f"{verb} {args} has no answer")
    return one


def active_node(world: World, process: str) -> str:
    """Return where the one active copy is."""
    acting = world.programs.acting[process]
    assert len(acting) == 1, acting
    return next(iter(acting))[0]


def pids(world: World, tenant: str = "") -> set[int]:
    """Return the pids of all copies, or of one tenant's."""
    return {p.pid for p in world.programs.running() if p.copy.startswith(f"{tenant}/" if tenant else "")}


def server_state(world: World, node: str) -> object:
    """Return what the Server of a node knows."""
    driver = world.host(Agent.SERVER, node).driver
    assert driver is not None
    return driver.state
