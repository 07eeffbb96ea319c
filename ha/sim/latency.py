"""Latency in virtual time, without other faults: `python -m ha.sim.latency [--seeds K]` prints the distributions.

What is measured: from the kill of a warm active copy to the other side's copy acting, and from the loss of the node
of the seat to its tenants' copies acting on the other side. The virtual network needs 0.05 to 0.4 ms a message, a
program 0.2 to 8 ms to take a role, an fsync 0.15 to 1.5 ms (in 0.5 % of the cases up to 60 ms more).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ha.model.timing import MS, PROFILES
from ha.sim.invariants import unserved
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World

PROCESS = "acme/acd"


def crash_of_copy(seed: int, profile: str) -> float:
    """Return ms from the death of an active copy to the other side acting."""
    return _measure(seed, profile, lambda world, node: world.programs.crash(node, f"{PROCESS}.1"))


def loss_of_node(seed: int, profile: str) -> float:
    """Return ms from the loss of the node with seat and active copy to the other side acting."""
    return _measure(seed, profile, lambda world, node: world.lose_node(node, 60_000 * MS))


def spread(values: list[float]) -> dict[str, float]:
    """Return p50, p99 and the largest."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[min(last, round(0.99 * last))], "max": ordered[-1]}


def _measure(seed: int, profile: str, hurt: Callable[[World, str], None]) -> float:
    world = World(seed, Shape(per_side=1, servers=1, timing=PROFILES[profile]), tenants_of())
    world.run(5)
    while unserved(world):
        world.run(0.1)
    world.run(world.kernel.between(1, 500) / 1000)
    begin = world.kernel.now
    hurt(world, next(iter(world.programs.acting[PROCESS]))[0])
    while not world.programs.acting[PROCESS]:
        world.run(0.000_1)
        if world.kernel.now - begin > 10_000 * MS:
            break
    return (world.kernel.now - begin) / MS


def main(argv: list[str] | None = None) -> int:
    """Print the distributions of `--seeds` seeds."""
    parser = argparse.ArgumentParser(prog="python -m ha.sim.latency", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    count = parser.parse_args(argv).seeds
    for profile in ("default", "fast"):
        for what in (crash_of_copy, loss_of_node):
            found = spread([what(seed, profile) for seed in range(1, count + 1)])
            figures = ", ".join(f"{name} {value:.1f} ms" for name, value in found.items())
            sys.stdout.write(f"{what.__name__} {profile}: {figures} ({count} seeds)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
