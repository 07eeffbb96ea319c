"""Tenants of the simulated systems: a small call centre that is always the same, and others drawn from the seed."""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from ha.model.names import process_id
from ha.model.plan import Dependency, Process, Ready, Restart, RoleChange, Stop, Tenant
from ha.model.status import RunStatus
from ha.sim.programs import Habit

QUICK = Restart(backoff_ms=50, backoff_max_ms=1_000, stable_ms=500)
NOTIFY = Ready(by="notify", timeout_ms=5_000)
SOCKET = RoleChange(socket=True)


def tenants_of() -> tuple[Tenant, ...]:
    """Return a small call centre: every run status, dependencies inside and across tenants."""
    stop = Stop(grace_ms=200)

    def process(name: str, status: RunStatus, *needs: Dependency, priority: int = 50) -> Process:
        on_failure = "failover" if status.standby_runs else "restart"
        told = SOCKET if status.standby_runs and name != "directory" else None
        return Process(
            name=name, command=("/bin/true",), run_status=status, depends_on=needs, priority=priority, ready=NOTIFY,
            restart=QUICK, stop=stop, on_failure=on_failure, promote=told, demote=told,  # type: ignore[arg-type]
        )  # fmt: skip

    directory = Dependency(tenant="system", process="directory", where="any-side")
    acd = Dependency(tenant="acme", process="acd", where="same-side")
    return (
        Tenant(name="system", serial=1, priority=90, home="a", processes=(process("directory", RunStatus.WARM),)),
        Tenant(
            name="acme", serial=1, home="a",
            processes=(
                process("acd", RunStatus.HOT, directory, priority=80),
                process("recorder", RunStatus.COLD, acd),
                process("ivr", RunStatus.LOAD_SHARING, directory),
            ),
        ),
        Tenant(
            name="globex", serial=1, home="b",
            processes=(process("acd", RunStatus.WARM), process("rec", RunStatus.COLD)),
        ),
    )  # fmt: skip


def draw_tenants(rng: random.Random, labels: tuple[str, ...]) -> tuple[tuple[Tenant, ...], dict[str, Habit]]:
    """Return one to five tenants, and the habits of their processes. `labels`: those that some node of a side has."""
    tenants: list[Tenant] = []
    habits: dict[str, Habit] = {}
    for number in range(rng.randint(1, 5)):
        name = f"t{number}"
        processes: list[Process] = []
        for index in range(rng.randint(1, 4)):
            process = _draw_process(rng, f"p{index}", name, processes, tenants, labels)
            processes.append(process)
            if rng.random() < 0.4:
                habits[process_id(name, process.name)] = _draw_habit(rng, process)
        failback: Literal["auto", "manual"] = "auto" if rng.random() < 0.2 else "manual"
        tenants.append(
            Tenant(
                name=name, serial=1, priority=rng.randint(1, 99), home=rng.choice("ab"), failback=failback,
                failback_after_ms=rng.choice([500, 5_000]), processes=tuple(processes),
            )
        )  # fmt: skip
    return tuple(tenants), habits


def edited(rng: random.Random, tenant: Tenant) -> Tenant:
    """Return the tenant with one thing changed, as an operator would edit its file."""
    processes = list(tenant.processes)
    at = rng.randrange(len(processes))
    one = processes[at]
    match rng.randrange(6):
        case 0:
            one = msgspec.structs.replace(one, command=(*one.command, "-v"))
        case 1:
            one = msgspec.structs.replace(one, priority=rng.randint(1, 99))
        case 2:
            one = msgspec.structs.replace(one, environment={"N": str(rng.randint(1, 9))})
        case 3 if one.run_status is RunStatus.LOAD_SHARING:
            one = msgspec.structs.replace(one, copies=3 - one.copies)
        case 4 if len(processes) > 1 and not any(one.name == d.process for p in processes for d in p.depends_on):
            one = msgspec.structs.replace(one, enabled=not one.enabled)
        case _:
            one = msgspec.structs.replace(one, run_status=rng.choice(list(RunStatus)), copies=1)
    processes[at] = one
    return msgspec.structs.replace(tenant, processes=tuple(processes))


def _draw_process(
    rng: random.Random, name: str, tenant: str, siblings: list[Process], tenants: list[Tenant], labels: tuple[str, ...]
) -> Process:
    status = rng.choice(list(RunStatus))
    needs = [
        Dependency(tenant=tenant, process=other.name, where="same-side") for other in siblings if rng.random() < 0.3
    ]
    for other in tenants:
        if rng.random() < 0.15:
            needs.append(Dependency(tenant=other.name, process=rng.choice(other.processes).name, where="any-side"))
    told = rng.choice([None, SOCKET, RoleChange(command=("/bin/role",), timeout_ms=300), RoleChange(signal="SIGUSR1")])
    told = told if status.standby_runs else None
    return Process(
        name=name, command=("/bin/true",), run_status=status, depends_on=tuple(needs), priority=rng.randint(1, 99),
        copies=2 if status is RunStatus.LOAD_SHARING and rng.random() < 0.4 else 1,
        on=(rng.choice(labels),) if labels and rng.random() < 0.25 else (),
        ready=Ready(by=rng.choice(["notify", "started"]), timeout_ms=5_000),
        promote=told, demote=told, restart=QUICK, stop=Stop(grace_ms=rng.choice([0, 50, 200, 1_500])),
        on_failure="failover" if status.standby_runs and rng.random() < 0.8 else "restart",
    )  # fmt: skip


def _draw_habit(rng: random.Random, process: Process) -> Habit:
    match rng.randrange(6):
        case 0:
            return Habit(deaf=0.5)
        case 1:
            return Habit(slow_ms=rng.choice([500, 2_000]))
        case 2:
            return Habit(refuses_role=0.3, ignores_role=0.2)
        case 3:
            return Habit(connects=process.promote is not None and process.promote.socket)
        case 4:
            return Habit(dies_young=0.15)
        case _:
            return Habit(spawn_fails=0.15)
