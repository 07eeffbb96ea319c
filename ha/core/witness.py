"""Witness: the machine of a voter. It only votes: grants, renews and releases leases, and never runs anything.

Laws (design section 3, rules 1-5):
- a promise counts from the *receipt* of a claim or renewal, for the largest promise any holder ever asked for;
- an epoch is on disk before the reply that grants it, and only grows;
- for one promise after its start a voter grants claims to nobody, only renewals (what it promised before is forgotten);
- a voter without state, or with an older boot counter than its peers remember, first copies from all the others;
- another digest of voters and timing is refused as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ha.core.machine import Effect, Note, Persist, Received, Send, Step, Tick
from ha.core.machine import Event as AnyEvent
from ha.model.messages import (
    LeaseRef,
    LeaseRelease,
    Message,
    Verdict,
    VoteClaim,
    VoteProbe,
    VoteRelease,
    VoteRenew,
    VoteReply,
    VoterHello,
    VoterLease,
    VoterState,
)
from ha.model.names import Agent
from ha.model.plan import System
from ha.model.timing import MS


@dataclass(slots=True)
class Promise:
    """What this voter knows of one lease. Instants are ns of its own boottime clock."""

    holder: str
    epoch: int
    until: int  # grants nobody else before
    released: bool = False
    heir: str = ""
    heir_until: int = 0
    moves: int = 0
    moves_since: int = 0
    idle: bool = False  # not held or renewed since this voter's start


@dataclass(slots=True)
class Peer:
    """Another voter: the boot counters it was seen with."""

    boots: int = 0  # of its present incarnation
    before: int = 0  # the highest of earlier incarnations
    incarnation: int = 0
    answered: bool = False


@dataclass(slots=True)
class State:
    """All of a voter."""

    name: str
    rules: str
    boots: int
    promise_ns: int  # the largest ever asked for
    retry_ns: int
    claims_from: int  # no claim is granted before this instant
    copying: bool
    fresh: bool
    leases: dict[str, Promise] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    sets: dict[str, tuple[int, str, tuple[LeaseRef, ...]]] = field(default_factory=dict)  # by holder
    next_hello: int = 0
    foreign_rules: str = ""  # last digest that was refused, so that it is noted once


def start(name: str, system: System, boots: int, restored: dict[str, object], now: int) -> State:
    """Return a voter just started. `restored`: its journal; empty means a voter without state."""
    promise_ms = max(system.timing.promise_ms, _int(restored.get("promise")))
    fresh = "initialised" not in restored
    state = State(
        name=name, rules=system.rules_digest(), boots=boots, promise_ns=promise_ms * MS,
        retry_ns=system.timing.suspect_ms * MS, claims_from=now + promise_ms * MS,
        copying=fresh and len(system.voters) > 1, fresh=fresh, next_hello=now,
    )  # fmt: skip
    for key, value in restored.items():
        kind, _, rest = key.partition("/")
        if kind == "lease" and isinstance(value, list | tuple):
            holder, epoch, released = value
            state.leases[rest] = Promise(str(holder), int(epoch), state.claims_from, released=bool(released), idle=True)
        elif kind == "peer":
            state.peers[rest] = Peer(before=_int(value))
    for voter in system.voters:
        if voter != name:
            state.peers.setdefault(voter, Peer())
    return state


def wake_at(state: State) -> int | None:
    """Return when the voter next wants to ask the others, or None."""
    return None if _all_answered(state) else state.next_hello


def step(state: State, event: AnyEvent, now: int) -> Step[State]:
    """Take one event; see the module's laws."""
    effects: list[Effect] = []
    match event:
        case Received(role=Agent.SERVER, body=body):
            reply = _vote(state, event.node, body, now, effects)
            if reply is not None:
                effects.append(Send(Agent.SERVER, event.node, reply, event.request))
        case Received(role=Agent.WITNESS, body=VoterHello() as hello):
            _hello(state, event, hello, effects)
        case Received(role=Agent.WITNESS, body=VoterState() as answer):
            _copied(state, event.node, answer, now, effects)
        case Tick():
            _ask_voters(state, now, effects)
        case _:
            pass
    return Step(state, effects)


def may_claim(state: State, name: str, holder: str, now: int) -> str:
    """Return why a claim by `holder` is refused now, or an empty string."""
    if now < state.claims_from:
        return "started less than one promise ago"
    promise = state.leases.get(name)
    if promise is None:
        return ""
    if not promise.released and now < promise.until:
        return "promised"
    if promise.released and promise.heir not in ("", holder) and now < promise.heir_until:
        return "kept for its heir"
    return ""


