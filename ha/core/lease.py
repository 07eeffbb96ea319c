"""Lease: the holder's side of the votes. Which leases this Server holds, until when, and how it gets and gives them.

Laws (design section 3, rules 2, 5, 6):
- a lease is counted from the moment its request was *sent*: with the k-th latest of the acknowledged send times, k a
  majority of the voters, the lease ends `freeze_after` later;
- a claim, and the renewal of a lapsed lease, is preceded by a probe that changes nothing; a majority's yes goes on;
- a failed claim is withdrawn at every voter; a late or doubled reply changes nothing;
- "lost" means: refused by a majority at our epoch. Silence is not a refusal: it only lets the lease lapse.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from ha.core.machine import Effect, Send
from ha.model.digest import digest_of
from ha.model.messages import (
    LeaseRef,
    LeaseRelease,
    Verdict,
    VoteClaim,
    VoteProbe,
    VoteRelease,
    VoteRenew,
    VoteReply,
)
from ha.model.names import Agent
from ha.model.plan import System
from ha.model.timing import MS


class Phase(Enum):
    """Where an attempt to get, or get back, a lease stands."""

    PROBING = "probing"
    CLAIMING = "claiming"


class Outcome(Enum):
    """What came of a vote."""

    MAY_CLAIM = "may claim"  # a majority would grant it: decide, then `claim`
    WON = "won"
    FAILED = "failed"  # not now: `remaining_ms` says when to ask again
    LOST = "lost"  # a majority refused our renewal
    RESUMED = "resumed"  # a lapsed lease may be renewed again


@dataclass(slots=True, frozen=True)
class Result:
    """One outcome about one lease, with the best knowledge of the voters that answered."""

    outcome: Outcome
    name: str
    epoch: int = 0
    holder: str = ""
    remaining_ms: int = 0
    heir: str = ""
    moves: int = 0
    moves_age_ms: int = 0
    idle: bool = False
    released: bool = False
    reason: str = ""


@dataclass(slots=True)
class Held:
    """A lease this Server holds. `lapsed`: not renewed any more until a probe lets it (rule 5).

    `resumed`: send time of the probe that let it; renewals have `freeze_after` from there to be acknowledged.
    """

    epoch: int
    acked: dict[str, int] = field(default_factory=dict)  # voter -> send time of the last request it said yes to
    refused: set[str] = field(default_factory=set)
    lapsed: bool = False
    resumed: int = 0


@dataclass(slots=True)
class Attempt:
    """A probe or claim under way."""

    phase: Phase
    round: int
    sent: int
    epoch: int = 0
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)  # answered, but refused the whole request


@dataclass(slots=True)
class Book:
    """All leases of one Server."""

    me: str
    system: System
    rules: str
    round: int = 0
    set_version: int = 0
    set_digest: str = ""
    refs: tuple[LeaseRef, ...] = ()
    held: dict[str, Held] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    sent: dict[int, tuple[int, int]] = field(default_factory=dict)  # renewal round -> (send time, set version)
    seen: dict[str, int] = field(default_factory=dict)  # voter -> when it last answered
    refusing: dict[str, str] = field(default_factory=dict)  # voter -> why it refuses whole requests
    listed: set[str] = field(default_factory=set)  # voters that were sent the present list


def open_book(me: str, system: System, boots: int) -> Book:
    """Return an empty book of the Server on node `me`; rounds of another start never meet (`boots`)."""
    return Book(me, system, system.rules_digest(), round=boots << 32)


def adopt(book: Book, name: str, epoch: int) -> None:
    """Take a lease from the journal: held as far as we know, renewed only after a probe."""
    book.held[name] = Held(epoch, lapsed=True)


def valid_until(book: Book, name: str) -> int:
    """Return until when (ns) the lease is ours for sure; 0 when it is not."""
    held = book.held.get(name)
    if held is None or held.lapsed:
        return 0
    times = sorted(held.acked.values(), reverse=True)
    if len(times) < book.system.majority:
        return 0
    return times[book.system.majority - 1] + book.system.timing.freeze_after_ms * MS


def valid(book: Book, name: str, now: int) -> bool:
    """Return whether the lease is ours now."""
    return now < valid_until(book, name)


def renew(book: Book, now: int) -> list[Effect]:
    """Renew everything held in one message a voter; leases that lapsed leave the list until probed."""
    patience = book.system.timing.freeze_after_ms * MS
    for name, held in book.held.items():
        if not held.lapsed and not valid(book, name, now) and not (held.resumed and now < held.resumed + patience):
            held.lapsed, held.resumed = True, 0
            held.acked.clear()
    _relist(book)
    if not book.refs:
        return []
    book.round += 1
    book.sent[book.round] = (now, book.set_version)
    for old in [r for r, (sent, _) in book.sent.items() if sent < now - 10 * book.system.timing.freeze_after_ms * MS]:
        del book.sent[old]
    return [_renewal(book, voter, voter not in book.listed) for voter in book.system.voters]


def probe(book: Book, names: tuple[str, ...], now: int) -> list[Effect]:
    """Ask all voters whether they would grant (or let us renew) these leases."""
    if not names:
        return []
    book.round += 1
    for name in names:
        book.attempts[name] = Attempt(Phase.PROBING, book.round, now)
    return _to_voters(book, VoteProbe(book.round, names))


def claim(book: Book, refs: tuple[LeaseRef, ...], now: int) -> list[Effect]:
    """Claim these leases at these epochs, after a probe said a majority would grant them."""
    if not refs:
        return []
    book.round += 1
    for ref in refs:
        book.attempts[ref.name] = Attempt(Phase.CLAIMING, book.round, now, ref.epoch)
    return _to_voters(book, VoteClaim(book.round, refs, book.system.timing.promise_ms, book.rules))


def release(book: Book, releases: tuple[LeaseRelease, ...]) -> list[Effect]:
    """Give leases back; the caller has journalled it. Also withdraws claims."""
    if not releases:
        return []
    for one in releases:
        book.held.pop(one.name, None)
        book.attempts.pop(one.name, None)
    _relist(book)
    book.round += 1
    return _to_voters(book, VoteRelease(book.round, releases))


def expire(book: Book, now: int) -> tuple[list[Result], list[Effect]]:
    """End attempts that no majority answered in time; failed claims are withdrawn."""
    bound = _attempt_ns(book)
    return _close(book, [n for n, a in book.attempts.items() if now >= a.sent + bound], "no majority answered", now)


def next_expiry(book: Book) -> int | None:
    """Return when `expire` has something to do."""
    if not book.attempts:
        return None
    return min(attempt.sent for attempt in book.attempts.values()) + _attempt_ns(book)


def on_reply(book: Book, voter: str, reply: VoteReply, now: int) -> tuple[list[Result], list[Effect]]:
    """Take a voter's reply."""
    if voter not in book.system.voters:
        return [], []
    book.seen[voter] = now
    if reply.refused:
        book.refusing[voter] = reply.refused
    else:
        book.refusing.pop(voter, None)
    if reply.kind == "renew":
        return _renewed(book, voter, reply)
    if reply.kind in ("probe", "claim"):
        return _counted(book, voter, reply, now)
    return [], []


