"""Claims: who takes which lease when (design rules 5, 9 and 13). The only place where a lease is asked for.

A tenant nobody has held since the system started goes to its home at once, to the other side after `startup_wait`
(at once if the home cannot run it). After a loss the other side claims when the time reported by the voters is over,
the side that lost it `stagger` later. A released tenant goes to its heir; one released without an heir stays with the
side that had it. `hold` forbids the other side to claim.
"""

from __future__ import annotations

from ha.core import lease
from ha.core.lease import Outcome, Result
from ha.core.machine import Persist
from ha.core.server import moves
from ha.core.server.nodes import assume_granted
from ha.core.server.state import (
    Place,
    Run,
    State,
    covered,
    eligible,
    held_back,
    needs_lease,
    seated,
    seated_peer,
    tenant_started,
    usable,
)
from ha.model import limits
from ha.model.messages import LeaseRef, PeerOffer
from ha.model.names import SEAT_PREFIX, is_seat
from ha.model.plan import Tenant
from ha.model.timing import MS


def adopt(state: State, held: dict[str, object], now: int) -> None:
    """Take up what the journal says this Server held; everything is renewed before anything is moved (rule 9)."""
    for name, value in sorted(held.items()):
        if name == state.seat and isinstance(value, int):
            lease.adopt(state.book, name, value)
            state.seat_epoch = value
        elif not is_seat(name) and isinstance(value, dict):
            run = state.runs.setdefault(name, Run())
            run.epoch, run.inner = int(value["epoch"]), int(value["inner"])
            _restore_places(run, value["places"])
            lease.adopt(state.book, name, run.epoch)
            assume_granted(state, name, now)


def _restore_places(run: Run, places: dict[str, list[object]]) -> None:
    for key, (node, fencing) in places.items():
        run.places[key] = Place(str(node), int(str(fencing)))


def ask(state: State, now: int) -> None:
    """Probe for every lease that this Server should have, or lost sight of, and whose time has come."""
    if state.stopping or now < state.distrust_until:
        return
    names = [name for name, held in sorted(state.book.held.items()) if held.lapsed and _may_try(state, name, now)]
    if state.seat not in state.book.held and _may_try(state, state.seat, now) and _seat_is_free(state, now):
        names.append(state.seat)
    if seated(state, now):
        names += [name for name in state.tenants if _wants(state, name, now)]
    for name in names:
        _try_again(state, name, now + state.system.timing.renew_every_ms * MS)
    state.out.extend(lease.probe(state.book, tuple(names), now))


def next_ask(state: State, now: int) -> int | None:
    """Return the next instant at which `ask` may have something new to do."""
    tries = [run.next_try for name, run in state.runs.items() if not run.epoch and run.next_try > now]
    return min(tries, default=None)


def on_offer(state: State, offer: PeerOffer, now: int) -> None:
    """The holder released tenants to us: ask the voters at once."""
    names = tuple(
        ref.name
        for ref in offer.tenants
        if ref.name in state.tenants and _capable(state, ref.name) and not state.runs[ref.name].epoch
    )
    if seated(state, now) and not state.stopping:
        for name in names:
            state.runs[name].offered = now + limits.COMMAND_RETRY_MS * MS
        state.out.extend(lease.probe(state.book, names, now))


def take(state: State, results: list[Result], now: int) -> None:
    """Act on what the voters said."""
    refs = []
    for result in results:
        match result.outcome:
            case Outcome.MAY_CLAIM:
                if _goes(state, result, now):
                    refs.append(LeaseRef(result.name, result.epoch + 1))
            case Outcome.WON:
                _won(state, result, now)
            case Outcome.FAILED:
                _failed(state, result, now)
            case Outcome.LOST:
                _lost(state, result, now)
            case Outcome.RESUMED:
                pass
    state.out.extend(lease.claim(state.book, tuple(refs), now))
    if any(result.outcome in (Outcome.RESUMED, Outcome.WON) for result in results):
        state.renew_due = True


def _may_try(state: State, name: str, now: int) -> bool:
    when = state.seat_try if is_seat(name) else state.runs[name].next_try
    return name not in state.book.attempts and now >= when


def _try_again(state: State, name: str, when: int) -> None:
    if name.startswith(SEAT_PREFIX):
        state.seat_try = when
    elif name in state.runs:
        state.runs[name].next_try = when


def _seat_is_free(state: State, now: int) -> bool:
    return seated_peer(state, state.side, now) is None


def _wants(state: State, name: str, now: int) -> bool:
    tenant, run = state.tenants[name], state.runs[name]
    if run.epoch or name in state.book.held or not needs_lease(tenant) or not tenant_started(state, tenant):
        return False
    if now >= run.offered and covered(state, name, now):
        return False
    return _may_try(state, name, now) and _capable(state, name)


def _capable(state: State, name: str) -> bool:
    """Every exclusive process of the tenant has a node of this side that may run it."""
    tenant = state.tenants[name]
    return all(
        any(usable(state, node) for node in eligible(state, process, state.side))
        for process in tenant.processes
        if process.run_status.exclusive and process.enabled
    )


