"""World: a whole system of the real machines on virtual time: nodes, agents, disks, links, programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ha.core import monitor, server, spawner, witness
from ha.core.desk import PidGone, StartProbe, WatchPid
from ha.core.machine import Effect, Event, Note, Publish, Send
from ha.core.monitor import PlanKnown, ProbeDone, ReadPlan
from ha.core.server import Check, Checked, Exit
from ha.core.spawning.events import KeepPlan, SetDeadlines
from ha.model.messages import Agents, AgentsAnswer, Message, PeerBeat, Told
from ha.model.names import Agent
from ha.model.plan import Node, Policy, System, Tenant, decode_plan, encode_plan
from ha.model.timing import MS, Timing
from ha.runtime.agent import Driver
from ha.sim.client import Client
from ha.sim.hosts import Disk, Host
from ha.sim.kernel import Clock, Kernel
from ha.sim.net import Net
from ha.sim.programs import Programs

DEFAULT = Timing()


@dataclass(slots=True, frozen=True)
class Shape:
    """What to build. `per_side` nodes a side; the first is the Server's, the second may be; one witness place."""

    per_side: int = 2
    servers: int = 2
    timing: Timing = DEFAULT
    labels: bool = False  # the first node of a side carries "one", the last one "last"


def system_of(shape: Shape) -> System:
    """Return the plan of the whole system."""
    nodes = {}
    sides = {}
    for number, side in enumerate("ab"):
        names = [f"{side}{i + 1}" for i in range(shape.per_side)]
        sides[side] = tuple(names[: shape.servers])
        for i, name in enumerate(names):
            labels = [word for word, has in (("one", i == 0), ("last", i == len(names) - 1)) if shape.labels and has]
            address = f"127.0.0.{10 * (number + 1) + i + 1}"
            nodes[name] = Node(name=name, side=side, addresses=(address,), labels=tuple(labels))
    return System(
        name="sim", run_dir="/run/sim", data_dir="/var/sim", tenants_dir="/etc/sim", node_file="/etc/sim/node.toml",
        file="/etc/sim/system.toml", timing=shape.timing, voters=("a1", "b1", "w1"), sides=sides, nodes=nodes,
        witnesses={"w1": Node(name="w1", addresses=("127.0.0.50",))},
    )  # fmt: skip


