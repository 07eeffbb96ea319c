"""The Monitor's machine: facts, pidfds and probes in; broadcast states, restarts and notes out.

- The Spawner counts its `Facts`; a gap or another incarnation leads to `Watch(0, 0)`, that is, to all facts.
- Every change of a copy is broadcast in the step that made it, all changes of a step together; a beat, O(1)
  whatever the number of copies, carries the last count and the digest; the whole table follows every
  `FULL_STATE_EVERY_MS`, and whenever a Server asks. Nothing but beats is said before all facts are known.
- A tick later than `stall` is our own fault: what is overdue then gets `stall` more before a verdict (rule 12).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ha.core.desk import CancelProbe, CloseLog, Copy, Desk, PidGone
from ha.core.history import PREFIX, recall
from ha.core.machine import Effect, Event, Publish, Received, Send, Step, Tick
from ha.core.probes import Run
from ha.core.restart import Deaths
from ha.core.table import Digest
from ha.core.watched import leave, start_probe, take_fact, take_gone, take_process, take_timer, take_verdict
from ha.model import limits
from ha.model.messages import (
    AgentSeen,
    CopyState,
    Facts,
    Hello,
    Revive,
    Snapshot,
    SnapshotRequest,
    StateBeat,
    StateDelta,
    Watch,
)
from ha.model.names import Agent, process_id, process_of
from ha.model.plan import Node, Process, Tenant
from ha.model.timing import MS, Timing


class ProbeDone(Event, frozen=True):
    """A run ended; `reason` says why it did not pass."""

    run: Run
    ok: bool
    reason: str = ""


class PlanKnown(Event, frozen=True):
    """The plan of this node was read."""

    tenants: tuple[Tenant, ...]
    digest: str


class AgentsKnown(Event, frozen=True):
    """What the progress table says of the agents of this node."""

    agents: tuple[AgentSeen, ...]


class ReadPlan(Effect, frozen=True):
    """Read this node's plan: it should have this digest. Answered by `PlanKnown`, again if it was not there yet."""

    digest: str


@dataclass(slots=True)
class State:
    """What the Monitor knows. `known`: all facts of the present Spawner were heard once."""

    node: Node
    timing: Timing
    servers: tuple[str, ...]
    desk: Desk
    copies: dict[str, Copy] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    plan_digest: str = ""
    plan_wanted: str = ""
    known: bool = False
    spawner: int = 0  # incarnation of the Spawner whose facts these are
    facts_seq: int = 0
    listing: dict[str, None] | None = None  # copies of a full list that has not come to its end
    seq: int = 0  # deltas said
    said: dict[str, CopyState] = field(default_factory=dict)
    digest: Digest = field(default_factory=Digest)
    restored: dict[str, object] = field(default_factory=dict)  # of an earlier Monitor, until its copy is known
    agents: tuple[AgentSeen, ...] = ()
    late_ticks: int = 0
    next_beat: int = 0
    next_watch: int = 0
    next_full: int = 0


def start(
    node: Node, timing: Timing, servers: tuple[str, ...], now: int, restored: dict[str, object] | None = None
) -> State:
    """Return the state of a Monitor that has just started.

    `servers`: nodes where a Server may run, both sides. `restored`: the journal of an earlier Monitor of this boot.
    """
    full = now + limits.FULL_STATE_EVERY_MS * MS
    return State(
        node, timing, servers, Desk(node), restored=dict(restored or {}), next_beat=now, next_watch=now, next_full=full
    )


def wake_at(state: State) -> int:
    """Return when a Tick is wanted."""
    wakes = [state.next_beat, state.next_watch, state.next_full]
    wakes += [at for at in (state.desk.timers.next_at(), state.desk.probes.wake_at()) if at is not None]
    return min(wakes)


def step(state: State, event: Event, now: int) -> Step[State]:
    """Take in one event. Unknown events and messages change nothing."""
    desk = state.desk
    desk.now, desk.effects = now, []
    match event:
        case Tick():
            _tick(state, now)
        case Received(role=Agent.SPAWNER, node=state.node.name, body=Facts() as facts):
            _take_facts(state, event.incarnation, facts)
        case Received(role=Agent.SERVER, body=SnapshotRequest()):
            if state.known:
                desk.effects += [Send(Agent.SERVER, event.node, part) for part in _snapshot(state)]
        case ProbeDone():
            told = desk.probes.done(event.run, event.ok, event.reason[: limits.MAX_REASON_CHARS], now)
            if told is not None and told.copy in state.copies:
                take_verdict(desk, state.copies[told.copy], told)
        case PidGone() if event.copy in state.copies:
            take_gone(desk, state.copies[event.copy], event)
        case PlanKnown():
            _take_plan(state, event)
        case AgentsKnown():
            state.agents = event.agents
    _run_probes(state, now, 0)
    _say_changes(state)
    # What brings a copy back goes first; telling of it can wait.
    return Step(state, sorted(desk.effects, key=lambda effect: not _revives(effect)))


def _revives(effect: Effect) -> bool:
    return isinstance(effect, Send) and isinstance(effect.body, Revive)


