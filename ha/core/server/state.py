"""What a Server knows: plan, intents, leases, its side's nodes, the tenants it runs, its peers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ha.core import catalog as catalogs
from ha.core import lease
from ha.core.graph import Graph
from ha.core.machine import Effect, Event, Note
from ha.core.table import StateTable
from ha.model.errors import Finding
from ha.model.messages import EventRecord, Generation, Order, PeerBeat, Pull, Register, Right
from ha.model.names import other_side, process_of, seat, tenant_of
from ha.model.plan import Process, System, Tenant
from ha.model.status import NodeState
from ha.model.timing import MS


class Directory(Event, frozen=True):
    """The node's own tenants_dir as it is now, `*.toml` by name without suffix; None: there is no directory."""

    files: dict[str, bytes] | None


class Checked(Event, frozen=True):
    """Outcome of `Check`: what these files compile to.

    `names`: file -> tenant of those that passed; `failed`: the files that did not, they are not among `tenants`.
    """

    purpose: str
    tenants: tuple[Tenant, ...]
    findings: tuple[Finding, ...] = ()
    names: dict[str, str] = {}
    failed: tuple[str, ...] = ()


class Stopping(Event, frozen=True):
    """The agent was told to end: give back what is held, then `Exit`."""


class Check(Effect, frozen=True):
    """Compile these files (name -> content) and answer with `Checked(purpose, ...)`."""

    purpose: str  # directory | catalog
    files: dict[str, bytes]


class Exit(Effect, frozen=True):
    """Everything is given back: end the agent."""


class MoveKind(Enum):
    """Why nodes are asked to let a tenant go."""

    RELEASE = "release"  # the lease is given back
    INNER = "inner"  # the copies move to another node of this side


@dataclass(slots=True)
class Move:
    """A tenant whose nodes are letting go. `waiting`: node -> when its sub-lease has surely run out."""

    kind: MoveKind
    reason: str
    planned: bool
    heir: str
    polite_ms: int
    waiting: dict[str, int]
    nodes: tuple[str, ...] = ()  # asked to let go: they get no rights meanwhile
    asked_at: int = 0


@dataclass(slots=True)
class Place:
    """Where one copy of this side belongs."""

    node: str
    fencing: int = 0
    was_up: bool = False  # seen running since it was placed with its present role


@dataclass(slots=True)
class Run:
    """One tenant on this side. `epoch` 0: its lease is not ours."""

    epoch: int = 0
    inner: int = 0
    places: dict[str, Place] = field(default_factory=dict)
    unsaved: bool = False  # its places differ from the journal
    move: Move | None = None
    next_try: int = 0  # when to ask the voters again
    claim_after: int = 0  # a claim the other side may have first
    offered: int = 0  # its holder released it to us: until then a refusal may just be older than the release
    moves: int = 0  # unplanned moves in the period
    moves_since: int = 0
    escalated: dict[str, int] = field(default_factory=dict)  # copy -> when its dependents were restarted with it
    seen: lease.Result | None = None  # what the voters last said
    blocked: dict[str, str] = field(default_factory=dict)  # copy -> why it is not started
    home_ready_since: int = 0


@dataclass(slots=True)
class NodeView:
    """A node of this side, as its Spawner's pulls and the answers to orders show it."""

    state: NodeState = NodeState.UNKNOWN
    incarnation: int = 0  # of its Spawner
    last_pull: int = 0
    given_up: bool = False  # dead for so long that what needs no right there is placed elsewhere
    pull: Pull | None = None
    rights: tuple[Right, ...] = ()
    right_tenants: tuple[str, ...] = ()
    rights_version: int = 0
    granted: dict[str, int] = field(default_factory=dict)  # tenant -> when its sub-lease has surely run out
    orders: dict[str, Order] = field(default_factory=dict)  # as they should be
    by_process: dict[str, set[str]] = field(default_factory=dict)  # their keys, by process
    unanswered: dict[str, Order] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    asked_at: int = 0
    digest: str = ""  # orders digest of its last answer
    full_sent: bool = False
    plan_sent_at: int = 0


@dataclass(slots=True)
class Peer:
    """Another Server, by its beats."""

    beat: PeerBeat
    at: int
    incarnation: int
    shared_at: int = 0


@dataclass(slots=True)
class Wait:
    """An operator's request that is answered when something has come true."""

    id: str
    role: str
    node: str
    request: int
    kind: str
    target: str
    until: int
    detail: str = ""


