"""The Spawner's executable with real processes: starts, roles, rights, stops, deaths, adoption."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.model import messages as m
from ha.model.names import Agent
from ha.model.plan import Process, Ready, RoleChange, Stop
from ha.model.status import Exit, Role, RunStatus, State, Wanted
from tests.e2e.spawner_rig import SHELL, SLEEP, Rig

pytestmark = pytest.mark.e2e
ACD = "acme/acd.1"
SHARED = RunStatus.LOAD_SHARING


def sleeper(name: str = "acd", run_status: RunStatus = SHARED, **more: object) -> Process:
    return Process(name=name, command=(SLEEP, "1000"), run_status=run_status, **more)  # type: ignore[arg-type]


def script(text: str, run_status: RunStatus = SHARED, **more: object) -> Process:
    return Process(name="acd", command=(SHELL, "-c", text), run_status=run_status, **more)  # type: ignore[arg-type]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def standing(pid: int) -> bool:
    """Whether the process makes no progress: stopped, or in a frozen cgroup."""
    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
        return True
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                events = Path(f"{mount}{line[3:]}/cgroup.events")
                if events.exists():
                    return "frozen 1" in events.read_text()
    return False


def test_copy_starts_with_its_environment_and_nothing_else(rig: Rig) -> None:
    secret = rig.tmp / "acd.env"
    secret.write_text("# local\nTOKEN='s3'\n")
    rig.plan(sleeper(environment={"LINE": "{node}-{copy}"}, environment_file=str(secret)))
    rig.order(ACD, role=Role.ACTIVE)
    fact = rig.reach(ACD, State.UP)
    words = Path(f"/proc/{fact.pid}/environ").read_bytes().decode().split("\0")
    found = dict(word.split("=", 1) for word in words if word)
    assert (found["LINE"], found["TOKEN"], found["HA_ROLE"]) == ("a1-1", "s3", "active")
    assert (found["HA_TENANT"], found["HA_PROCESS"], found["HA_COPY"]) == ("acme", "acd", "1")
    assert (found["HA_NODE"], found["HA_SIDE"]) == ("a1", "a")
    assert set(found) == {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LINE", "TOKEN", "HA_ROLE", "HA_EPOCH", "HA_TENANT", "HA_PROCESS",
        "HA_NODE", "HA_SIDE", "HA_COPY", "HA_SOCKET", "NOTIFY_SOCKET", "HA_INSTANCE",
    }  # fmt: skip


def test_program_that_is_not_there_fails_with_its_name(rig: Rig) -> None:
    rig.plan(Process(name="acd", command=("/nowhere/acd",), run_status=SHARED))
    rig.order(ACD, role=Role.ACTIVE)
    rig.until(lambda: rig.facts.get(ACD) and not rig.facts[ACD].planned, "the failure is told")
    assert rig.facts[ACD].state is State.DOWN
    assert "/nowhere/acd" in rig.facts[ACD].reason


def test_death_carries_its_exit_and_revive_starts_it_again(rig: Rig) -> None:
    rig.plan(sleeper())
    rig.order(ACD, role=Role.ACTIVE)
    first = rig.reach(ACD, State.UP)
    os.kill(first.pid, signal.SIGSEGV)
    fact = rig.reach(ACD, State.DOWN)
    assert (fact.exit, fact.planned, fact.pid) == (Exit(signal="SIGSEGV"), False, first.pid)
    rig.ask(m.Revive(ACD, fact.generation), m.Answer)
    assert rig.reach(ACD, State.UP).pid != first.pid


def test_stop_leaves_nothing_of_an_escaped_tree(rig: Rig) -> None:
    text = f"trap '' TERM; setsid {SLEEP} 900 & (setsid {SHELL} -c '{SLEEP} 901 & {SLEEP} 902' &) ; {SLEEP} 1000; wait"
    rig.plan(script(text, stop=Stop(grace_ms=200)))
    rig.order(ACD, role=Role.ACTIVE)
    rig.reach(ACD, State.UP)
    rig.until(lambda: len(rig.pids(ACD)) >= 5, "the tree has grown")
    members = rig.pids(ACD)
    rig.order(ACD, wanted=Wanted.DOWN)
    rig.reach(ACD, State.DOWN)
    assert not [pid for pid in members if alive(pid)]
    assert not rig.pids(ACD)


def test_spawner_killed_adopts_everything_with_the_same_pids(rig: Rig) -> None:
    names = [f"p{number}" for number in range(20)]
    rig.plan(*(sleeper(name) for name in names), sleeper("acd", RunStatus.COLD))
    copies = [f"acme/{name}.1" for name in names]
    rig.order(*copies, role=Role.ACTIVE)
    rig.allow(ACD, 65536)
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    for copy in (*copies, ACD):
        rig.reach(copy, State.UP)
    before = {copy: (fact.pid, fact.start_ticks) for copy, fact in rig.facts.items()}
    rig.kill()
    rig.start()
    rig.until(lambda: all(rig.state(copy) is State.UP for copy in before), "all adopted")
    assert {copy: (fact.pid, fact.start_ticks) for copy, fact in rig.facts.items()} == before
    assert all(len(rig.pids(copy)) == 1 for copy in before)
    os.kill(before[copies[0]][0], signal.SIGKILL)
    fact = rig.reach(copies[0], State.DOWN)
    assert not fact.planned
    rig.order(*copies[1:], wanted=Wanted.DOWN)
    for copy in copies[1:]:
        rig.reach(copy, State.DOWN)
    assert rig.state(ACD) is State.UP


def test_exclusive_copy_is_frozen_when_its_right_lapses_and_goes_on_when_it_comes_back(rig: Rig) -> None:
    rig.plan(sleeper("acd", RunStatus.COLD))
    rig.allow(ACD, 65536)
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    pid = rig.reach(ACD, State.UP).pid
    rig.granting = False
    silent_at = time.monotonic()
    rig.reach(ACD, State.FROZEN)
    assert standing(pid)
    assert time.monotonic() - silent_at < 3  # exact in virtual time: tests/core/test_spawner_rights.py
    rig.granting = True
    rig.reach(ACD, State.UP)
    assert rig.facts[ACD].pid == pid
    assert not standing(pid)


def test_right_that_lapsed_while_no_spawner_ran_freezes_before_anything_else(rig: Rig) -> None:
    rig.plan(sleeper("acd", RunStatus.COLD))
    rig.allow(ACD, 65536)
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    pid = rig.reach(ACD, State.UP).pid
    rig.granting = False
    rig.kill()
    rig.turn(700)
    assert not standing(pid)
    rig.start()
    rig.until(lambda: rig.state(ACD) is State.FROZEN, "frozen")
    assert standing(pid)
    rig.granting = True
    assert rig.reach(ACD, State.UP).pid == pid


def test_without_a_right_nothing_exclusive_is_started(rig: Rig) -> None:
    rig.plan(sleeper("acd", RunStatus.COLD))
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    rig.turn(300)
    assert not rig.pids(ACD)


def test_relinquish_freezes_answers_and_ends_the_copy_for_good(rig: Rig) -> None:
    rig.plan(sleeper("acd", RunStatus.COLD))
    rig.allow(ACD, 65536)
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    pid = rig.reach(ACD, State.UP).pid
    answer = rig.ask(m.Relinquish("acme", 65536, 0), m.Relinquished)
    assert answer == m.Relinquished("acme", 65536)
    rig.reach(ACD, State.DOWN)
    assert not alive(pid)
    rig.kill()
    rig.start()
    rig.turn(300)
    assert not rig.pids(ACD)


def test_promote_by_command_runs_with_the_fencing_number(rig: Rig) -> None:
    told = rig.tmp / "told"
    promote = RoleChange(command=(SHELL, "-c", f'echo "$HA_ROLE $HA_EPOCH" > {told}'))
    rig.plan(sleeper("acd", RunStatus.WARM, promote=promote, demote=RoleChange(signal="SIGUSR1")))
    rig.order(ACD, role=Role.STANDBY)
    pid = rig.reach(ACD, State.UP).pid
    rig.allow(ACD, 65537)
    rig.order(ACD, role=Role.ACTIVE, fencing=65537)
    rig.until(lambda: rig.facts[ACD].role is Role.ACTIVE, "promoted")
    assert rig.facts[ACD].pid == pid
    assert told.read_text() == "active 65537\n"


def test_role_by_the_control_socket_and_readiness_by_sd_notify(rig: Rig) -> None:
    program = rig.tmp / "program.py"
    program.write_text(
        "import json, os, socket\n"
        "agent = socket.socket(socket.AF_UNIX); agent.connect(os.environ['HA_SOCKET'])\n"
        "def say(**line): agent.sendall(json.dumps(line).encode() + b'\\n')\n"
        "say(type='hello', role=os.environ['HA_ROLE'], epoch=int(os.environ['HA_EPOCH']))\n"
        "notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "notify.sendto(b'READY=1\\nSTATUS=here', os.environ['NOTIFY_SOCKET'])\n"
        "for text in agent.makefile('r'):\n"
        "    line = json.loads(text)\n"
        "    if line['type'] == 'role':\n"
        "        say(type='done', id=line['id'])\n"
        "        say(type='status', text=f\"{line['role']} {line['epoch']}\")\n"
    )
    import sys

    process = Process(
        name="acd", command=(sys.executable, str(program)), run_status=RunStatus.HOT, ready=Ready(by="notify")
    )
    rig.plan(process)
    rig.order(ACD, role=Role.STANDBY)
    rig.until(lambda: ACD in rig.facts and rig.facts[ACD].notified and rig.facts[ACD].status == "here", "ready")
    pid = rig.facts[ACD].pid
    rig.allow(ACD, 65536)
    rig.order(ACD, role=Role.ACTIVE, fencing=65536)
    rig.until(lambda: rig.facts[ACD].status == "active 65536" and rig.facts[ACD].role is Role.ACTIVE, "promoted")
    assert rig.facts[ACD].pid == pid


def test_watchdog_that_is_not_fed_ends_the_copy_as_unplanned(rig: Rig) -> None:
    say = "import os,socket,time; s=socket.socket(1); s.connect(os.environ['HA_SOCKET']);"
    say += 's.sendall(b\'{"type":"watchdog","interval_ms":100}\\n\'); time.sleep(1000)'
    import sys

    rig.plan(Process(name="acd", command=(sys.executable, "-c", say), run_status=SHARED))
    rig.order(ACD, role=Role.ACTIVE)
    rig.until(lambda: ACD in rig.facts and rig.facts[ACD].reason.startswith("watchdog"), "killed")
    rig.reach(ACD, State.DOWN)
    assert not rig.facts[ACD].planned


def test_output_survives_the_death_of_the_spawner(rig: Rig) -> None:
    rig.plan(script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
    rig.order(ACD, role=Role.ACTIVE)
    pid = rig.reach(ACD, State.UP).pid
    rig.kill()
    rig.turn(300)
    assert alive(pid)
    rig.start()
    assert rig.reach(ACD, State.UP).pid == pid


def test_copy_that_left_the_plan_leaves_no_directory(rig: Rig) -> None:
    rig.plan(sleeper())
    rig.order(ACD, role=Role.ACTIVE)
    rig.reach(ACD, State.UP)
    directory = Path(rig.layout.run, "p", "acme.acd.1")
    assert directory.is_dir()
    rig.counter += 1
    rig.ask(m.Orders((1, 1, rig.counter), (), full=True), m.OrdersAnswer)
    rig.until(lambda: not directory.exists() and ACD not in rig.facts, "forgotten")


def test_leaving_without_a_server_stops_all_and_says_so(rig: Rig) -> None:
    rig.granting = False
    rig.plan(sleeper())
    rig.order(ACD, role=Role.ACTIVE)
    pid = rig.reach(ACD, State.UP).pid
    rig.ask(m.Agents((), leave="stop"), m.AgentsAnswer)
    rig.until(lambda: any(isinstance(h.body, m.AgentsAnswer) and h.body.empty for h in rig.heard), "empty")
    assert not alive(pid)


def test_detach_ends_the_spawner_and_leaves_the_copy(rig: Rig) -> None:
    rig.plan(sleeper())
    rig.order(ACD, role=Role.ACTIVE)
    pid = rig.reach(ACD, State.UP).pid
    assert rig.ask(m.Agents((), leave="detach"), m.AgentsAnswer).empty
    rig.until(lambda: rig.spawner is not None and rig.spawner.poll() == 0, "ended")
    assert alive(pid)
    rig.start()
    assert rig.reach(ACD, State.UP).pid == pid


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be taken on by root")
def test_copy_runs_as_its_user_in_a_directory_of_its_own(rig: Rig) -> None:
    os.chmod(rig.tmp, 0o711)
    rig.plan(sleeper(user="nobody"))
    rig.order(ACD, role=Role.ACTIVE)
    fact = rig.reach(ACD, State.UP)
    assert os.stat(f"/proc/{fact.pid}").st_uid == os.stat(Path(rig.layout.run, "p", "acme.acd.1")).st_uid != 0


@pytest.mark.slow
def test_thousand_copies_start_fast_and_are_adopted(rig: Rig) -> None:
    names = [f"p{number}" for number in range(1_000)]
    rig.plan(*(sleeper(name) for name in names))
    copies = [f"acme/{name}.1" for name in names]
    rig.counter += 1
    orders = tuple(m.Order(copy, Wanted.UP, (1, 1, rig.counter), rig.serial, Role.ACTIVE) for copy in copies)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)  # then the figure says nothing
    begun = time.monotonic()
    for part in range(0, 1_000, 250):
        rig.server.send(
            Agent.SPAWNER, "a1", m.Orders((1, 1, rig.counter), orders[part : part + 250]), now=rig.loop.now()
        )
    rig.until(lambda: sum(fact.state is State.UP for fact in rig.facts.values()) == 1_000, "all up", 30)
    took = time.monotonic() - begun
    print(f"1,000 started in {took:.2f} s")
    assert took < 4 or busy
    pids = {copy: fact.pid for copy, fact in rig.facts.items()}
    rig.kill()
    rig.start()
    rig.until(lambda: sum(fact.state is State.UP for fact in rig.facts.values()) == 1_000, "all adopted", 30)
    assert {copy: fact.pid for copy, fact in rig.facts.items()} == pids
    rig.counter += 1
    rig.ask(m.Orders((1, 1, rig.counter), (), full=True), m.OrdersAnswer)
    rig.until(lambda: not rig.facts, "all stopped and forgotten", 30)
