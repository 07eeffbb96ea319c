"""Ours: this project's agents as a contestant; the smallest duplex system (a1, b1, witness w1) on this machine.

All figures but memory and idle CPU are of the one node that runs the programs; the agents of the other node and of the
witness run on the same cores at the same time, which the peers have not to carry.
"""

# ruff: noqa: D102 - what each method does stands in Peer

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.cluster import Cluster
from benchmarks.measure import kill
from benchmarks.peers import Peer
from benchmarks.report import OURS

TENANT = '[tenant]\nname = "bench"\nhome = "a"\n'
# A bench kills each program again and again on purpose: nothing may escalate, and the first restart is immediate.
RESTART = 'restart = { policy = "always", intensity = 10000, period = "60s", stable = "1s" }'


class Ours(Peer):
    """`prepare` brings the agents up, `start` drops the tenant file: the time taken is from there, as for a peer."""

    name = OURS

    def __init__(self, all_agents: bool = False) -> None:
        super().__init__()
        self._all_agents = all_agents
        if all_agents:
            self.name = f"{OURS}, all agents at once"
        self.cluster: Cluster | None = None
        self._text = ""

    def missing(self) -> str:
        return ""

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        os.chmod(directory, 0o755)
        self.cluster = Cluster(nodes={"a1": "a", "b1": "b"})
        self.cluster.start()
        self.cluster.wait_seated()
        tables = [
            f'[process.{name}]\ncommand = {json.dumps(["/bin/sh", "-c", path.read_text()])}\nuser = "root"\n{RESTART}\n'
            for name, path in scripts.items()
        ]
        self._text = TENANT + "".join(tables)

    def start(self) -> None:
        """Drop the tenant file; after all agents were killed, start ha-master again."""
        assert self.cluster is not None
        if not (self.cluster.tenants_dir / "bench.toml").exists():
            self.cluster.write_tenant("bench", self._text)
        elif self._all_agents:
            self.cluster.start("a1")

    def pids(self) -> list[int]:
        """Return the agents of a1."""
        assert self.cluster is not None
        return list(self.cluster.agents("a1").values())

    def kill(self) -> None:
        """Kill -9 the Spawner, the parent of what runs; or, with `all_agents`, every agent of the node."""
        assert self.cluster is not None
        if self._all_agents:
            for pid in self.pids():
                kill(pid)
            self.cluster.processes["a1"].wait(10)
        else:
            self.cluster.kill_agent("a1", "spawner")

    def stop_program(self, name: str) -> None:
        assert self.cluster is not None
        self.cluster.hactl("stop", f"bench/{name}", "--wait", node="a1").check_returncode()

    def stop(self) -> None:
        if self.cluster is not None:
            self.cluster.close()
