"""The seat: kept over a short absence of its Server, taken up again after a long one."""

from __future__ import annotations

import pytest

from ha.model.names import Agent
from ha.model.timing import MS
from ha.sim.world import Shape
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
