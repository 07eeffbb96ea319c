"""The Server's machine: every event to its handler, then the decisions, then the orders.

One pass a step: messages and time change what is known (`nodes`, `claims`, `registers`, `plans`); `recovery.decide`
says what has to move; `orders.settle` says what every copy should be and sends what changed. Nothing is ordered or
granted by a Server that is not seated.
"""

from __future__ import annotations

from ha.core import lease
from ha.core.machine import Effect, Event, Publish, Received, Send, Step, Tick
from ha.core.server import claims, moves, nodes, operate, orders, plans, recovery, registers
from ha.core.server.state import (
    Checked,
    Directory,
    Exit,
    NodeView,
    Peer,
    State,
    Stopping,
    seated,
)
from ha.model.messages import (
    Answer,
    Ask,
    EventsSaid,
    Hello,
    OrdersAnswer,
    PeerBeat,
    PeerOffer,
    PeerShare,
    Pull,
    Relinquished,
    Snapshot,
    SnapshotRequest,
    StateBeat,
    StateDelta,
    TenantHeld,
    Told,
    VoteReply,
)
from ha.model.names import Agent, is_seat, process_of
from ha.model.plan import System
from ha.model.timing import MS

SNAPSHOT_RETRY_MS = 100
REVIEW_BEATS = 8


def start(node: str, system: System, boots: int, restored: dict[str, object], now: int) -> State:
    """Return a Server just started on `node`, with what its journal holds."""
    state = State(
        node=node, side=system.nodes[node].side, system=system, boots=boots,
        book=lease.open_book(node, system, boots), started=now, now=now, next_beat=now,
    )  # fmt: skip
    state.nodes = {name: NodeView() for name in system.nodes_of(state.side)}
    held = {key[5:]: value for key, value in restored.items() if key.startswith("held/")}
    claims.adopt(state, held, now)
    registers.restore(state, restored)
    plans.restore(state, restored)
    return state


def wake_at(state: State) -> int | None:
    """Return the next instant at which time alone changes something."""
    instants = [
        state.next_beat,
        moves.next_finish(state),
        nodes.next_detection(state) if state.seat_epoch else None,
        lease.next_expiry(state.book),
        claims.next_ask(state, state.now),
    ]
    return min(instant for instant in instants if instant is not None)


def step(state: State, event: Event, now: int) -> Step[State]:
    """Take one event."""
    state.now = now
    state.out = []
    match event:
        case Received():
            _received(state, event, now)
        case Tick():
            pass
        case Directory(files=files):
            plans.on_directory(state, files, now)
        case Checked():
            plans.on_checked(state, event, now)
        case Stopping():
            state.stopping = True
        case _:
            pass
    if not state.compiled:
        state.compiled = True
        plans.first(state)
    _time(state, now)
    recovery.decide(state, now)
    if not state.stopping:
        orders.settle(state, now)
    if state.renew_due:
        state.renew_due = False
        state.out.extend(lease.renew(state.book, now))
    operate.settle(state, now)
    out: list[Effect] = state.out
    state.out = []
    return Step(state, out)


def _received(state: State, event: Received, now: int) -> None:
    match event.body:
        case VoteReply() as reply:
            results, effects = lease.on_reply(state.book, event.node, reply, now)
            state.out.extend(effects)
            claims.take(state, results, now)
        case Pull() as pull:
            nodes.on_pull(state, event, pull, now)
        case OrdersAnswer() as answer:
            orders.on_answer(state, event.node, answer)
        case Relinquished() as word:
            moves.on_relinquished(state, event.node, word.tenant, word.fencing, now)
        case StateDelta() | StateBeat() | Snapshot():
            _on_state(state, event, now)
        case EventsSaid() as said:
            operate.on_events(state, event.node, said, now)
        case PeerBeat() as beat:
            _on_beat(state, event, beat, now)
        case PeerOffer() as offer:
            claims.on_offer(state, offer, now)
        case PeerShare() as share:
            _on_share(state, event, share, now)
        case Ask() as ask:
            operate.on_ask(state, event, ask, now)
        case Told() as told:
            operate.on_told(state, told, now)
        case Answer() | Hello():
            pass
        case _:
            pass