def may_renew(state: State, ref: LeaseRef, holder: str, now: int) -> str:
    """Return why a renewal of `ref` by `holder` is refused now, or an empty string."""
    promise = state.leases.get(ref.name)
    if promise is None:
        return ""
    if ref.epoch < promise.epoch:
        return "newer epoch"
    if ref.epoch == promise.epoch:
        if promise.holder != holder:
            return "held by another"
        return "released" if promise.released else ""
    if promise.holder != holder and not promise.released and now < promise.until:
        return "promised"
    return ""


def _vote(state: State, holder: str, body: Message, now: int, effects: list[Effect]) -> VoteReply | None:
    kind = {VoteProbe: "probe", VoteClaim: "claim", VoteRenew: "renew", VoteRelease: "release"}.get(type(body))
    if kind is None:
        return None
    round_ = body.round  # type: ignore[attr-defined]
    if state.copying:
        return VoteReply(round_, kind, refused="this voter is copying the state of the others")
    if isinstance(body, VoteClaim | VoteRenew):
        if body.rules != state.rules:
            if body.rules != state.foreign_rules:
                state.foreign_rules = body.rules
                reason = f"voters or timing differ: {body.rules}, here {state.rules}"
                effects.append(Note("rules-differ", holder, reason=reason))
            return VoteReply(round_, kind, refused="voters or timing differ from this voter's system file")
        _honour(state, body.promise_ms, effects)
    match body:
        case VoteProbe():
            return VoteReply(round_, kind, tuple(_probe(state, name, holder, now) for name in body.leases))
        case VoteClaim():
            return VoteReply(round_, kind, _claim(state, body.leases, holder, now, effects))
        case VoteRenew():
            return _renew(state, body, holder, now, effects)
        case VoteRelease():
            return VoteReply(round_, kind, tuple(_release(state, r, holder, now, effects) for r in body.releases))
    return None


def _honour(state: State, promise_ms: int, effects: list[Effect]) -> None:
    """A larger promise is remembered before anything is granted under it."""
    if promise_ms * MS > state.promise_ns:
        state.promise_ns = promise_ms * MS
        effects.append(Persist("promise", promise_ms))