def _attempt_ns(book: Book) -> int:
    timing = book.system.timing
    return (2 * timing.rtt_ms + timing.stall_ms) * MS


def _to_voters(book: Book, body: VoteProbe | VoteClaim | VoteRelease) -> list[Effect]:
    return [Send(Agent.WITNESS, voter, body, body.round) for voter in book.system.voters]


def _relist(book: Book) -> None:
    refs = tuple(LeaseRef(name, held.epoch) for name, held in sorted(book.held.items()) if not held.lapsed)
    if refs != book.refs:
        book.refs = refs
        book.set_version += 1
        book.set_digest = digest_of(repr([(ref.name, ref.epoch) for ref in refs]).encode())
        book.listed.clear()


def _renewal(book: Book, voter: str, whole: bool) -> Send:
    if whole:
        book.listed.add(voter)
    body = VoteRenew(
        book.round, book.set_version, book.set_digest, book.system.timing.promise_ms, book.rules,
        book.refs if whole else None,
    )  # fmt: skip
    return Send(Agent.WITNESS, voter, body, book.round)


def _renewed(book: Book, voter: str, reply: VoteReply) -> tuple[list[Result], list[Effect]]:
    sent, version = book.sent.get(reply.round, (0, -1))
    if version != book.set_version or reply.refused:
        return [], []  # an answer about another list says nothing about the leases of this one
    if reply.need_list:
        # Same round, same send time: the request it answers was sent no later than this repetition.
        book.listed.discard(voter)
        return [], [_renewal(book, voter, True)] if reply.round == book.round else []
    refusals = {verdict.name: verdict for verdict in reply.verdicts}
    results = []
    for ref in book.refs:
        held = book.held.get(ref.name)
        if held is None or held.epoch != ref.epoch:
            continue
        verdict = refusals.get(ref.name)
        if verdict is None:
            held.refused.discard(voter)
            held.acked[voter] = max(sent, held.acked.get(voter, 0))
        else:
            held.acked.pop(voter, None)
            held.refused.add(voter)
            if len(held.refused) >= book.system.majority:
                results.append(_result(Outcome.LOST, ref.name, [verdict], verdict.reason))
    for result in results:
        del book.held[result.name]
    return results, []