def _goes(state: State, result: Result, now: int) -> bool:
    """Decide whether to claim what a majority would grant."""
    if is_seat(result.name):
        return _seat_is_free(state, now) and not state.stopping and _seat_turn(state, result, now)
    tenant, run = state.tenants.get(result.name), state.runs.get(result.name)
    if tenant is None or run is None or not seated(state, now) or not tenant_started(state, tenant):
        return False
    run.seen = result
    wait_until = _turn(state, tenant, run, result, now)
    if wait_until > now:
        run.next_try = min(wait_until, now + state.system.timing.promise_ms * MS)
        return False
    run.claim_after = 0
    run.moves = result.moves
    run.moves_since = now - result.moves_age_ms * MS
    return True


def _seat_turn(state: State, result: Result, now: int) -> bool:
    """The preferred node takes the seat at once; the others leave it the time to come up, or to come back."""
    index = state.system.sides[state.side].index(state.node)
    if index == 0 or (result.holder and not result.idle) or result.heir == state.node:
        return True
    return now >= state.started + (state.system.timing.promise_ms * 2 + index * state.system.timing.stagger_ms) * MS


def _turn(state: State, tenant: Tenant, run: Run, result: Result, now: int) -> int:
    """Return when this side may claim the tenant; an instant not after `now` means at once."""
    timing = state.system.timing
    nodes = state.system.nodes
    mine = result.holder in nodes and nodes[result.holder].side == state.side
    other_can = not moves.refusal_to_move(state, tenant, standby=False, now=now)
    if result.released and result.heir == state.node:
        return now
    if result.idle or not result.holder:
        if tenant.home == state.side:
            return now
        if other_can or seated_peer(state, state.other, now) is None:
            return state.started + timing.startup_wait_ms * MS
        return now
    if held_back(state, tenant.name) and not mine:
        return now + timing.promise_ms * MS
    first = mine if result.released and not result.heir else not mine
    if first or not other_can:
        return now
    if not run.claim_after:
        run.claim_after = now + timing.stagger_ms * MS
    return run.claim_after


def _won(state: State, result: Result, now: int) -> None:
    if is_seat(result.name):
        state.out.append(Persist(f"held/{result.name}", result.epoch))
        state.seat_epoch, state.seated_at = result.epoch, now
        state.note("seat", state.side, to=state.node, epoch=result.epoch, reason="claimed")
        for view in state.nodes.values():
            view.full_sent = False
            view.orders.clear()
            view.by_process.clear()
        for name in state.tenants:
            state.touch(name)
        return
    run = state.runs.setdefault(result.name, Run())
    run.epoch, run.inner, run.move = result.epoch, 0, None
    for place in run.places.values():
        place.fencing = 0
    moves.remember(state, result.name, run)
    seen = run.seen
    before = state.system.nodes[seen.holder].side if seen and seen.holder in state.system.nodes else ""
    reason = "released to us" if seen and seen.released else "nobody held it"
    state.note("claimed", result.name, from_=before, to=state.side, epoch=result.epoch, reason=reason)
    state.touch(result.name)


def _failed(state: State, result: Result, now: int) -> None:
    """Ask again when the voters' promise to another is over; jitter keeps two claimants apart."""
    timing = state.system.timing
    jitter = (hash_of(state.node, state.book.round) % max(1, timing.rtt_ms)) * MS
    over = result.remaining_ms * MS
    wait = over + jitter // 8 if over else timing.renew_every_ms * MS + jitter
    _try_again(state, result.name, now + wait)
    run = state.runs.get(result.name)
    if run is not None:
        run.seen = result
        if now < run.offered:
            # The offer overtook the release on its way to a voter.
            run.next_try = now + limits.NUDGE_RETRY_MS * MS // 4


def hash_of(text: str, number: int) -> int:
    """Return a number that differs between nodes and rounds: the jitter of a machine without random."""
    value = number * 2654435761 & 0xFFFFFFFF
    for char in text:
        value = (value * 31 + ord(char)) & 0xFFFFFFFF
    return value ^ (value >> 15)


def _lost(state: State, result: Result, now: int) -> None:
    state.out.append(Persist(f"held/{result.name}", None))
    if is_seat(result.name):
        _unseated(state, result)
        return
    run = state.runs.get(result.name)
    if run is None:
        return
    state.note("lost", result.name, from_=state.side, to=result.holder, reason=result.reason, epoch=run.epoch)
    moves.forget(run)
    run.next_try = now + state.system.timing.promise_ms * MS
    state.touch(result.name)


def _unseated(state: State, result: Result) -> None:
    """Another Server decides for this side: everything held lapses, nothing more is ordered."""
    state.note("seat", state.side, from_=state.node, to=result.holder, reason=result.reason, epoch=state.seat_epoch)
    state.seat_epoch = 0
    state.ordering = False
    for name in [name for name in state.book.held if not is_seat(name)]:
        state.out.append(Persist(f"held/{name}", None))
        del state.book.held[name]
    for run in state.runs.values():
        moves.forget(run)
        run.places.clear()
    for view in state.nodes.values():
        view.orders.clear()
        view.by_process.clear()
        view.unanswered.clear()
        view.full_sent = False
