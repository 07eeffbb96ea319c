"""Messages: everything agents say to each other, one frozen struct each.

On the wire a struct is a MessagePack array in field order: fields are only ever appended, with a default,
so that N and N-1 understand each other. `Header.type` names the struct (`TYPES`). Times on the wire are
durations in ms or ns; `Header.sent_ns` is the sender's own clock and is never compared with ours.

    channel   socket                                  who -> whom
    vote      ROUTER of the Witness  <- DEALER        Server, Witness -> Witness (Voter*)
    control   ROUTER of the Server   <- DEALER        Spawner (Pull), Monitor (Hello, Snapshot, Ask),
                                                      Server (Peer*)
    command   ROUTER of the Spawner  <- DEALER        Server (Orders, Relinquish, PutPlan);
                                                      by ipc Monitor (Watch, Revive, ...) and Master (Agents)
    state     PUB of the Monitor     <- SUB           Monitor -> all Servers
    beat      PUB of the Server      <- SUB           Server -> all Servers

A DEALER's identity is `role/node`. Answers come back on the same socket pair.
"""

from __future__ import annotations

import msgspec

from ha.model.status import Exit, OnDeath, Role, State, Wanted

Generation = tuple[int, int, int]  # (seat epoch, boots of the Server, counter): orders of a lower one are refused


class Header(msgspec.Struct, frozen=True, array_like=True):
    """First frame of every message. `request` pairs answers with questions; 0: none."""

    major: int
    type: str
    system: str
    node: str
    role: str
    incarnation: int  # random per process start; a new one resets `seq`
    epoch: int
    stream: str
    seq: int  # per (node, role, incarnation, stream), from 1, by 1
    sent_ns: int  # sender's CLOCK_BOOTTIME, for display and lateness only
    request: int


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of every body."""


# --- vote: Server <-> Witness ---------------------------------------------------------------------


class LeaseRef(Message, frozen=True):
    """A lease at an epoch."""

    name: str
    epoch: int


class VoteProbe(Message, frozen=True):
    """Would you grant these leases to me? Changes nothing (rule 5)."""

    round: int
    leases: tuple[str, ...]


class VoteClaim(Message, frozen=True):
    """Grant these leases at these epochs (highest seen + 1) for at least `promise_ms`."""

    round: int
    leases: tuple[LeaseRef, ...]
    promise_ms: int
    rules: str  # System.rules_digest


class VoteRenew(Message, frozen=True):
    """Renew all leases of this holder; `leases` is None while the voter knows set (version, digest)."""

    round: int
    set_version: int
    set_digest: str
    promise_ms: int
    rules: str
    leases: tuple[LeaseRef, ...] | None = None


class LeaseRelease(Message, frozen=True):
    """Give a lease back. `heir`: node preferred for one promise. `withdrawn`: a claim that failed."""

    name: str
    epoch: int
    heir: str = ""
    moves: int = 0  # unplanned moves in the current period
    moves_age_ms: int = 0  # since the first of them
    withdrawn: bool = False


class VoteRelease(Message, frozen=True):
    """Give leases back."""

    round: int
    releases: tuple[LeaseRelease, ...]


class Verdict(Message, frozen=True):
    """A voter's word about one lease. `remaining_ms`: until its promise to `holder` is over."""

    name: str
    yes: bool
    reason: str = ""
    epoch: int = 0  # highest the voter has seen for this lease
    holder: str = ""  # node; empty: never held
    remaining_ms: int = 0
    heir: str = ""
    moves: int = 0
    moves_age_ms: int = 0
    released: bool = False
    idle: bool = False  # nobody has held or renewed it since this voter started


class VoteReply(Message, frozen=True):
    """Answer to any vote request. For renewals: only leases that were *not* renewed have a verdict."""

    round: int
    kind: str  # probe | claim | renew | release
    verdicts: tuple[Verdict, ...] = ()
    need_list: bool = False  # renew: send the whole list, nothing was renewed
    refused: str = ""  # the whole request was refused: "rules", "copying", ...


class VoterHello(Message, frozen=True):
    """A started voter to the others: who am I to you? `want_leases`: I have no state, copy me yours."""

    boots: int
    want_leases: bool


class VoterLease(Message, frozen=True):
    """One lease as a voter has it on disk."""

    name: str
    holder: str
    epoch: int


class VoterState(Message, frozen=True):
    """Answer to VoterHello. `your_boots`: the highest boot counter seen of the asker (0: never)."""

    your_boots: int
    fresh: bool  # I never granted anything
    promise_ms: int
    leases: tuple[VoterLease, ...] = ()


# --- control: Spawner -> Server: the pull of sub-leases -------------------------------------------


class Holding(Message, frozen=True):
    """An exclusive copy that is active on this node, or frozen with that role."""

    copy: str
    fencing: int
    frozen: bool