class World:
    """All of a simulated system. `files`: the drop-in directory of each node with a Server."""

    def __init__(self, seed: int, shape: Shape, tenants: tuple[Tenant, ...]) -> None:
        self.kernel = Kernel(seed)
        self.system = system_of(shape)
        self.net = Net(self.kernel)
        self.programs = Programs(self.kernel, self._tell_spawner, self._tell_monitor)
        self.client = Client(self)
        self.noted: Callable[[Host, Note], None] = lambda host, note: None
        everywhere = {tenant.name: encode_plan((tenant,)) for tenant in tenants}
        self.files = {name: dict(everywhere) for name in self.system.servers()}
        self.down: set[str] = set()  # nodes whose ha-master was ended by the operator
        self.disk_lost_at = -(1 << 62)
        self.stopped: set[str] = set()  # tenants and processes that the operator stopped
        self.drained: set[str] = set()
        self.removed: dict[str, bytes] = {}  # files that the operator took away
        self.clocks = {name: self._clock() for name in [*self.system.nodes, *self.system.witnesses]}
        self.hosts: dict[tuple[Agent, str], Host] = {}
        self.plans: dict[str, tuple[str, bytes]] = {}
        self.guards: dict[str, dict[str, Any]] = {name: {} for name in self.system.nodes}
        self.shared_deadlines: dict[str, int] = {}
        self.boot = dict.fromkeys(self.system.nodes, 1)
        for name in self.system.nodes:
            self._add(Agent.SPAWNER, name)
            self._add(Agent.MONITOR, name)
            if name in self.system.servers():
                self._add(Agent.SERVER, name)
        for name in self.system.voters:
            self._add(Agent.WITNESS, name)
        for host in self.hosts.values():
            self.kernel.after(self.kernel.between(0, 300 * MS), host.start)

    def host(self, role: Agent, node: str) -> Host:
        """Return one agent."""
        return self.hosts[(role, node)]

    def wanted_tenants(self) -> tuple[Tenant, ...]:
        """Return what the files say, by name."""
        files = next(iter(self.files.values()))
        return tuple(tenant for name in sorted(files) for tenant in decode_plan(files[name]))

    def content(self, name: str) -> bytes:
        """Return a tenant's file."""
        return next(iter(self.files.values()))[name]

    def read_directory(self, node: str) -> None:
        """The Server of a node sees its tenants directory."""
        if (Agent.SERVER, node) in self.hosts:
            self.hosts[(Agent.SERVER, node)].feed(server.Directory(dict(self.files[node])))

    def crash_agent(self, role: Agent, node: str, back_after: int) -> None:
        """Kill one agent; its Master starts it again after `back_after` ns."""
        host = self.hosts.get((role, node))
        if host is not None and host.alive:
            host.kill()
            self.kernel.after(back_after, lambda: self._come_back(host))

    def _come_back(self, host: Host) -> None:
        if not host.alive and host.node not in self.down:
            host.start()

    def lose_node(self, node: str, back_after: int) -> None:
        """Power loss: all agents and programs of a node are gone, unsynced writes too; it boots after `back_after`."""
        hosts = [host for (_, name), host in self.hosts.items() if name == node]
        for host in hosts:
            host.kill()
            host.disk.lose_tail()
        if node in self.system.nodes:
            self.programs.lose_node(node)
            self.boot[node] += 1
            self.guards[node].clear()
            spawner_host = self.hosts[(Agent.SPAWNER, node)]
            boots = spawner_host.disk.durable.get("boots", 0)
            spawner_host.disk.now = {"boots": boots}  # the runtime journal is in run_dir, gone with the boot
            spawner_host.disk.durable = {"boots": boots}
        for host in hosts:
            delay = back_after + self.kernel.between(0, 200 * MS)
            self.kernel.after(delay, lambda host=host: self._come_back(host))  # type: ignore[misc]

    def lose_disk(self, voter: str) -> None:
        """A voter starts without anything it ever wrote."""
        host = self.hosts[(Agent.WITNESS, voter)]
        host.kill()
        host.disk = Disk()
        self.kernel.after(self.kernel.between(20, 500) * MS, lambda: self._come_back(host))

    def leave(self, node: str) -> None:
        """ha-master of a node gets SIGTERM: copies stop, then Server, Monitor, Witness and Spawner end."""
        self.down.add(node)
        spawner_host = self.hosts[(Agent.SPAWNER, node)]

        def ask() -> None:
            if node not in self.down or not spawner_host.alive:
                return
            body = Agents(wanted=("monitor", "server", "witness"), leave="stop")
            spawner_host.receive(Agent.MASTER, node, 1, 1, 0, body)
            self.kernel.after(250 * MS, ask)

        ask()

    def come_back(self, node: str) -> None:
        """ha-master of a node is started again."""
        self.down.discard(node)
        for (role, name), host in self.hosts.items():
            if name == node:
                if host.alive and role is Agent.SPAWNER:
                    host.receive(Agent.MASTER, node, 1, 1, 0, Agents(wanted=("monitor", "server", "witness")))
                self.kernel.after(self.kernel.between(1, 200) * MS, lambda host=host: self._come_back(host))  # type: ignore[misc]

    def _is_empty(self, node: str) -> None:
        """The Spawner of a leaving node says that no copy is left: end its agents, the Server first."""
        if node not in self.down:
            return
        servers = self.hosts.get((Agent.SERVER, node))

        def rest() -> None:
            if node in self.down:
                for (_, name), host in self.hosts.items():
                    if name == node:
                        host.kill()

        if servers is None or not servers.alive:
            rest()
            return
        servers.feed(server.Stopping())
        patience = self.kernel.now + 5_000 * MS

        def look() -> None:
            if not servers.alive or self.kernel.now > patience:
                rest()
            else:
                self.kernel.after(20 * MS, look)

        look()

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.kernel.run_until(self.kernel.now + int(seconds * 1e9))

    def story(self) -> list[tuple[int, str, Note]]:
        """Return what the agents noted, in order: (true ns, role/node, note)."""
        lines = [(at, f"{host.role}/{host.node}", note) for host in self.hosts.values() for at, note in host.story]
        return sorted(lines, key=lambda line: line[0])

    def say(self, host: Host, role: Agent, node: str, body: Message) -> None:
        """Send for a host what its machine did not ask for."""
        self._send(host, role, node, body, 0, self.kernel.now)

    # --- building ------------------------------------------------------------------------------------

    def _clock(self) -> Clock:
        return Clock(self.kernel.between(1, 10**12), self.kernel.between(-500, 500))

    def _add(self, role: Agent, node: str) -> None:
        self.hosts[(role, node)] = Host(self.kernel, role, node, self.clocks[node], self._make, self._act)

    def _make(self, host: Host, now: int) -> Driver[Any]:
        node = self.system.place(host.node)
        restored = dict(host.disk.now)
        match host.role:
            case Agent.WITNESS:
                state: Any = witness.start(host.node, self.system, host.boots, restored, now)
                return Driver(witness, state, host)
            case Agent.SERVER:
                state = server.start(host.node, self.system, host.boots, restored, now)
                driver = Driver(server, state, host)
                self.kernel.after(MS, lambda: self.read_directory(host.node))
                return driver
            case Agent.MONITOR:
                return Driver(monitor, monitor.start(node, self.system.timing, self.system.servers(), now), host)
            case _:
                return self._make_spawner(host, node, restored, now)

    def _make_spawner(self, host: Host, node: Node, restored: dict[str, Any], now: int) -> Driver[Any]:
        shared = self.shared_deadlines.get(host.node, 0)
        lines = self.guards[host.node].values()
        guard = {entry.copy: shared if entry.shared else entry.deadline_ns for entry in lines}
        state = spawner.start(
            node, self.system, Policy(users=("root",)), f"boot-{self.boot[host.node]}", host.incarnation,
            restored, now, guard=guard, plan=self.plans.get(host.node, ("", b""))[1],
        )  # fmt: skip
        return Driver(spawner, state, host)

    # --- effects -------------------------------------------------------------------------------------

    def _act(self, host: Host, effect: Effect, start: int) -> None:
        match effect:
            case Send():
                self._send(host, effect.role, effect.node, effect.body, effect.request, start)
            case Publish(body=body):
                for name in self.system.servers():
                    if not (isinstance(body, PeerBeat) and name == host.node):
                        self._send(host, Agent.SERVER, name, body, 0, start)
            case Note():
                self.noted(host, effect)
            case Check(purpose=purpose, files=files):
                tenants = tuple(tenant for data in files.values() for tenant in decode_plan(data))
                host.feed(Checked(purpose, tenants, names={tenant.name: tenant.name for tenant in tenants}))
            case Exit():
                self.kernel.at(self.kernel.now, host.kill)
            case ReadPlan(digest=digest):
                self.kernel.after(MS, lambda: self._read_plan(host, digest))
            case KeepPlan(digest=digest, tenants=data):
                self.plans[host.node] = (digest, data)
            case WatchPid(copy=copy, pid=pid, start_ticks=ticks):
                if not any(p.pid == pid and p.alive for p in self.programs.running(host.node)):
                    self.kernel.after(MS, lambda: host.feed(PidGone(copy, pid, ticks)))
            case StartProbe(run=run):
                alive = any(p.copy == run.copy and p.ready for p in self.programs.running(host.node))
                done = ProbeDone(run, alive, "" if alive else "refused")
                self.kernel.after(2 * MS, lambda: host.feed(done))
            case SetDeadlines(entries=entries, shared_ns=shared):
                self.shared_deadlines[host.node] = shared
                for entry in entries:
                    if entry.instance:
                        self.guards[host.node][entry.copy] = entry
                    else:
                        self.guards[host.node].pop(entry.copy, None)
            case _:
                self.programs.carry_out(host.node, effect)

    def _send(self, host: Host, role: Agent, node: str, body: Message, request: int, start: int) -> None:
        if role is Agent.MASTER and isinstance(body, AgentsAnswer):
            if body.empty:
                self.kernel.after(MS, lambda: self._is_empty(host.node))
            return
        target = self.hosts.get((role, node))
        if target is None:
            return
        host.seq += 1
        seq, incarnation = host.seq, host.incarnation

        def deliver(arrived: Message) -> None:
            if isinstance(arrived, Told) and role is Agent.MONITOR:
                self.client.told(host.node, arrived)
                return
            target.receive(host.role, host.node, incarnation, seq, request, arrived)

        self.net.send((host.role, host.node), (role, node), body, deliver, start)

    def _read_plan(self, host: Host, digest: str) -> None:
        kept = self.plans.get(host.node)
        if kept is not None and kept[0] == digest:
            host.feed(PlanKnown(decode_plan(kept[1]), digest))

    def _tell_spawner(self, node: str, event: Event) -> None:
        self.hosts[(Agent.SPAWNER, node)].feed(event)

    def _tell_monitor(self, node: str, copy: str, pid: int) -> None:
        self.hosts[(Agent.MONITOR, node)].feed(PidGone(copy, pid, pid))
