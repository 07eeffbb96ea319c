"""What the Spawner's machine remembers: copies, orders, rights, and the timers of all copies in one heap.

Words. A copy *acts* when it is exclusive and is, or may be, active: it needs a right. The *instance* is one start
of a copy, named by the cookie in its environment; "" means that nothing of the copy is left. `void` numbers are
those at or below which a tenant is never to act again on this node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

import msgspec

from ha.core.graph import Graph
from ha.core.machine import Effect, Note, Persist
from ha.core.spawning.events import Deadline
from ha.model.digest import number_of
from ha.model.messages import Fact, Generation, Holding, Order
from ha.model.names import process_id
from ha.model.plan import Node, Policy, Process, System, Tenant
from ha.model.status import Exit, OnDeath, Role, State, Wanted

NO_GENERATION: Generation = (0, 0, 0)
_MASK = (1 << 64) - 1


class Phase(StrEnum):
    """Where an instance stands. DOWN: there is none."""

    DOWN = "down"
    SPAWNING = "spawning"  # Spawn was asked for
    ADOPTING = "adopting"  # from before a restart of the Spawner: looked for
    RUNNING = "running"
    STOPPING = "stopping"  # signal or command given, grace runs
    KILLING = "killing"  # until nothing of the tree is left


class Ice(StrEnum):
    """Whether the tree stands still."""

    NONE = "none"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A copy as it stands in the runtime journal; written before the effect that makes it true."""

    phase: Phase
    instance: str
    process: bytes  # Process of the running instance, MessagePack
    pid: int
    start_ticks: int
    started_ns: int
    started_at: float
    role: Role | None
    fencing: int
    unsure: bool  # it was being told a role: nobody knows which it has
    ice: Ice
    serial: int
    restart: int
    reset: int
    dead: bool
    planned: bool
    exit: Exit | None
    notified: bool
    spoke: bool
    status: str
    watchdog_ms: int
    reason: str


@dataclass(slots=True)
class Copy:
    """One copy on this node."""

    key: str
    tenant: str
    process: str
    number: int
    order: Order | None = None
    phase: Phase = Phase.DOWN
    ice: Ice = Ice.NONE
    instance: str = ""
    plan: Process | None = None  # that the instance was started with
    pid: int = 0
    start_ticks: int = 0
    started_ns: int = 0
    started_at: float = 0.0
    role: Role | None = None  # told and confirmed
    fencing: int = 0
    telling: Role | None = None  # being told, at `telling_fencing`
    telling_fencing: int = 0
    unsure: bool = False  # nobody knows which role it has: it counts as active, and is told again
    serial: int = 0
    restart: int = 0
    reset: int = 0
    dead: bool = False  # died unasked: the Monitor says when to start it again
    standing: tuple[str, Generation, str] | None = None  # its word ahead: instance, order's generation, after which end
    planned: bool = True
    exit: Exit | None = None
    notified: bool = False
    spoke: bool = False  # it has connected to the control socket
    watchdog_ms: int = 0
    status: str = ""
    reason: str = ""
    refused: str = ""  # why this node does not run it
    lapsed_at: int = 0  # the deadline for which it was frozen
    unkillable: bool = False
    timer: int | None = None

    @property
    def id(self) -> str:
        """`tenant/process`."""
        return process_id(self.tenant, self.process)

    @property
    def acts(self) -> bool:
        """Exclusive, and active or perhaps so."""
        if self.phase is Phase.DOWN or self.plan is None or not self.plan.run_status.exclusive:
            return False
        return self.role is Role.ACTIVE or self.telling is Role.ACTIVE or self.unsure

    @property
    def acting_fencing(self) -> int:
        """The highest number at which it acts, or may."""
        return max(self.fencing, self.telling_fencing) if self.telling is Role.ACTIVE else self.fencing

    @property
    def lowest_fencing(self) -> int:
        """The lowest number at which it may act: until a promotion is confirmed, an active copy acts at the old one."""
        if self.telling is Role.ACTIVE and self.role is not Role.ACTIVE and not self.unsure:
            return self.telling_fencing
        return self.fencing

    def stop_telling(self) -> None:
        """What was being told will not be heard of: the program may have taken it, or not."""
        if self.telling is not None:
            self.fencing, self.unsure, self.telling = self.acting_fencing, True, None

    def seen(self) -> State:
        """Return the observed state, as facts name it."""
        if self.phase is Phase.DOWN:
            return State.FAILED if self.refused and self.order and self.order.wanted is Wanted.UP else State.DOWN
        if self.phase is Phase.ADOPTING:
            return State.UNKNOWN
        if self.ice in (Ice.FROZEN, Ice.FREEZING):
            return State.FROZEN
        return {Phase.SPAWNING: State.STARTING, Phase.RUNNING: State.UP}.get(self.phase, State.STOPPING)

    def fact(self) -> Fact:
        """Return what the Monitor is told."""
        order = self.order
        return Fact(
            copy=self.key, state=self.seen(),
            generation=order.generation if order else NO_GENERATION,
            serial=self.serial, wanted=order.wanted if order else Wanted.DOWN, role=self.role, fencing=self.fencing,
            pid=self.pid, start_ticks=self.start_ticks, started_ns=self.started_ns, started_at=self.started_at,
            exit=self.exit, planned=self.planned, notified=self.notified, watchdog_ms=self.watchdog_ms,
            status=self.status, on_death=order.on_death if order else OnDeath.RESTART,
            restart=self.restart, reset=order.reset if order else self.reset, reason=self.refused or self.reason,
        )  # fmt: skip

    def record(self) -> Record:
        """Return what the journal keeps."""
        return Record(
            phase=self.phase, instance=self.instance, process=msgspec.msgpack.encode(self.plan) if self.plan else b"",
            pid=self.pid, start_ticks=self.start_ticks, started_ns=self.started_ns, started_at=self.started_at,
            role=self.role, fencing=self.acting_fencing, unsure=self.unsure or self.telling is not None,
            ice=self.ice, serial=self.serial, restart=self.restart, reset=self.reset, dead=self.dead,
            planned=self.planned, exit=self.exit, notified=self.notified, spoke=self.spoke,
            status=self.status, watchdog_ms=self.watchdog_ms, reason=self.reason,
        )  # fmt: skip