def _counted(book: Book, voter: str, reply: VoteReply, now: int) -> tuple[list[Result], list[Effect]]:
    done: list[Result] = []
    failed: list[str] = []
    wanted = Phase.PROBING if reply.kind == "probe" else Phase.CLAIMING
    if reply.refused:
        for name, attempt in book.attempts.items():
            if attempt.round == reply.round:
                attempt.silent.add(voter)
                failed.append(name)
    for verdict in reply.verdicts:
        attempt = book.attempts.get(verdict.name) or Attempt(wanted, -1, 0)
        if attempt.round != reply.round or attempt.phase is not wanted:
            continue
        attempt.verdicts[voter] = verdict
        yes = sum(1 for v in attempt.verdicts.values() if v.yes)
        if yes >= book.system.majority:
            done.append(_agreed(book, verdict.name, attempt))
        else:
            failed.append(verdict.name)
    hopeless = [n for n in failed if n in book.attempts and _hopeless(book, book.attempts[n])]
    results, effects = _close(book, hopeless, "", now)
    return done + results, effects


def _agreed(book: Book, name: str, attempt: Attempt) -> Result:
    """A majority said yes: to a probe (go on), or to a claim (it is ours, from the send of the claim)."""
    del book.attempts[name]
    verdicts = list(attempt.verdicts.values())
    held = book.held.get(name)
    if attempt.phase is Phase.CLAIMING:
        yes = {voter: attempt.sent for voter, v in attempt.verdicts.items() if v.yes}
        book.held[name] = Held(attempt.epoch, acked=yes)
        _relist(book)
        return _result(Outcome.WON, name, verdicts, "", epoch=attempt.epoch)
    if held is not None:
        if _newer(verdicts, held.epoch) >= book.system.majority:
            del book.held[name]
            return _result(Outcome.LOST, name, verdicts, "newer epoch")
        held.lapsed, held.resumed = False, attempt.sent
        held.acked.clear()
        held.refused.clear()
        _relist(book)
        return _result(Outcome.RESUMED, name, verdicts, "")
    return _result(Outcome.MAY_CLAIM, name, verdicts, "")


def _hopeless(book: Book, attempt: Attempt) -> bool:
    no = sum(1 for verdict in attempt.verdicts.values() if not verdict.yes) + len(attempt.silent)
    return len(book.system.voters) - no < book.system.majority


def _newer(verdicts: list[Verdict], epoch: int) -> int:
    """Return how many voters saw our epoch end: a newer one, or our own release."""
    return sum(1 for v in verdicts if v.epoch > epoch or (v.epoch == epoch and v.released))


def _close(book: Book, names: list[str], reason: str, now: int) -> tuple[list[Result], list[Effect]]:
    results, withdrawn = [], []
    for name in names:
        attempt = book.attempts.pop(name)
        verdicts = list(attempt.verdicts.values())
        held = book.held.get(name)
        if attempt.phase is Phase.CLAIMING:
            withdrawn.append(LeaseRelease(name, attempt.epoch, withdrawn=True))
        elif (
            held is not None and sum(1 for v in verdicts if not v.yes and v.epoch > held.epoch) >= book.system.majority
        ):
            del book.held[name]
            results.append(_result(Outcome.LOST, name, verdicts, "newer epoch"))
            continue
        why = reason or next((v.reason for v in verdicts if not v.yes), "refused")
        failed = _result(Outcome.FAILED, name, verdicts, why)
        # What a voter said was left was left when it said so, not now.
        left = max(0, failed.remaining_ms - (now - attempt.sent) // MS)
        results.append(replace(failed, remaining_ms=left))
    effects: list[Effect] = []
    if withdrawn:
        book.round += 1
        effects = _to_voters(book, VoteRelease(book.round, tuple(withdrawn)))
    return results, effects


def _result(outcome: Outcome, name: str, verdicts: list[Verdict], reason: str, epoch: int | None = None) -> Result:
    """Fold what the voters said: the highest epoch speaks for holder and heir."""
    if not verdicts:
        return Result(outcome, name, epoch=epoch or 0, reason=reason)
    top = max(verdicts, key=lambda v: (v.epoch, not v.released, v.remaining_ms))
    moves = max(verdicts, key=lambda v: (v.moves, -v.moves_age_ms))
    return Result(
        outcome, name, top.epoch if epoch is None else epoch, top.holder,
        max(v.remaining_ms for v in verdicts), top.heir, moves.moves, moves.moves_age_ms,
        all(v.idle for v in verdicts), top.released, reason,
    )  # fmt: skip
