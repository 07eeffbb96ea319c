"""A bed for the Server's machine: real Witness machines beside it, nodes that do what they are ordered when told to."""

from __future__ import annotations

from collections.abc import Iterable

from ha.core import server, witness
from ha.core.machine import Effect, Note, Persist, Publish, Received, Send, Tick
from ha.core.table import Digest
from ha.model.messages import (
    CopyState,
    Grant,
    Message,
    Order,
    Orders,
    OrdersAnswer,
    PeerBeat,
    Pull,
    PutPlan,
    Relinquish,
    Relinquished,
    Snapshot,
    StateBeat,
    StateDelta,
)
from ha.model.names import Agent
from ha.model.plan import Node, System, Tenant, decode_plan, encode_plan
from ha.model.status import Role, Wanted
from ha.model.status import State as Seen
from ha.model.timing import MS


def system(**more: object) -> System:
    nodes = {
        name: Node(name=name, side=name[0], addresses=(f"127.0.0.{10 * (1 + (name[0] == 'b')) + int(name[1])}",))
        for name in ("a1", "a2", "b1", "b2")
    }
    fields = {
        "name": "bed", "run_dir": "/run/bed", "data_dir": "/var/bed", "tenants_dir": "/etc/bed", "node_file": "",
        "file": "", "voters": ("a1", "b1", "w1"), "sides": {"a": ("a1", "a2"), "b": ("b1",)}, "nodes": nodes,
        "witnesses": {"w1": Node(name="w1", addresses=("127.0.0.50",))},
    }  # fmt: skip
    return System(**{**fields, **more})  # type: ignore[arg-type]


