"""The seat: kept over a short absence of its Server, taken up again after a long one."""

from __future__ import annotations

import pytest

from ha.model.names import Agent
from ha.model.timing import MS
from ha.sim.invariants import unserved
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World
from tests.scenarios.stage import booted, converge, pids, server_state


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_server_back_within_its_lease_keeps_seat_and_tenants(seed: int) -> None:
    world = booted(seed)
    before, epoch = pids(world), server_state(world, "a1").seat_epoch  # type: ignore[attr-defined]
    world.crash_agent(Agent.SERVER, "a1", 150 * MS)
    world.run(5)
    assert server_state(world, "a1").seat_epoch == epoch  # type: ignore[attr-defined]
    assert pids(world) == before


@pytest.mark.parametrize("lost", [["a1"], ["a1", "b1"], ["a1", "b1", "w1"]])
def test_the_only_server_of_a_side_takes_its_seat_up_again(lost: list[str]) -> None:
    world = booted(3, Shape(per_side=1, servers=1))
    for node in lost:
        world.lose_node(node, 3_000 * MS)
    world.run(4)
    converge(world, 15)


def test_leases_go_on_after_all_voters_were_away_at_once() -> None:
    world = booted(4, Shape(per_side=1, servers=1))
    for voter in world.system.voters:
        world.crash_agent(Agent.WITNESS, voter, 2_500 * MS)
    world.run(4)
    converge(world, 15)


def test_a_node_lost_just_after_the_other_came_back_is_taken_over_as_quickly() -> None:
    """The voter that came back answers for its old lease, the lost one not at all: the probe waits for nobody."""
    world = World(2, Shape(per_side=1, servers=1), tenants_of())
    for _ in range(60):
        world.run(0.25)
        if not unserved(world):
            break
    world.lose_node("a1", 1_500 * MS)
    world.run(1.5)
    for _ in range(400):
        world.run(0.02)
        if not unserved(world):
            break
    lost = world.kernel.now
    world.lose_node("b1", 60_000 * MS)
    while not world.programs.acting["system/directory"]:
        world.run(0.01)
        assert world.kernel.now - lost < 1_000 * MS
