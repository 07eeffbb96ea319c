"""Nodes, sides and places are lost, stopped and come back: tenants act on, and never twice at once.

Source: design sections 1 and 3. Nodes are ended with all they run, by SIGKILL, so that nothing can clean up.
"""

from __future__ import annotations

import signal
import subprocess

import pytest
from benchmarks.cluster import Status

from tests.e2e.conftest import MakeCluster, Recorded, boottime_ns, calm, settled, two_tenants, until
from tests.e2e.recorder_program import Uncovered

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(300)]

TENANTS = ("acme", "bell")
THAWED_MS = 500  # a node that goes on after a stop has this long to freeze what has no right any more


@pytest.fixture(scope="module")
def duplex(shared_cluster: MakeCluster) -> Recorded:
    return two_tenants(shared_cluster)


def acting(status: Status, without: tuple[str, ...] = ()) -> bool:
    """Whether every exclusive process acts, on another node than these."""
    for tenant in TENANTS:
        for name, process in status["tenants"][tenant]["processes"].items():
            active = [c for c in process["copies"] if c["role"] == "active" and c["state"] == "ready"]
            if name != "ivr" and not any(copy["node"] not in without for copy in active):
                return False
    return True


def nodes_of(status: Status, tenant: str) -> set[str]:
    """Return the nodes with an active exclusive copy of a tenant."""
    processes = status["tenants"][tenant]["processes"]
    return {c["node"] for name in ("acd", "db") for c in processes[name]["copies"] if c["role"] == "active"}


def busiest(status: Status) -> str:
    """Return a node of side a, or of b, where something exclusive is active."""
    return sorted(nodes_of(status, "acme"))[0]


def return_of(cluster: Recorded, *nodes: str) -> None:
    """Start ha-master again, and wait until all is as it was."""
    cluster.start(*nodes)
    calm(cluster)
    assert cluster.doubles() == []


def test_a_lost_node_is_replaced_and_taken_back(duplex: Recorded) -> None:
    node = busiest(calm(duplex))
    duplex.kill_node(node)
    other = next(name for name in duplex.nodes if name[0] != node[0])
    duplex.wait(lambda status: acting(status, (node,)), "all acts elsewhere", 30, other)
    assert duplex.doubles() == []
    return_of(duplex, node)


def test_a_node_stopped_for_3_s_is_replaced_and_lets_go_when_it_goes_on(duplex: Recorded) -> None:
    node = busiest(calm(duplex))
    other = next(name for name in duplex.nodes if name[0] != node[0])
    began = boottime_ns()
    duplex.kill_node(node, signal.SIGSTOP)
    subprocess.run(["sleep", "3"], check=True)
    duplex.wait(lambda status: acting(status, (node,)), "all acts elsewhere", 30, other)
    duplex.kill_node(node, signal.SIGCONT)
    duplex.uncovered.append(Uncovered(node=node, from_ns=began, until_ns=boottime_ns() + THAWED_MS * 1_000_000))
    calm(duplex, other)
    assert duplex.doubles() == []


def test_a_lost_side_is_replaced_by_the_other_and_comes_back(duplex: Recorded) -> None:
    calm(duplex)
    for node in ("a1", "a2"):
        duplex.kill_node(node)
    status = duplex.wait(lambda status: acting(status, ("a1", "a2")), "all acts on side b", 30, "b1")
    assert {status["tenants"][name]["active_side"] for name in TENANTS} == {"b"}
    return_of(duplex, "a1", "a2")


def test_the_witness_place_is_lost_and_comes_back_and_nothing_changes(duplex: Recorded) -> None:
    before = calm(duplex)
    managed = duplex.managed()
    duplex.kill_node("w1")
    duplex.wait(lambda status: status["arbitration"]["voters"]["w1"]["state"] == "dead", "w1 is seen dead")
    duplex.start("w1")
    after = duplex.wait(lambda status: status["arbitration"]["voters"]["w1"]["state"] == "up", "w1 is back")
    assert duplex.managed() == managed
    assert epochs(after) == epochs(before)