@dataclass(slots=True)
class State:
    """All of a Server."""

    node: str
    side: str
    system: System
    boots: int
    book: lease.Book
    started: int
    now: int
    tenants: dict[str, Tenant] = field(default_factory=dict)
    plan: bytes = b""
    plan_digest: str = ""
    graph: Graph = field(default_factory=Graph)
    catalog: catalogs.State = field(default_factory=catalogs.State)
    findings: tuple[Finding, ...] = ()
    failed_files: tuple[str, ...] = ()  # of this node's directory
    registers: dict[str, Register] = field(default_factory=dict)
    registers_digest: str = ""
    catalog_digest: str = ""
    table: StateTable = field(default_factory=StateTable)
    monitors: dict[str, tuple[int, int]] = field(default_factory=dict)  # node -> (incarnation, last heard)
    beats: dict[str, object] = field(default_factory=dict)  # node -> its Monitor's last StateBeat
    snapshots_asked: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    seat_epoch: int = 0
    seat_try: int = 0
    seated_at: int = 0
    ordering: bool = False  # what runs is known: orders may be given
    counter: int = 0
    progress: int = 0
    next_beat: int = 0
    renew_due: bool = False  # the list of leases changed: tell the voters, after the nodes
    distrust_until: int = 0
    dirty: dict[str, None] = field(default_factory=dict)  # process ids to look at
    dirty_tenants: dict[str, set[str] | None] = field(default_factory=dict)  # copies to look at; None: all
    events: list[EventRecord] = field(default_factory=list)
    requests: dict[str, dict[str, object]] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    followers: dict[str, tuple[str, str, int, int]] = field(default_factory=dict)  # id -> asker, ends at
    forwarded: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    node_events: dict[str, int] = field(default_factory=dict)
    stopping: bool = False
    directory: dict[str, bytes] | None = None  # this node's tenants_dir when last read
    directory_read: bool = False
    compiled: bool = False  # what the journal held was compiled
    pending_removal: str = ""
    out: list[Effect] = field(default_factory=list)

    @property
    def seat(self) -> str:
        """The lease of this side's seat."""
        return seat(self.side)

    @property
    def other(self) -> str:
        """The other side."""
        return other_side(self.side)

    def generation(self) -> Generation:
        """Return the next generation for orders."""
        self.counter += 1
        return (self.seat_epoch, self.boots, self.counter)

    def note(self, kind: str, subject: str, **more: str | int) -> None:
        """Tell an event."""
        self.out.append(Note(kind, subject, **more))  # type: ignore[arg-type]

    def touch(self, tenant: str) -> None:
        """Look at the whole tenant again, and at what depends on it."""
        self.dirty_tenants[tenant] = None
        plan = self.tenants.get(tenant)
        for process in plan.processes if plan else ():
            self.touch_process(f"{tenant}/{process.name}")

    def touch_copy(self, key: str) -> None:
        """Look at one copy again, and at the processes around it."""
        self.touch_process(process_of(key))
        keys = self.dirty_tenants.setdefault(tenant_of(key), set())
        if keys is not None:
            keys.add(key)

    def touch_process(self, process: str) -> None:
        """Look at a process, at what depends on it, and at what it depends on (for the stop order)."""
        self.dirty[process] = None
        for other in self.graph.neighbours(process):
            self.dirty[other] = None


def seated(state: State, now: int) -> bool:
    """Return whether this Server decides for its side now."""
    return state.seat_epoch > 0 and lease.valid(state.book, state.seat, now)


def register(state: State, key: str) -> str:
    """Return an intent's value; empty where none was said."""
    found = state.registers.get(key)
    return found.value if found else ""


def tenant_started(state: State, tenant: Tenant) -> bool:
    """Return whether the tenant should run at all."""
    if not tenant.enabled or register(state, f"failed/{tenant.name}"):
        return False
    return register(state, f"wanted/{tenant.name}") != "stopped"


def process_started(state: State, tenant: Tenant, process: Process) -> bool:
    """Return whether the process should run."""
    stopped = register(state, f"wanted/{tenant.name}/{process.name}") == "stopped"
    return process.enabled and not stopped and tenant_started(state, tenant)


def held_back(state: State, tenant: str) -> bool:
    """Return whether a hold forbids automatic role changes of the tenant."""
    return bool(register(state, "hold") or register(state, f"hold/{tenant}"))


def needs_lease(tenant: Tenant) -> bool:
    """Return whether the tenant has anything exclusive."""
    return any(process.run_status.exclusive and process.enabled for process in tenant.processes)


def drained(state: State, node: str) -> bool:
    """Return whether the operator (or its own end) takes the node out of use."""
    view = state.nodes.get(node)
    leaving = bool(view and view.pull and view.pull.leaving)
    side = state.system.nodes[node].side
    return leaving or bool(register(state, f"drain/{node}") or register(state, f"drain-side/{side}"))


def usable(state: State, node: str) -> bool:
    """Return whether copies may be placed on a node of this side."""
    view = state.nodes[node]
    return view.state in (NodeState.UP, NodeState.SUSPECT) and not drained(state, node)


def eligible(state: State, process: Process, side: str) -> tuple[str, ...]:
    """Return the side's nodes that carry all labels the process asks for."""
    nodes = state.system.nodes
    return tuple(name for name in state.system.nodes_of(side) if set(process.on) <= set(nodes[name].labels))


def fresh_peer(state: State, peer: Peer, now: int) -> bool:
    """Return whether a peer's beat is recent enough to be believed."""
    return now - peer.at < state.system.timing.suspect_ms * MS


def seated_peer(state: State, side: str, now: int) -> Peer | None:
    """Return the Server seated on a side, other than this one, if it beats."""
    for name in sorted(state.peers):
        peer = state.peers[name]
        if peer.beat.side == side and peer.beat.seated and fresh_peer(state, peer, now):
            return peer
    return None


def peer_name(state: State, side: str, now: int) -> str:
    """Return the node of the Server seated on a side, other than this one; empty if none beats."""
    found = seated_peer(state, side, now)
    return next((name for name, peer in state.peers.items() if peer is found), "") if found else ""


def covered(state: State, tenant: str, now: int) -> bool:
    """Return whether a live peer says that it holds the tenant, validly."""
    return any(
        fresh_peer(state, peer, now) and peer.beat.valid_ms > 0 and any(h.tenant == tenant for h in peer.beat.held)
        for peer in state.peers.values()
    )
