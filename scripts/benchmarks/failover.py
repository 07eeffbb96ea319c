"""Figures of the duplex system: the active copy crashed, a node lost, a Server killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster import ROOT, Cluster, Status
from benchmarks.measure import Births, Figure, kill
from benchmarks.report import OURS

TELL = Path(__file__).with_name("role_teller.py")
TENANTS = 20  # a tenant may move three times a minute, so the crashes go round
TOLD_TIMEOUT_S = 15.0
CALM_S = 0.5


def tenant(births: Births, name: str) -> str:
    """Return a tenant of one warm program that writes "TENANT-NODE-active PID" when it is told to be active."""
    return (
        f'[tenant]\nname = "{name}"\nhome = "a"\n[process.p]\nrun_status = "warm"\nuser = "root"\n'
        f'command = ["{sys.executable}", "{TELL}", "{births.path}"]\nready = {{ by = "notify" }}\n'
        f'environment = {{ PYTHONPATH = "{ROOT}" }}\n'
    )


@contextmanager
def duplex(tenants: int, profile: str) -> Iterator[tuple[Cluster, Births]]:
    """Run a1, b1 and w1 with that many warm tenants, all ready on both sides."""
    directory = Path(tempfile.mkdtemp(prefix="ha-bench-"))
    births = Births(directory / "births")
    node_file = '[policy]\nusers = ["root"]\nenvironment_deny = []\n'
    try:
        with Cluster(nodes={"a1": "a", "b1": "b"}, profile=profile, node_file=node_file) as cluster:
            cluster.start()
            cluster.wait_seated()
            for number in range(tenants):
                cluster.write_tenant(f"t{number}", tenant(births, f"t{number}"))
            cluster.wait(lambda status: all_ready(status, tenants), "all tenants are ready on both sides", 60.0)
            yield cluster, births
    finally:
        os.close(births.fd)
        shutil.rmtree(directory, ignore_errors=True)


def all_ready(status: Status, tenants: int) -> bool:
    """Return whether every tenant has an active and a ready standby copy."""
    return len(status["tenants"]) == tenants and all(
        tenant["active_side"] and tenant["state"] == "ok" for tenant in status["tenants"].values()
    )


def _active(cluster: Cluster, name: str) -> tuple[str, int]:
    """Return (node, pid) of the active copy."""
    status = cluster.wait(lambda status: status["tenants"][name]["state"] == "ok", f"{name} is ok")
    found = next(copy for copy in cluster.copies(status, f"{name}/p") if copy["role"] == "active")
    return found["node"], found["pid"]


def _wait_told(births: Births, what: str) -> None:
    ends = time.monotonic() + TOLD_TIMEOUT_S
    while time.monotonic() < ends:
        if any(name == what for name, _ in births.wait(0.1)):
            return
    raise TimeoutError(f"{what} was not told")


def _drain(births: Births) -> None:
    while births.wait(0.0):
        pass


def crashes(count: int, profile: str = "default") -> Figure:
    """Kill -9 the active copy: ms until the program on the other side has been told that it is active."""
    samples = []
    with duplex(TENANTS, profile) as (cluster, births):
        for number in range(count):
            name = f"t{number % TENANTS}"
            node, pid = _active(cluster, name)
            time.sleep(CALM_S)  # both sides share this machine's cores: what started last is done with starting
            _drain(births)
            began = time.monotonic_ns()
            kill(pid)
            _wait_told(births, f"{name}-{'b1' if node == 'a1' else 'a1'}-active")
            samples.append((time.monotonic_ns() - began) / 1e6)
    return Figure("active crashed -> other node active", OURS, "ms", tuple(samples))


def node_losses(count: int, profile: str = "default", number: int = signal.SIGKILL) -> Figure:
    """Kill (or stop) all of the active node at once: ms until the program on the other side is told active."""
    samples = []
    with duplex(1, profile) as (cluster, births):
        for _ in range(count):
            node, _pid = _active(cluster, "t0")
            other = "b1" if node == "a1" else "a1"
            _drain(births)
            began = time.monotonic_ns()
            cluster.kill_node(node, number)
            _wait_told(births, f"t0-{other}-active")
            samples.append((time.monotonic_ns() - began) / 1e6)
            cluster.kill_node(node)
            cluster.start(node)
            cluster.wait(lambda status: all_ready(status, 1), "the lost node is back", 60.0)
    how = "killed" if number == signal.SIGKILL else "stopped"
    return Figure(f"node lost ({how}) -> other active", f"{OURS}, {profile}", "ms", tuple(samples))


def server_kills(count: int) -> Figure:
    """Kill -9 the Server of a1: ms until a Server answers `status` on a1 as its side's again."""
    samples = []
    with duplex(1, "default") as (cluster, _births):
        for _ in range(count):
            began = time.monotonic_ns()
            old = cluster.kill_agent("a1", "server")
            while not _served(cluster, old):
                if time.monotonic_ns() - began > TOLD_TIMEOUT_S * 1e9:
                    raise TimeoutError("the Server did not come back")
                time.sleep(0.002)
            samples.append((time.monotonic_ns() - began) / 1e6)
            cluster.wait(lambda status: all_ready(status, 1), "all is well", 30.0)
            time.sleep(2.1)  # a Server that dies within 2 s of its start counts as one that dies at once
    return Figure("Server killed -> back", OURS, "ms", tuple(samples))


def _served(cluster: Cluster, old: int) -> bool:
    if cluster.agent("a1", "server") in (None, old):
        return False
    status = cluster.status("a1")
    return status is not None and status["source"] == "server" and status["sides"]["a"]["server"] == "a1"
