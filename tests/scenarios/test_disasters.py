"""After the worst: everything lost, a voter's disk lost, failovers in a row."""

from __future__ import annotations

from ha.core.server.state import State
from ha.model.names import Agent
from ha.sim.world import World
from tests.scenarios.stage import active_node, ask, booted, converge, pids, server_state


def lose_all(world: World) -> None:
    for node in [*world.system.nodes, *world.system.witnesses]:
        world.lose_node(node, 1_000_000_000)
    world.run(3)


def test_a_cold_boot_converges_and_no_epoch_falls() -> None:
    world = booted(21)
    assert ask(world, "switchover", tenant="acme").exit == 0
    state = server_state(world, "b1")
    assert isinstance(state, State)
    before = state.runs["acme"].epoch
    lose_all(world)
    converge(world, 20)
    after = [server_state(world, node) for node in ("a1", "b1")]
    assert max(s.runs["acme"].epoch for s in after if isinstance(s, State)) >= before
    world.run(3)
    converge(world, 1)


def test_a_voter_that_lost_its_disk_copies_and_nothing_moves() -> None:
    world = booted(22)
    before = pids(world)
    for voter in ("w1", "b1", "a1"):
        world.lose_disk(voter)
        world.run(5)
        state = world.host(Agent.WITNESS, voter).driver
        assert state is not None
        assert not state.state.copying
    assert pids(world) == before


def test_four_node_losses_in_a_row_are_all_survived() -> None:
    world = booted(23)
    for _ in range(4):
        world.lose_node(active_node(world, "acme/acd"), 1_500_000_000)
        world.run(2)
        converge(world, 20)