def test_the_seat_of_a_side_moves_when_its_node_has_no_agents_any_more(duplex: Recorded) -> None:
    seat = calm(duplex)["sides"]["a"]["server"]
    other = "a2" if seat == "a1" else "a1"
    shared = sharing(duplex, seat)
    began = boottime_ns()
    agents = duplex.agents(seat)
    for role in agents:
        duplex.kill_agent(seat, role, signal.SIGSTOP)
    for role in agents:
        duplex.kill_agent(seat, role)
    duplex.processes[seat].wait(10)
    duplex.wait(lambda status: status["sides"]["a"]["server"] == other, "the seat moves", 30, "b1")
    duplex.wait(lambda status: acting(status, (seat,)), "all acts elsewhere", 30, "b1")
    duplex.start(seat)
    duplex.without_spawner(seat, began)
    calm(duplex)
    assert duplex.doubles() == []
    assert all(pid in duplex.managed(seat) for pid in shared) or boottime_ns() - began > 5_000_000_000


def test_a_told_stop_of_a_node_moves_its_tenants_and_leaves_nothing(duplex: Recorded) -> None:
    node = busiest(calm(duplex))
    began = boottime_ns()
    assert duplex.stop(node, signal.SIGTERM, 60) == 0
    assert duplex.agents(node) == {}
    assert duplex.managed(node) == {}
    ended = [words for words in log(duplex) if int(words[0]) > began and words[4] == node and words[6] == "ended"]
    for tenant in TENANTS:  # what depends on others first
        order = [words[2] for words in ended if words[1] == tenant and words[2] != "ivr"]
        assert order == sorted(order)
    other = next(name for name in duplex.nodes if name != node)
    duplex.wait(lambda status: acting(status, (node,)), "all acts elsewhere", 30, other)
    return_of(duplex, node)


def test_a_detached_node_keeps_its_processes_for_the_next_ha_master(duplex: Recorded) -> None:
    node = busiest(calm(duplex))
    before = duplex.managed(node)
    began = boottime_ns()
    assert duplex.stop(node, signal.SIGUSR1, 60) == 0
    assert duplex.agents(node) == {}
    assert duplex.managed(node) == before
    duplex.start(node)
    duplex.without_spawner(node, began)
    calm(duplex)
    after = duplex.managed(node)
    assert [socket for pid, socket in before.items() if "ivr" in socket and pid not in after] == []
    assert duplex.doubles() == []


def test_a_told_stop_of_all_ends_everything(cluster: MakeCluster) -> None:
    duplex = two_tenants(cluster)
    for process in duplex.processes.values():
        process.send_signal(signal.SIGTERM)
    codes = {name: process.wait(60) for name, process in duplex.processes.items()}
    assert set(codes.values()) == {0}, codes
    assert duplex.managed() == {}
    assert {name: duplex.agents(name) for name in duplex.addresses if duplex.agents(name)} == {}
    assert duplex.doubles() == []
    last = {words[5]: words[6] for words in log(duplex)}  # each was told to end, none was killed
    assert set(last.values()) == {"ended"}


def test_processes_lost_at_once_on_both_sides_are_back(duplex: Recorded) -> None:
    calm(duplex)
    before = set(duplex.managed())
    for pid in before:
        subprocess.run(["kill", "-KILL", str(pid)], check=False)
    until(lambda: not before & set(duplex.managed()), "all have ended")
    duplex.wait(settled, "all are back", 60)
    assert duplex.doubles() == []


def sharing(cluster: Recorded, node: str) -> list[int]:
    """Return the pids of load-sharing processes on a node."""
    return [pid for pid, socket in cluster.managed(node).items() if "ivr" in socket]


def epochs(status: Status) -> dict[str, int]:
    """Return tenant -> epoch."""
    return {name: status["tenants"][name]["epoch"] for name in TENANTS}


def log(cluster: Recorded) -> list[list[str]]:
    """Return the transitions the programs recorded: boottime_ns tenant process copy node pid word epoch."""
    return [line.split() for line in (cluster.records / "log").read_text().splitlines()]