class Pull(Message, frozen=True):
    """The node's beat, and its request for rights. Lists come only when the Server does not know them."""

    boot: str
    rights_version: int  # of the last Grant applied
    holdings: tuple[Holding, ...]
    orders_digest: str  # of the orders this Spawner holds: another one means "send all again"
    plan_digest: str
    leaving: bool = False  # ha-master is stopping: move everything off this node
    late_ticks: int = 0
    freezes: int = 0


class Right(Message, frozen=True):
    """The right of one exclusive copy to be active on this node at this fencing number."""

    copy: str
    fencing: int


class Grant(Message, frozen=True):
    """Answer to Pull. Rights hold for `remaining_ns` from the *send* of the Pull (paired by `Header.request`).

    `short`: tenants whose lease has less left than `remaining_ns`, as (tenant, ns).
    `rights` is None when they are those of `version` already known to the node.
    """

    seated: bool
    remaining_ns: int = 0
    version: int = 0
    rights: tuple[Right, ...] | None = None
    short: tuple[tuple[str, int], ...] = ()


# --- command: Server, Monitor, Master -> Spawner --------------------------------------------------


class Order(Message, frozen=True):
    """What one copy on this node should be. Fencing is 0 for copies that need no right."""

    copy: str
    wanted: Wanted
    generation: Generation
    serial: int  # Tenant.serial this is about
    role: Role | None = None
    fencing: int = 0
    on_death: OnDeath = OnDeath.RESTART
    restart: int = 0  # another number than before: stop the copy and start it again
    reset: int = 0  # another number than before: forget deaths, backoff and `failed`
    environment: tuple[tuple[str, str], ...] = ()


class Orders(Message, frozen=True):
    """Orders for copies of this node; `full`: all of them, what is not named is to be stopped."""

    generation: Generation
    orders: tuple[Order, ...]
    full: bool = False


class OrdersAnswer(Message, frozen=True):
    """Which copies the node refused, with a reason; the rest is accepted."""

    generation: Generation
    digest: str
    refused: tuple[tuple[str, str], ...] = ()


class Relinquish(Message, frozen=True):
    """Let go of every exclusive copy of the tenant at or below `fencing`, within `polite_ms`, then freeze."""

    tenant: str
    fencing: int
    polite_ms: int


class Relinquished(Message, frozen=True):
    """The node will never again run the tenant at or below `fencing`; recorded before it was sent."""

    tenant: str
    fencing: int


class PutPlan(Message, frozen=True):
    """All tenants as the Server has them, MessagePack of tuple[Tenant, ...] (`ha.wire.codec.PLAN`)."""

    digest: str
    tenants: bytes


class Answer(Message, frozen=True):
    """Answer to a command: accepted, done, refused or stale."""

    status: str
    reason: str = ""


class Watch(Message, frozen=True):
    """Monitor -> Spawner, once a second: tell me every fact after `seq` of your `incarnation`."""

    incarnation: int
    seq: int


class Fact(Message, frozen=True):
    """What the Spawner knows of one copy, whole, on every change.

    `state` is one of down, starting, up, stopping, frozen, unknown: ready, backoff and failed are the Monitor's.
    """

    copy: str
    state: State
    generation: Generation
    serial: int
    wanted: Wanted = Wanted.DOWN
    role: Role | None = None  # told and confirmed
    fencing: int = 0
    pid: int = 0
    start_ticks: int = 0  # field 22 of /proc/PID/stat
    started_ns: int = 0  # CLOCK_BOOTTIME
    started_at: float = 0.0  # wall clock, for display
    exit: Exit | None = None
    planned: bool = False  # the death was ordered: it does not count
    notified: bool = False  # READY=1 was said since the start
    watchdog_ms: int = 0  # the program armed its watchdog
    status: str = ""  # STATUS= of sd_notify
    on_death: OnDeath = OnDeath.RESTART
    restart: int = 0
    reset: int = 0
    reason: str = ""


class Facts(Message, frozen=True):
    """Spawner -> Monitor. `seq` counts Facts messages of this incarnation; `full`: all copies."""

    seq: int
    facts: tuple[Fact, ...]
    full: bool = False
    plan_digest: str = ""


class Revive(Message, frozen=True):
    """Monitor -> Spawner: start this dead copy again, or (kill) end it since it does not answer.

    `ahead`: decided before it happens: should the instance that runs now die unasked, start it again at once ("any"),
    or only after an unclean end ("unclean"). It holds for that instance and order alone.
    """

    copy: str
    generation: Generation
    kill: bool = False
    reason: str = ""
    ahead: str = ""


class Agents(Message, frozen=True):
    """Master -> Spawner: these agents should run (monitor, server, witness); `end`: end that one first."""

    wanted: tuple[str, ...]
    end: str = ""
    leave: str = ""  # "": stay | "stop": stop all copies, say so in AgentsAnswer | "detach": only the agents end


class AgentsAnswer(Message, frozen=True):
    """Pids by role, 0 for one that is not there; `empty`: no copy runs here any more."""

    pids: dict[str, int]
    empty: bool = False