class Bed:
    """The Server of a1, three voters, and the nodes a1 and a2."""

    def __init__(self, tenants: Iterable[Tenant], journal: dict[str, object] | None = None) -> None:
        self.system = system()
        self.now = 10**12
        self.journal: dict[str, object] = dict(journal or {})
        self.voters = {
            name: witness.start(name, self.system, 2, {"initialised": True}, self.now - 10**10)
            for name in self.system.voters
        }
        self.state = server.start("a1", self.system, 1, self.journal, self.now)
        self.orders: dict[str, dict[str, Order]] = {"a1": {}, "a2": {}}
        self.copies: dict[str, dict[str, CopyState]] = {name: {} for name in self.system.nodes}
        self.digests = {name: Digest() for name in self.system.nodes}
        self.seqs = dict.fromkeys(self.system.nodes, 0)
        self.plan: dict[str, str] = {}
        self.asked: list[tuple[str, Relinquish]] = []
        self.notes: list[Note] = []
        self.history: list[Order] = []
        self.grants: dict[str, Grant] = {}
        self.sent: list[Send] = []
        self.quiet = {"b1", "b2"}
        self.files = {tenant.name: encode_plan((tenant,)) for tenant in tenants}
        self.feed(server.Directory(dict(self.files)))

    def feed(self, event: object) -> None:
        """One step, and everything that follows from it at once."""
        queue: list[Effect] = list(server.step(self.state, event, self.now).effects)  # type: ignore[arg-type]
        while queue:
            effect = queue.pop(0)
            follow = self._do(effect)
            for again in follow:
                queue += server.step(self.state, again, self.now).effects  # type: ignore[arg-type]

    def hear(self, role: Agent, node: str, body: Message, incarnation: int = 7, request: int = 0) -> None:
        self.feed(Received(role, node, incarnation, 0, request, body))

    def pass_time(self, ms: int) -> None:
        """Let time go by in ticks of 30 ms, with pulls and beats of the nodes that speak."""
        until = self.now + ms * MS
        while self.now < until:
            self.now += 30 * MS
            for node in ("a1", "a2"):
                if node not in self.quiet:
                    self.pull(node)
            for node in self.system.nodes:
                if node not in self.quiet:
                    self.beat(node)
            self.feed(Tick())

    def pull(self, node: str, *, leaving: bool = False) -> None:
        version = self.grants[node].version if node in self.grants else 0
        body = Pull("boot", version, (), "d", self.plan.get(node, ""), leaving)
        self.hear(Agent.SPAWNER, node, body, request=1)

    def beat(self, node: str) -> None:
        self.hear(Agent.MONITOR, node, StateBeat(self.seqs[node], self.digests[node].text))

    def tell(self, node: str, *copies: CopyState) -> None:
        """The Monitor of a node broadcasts copies."""
        self.seqs[node] += 1
        for copy in copies:
            self.copies[node][copy.copy] = copy
            self.digests[node].put(copy)
        self.hear(Agent.MONITOR, node, StateDelta(copies, seq=self.seqs[node]))

    def peer(self, **more: object) -> None:
        """Server b1 beats."""
        fields = {
            "side": "b", "seated": True, "seat_epoch": 1, "valid_ms": 500, "held": (),
            "nodes": (("b1", "up"), ("b2", "up")), "registers_digest": self.state.registers_digest,
            "catalog_digest": "", "progress": 1,
        }  # fmt: skip
        self.hear(Agent.SERVER, "b1", PeerBeat(**{**fields, **more}))  # type: ignore[arg-type]

    def obey(self, key: str, seen: Seen | None = None) -> None:
        """The node that has an order for this copy makes it true (or shows `seen`)."""
        for node, orders in self.orders.items():
            order = orders.get(key)
            if order is None:
                continue
            state = seen or (Seen.READY if order.wanted is Wanted.UP else Seen.DOWN)
            role = order.role if state.runs else None
            copy = CopyState(
                key, state, order.generation, order.serial, role, order.fencing, 99 if state.runs else 0,
                restart=order.restart, reset=order.reset,
            )  # fmt: skip
            if self.copies[node].get(key) != copy:
                self.tell(node, copy)

    def wanted_up(self) -> set[str]:
        return {key for orders in self.orders.values() for key, order in orders.items() if order.wanted is Wanted.UP}

    def running(self) -> set[str]:
        return {key for node in ("a1", "a2") for key, copy in self.copies[node].items() if copy.state.runs}

    def _do(self, effect: Effect) -> list[object]:
        match effect:
            case Persist(key=key, value=value):
                if value is None:
                    self.journal.pop(key, None)
                else:
                    self.journal[key] = value
            case server.Check(purpose=purpose, files=files):
                tenants = tuple(tenant for data in files.values() for tenant in decode_plan(data))
                return [server.Checked(purpose, tenants, names={tenant.name: tenant.name for tenant in tenants})]
            case Note():
                self.notes.append(effect)
            case Publish():
                pass
            case Send():
                self.sent.append(effect)
                return self._deliver(effect)
        return []

    def _deliver(self, send: Send) -> list[object]:
        if send.node in self.quiet and send.role is not Agent.WITNESS:
            return []
        match send.body:
            case Orders() as orders:
                held = self.orders[send.node]
                if orders.full:
                    held.clear()
                for order in orders.orders:
                    held[order.copy] = order
                    self.history.append(order)
                answer = OrdersAnswer(orders.generation, "d")
                return [Received(Agent.SPAWNER, send.node, 7, 0, 0, answer)]
            case PutPlan() as plan:
                self.plan[send.node] = plan.digest
            case Grant() as grant:
                if send.node not in self.grants or grant.rights is not None:
                    self.grants[send.node] = grant
            case Relinquish() as relinquish:
                self.asked.append((send.node, relinquish))
            case body if send.role is Agent.WITNESS and send.node in self.voters:
                if f"voter {send.node}" in self.quiet:
                    return []
                message = Received(Agent.SERVER, "a1", 7, 0, send.request, body)
                step = witness.step(self.voters[send.node], message, self.now)
                return [
                    Received(Agent.WITNESS, send.node, 7, 0, reply.request, reply.body)
                    for reply in step.effects
                    if isinstance(reply, Send)
                ]
        return []

    def word(self, node: str, tenant: str) -> None:
        """The node lets go of a tenant."""
        fencing = max(ask.fencing for at, ask in self.asked if at == node and ask.tenant == tenant)
        self.hear(Agent.SPAWNER, node, Relinquished(tenant, fencing))


def snapshot(bed: Bed, node: str) -> None:
    """The Monitor of a node answers with its whole table."""
    bed.hear(Agent.MONITOR, node, Snapshot(bed.seqs[node], 0, 1, tuple(bed.copies[node].values())))


def up(tenants: Iterable[Tenant], *, peer: bool = True, **more: object) -> Bed:
    """Return a bed whose Server is seated, whose nodes are heard, with empty tables."""
    bed = Bed(tenants, **more)  # type: ignore[arg-type]
    for node in ("a1", "a2"):
        snapshot(bed, node)
    if peer:
        bed.quiet -= {"b1", "b2"}
        for node in ("b1", "b2"):
            snapshot(bed, node)
        bed.quiet |= {"b1", "b2"}
        bed.peer()
    bed.pass_time(120)
    return bed


__all__ = ["Bed", "Role", "Seen", "snapshot", "system", "up"]