def _verdict(state: State, name: str, refusal: str, now: int) -> Verdict:
    promise = state.leases.get(name)
    if promise is None:
        wait = max(0, state.claims_from - now) if refusal else 0
        return Verdict(name, not refusal, refusal, remaining_ms=-(-wait // MS), idle=True)
    until = max(promise.heir_until if promise.released else promise.until, state.claims_from)
    age = 0 if not promise.moves else (now - promise.moves_since) // MS
    return Verdict(
        name, not refusal, refusal, promise.epoch, promise.holder,
        -(-max(0, until - now) // MS),  # rounded up: a claim one tick early is refused
        promise.heir, promise.moves, age, promise.released, promise.idle,
    )  # fmt: skip


def _probe(state: State, name: str, holder: str, now: int) -> Verdict:
    """Yes: this holder could renew what stands here, or claim the next epoch."""
    promise = state.leases.get(name)
    mine = promise is not None and promise.holder == holder and not promise.released
    return _verdict(state, name, "" if mine else may_claim(state, name, holder, now), now)


def _claim(
    state: State, refs: tuple[LeaseRef, ...], holder: str, now: int, effects: list[Effect]
) -> tuple[Verdict, ...]:
    verdicts = []
    for ref in refs:
        promise = state.leases.get(ref.name)
        repeated = promise is not None and (promise.holder, promise.epoch) == (holder, ref.epoch)
        if repeated and promise is not None:
            refusal = "released" if promise.released else ""
        elif promise is not None and ref.epoch <= promise.epoch:
            refusal = "newer epoch"
        else:
            refusal = may_claim(state, ref.name, holder, now)
        if not refusal:
            _take(state, ref, holder, now, effects)
        verdicts.append(_verdict(state, ref.name, refusal, now))
    _sync_once(effects)
    return tuple(verdicts)


def _take(state: State, ref: LeaseRef, holder: str, now: int, effects: list[Effect]) -> None:
    """Promise `ref` to `holder` from now; what is not on disk yet is persisted."""
    promise = state.leases.get(ref.name)
    until = now + state.promise_ns
    if promise is None:
        state.leases[ref.name] = Promise(holder, ref.epoch, until)
    elif (promise.holder, promise.epoch) == (holder, ref.epoch):
        promise.until, promise.idle = until, False
        return
    else:
        promise.holder, promise.epoch, promise.until = holder, ref.epoch, until
        promise.released, promise.heir, promise.heir_until, promise.idle = False, "", 0, False
    effects.append(Persist(f"lease/{ref.name}", [holder, ref.epoch, False], sync=False))


def _sync_once(effects: list[Effect]) -> None:
    """Many leases, one fsync: the last persist carries it for all before."""
    for index in range(len(effects) - 1, -1, -1):
        effect = effects[index]
        if isinstance(effect, Persist):
            effects[index] = Persist(effect.key, effect.value, sync=True)
            return


def _renew(state: State, body: VoteRenew, holder: str, now: int, effects: list[Effect]) -> VoteReply:
    if body.leases is not None:
        state.sets[holder] = (body.set_version, body.set_digest, body.leases)
    version, digest, refs = state.sets.get(holder, (-1, "", ()))
    if (version, digest) != (body.set_version, body.set_digest):
        return VoteReply(body.round, "renew", need_list=True)
    refused = []
    for ref in refs:
        refusal = may_renew(state, ref, holder, now)
        if refusal:
            refused.append(_verdict(state, ref.name, refusal, now))
        else:
            _take(state, ref, holder, now, effects)
    _sync_once(effects)
    return VoteReply(body.round, "renew", tuple(refused))


def _release(state: State, release: LeaseRelease, holder: str, now: int, effects: list[Effect]) -> Verdict:
    promise = state.leases.get(release.name)
    if promise is None or release.epoch > promise.epoch:
        if promise is not None and promise.holder != holder and not promise.released and now < promise.until:
            return _verdict(state, release.name, "promised", now)
        promise = state.leases[release.name] = Promise(holder, release.epoch, now)
    if (promise.holder, promise.epoch) != (holder, release.epoch):
        return _verdict(state, release.name, "newer epoch", now)
    if not promise.released:
        promise.released, promise.until = True, now
        if not release.withdrawn:
            promise.heir = release.heir
            promise.heir_until = now + state.promise_ns if release.heir else 0
            promise.moves, promise.moves_since = release.moves, now - release.moves_age_ms * MS
        effects.append(Persist(f"lease/{release.name}", [holder, release.epoch, True], sync=False))
    return _verdict(state, release.name, "", now)


def _all_answered(state: State) -> bool:
    return not state.copying and all(peer.answered for peer in state.peers.values())


def _ask_voters(state: State, now: int, effects: list[Effect]) -> None:
    if state.copying and not state.peers:
        _initialised(state, now, effects)
    if _all_answered(state) or now < state.next_hello:
        return
    state.next_hello = now + state.retry_ns
    hello = VoterHello(state.boots, state.copying)
    effects.extend(
        Send(Agent.WITNESS, name, hello)
        for name, peer in sorted(state.peers.items())
        if state.copying or not peer.answered
    )


def _hello(state: State, event: Received, hello: VoterHello, effects: list[Effect]) -> None:
    peer = state.peers.get(event.node)
    if peer is None:
        return
    if event.incarnation != peer.incarnation:
        peer.before = max(peer.before, peer.boots)
        peer.boots, peer.incarnation = hello.boots, event.incarnation
        effects.append(Persist(f"peer/{event.node}", max(peer.before, hello.boots)))
    leases = tuple(VoterLease(name, p.holder, p.epoch) for name, p in sorted(state.leases.items()))
    answer = VoterState(peer.before, state.fresh, state.promise_ns // MS, leases if hello.want_leases else ())
    effects.append(Send(Agent.WITNESS, event.node, answer, event.request))


def _copied(state: State, voter: str, answer: VoterState, now: int, effects: list[Effect]) -> None:
    peer = state.peers.get(voter)
    if peer is None:
        return
    if not state.copying:
        peer.answered = True
        if answer.your_boots >= state.boots:
            # Our disk is older than what this peer saw of us: what we promised since is unknown here.
            state.copying, state.next_hello = True, now
            for other in state.peers.values():
                other.answered = False
            effects.append(Note("voter-stale", state.name, reason=f"boot counter {state.boots}, {voter} saw newer"))
        return
    peer.answered = True
    _honour(state, answer.promise_ms, effects)
    for lease in answer.leases:
        known = state.leases.get(lease.name)
        if known is None or lease.epoch > known.epoch:
            until = now + state.promise_ns
            state.leases[lease.name] = Promise(lease.holder, lease.epoch, until, idle=True)
    if all(other.answered for other in state.peers.values()):
        _initialised(state, now, effects)


def _initialised(state: State, now: int, effects: list[Effect]) -> None:
    """All the others were heard: remember what they know; claims wait one promise from here."""
    state.copying = state.fresh = False
    state.claims_from = now + state.promise_ns
    for name, promise in sorted(state.leases.items()):
        promise.until = state.claims_from
        effects.append(Persist(f"lease/{name}", [promise.holder, promise.epoch, promise.released], sync=False))
    effects.append(Persist("initialised", True))
    effects.append(Note("voter-up", state.name, reason="copied the state of the other voters"))


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
