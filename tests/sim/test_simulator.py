"""The simulator: the same seed is the same run, two copies never act, broken rules are caught."""

from __future__ import annotations

import pytest

from ha.core import witness
from ha.core.server.state import tenant_started
from ha.model.names import Agent
from ha.model.timing import MS, Timing
from ha.sim.run import harsh, run, unserved
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World


def booted(seed: int = 1, **more: object) -> World:
    world = World(seed, Shape(**more), tenants_of())  # type: ignore[arg-type]
    for _ in range(40):
        world.run(0.25)
        if not unserved(world):
            return world
    raise AssertionError(f"seed {seed}: {unserved(world)}")


def converge(world: World, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        world.run(0.1)
        if not unserved(world):
            return
    raise AssertionError(f"seed {world.kernel.seed}: {unserved(world)}")


def active_node(world: World, process: str) -> str:
    acting = world.programs.acting[process]
    assert len(acting) == 1, acting
    return next(iter(acting))[0]


def test_the_same_seed_is_the_same_run() -> None:
    one, two = run(3, 0.1), run(3, 0.1)
    assert one == two


@pytest.mark.parametrize("seed", range(1, 9))
def test_two_copies_never_act_and_the_mended_system_converges(seed: int) -> None:
    report = run(seed, 0.4)
    assert not report.failure, f"seed {seed}: {report.failure}"
    assert report.activations >= 5


def test_the_loss_of_the_seat_node_moves_its_tenants_to_the_other_side_in_time() -> None:
    world = booted(2)
    assert active_node(world, "system/directory").startswith("a")
    lost = world.kernel.now
    world.lose_node("a1", 60_000 * MS)
    while not (world.programs.acting["system/directory"]):
        world.run(0.01)
        assert world.kernel.now - lost < 1_200 * MS
    assert active_node(world, "system/directory").startswith("b")


def test_the_loss_of_the_third_voter_changes_nothing() -> None:
    world = booted(4)
    before = world.programs.activations
    world.lose_node("w1", 60_000 * MS)
    world.run(10)
    assert world.programs.activations == before
    assert not unserved(world)


def test_a_cut_between_the_sides_moves_nothing_while_the_third_voter_sees_both() -> None:
    world = booted(5)
    before = {process: active_node(world, process) for process in world.programs.acting}
    sides = [set(world.system.nodes_of(side)) for side in "ab"]
    world.net.isolate(sides[0], sides[1])
    world.run(10)
    world.net.heal()
    world.run(3)
    assert {process: active_node(world, process) for process in before} == before


def test_a_side_cut_off_from_all_lets_go_before_the_other_takes_over() -> None:
    world = booted(6)
    world.net.isolate({"a1", "a2"}, {"b1", "b2", "w1"})
    world.run(3)
    assert active_node(world, "acme/acd").startswith("b")
    world.net.heal()
    converge(world, 15)
    assert active_node(world, "acme/acd").startswith("b"), "no automatic failback"


def test_the_seat_moves_inside_the_side_when_its_node_is_lost() -> None:
    world = booted(8)
    world.lose_node("a1", 120_000 * MS)
    world.run(6)
    state = world.host(Agent.SERVER, "a2").driver.state  # type: ignore[union-attr]
    assert state.seat_epoch > 0
    assert tenant_started(state, state.tenants["acme"])


def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "may_claim", lambda *args: "")


def _no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "sub_lease_ns", lambda self, remaining: remaining + 900 * MS)


def _no_outlasting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "outlived_ns", lambda self, remaining: 0)


@pytest.mark.parametrize("broken", [_no_wait, _no_margin, _no_outlasting])
def test_a_broken_rule_is_caught(broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)  # type: ignore[operator]
    assert any("two active" in run(seed, 0.5).failure for seed in range(1, 30))


@pytest.mark.parametrize("seed", range(1, 7))
def test_drawn_systems_obey_every_command_and_converge(seed: int) -> None:
    report = run(seed, 0.3, harsh(seed))
    assert not report.failure, f"seed {seed}: {report.failure}"