def _on_state(state: State, event: Received, now: int) -> None:
    """A Monitor spoke: keep its table in step, and look at every process that changed."""
    body = event.body
    assert isinstance(body, StateDelta | StateBeat | Snapshot)
    node = event.node
    if node not in state.system.nodes:
        return
    known = state.monitors.get(node)
    late = known is not None and now - known[1] > state.system.timing.freeze_after_ms * MS
    state.monitors[node] = (event.incarnation, now)
    if isinstance(body, StateBeat):
        state.beats[node] = body
    before = state.table.synced(node)
    result = state.table.apply(node, event.incarnation, body)
    for key in result.changed:
        state.touch_copy(key)
    if (late or not before) and state.table.synced(node):
        for name in state.tenants:
            state.touch(name)
    if result.need_snapshot and now - state.snapshots_asked.get(node, -(1 << 62)) >= SNAPSHOT_RETRY_MS * MS:
        state.snapshots_asked[node] = now
        state.out.append(Send(Agent.MONITOR, node, SnapshotRequest()))


def _on_beat(state: State, event: Received, beat: PeerBeat, now: int) -> None:
    if event.node == state.node or event.node not in state.system.servers():
        return
    known = state.peers.get(event.node)
    shared_at = known.shared_at if known else -(1 << 62)
    state.peers[event.node] = Peer(beat, now, event.incarnation, shared_at)
    was = known.beat if known else None
    if was is None or (was.nodes, was.seated) != (beat.nodes, beat.seated):
        for name in state.tenants:
            state.touch(name)
    if was is not None and was.held != beat.held:
        for name in {one.tenant for one in was.held} ^ {one.tenant for one in beat.held}:
            state.touch(name)
    registers.compare(state, now)


def _on_share(state: State, event: Received, share: PeerShare, now: int) -> None:
    registers.merge(state, share.registers)
    plans.merge(state, share.entries, now)
    if share.want:
        everything = tuple(state.registers[key] for key in sorted(state.registers))
        mine = PeerShare(everything, registers.catalog_entries(state))
        state.out.append(Send(Agent.SERVER, event.node, mine))


def _time(state: State, now: int) -> None:
    """What time alone brings; cheap enough to run in every step."""
    results, effects = lease.expire(state.book, now)
    state.out.extend(effects)
    claims.take(state, results, now)
    nodes.detect(state, now)
    moves.retry(state, now)
    if now >= state.next_beat:
        _beat(state, now)
    claims.ask(state, now)
    if state.stopping:
        _stop(state, now)


def _beat(state: State, now: int) -> None:
    timing = state.system.timing
    late = now - state.next_beat
    if late > timing.stall_ms * MS:
        # The tick came later than the accepted stall: no new verdicts for as long (rule 12).
        state.distrust_until = now + timing.beat_ms * MS
    state.next_beat = max(state.next_beat + timing.beat_ms * MS, now + timing.beat_ms * MS // 2)
    state.progress += 1
    state.out.extend(lease.renew(state.book, now))
    state.out.append(Publish(_my_beat(state, now)))
    orders.resend(state, now)
    recovery.fail_back(state, now)
    if state.progress % REVIEW_BEATS == 0:
        _review(state)


def _review(state: State) -> None:
    """Whether the other side stands ready changes with time alone too: say anew what a death is to lead to."""
    for name, run in state.runs.items():
        if run.epoch:
            for key, place in run.places.items():
                found = state.graph.found.get(process_of(key)) if place.fencing else None
                if found is not None and found[1].run_status.standby_runs:
                    state.dirty[f"{name}/{found[1].name}"] = None


def _my_beat(state: State, now: int) -> PeerBeat:
    held = tuple(
        TenantHeld(name, one.epoch, "releasing" if name in state.runs and state.runs[name].move else "held")
        for name, one in sorted(state.book.held.items())
        if not is_seat(name) and not one.lapsed
    )
    is_seated = seated(state, now)
    valid = max(0, (lease.valid_until(state.book, state.seat) - now) // MS)
    shown = tuple((name, nodes.shown_state(state, name).value) for name in sorted(state.nodes)) if is_seated else ()
    return PeerBeat(
        state.side, is_seated, state.seat_epoch, valid, held, shown,
        state.registers_digest, state.catalog_digest, state.progress,
    )  # fmt: skip


def _stop(state: State, now: int) -> None:
    """Give back tenants, then the seat, then end."""
    if not seated(state, now):
        state.out.append(Exit())
    elif recovery.give_back_all(state, now):
        recovery.release_seat(state, now)
        state.out.append(Publish(_my_beat(state, now)))
        state.out.append(Exit())