def _tick(state: State, now: int) -> None:
    desk, timing = state.desk, state.timing
    grace_ns = timing.stall_ms * MS if now - wake_at(state) > timing.stall_ms * MS else 0
    if grace_ns:
        state.late_ticks += 1
    _run_probes(state, now, grace_ns)
    for key, timer in desk.timers.pop_due(now):
        if key in state.copies:
            take_timer(desk, state.copies[key], timer, grace_ns)
    _say_changes(state)  # before the beat, so that it counts them
    if now >= state.next_beat:
        state.next_beat = _next(state.next_beat, timing.beat_ms, now)
        beat = StateBeat(state.seq, state.digest.text, state.agents, desk.freezes, state.late_ticks)
        desk.effects.append(Publish(beat))
    if now >= state.next_watch:
        # At the start, what is said before the links are up is lost: say it again soon.
        every_ms = limits.WATCH_EVERY_MS if state.known else limits.COMMAND_RETRY_MS // 5
        state.next_watch = _next(state.next_watch, every_ms, now)
        _watch(state, state.spawner if state.known else 0, state.facts_seq if state.known else 0)
        desk.effects += [Send(Agent.SERVER, server, Hello()) for server in state.servers]
        if state.plan_wanted != state.plan_digest:
            desk.effects.append(ReadPlan(state.plan_wanted))
    if now >= state.next_full:
        state.next_full = _next(state.next_full, limits.FULL_STATE_EVERY_MS, now)
        if state.known:
            desk.effects += [Publish(part) for part in _snapshot(state)]


def _next(last: int, every_ms: int, now: int) -> int:
    """Return the next instant of a rhythm; what was missed is left out."""
    after = last + every_ms * MS
    return after if after > now else now + every_ms * MS


def _run_probes(state: State, now: int, grace_ns: int) -> None:
    desk = state.desk
    while (wake := desk.probes.wake_at()) is not None and wake <= now:
        turn = desk.probes.turn(now, grace_ns)
        desk.effects += [CancelProbe(run) for run in turn.cancel]
        for told in turn.told:
            take_verdict(desk, state.copies[told.copy], told)
        desk.effects += [start_probe(desk, state.copies[run.copy], run) for run in turn.start]


# --- the Spawner's facts, the plan ----------------------------------------------------------------


def _watch(state: State, incarnation: int, seq: int) -> None:
    state.desk.effects.append(Send(Agent.SPAWNER, state.node.name, Watch(incarnation, seq)))


def _take_facts(state: State, incarnation: int, facts: Facts) -> None:
    if not facts.full:
        if not state.known or incarnation != state.spawner or facts.seq > state.facts_seq + 1:
            _watch(state, 0, 0)
            return
        if facts.seq <= state.facts_seq:
            return
    elif state.known and incarnation == state.spawner and facts.seq < state.facts_seq:
        return
    state.spawner, state.facts_seq, state.known = incarnation, facts.seq, True
    for fact in facts.facts:
        copy = state.copies.get(fact.copy)
        if copy is None:
            copy = Copy(fact, Deaths(fact.copy))
            state.copies[fact.copy] = copy
            recall(state.desk, copy, state.restored.pop(PREFIX + fact.copy, None))
            take_process(state.desk, copy, state.processes.get(process_of(fact.copy)))
            take_fact(state.desk, copy, fact, first=True)
        else:
            take_fact(state.desk, copy, fact)
    if facts.full:
        state.listing = {}
    if state.listing is not None:
        _take_listing(state, state.listing, facts)
    if facts.plan_digest and facts.plan_digest != state.plan_wanted:
        state.plan_wanted = facts.plan_digest
        if facts.plan_digest != state.plan_digest:
            state.desk.effects.append(ReadPlan(facts.plan_digest))


def _take_listing(state: State, listing: dict[str, None], facts: Facts) -> None:
    """A full list goes on over as many messages as are filled; what it has not named at its end is gone."""
    listing.update((fact.copy, None) for fact in facts.facts)
    if len(facts.facts) >= limits.MAX_BATCH:
        return
    state.listing = None
    for key in [key for key in state.copies if key not in listing]:
        leave(state.desk, state.copies.pop(key))
        state.desk.dirty[key] = None


def _take_plan(state: State, plan: PlanKnown) -> None:
    state.plan_digest = plan.digest
    state.desk.plan_known = True
    state.processes = {
        process_id(tenant.name, process.name): process for tenant in plan.tenants for process in tenant.processes
    }
    for key, copy in state.copies.items():
        take_process(state.desk, copy, state.processes.get(process_of(key)))


# --- what is said ---------------------------------------------------------------------------------


def _say_changes(state: State) -> None:
    """Broadcast the copies whose view is another than the last one said."""
    dirty, state.desk.dirty = state.desk.dirty, {}
    changed: list[CopyState] = []
    gone: list[str] = []
    for key in dirty:
        copy = state.copies.get(key)
        if copy is None:
            if state.said.pop(key, None) is not None:
                state.digest.drop(key)
                gone.append(key)
            continue
        view = copy.view()
        if view != state.said.get(key):
            state.said[key] = view
            state.digest.put(view)
            changed.append(view)
    size = limits.DELTA_BATCH
    for at in range(0, max(len(changed), len(gone)), size):
        state.seq += 1
        delta = StateDelta(tuple(changed[at : at + size]), tuple(gone[at : at + size]), state.seq)
        state.desk.effects.append(Publish(delta))


def _snapshot(state: State) -> list[Snapshot]:
    copies, size = list(state.said.values()), limits.SNAPSHOT_BATCH
    parts = max(1, -(-len(copies) // size))
    return [Snapshot(state.seq, n, parts, tuple(copies[n * size : (n + 1) * size])) for n in range(parts)]


__all__ = [
    "AgentsKnown", "CancelProbe", "CloseLog", "PidGone", "PlanKnown", "ProbeDone", "ReadPlan", "State", "start", "step",
    "wake_at",
]  # fmt: skip