@dataclass(slots=True)
class Grantor:
    """A Server of this side, as its Grants show it. `until`: for all its rights, `short` for single tenants."""

    asked: dict[int, int] = field(default_factory=dict)  # request -> when its Pull was sent
    incarnation: int = 0
    applied_sent: int = -1  # send time of the Pull whose Grant was applied last
    seated: bool = False
    version: int = 0
    rights: dict[str, int] = field(default_factory=dict)  # copy -> fencing
    until: int = 0
    short: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Letting:
    """A Relinquish that is not answered yet. `askers`: (role, node) -> request."""

    fencing: int
    until: int
    askers: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(slots=True)
class Household:
    """The agents of this node that the Spawner starts. Roles of `wanted` in the Master's order."""

    wanted: tuple[str, ...] = ()
    pids: dict[str, int] = field(default_factory=dict)  # -1: being started
    started: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # role -> pid that was told to end
    master: int | None = None  # pid; None: not seen yet
    watcher: int | None = None


@dataclass(slots=True)
class SpawnerState:
    """All of a Spawner."""

    node: Node
    system: System
    policy: Policy
    agent_user: str
    boot: str
    incarnation: int
    now: int
    tenants: dict[str, Tenant] = field(default_factory=dict)
    processes: dict[str, tuple[Tenant, Process]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # process -> policy's reason
    plan_digest: str = ""
    copies: dict[str, Copy] = field(default_factory=dict)
    by_tenant: dict[str, dict[str, None]] = field(default_factory=dict)
    generation: Generation = NO_GENERATION
    digest_sum: int = 0
    ordered: int = 0
    grantors: dict[str, Grantor] = field(default_factory=dict)
    inherited: dict[str, tuple[int, int]] = field(default_factory=dict)  # copy -> (fencing, deadline), to act on only
    never: dict[str, int] = field(default_factory=dict)
    lettings: dict[str, Letting] = field(default_factory=dict)
    primary: str = ""  # the Server whose Grant was applied last
    shared_ns: int = 0  # its deadline, that of most acting copies
    acting_shared: dict[str, None] = field(default_factory=dict)  # to be frozen at `shared_ns`
    acting_own: dict[str, int] = field(default_factory=dict)  # copy -> its own deadline
    own_lines: dict[str, None] = field(default_factory=dict)  # lines of the guard table that are not shared
    icy: dict[str, None] = field(default_factory=dict)  # copies not Ice.NONE
    waiting: dict[str, None] = field(default_factory=dict)  # copies that need a right
    guard: dict[str, Deadline] = field(default_factory=dict)  # the guard table as told
    guard_dirty: dict[str, None] = field(default_factory=dict)
    next_deadline: int | None = None
    holdings: tuple[Holding, ...] | None = None
    next_pull: int = 0
    last_pull: int = 0
    nudges: int = 0
    request: int = 0
    started_count: int = 0
    freezes: int = 0
    late_ticks: int = 0
    seated_at: int = 0
    watched: bool = False
    facts_seq: int = 0
    full_due: int | None = None
    facts_due: bool = False  # tell the plan's digest, even without a fact
    changed: dict[str, None] = field(default_factory=dict)  # copies whose fact is to be told
    unsaved: dict[str, None] = field(default_factory=dict)  # copies whose record is to be written
    dirty: dict[str, None] = field(default_factory=dict)  # copies to reconcile
    timers: list[tuple[int, str]] = field(default_factory=list)
    house: Household = field(default_factory=Household)
    graph: Graph = field(default_factory=Graph)
    leaving: str = ""
    leaving_since: int = 0
    stopping: bool = False  # leaving, and nobody takes the copies: stop them all
    forced: bool = False  # stop in any order
    empty_told: bool = False
    leave_asker: tuple[str, str, int] = ("", "", 0)
    ending: bool = False
    out: list[Effect] = field(default_factory=list)

    # --- small steps that every part needs -------------------------------------------------------

    def note(self, kind: str, subject: str, *, from_: str = "", to: str = "", reason: str = "", epoch: int = 0) -> None:
        """Tell an event."""
        self.out.append(Note(kind, subject, from_, to, reason, epoch))

    def touch(self, copy: Copy) -> None:
        """The copy changed: look at it again, tell it, keep it, check its deadline."""
        key = copy.key
        self.dirty[key] = None
        self.changed[key] = None
        self.unsaved[key] = None
        self.guard_dirty[key] = None
        self.holdings = None

    def save(self, copy: Copy) -> None:
        """Write the copy's record now, before the effect that follows."""
        self.unsaved.pop(copy.key, None)
        self.out.append(Persist(f"copy/{copy.key}", copy.record(), sync=False))

    def set_timer(self, copy: Copy, at: int | None) -> None:
        """Let the copy's one timer run out at `at`; None: no more."""
        copy.timer = at
        if at is not None:
            heappush(self.timers, (at, copy.key))

    def due_timers(self, now: int) -> list[Copy]:
        """Take out and return the copies whose timer has run out."""
        due: list[Copy] = []
        while (at := self.next_timer()) is not None and at <= now:
            copy = self.copies[heappop(self.timers)[1]]
            copy.timer = None
            due.append(copy)
        return due

    def next_timer(self) -> int | None:
        """Return when the first timer runs out, or None."""
        while self.timers:
            at, key = self.timers[0]
            copy = self.copies.get(key)
            if copy is not None and copy.timer == at:
                return at
            heappop(self.timers)
        return None

    def copy(self, key: str, tenant: str, process: str, number: int) -> Copy:
        """Return the copy of that key, made if it is not known."""
        found = self.copies.get(key)
        if found is None:
            found = self.copies[key] = Copy(key, tenant, process, number)
            self.by_tenant.setdefault(tenant, {})[key] = None
        return found

    def drop(self, copy: Copy) -> None:
        """Forget a copy."""
        del self.copies[copy.key]
        of_tenant = self.by_tenant[copy.tenant]
        del of_tenant[copy.key]
        if not of_tenant:
            del self.by_tenant[copy.tenant]
        for table in (self.dirty, self.changed, self.unsaved, self.waiting, self.icy, self.inherited):
            table.pop(copy.key, None)
        self.guard_dirty[copy.key] = None

    def set_ice(self, copy: Copy, ice: Ice) -> None:
        """Note that the tree stands still, or goes on."""
        copy.ice = ice
        if ice is Ice.NONE:
            self.icy.pop(copy.key, None)
        else:
            self.icy[copy.key] = None
        self.touch(copy)

    def void(self, tenant: str) -> int:
        """Return the number at or below which the tenant is not to act here any more."""
        never = self.never.get(tenant, 0)
        letting = self.lettings.get(tenant)
        return max(never, letting.fencing) if letting else never

    def put_order(self, copy: Copy, order: Order | None) -> None:
        """Keep an order, or (None) none, and the digest of all of them."""
        self.adopt_order(copy, order)
        self.out.append(Persist(f"order/{copy.key}", order, sync=False))

    def adopt_order(self, copy: Copy, order: Order | None) -> None:
        """The same for one that is in the journal already."""
        if copy.order is not None:
            self.digest_sum -= order_digest(copy.order)
            self.ordered -= 1
        copy.order = order
        if order is not None:
            self.digest_sum += order_digest(order)
            self.ordered += 1
        self.digest_sum &= _MASK

    @property
    def orders_digest(self) -> str:
        """Digest of the kept orders."""
        return f"{self.digest_sum:016x}.{self.ordered}"


def order_digest(order: Order) -> int:
    """Return 64 bits that stand for one order."""
    return number_of(msgspec.msgpack.encode(order))
