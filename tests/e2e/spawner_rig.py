"""A rig for the Spawner's executable: a real agent on loopback; Server, Monitor and Master are bare ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ha.agents import common
from ha.config import load_system
from ha.core.machine import Received
from ha.linux.cgroups import CgroupTree
from ha.linux.locks import hold_role
from ha.linux.tree import find_cookies
from ha.model import messages as m
from ha.model.digest import digest_of
from ha.model.names import Agent
from ha.model.plan import Process, Tenant, encode_plan
from ha.model.status import Role, State, Wanted
from ha.model.timing import MS
from ha.runtime.loop import Loop
from ha.wire.codec import Codec
from ha.wire.routes import Channel
from ha.wire.sockets import Sockets
from ha.wire.switchboard import Switchboard

SLEEP = shutil.which("sleep") or "/bin/sleep"
SHELL = shutil.which("sh") or "/bin/sh"
SYSTEM = """
[system]
name = "rig{number}"
run_dir = "{tmp}/run"
data_dir = "{tmp}/data"
tenants_dir = "{tmp}/tenants.d"
node_file = "{tmp}/node.toml"
[sides.a]
servers = ["a1"]
[sides.b]
servers = ["b1"]
[nodes.a1]
side = "a"
addresses = ["127.0.78.{number}"]
[nodes.b1]
side = "b"
addresses = ["127.0.79.{number}"]
[witnesses.w1]
addresses = ["127.0.80.{number}"]
"""


class Rig:
    """One Spawner, and all it says. `number`: the last part of its address, another for each test run at once."""

    def __init__(self, number: int = 11) -> None:
        self.tmp = Path(tempfile.mkdtemp(prefix="ha-rig-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        (self.tmp / "tenants.d").mkdir()
        (self.tmp / "node.toml").write_text('[policy]\nusers = ["root", "nobody"]\n' if os.geteuid() == 0 else "")
        (self.tmp / "node.toml").chmod(0o600)
        self.config = self.tmp / "system.toml"
        self.config.write_text(SYSTEM.format(tmp=self.tmp, number=number))
        self.system = load_system(str(self.config))
        self.me = self.system.nodes["a1"]
        self.layout = common.layout_of(self.system, "a1")
        self.layout.make()
        self.lock = hold_role(self.layout.run, Agent.MASTER)  # else the Spawner would have a Watcher start one
        self.loop = Loop(common.boottime_ns)
        self.facts: dict[str, m.Fact] = {}
        self.history: list[m.Fact] = []
        self.heard: list[Received] = []
        self.rights: dict[str, int] = {}
        self.version = 1
        self.granting = True
        self.lease_ms = 600
        self.counter = 0
        self.tenants: tuple[Tenant, ...] = ()
        self.serial = 0
        self.spawner: subprocess.Popen[bytes] | None = None
        self.sockets: list[Sockets] = []
        self.server = self._end(Agent.SERVER)
        self.server.listen(Channel.CONTROL)
        self.server.ask(Channel.COMMAND, Agent.SPAWNER, "a1")
        self.monitor = self._end(Agent.MONITOR)
        self.master = self._end(Agent.MASTER)
        for end in (self.monitor, self.master):
            end.ask(Channel.COMMAND, Agent.SPAWNER, "a1", (f"ipc://{self.layout.agents}/spawner.sock",))
        for end in (self.server, self.monitor, self.master):
            for port in end.ports:
                self.loop.attach(port, self._deliver)
        self.loop.call_every(200, self._watch)
        self.start()

    def _end(self, role: Agent) -> Switchboard:
        codec = Codec(system=self.system.name, role=role, node="a1", incarnation=11, nodes=(*self.system.nodes, "w1"))
        sockets = Sockets(codec, common.boottime_ns, silence_ms=1_000)
        self.sockets.append(sockets)
        return Switchboard(sockets, self.system, self.me)

    # --- the agent ---

    def start(self) -> None:
        argv = [sys.executable, "-m", "ha.agents.spawner", "--config", str(self.config), "--node", "a1"]
        self.seen_full = False
        with (self.tmp / "stderr").open("ab") as stderr:
            self.spawner = subprocess.Popen(argv, stderr=stderr)
        self.until(lambda: self.seen_full, "the Spawner tells its facts")

    def kill(self) -> None:
        assert self.spawner is not None
        self.spawner.send_signal(signal.SIGKILL)
        self.spawner.wait()

    def close(self) -> None:
        if self.spawner is not None and self.spawner.poll() is None:
            self.kill()
        for copy in list(self.facts):
            for pid in self.pids(copy):
                self._end_pid(pid)
        for sockets in self.sockets:
            sockets.close()
        self.loop.close()
        self.lock.release()
        trees, _ = CgroupTree.find(f"ha-{self.system.name}-a1")
        if trees is not None:
            for copy in trees.copies():
                trees.cgroup(copy).kill(1_000)
            trees.remove()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def _end_pid(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def pids(self, copy: str) -> list[int]:
        """Every live process that was started by our Spawner for this copy (the rig's own children only)."""
        found = []
        for pids in find_cookies().values():
            for pid in pids:
                try:
                    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                ours = f"HA_SOCKET={self.layout.run}/p/{copy.replace('/', '.')}/control.sock".encode()
                if ours in environment:
                    found.append(pid)
        return found

    # --- the ends ---

    def _watch(self) -> None:
        incarnation = self.spawner_incarnation if self.seen_full else 0
        self.monitor.send(Agent.SPAWNER, "a1", m.Watch(incarnation, self.facts_seq), now=self.loop.now())

    spawner_incarnation = 0
    facts_seq = 0

    def _deliver(self, message: Received) -> None:
        self.heard.append(message)
        match message.body:
            case m.Pull() if self.granting:
                rights = tuple(m.Right(copy, fencing) for copy, fencing in self.rights.items())
                known = message.body.rights_version == self.version
                grant = m.Grant(True, self.lease_ms * MS, self.version, None if known else rights)
                self.server.send(Agent.SPAWNER, "a1", grant, now=self.loop.now(), request=message.request)
            case m.Facts():
                if message.body.full:
                    self.facts.clear()
                    self.seen_full = True
                self.spawner_incarnation, self.facts_seq = message.incarnation, message.body.seq
                for fact in message.body.facts:
                    self.facts[fact.copy] = fact
                    self.history.append(fact)

    def until(self, met: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.stderr()[-3000:]}"
            self.loop.turn(10)

    def turn(self, ms: int) -> None:
        """Let the ends work for a while; for what must NOT happen in it."""
        end = time.monotonic() + ms / 1_000
        while time.monotonic() < end:
            self.loop.turn(5)

    def stderr(self) -> str:
        return (self.tmp / "stderr").read_text(errors="replace")

    # --- what a Server, a Monitor, a Master say ---

    def plan(self, *processes: Process, tenant: str = "acme") -> None:
        self.serial += 1
        self.tenants = (Tenant(name=tenant, serial=self.serial, processes=processes),)
        data = encode_plan(self.tenants)
        self.ask(m.PutPlan(digest_of(data), data), m.Answer)

    def ask(self, body: m.Message, answer: type[m.Message]) -> Any:
        """Say it until it is answered."""
        before = len(self.heard)
        end: Switchboard = self.server
        if isinstance(body, m.Revive):
            end = self.monitor
        elif isinstance(body, m.Agents):
            end = self.master
        found: list[m.Message] = []

        def answered() -> bool:
            nonlocal said
            if time.monotonic() - said > 0.3:
                said = time.monotonic()
                end.send(Agent.SPAWNER, "a1", body, now=self.loop.now(), request=7)
            found[:] = [message.body for message in self.heard[before:] if isinstance(message.body, answer)]
            return bool(found)

        said = 0.0
        self.until(answered, f"{type(body).__name__} answered by {answer.__name__}")
        return found[0]

    def order(self, *copies: str, role: Role | None = None, fencing: int = 0, **more: Any) -> m.OrdersAnswer:
        self.counter += 1
        generation = (1, 1, self.counter)
        wanted = more.pop("wanted", Wanted.UP)
        orders = tuple(m.Order(copy, wanted, generation, self.serial, role, fencing, **more) for copy in copies)
        answer = self.ask(m.Orders(generation, orders), m.OrdersAnswer)
        assert isinstance(answer, m.OrdersAnswer)
        return answer

    def allow(self, copy: str, fencing: int) -> None:
        self.rights[copy] = fencing
        self.version += 1

    def state(self, copy: str) -> State | None:
        return self.facts[copy].state if copy in self.facts else None

    def reach(self, copy: str, state: State, seconds: float = 10.0) -> m.Fact:
        self.until(lambda: self.state(copy) is state, f"{copy} {state}", seconds)
        return self.facts[copy]
