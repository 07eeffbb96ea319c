"""Start and stop by dependency and priority, over thousands of random graphs, by the Server's own machine."""

from __future__ import annotations

import random

import pytest
from server_bed import Bed, up

from ha.core.server.registers import set_register
from ha.model.plan import Dependency, Process, Tenant
from ha.model.status import RunStatus
from ha.model.status import State as Seen

GRAPHS_PER_SEED = 125
SEEDS = range(16)  # 2,000 graphs


def random_tenants(rng: random.Random) -> tuple[Tenant, ...]:
    """One to three tenants, all at home on side a; a process depends only on those made before it: no cycle."""
    made: list[tuple[str, str]] = []
    tenants = []
    for number in range(rng.randint(1, 3)):
        processes = []
        for index in range(rng.randint(1, 5)):
            needs = rng.sample(made, min(len(made), rng.randint(0, 3)))
            depends_on = tuple(
                Dependency(tenant=t, process=p, where="same-side" if t == f"t{number}" else "any-side")
                for t, p in needs
            )
            process = Process(
                name=f"p{index}", command=("/bin/true",), depends_on=depends_on, priority=rng.randint(0, 100),
                run_status=rng.choice([RunStatus.COLD, RunStatus.LOAD_SHARING]), copies=1,
            )  # fmt: skip
            processes.append(process)
            made.append((f"t{number}", f"p{index}"))
        rng.shuffle(processes)
        tenants.append(Tenant(name=f"t{number}", serial=1, priority=rng.randint(0, 100), processes=tuple(processes)))
    return tuple(tenants)


def needs_of(tenants: tuple[Tenant, ...]) -> dict[str, set[str]]:
    return {
        f"{tenant.name}/{process.name}.1": {f"{d.id}.1" for d in process.depends_on}
        for tenant in tenants
        for process in tenant.processes
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_starts_before_what_it_needs_is_ready_nor_stops_before_what_needs_it(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(GRAPHS_PER_SEED):
        tenants = random_tenants(rng)
        needs = needs_of(tenants)
        bed = up(tenants, peer=False)
        _start_all(bed, needs, rng)
        _stop_all(bed, tenants, needs, rng)


def _start_all(bed: Bed, needs: dict[str, set[str]], rng: random.Random) -> None:
    ready: set[str] = set()
    for _ in range(len(needs) + 1):
        ordered = bed.wanted_up()
        for key in ordered:
            assert needs[key] <= ready, f"{key} was started while {needs[key] - ready} was not ready"
        # As parallel as the graph allows: whatever can start is ordered now.
        assert ordered == {key for key in needs if needs[key] <= ready}
        waiting = sorted(ordered - ready)
        if not waiting:
            break
        for key in rng.sample(waiting, rng.randint(1, len(waiting))):
            bed.obey(key, Seen.UP)
            bed.obey(key, Seen.READY)
            ready.add(key)
    assert ready == set(needs)


def _stop_all(bed: Bed, tenants: tuple[Tenant, ...], needs: dict[str, set[str]], rng: random.Random) -> None:
    for tenant in tenants:
        set_register(bed.state, f"wanted/{tenant.name}", "stopped", bed.now)
    bed.pass_time(30)
    for _ in range(len(needs) + 1):
        up_now = bed.running()
        to_stop = sorted(up_now - bed.wanted_up())
        for key in to_stop:
            users = {user for user in needs if key in needs[user]}
            assert not users & up_now, f"{key} was stopped while {users & up_now} still ran"
        if not up_now:
            break
        assert to_stop, f"nothing stops while {up_now} run"
        for key in rng.sample(to_stop, rng.randint(1, len(to_stop))):
            bed.obey(key, Seen.DOWN)
    assert not bed.running()


def test_among_what_may_start_the_higher_priority_is_ordered_first() -> None:
    def process(name: str, priority: int) -> Process:
        return Process(name=name, command=("/bin/true",), priority=priority, run_status=RunStatus.LOAD_SHARING)

    low = Tenant(name="low", serial=1, priority=10, processes=(process("x", 99), process("y", 1)))
    high = Tenant(name="high", serial=1, priority=90, processes=(process("x", 1), process("y", 50)))
    bed = up((low, high), peer=False)
    order = [order.copy for order in bed.history]
    on_node = {node: [key for key in order if key in bed.orders[node]] for node in ("a1", "a2")}
    ranked = ["high/y.1", "high/x.1", "low/x.1", "low/y.1"]
    for keys in on_node.values():
        assert keys == [key for key in ranked if key in keys]
