"""What operators ask: stops, restarts, switchovers, drains, files; each does what it says and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from ha.core.server.state import State
from ha.model.messages import Ask
from ha.model.names import Agent, process_of
from ha.model.plan import encode_plan
from ha.model.status import Role
from ha.sim.programs import Habit
from ha.sim.tenants import tenants_of
from ha.sim.world import Shape, World
from tests.scenarios.stage import active_node, ask, booted, converge, pids, server_state, until


def holder(world: World, tenant: str) -> str:
    """Return the nodes whose Servers hold the tenant, as they think."""
    found = []
    for (role, node), host in world.hosts.items():
        run = host.driver.state.runs.get(tenant) if role is Agent.SERVER and host.driver else None
        if run is not None and run.epoch:
            found.append(node)
    return " ".join(found)


def write(world: World, name: str, content: bytes | None) -> None:
    for node, files in world.files.items():
        files.pop(name, None)
        if content is not None:
            files[name] = content
        world.read_directory(node)


@pytest.mark.parametrize("side", [None, "b"])
def test_a_switchover_is_done_once_though_the_gateway_asks_two_servers(side: str | None) -> None:
    world = booted(1)
    world.programs.habits = {"acme/acd": Habit(slow_ms=900), "acme/recorder": Habit(slow_ms=900)}
    others = pids(world, "globex") | pids(world, "system")
    one = ask(world, "switchover", tenant="acme", **({"to": side} if side else {}))
    assert one.exit == 0, one.error
    world.run(5)
    assert active_node(world, "acme/acd").startswith("b")
    assert world.kernel.now - one.at > 0
    assert pids(world, "globex") | pids(world, "system") == others
    converge(world, 5)


def test_a_restart_that_is_waited_for_is_done_once() -> None:
    world = booted(2)
    world.programs.habits = {"acme/acd": Habit(slow_ms=900)}
    before = world.programs.spawns
    one = ask(world, "restart", target="acme/acd", wait=True)
    assert one.exit == 0, one.error
    world.run(5)
    assert world.programs.spawns == before + 2


@pytest.mark.parametrize("target", ["acme", "acme/acd", "acme/recorder", "acme/ivr", "globex"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_rolling_restart_ends_and_restarts_every_copy_once(target: str, moved: bool) -> None:
    world = booted(3)
    if moved:
        assert ask(world, "switchover", tenant=target.partition("/")[0]).exit == 0
        converge(world, 5)
    before = {p.pid: p.copy for p in world.programs.running()}
    one = ask(world, "restart", target=target, rolling=True, wait=True, seconds=20)
    assert one.exit == 0, one.error
    converge(world, 5)
    after = pids(world)
    for pid, copy in before.items():
        named = process_of(copy) == target or copy.startswith(f"{target}/")
        assert (pid not in after) == named, copy


def test_a_stopped_tenant_leaves_nothing_and_nothing_comes_back() -> None:
    world = booted(4)
    assert ask(world, "stop", target="acme", wait=True).exit == 0
    world.stopped.add("acme")
    assert not pids(world, "acme")
    until(world, 3, lambda: not holder(world, "acme"))
    world.lose_node("a1", 2_000_000_000)
    world.run(8)
    assert not pids(world, "acme")
    world.stopped.clear()
    assert ask(world, "start", node="b1", target="acme", wait=True).exit == 0
    converge(world, 10)


def test_a_removed_tenant_leaves_nothing_not_even_its_lease() -> None:
    world = booted(5)
    write(world, "globex", None)
    until(world, 5, lambda: not pids(world, "globex") and not holder(world, "globex"), lambda: holder(world, "globex"))
    for name in ("a1", "b1"):
        world.leave(name)
    world.run(10)
    for name in ("a1", "b1"):
        world.come_back(name)
    converge(world, 15)
    write(world, "globex", encode_plan((tenants_of()[2],)))
    converge(world, 10)


def test_a_failed_tenant_is_reset_on_both_sides() -> None:
    world = booted(6)
    world.programs.habits = {"globex/acd": Habit(dies_young=1.0)}
    for node in world.system.nodes:
        world.programs.crash(node, "globex/acd.1")
    state = server_state(world, "a1")
    assert isinstance(state, State)
    until(world, 120, lambda: "failed/globex" in state.registers)
    world.run(1)
    assert not pids(world, "globex")
    world.programs.habits = {}
    one = ask(world, "reset", target="globex", wait=True, seconds=20)
    assert one.exit == 0, one.error
    converge(world, 10)


def test_a_held_tenant_stays_and_is_restarted_in_place() -> None:
    world = booted(7)
    assert ask(world, "hold", tenant="acme").exit == 0
    world.run(0.3)
    world.programs.crash("a1", "acme/acd.1")
    world.programs.crash("a2", "acme/acd.1")
    converge(world, 5)
    assert active_node(world, "acme/acd").startswith("a")
    for node in ("a1", "a2"):
        world.lose_node(node, 4_000_000_000)
    world.run(3)
    assert not world.programs.acting["acme/acd"]
    assert active_node(world, "system/directory").startswith("b")
    converge(world, 20)
    assert active_node(world, "acme/acd").startswith("a")


def test_a_drained_side_is_left_and_an_undrained_one_gets_its_standbys_back() -> None:
    world = booted(8)
    assert ask(world, "drain", node="b1", target="a", wait=True).exit == 0
    assert all(p.node.startswith("b") for p in world.programs.running())
    every = ("system/directory", "acme/acd", "globex/acd")
    until(world, 3, lambda: all(world.programs.acting[process] for process in every))
    assert {active_node(world, process)[0] for process in every} == {"b"}
    assert ask(world, "undrain", target="a").exit == 0
    converge(world, 10)
    assert active_node(world, "acme/acd").startswith("b"), "no automatic failback"


@pytest.mark.parametrize("node", ["a1", "a2", "b1"])
def test_a_node_whose_master_ends_is_left_at_once_and_comes_back(node: str) -> None:
    world = booted(9)
    world.leave(node)
    until(world, 4, lambda: not world.programs.running(node))
    world.run(3)
    every = ("system/directory", "acme/acd", "acme/recorder", "globex/acd", "globex/rec")
    assert all(active_node(world, process) != node for process in every)
    world.come_back(node)
    converge(world, 15)


def test_an_edit_restarts_only_what_it_changes() -> None:
    world = booted(10)
    acme = tenants_of()[1]
    changed = [msgspec.structs.replace(p, environment={"X": "1"}) if p.name == "ivr" else p for p in acme.processes]
    before = {p.pid: p.copy for p in world.programs.running()}
    write(world, "acme", encode_plan((msgspec.structs.replace(acme, processes=tuple(changed)),)))
    world.run(3)
    converge(world, 5)
    after = pids(world)
    assert {copy for pid, copy in before.items() if pid not in after} == {"acme/ivr.1"}


def test_nothing_moves_without_a_cause() -> None:
    for seed in range(1, 4):
        world = booted(seed)
        roles = {(p.pid, p.role, p.fencing) for p in world.programs.running()}
        spawns = world.programs.spawns
        world.run(60)
        assert {(p.pid, p.role, p.fencing) for p in world.programs.running()} == roles
        assert world.programs.spawns == spawns


def test_a_moved_tenant_touches_no_other() -> None:
    world = booted(11)
    for crash in ("acme/acd.1", "acme/recorder.1", "globex/acd.1"):
        tenant = crash.partition("/")[0]
        others = {(p.pid, p.role) for p in world.programs.running() if not p.copy.startswith(f"{tenant}/")}
        for node in ("a1", "a2", "b1", "b2"):
            for program in world.programs.running(node):
                if program.copy == crash and program.role is Role.ACTIVE:
                    world.programs.crash(node, crash)
        world.run(3)
        converge(world, 5)
        assert {(p.pid, p.role) for p in world.programs.running() if not p.copy.startswith(f"{tenant}/")} == others


@pytest.mark.parametrize("shape", [Shape(), Shape(per_side=1, servers=1), Shape(per_side=3)])
def test_nothing_starts_before_what_it_depends_on_is_ready(shape: Shape) -> None:
    world = World(12, shape, tenants_of())
    world.programs.habits = {"system/directory": Habit(slow_ms=1_500), "acme/acd": Habit(slow_ms=700)}
    early: list[str] = []

    def watch(effect: object, node: str) -> None:
        process = process_of(getattr(effect, "copy", "/.1"))
        ready = {process_of(p.copy) for p in world.programs.running() if p.ready}
        needs = {"acme/acd": "system/directory", "acme/ivr": "system/directory", "acme/recorder": "acme/acd"}
        if process in needs and needs[process] not in ready:
            early.append(process)

    world.programs.watch = watch  # type: ignore[assignment]
    converge(world, 15)
    assert not early


def test_a_reset_revives_a_standby_that_died_too_often() -> None:
    world = booted(13)
    world.programs.habits = {"globex/acd": Habit(dies_young=1.0)}
    standby = next(p for p in world.programs.running() if p.copy == "globex/acd.1" and p.role is Role.STANDBY)
    world.programs.crash(standby.node, standby.copy)
    world.run(20)
    world.programs.habits = {}
    assert ask(world, "reset", target="globex").exit == 0
    converge(world, 5)


def test_a_switchover_asked_for_at_an_idle_server_of_the_other_side_finds_the_holder() -> None:
    world = booted(14)
    host = world.host(Agent.MONITOR, "b2")
    line = msgspec.json.encode({"verb": "switchover", "args": {"tenant": "acme"}})
    world.say(host, Agent.SERVER, "b2", Ask("by-hand", line, True))
    until(world, 2, lambda: len(world.programs.acting["acme/acd"]) == 1 and active_node(world, "acme/acd")[0] == "b")