# --- state: Monitor -> Servers --------------------------------------------------------------------


class CopyState(Message, frozen=True):
    """One copy as the Monitor sees it; every field is needed to draw `hactl status`."""

    copy: str
    state: State
    generation: Generation
    serial: int
    role: Role | None = None
    fencing: int = 0
    pid: int = 0
    started_at: float = 0.0
    restarts: int = 0
    exit: Exit | None = None
    reason: str = ""
    restart: int = 0
    reset: int = 0
    status: str = ""


class StateDelta(Message, frozen=True):
    """Copies that changed, and copies that are gone. `seq` counts the deltas of this incarnation, from 1 by 1."""

    copies: tuple[CopyState, ...]
    gone: tuple[str, ...] = ()
    seq: int = 0


class AgentSeen(Message, frozen=True):
    """An agent of this node, as the progress table shows it."""

    role: str
    pid: int
    state: str
    restarts: int


class StateBeat(Message, frozen=True):
    """Every beat: the last sequence and the digest of the whole table; progress of the Monitor's loop."""

    last_seq: int
    digest: str
    agents: tuple[AgentSeen, ...] = ()
    freezes: int = 0
    late_ticks: int = 0


class SnapshotRequest(Message, frozen=True):
    """Server -> Monitor: send the whole table."""


class Snapshot(Message, frozen=True):
    """The whole table up to `seq`, in `parts` messages numbered from 0."""

    seq: int
    part: int
    parts: int
    copies: tuple[CopyState, ...]


class Hello(Message, frozen=True):
    """Monitor or Spawner -> Server, at connect and once a second: I am here."""


class EventRecord(Message, frozen=True):
    """One line of `hactl events`; `at` is wall-clock seconds, for display."""

    id: str
    node: str
    seq: int
    at: float
    kind: str
    subject: str
    from_: str = ""
    to: str = ""
    reason: str = ""
    epoch: int = 0
    request: str = ""


class EventsSaid(Message, frozen=True):
    """Monitor -> Servers (state channel), and any local agent -> its Monitor: what happened."""

    events: tuple[EventRecord, ...]


# --- control, beat: Server <-> Server -------------------------------------------------------------


class TenantHeld(Message, frozen=True):
    """A lease this Server holds. `phase`: held | releasing."""

    tenant: str
    epoch: int
    phase: str


class PeerBeat(Message, frozen=True):
    """A Server's beat (PUB). `seated`: it holds its side's seat now; `valid_ms`: what is left of its leases."""

    side: str
    seated: bool
    seat_epoch: int
    valid_ms: int
    held: tuple[TenantHeld, ...]
    nodes: tuple[tuple[str, str], ...]  # (node, NodeState) of its side
    registers_digest: str
    catalog_digest: str
    progress: int
    failed: tuple[str, ...] = ()  # tenants this side cannot run


class PeerOffer(Message, frozen=True):
    """These tenants are released to you (the heir): claim them now."""

    tenants: tuple[LeaseRef, ...]


class Register(Message, frozen=True):
    """One last-writer-wins register of an operator's intent; the higher (serial, node) wins."""

    key: str  # "wanted/acme[/acd]", "hold[/acme]", "drain/a2", "drain-side/a", "reset/acme[/acd]", "restart/acme[/acd]"
    value: str
    serial: int
    node: str


class CatalogEntry(Message, frozen=True):
    """One tenant file as a version: content, its serial, digest, the digest it was based on, who has the file."""

    name: str  # file name without .toml
    serial: int
    digest: str
    base: str
    origin: tuple[str, ...]  # nodes that hold the file in their tenants_dir
    content: bytes
    tombstone: bool = False


class PeerShare(Message, frozen=True):
    """Registers and catalogue entries the other Server lacks; `want`: answer with yours."""

    registers: tuple[Register, ...]
    entries: tuple[CatalogEntry, ...]
    want: bool = False


# --- control: hactl through a Monitor -> Server ---------------------------------------------------


class Ask(Message, frozen=True):
    """A request of hactl, JSON as it came; `operator`: it came by operate.sock."""

    id: str
    body: bytes
    operator: bool
    forwarded: bool = False


class Told(Message, frozen=True):
    """Its answer: JSON. `final` False: accepted, more follows."""

    id: str
    body: bytes
    final: bool = True


TYPES: dict[str, type[Message]] = {
    cls.__name__: cls
    for cls in (
        VoteProbe, VoteClaim, VoteRenew, VoteRelease, VoteReply, VoterHello, VoterState,
        Pull, Grant, Orders, OrdersAnswer, Relinquish, Relinquished, PutPlan, Answer,
        Watch, Facts, Revive, Agents, AgentsAnswer,
        StateDelta, StateBeat, SnapshotRequest, Snapshot, Hello, EventsSaid,
        PeerBeat, PeerOffer, PeerShare, Ask, Told,
    )
}  # fmt: skip
