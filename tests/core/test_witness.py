"""The voter: what it grants, renews, refuses and remembers (design section 3, rules 1-5)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from server_bed import system

from ha.core import witness
from ha.core.machine import Effect, Persist, Received, Send, Tick
from ha.model.messages import (
    LeaseRef,
    LeaseRelease,
    Message,
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
from ha.model.timing import MS

SYSTEM = system()
RULES = SYSTEM.rules_digest()
PROMISE = SYSTEM.timing.promise_ms
SET = (1, "digest")


class Voter:
    """A voter, its journal and its clock."""

    def __init__(self, restored: dict[str, object] | None = None, boots: int = 2) -> None:
        self.now = 10**12
        self.disk: dict[str, object] = {"initialised": True} if restored is None else dict(restored)
        self.state = witness.start("a1", SYSTEM, boots, self.disk, self.now)

    def wait(self, ms: int) -> Voter:
        self.now += ms * MS
        return self

    def hear(self, role: Agent, node: str, body: Message, incarnation: int = 1) -> list[Effect]:
        effects = witness.step(self.state, Received(role, node, incarnation, 1, 5, body), self.now).effects
        for effect in effects:
            if isinstance(effect, Persist):
                self.disk[effect.key] = effect.value
        return effects

    def vote(self, holder: str, body: Message) -> VoteReply:
        effects = self.hear(Agent.SERVER, holder, body)
        sends = [effect for effect in effects if isinstance(effect, Send)]
        assert len(sends) == 1
        assert sends[0].request == 5
        # What is said is on disk before.
        persists = [i for i, effect in enumerate(effects) if isinstance(effect, Persist)]
        assert all(i < effects.index(sends[0]) for i in persists)
        reply = sends[0].body
        assert isinstance(reply, VoteReply)
        return reply

    def claim(self, holder: str, epoch: int, name: str = "acme") -> bool:
        reply = self.vote(holder, VoteClaim(1, (LeaseRef(name, epoch),), PROMISE, RULES))
        return not reply.refused and reply.verdicts[0].yes

    def renew(self, holder: str, epoch: int) -> bool:
        body = VoteRenew(1, epoch, f"d{epoch}", PROMISE, RULES, (LeaseRef("acme", epoch),))
        reply = self.vote(holder, body)
        return not reply.refused and not reply.verdicts

    def release(self, holder: str, epoch: int, **more: object) -> bool:
        one = LeaseRelease("acme", epoch, **more)  # type: ignore[arg-type]
        return self.vote(holder, VoteRelease(1, (one,))).verdicts[0].yes


def ready() -> Voter:
    return Voter().wait(PROMISE)


def test_a_started_voter_grants_no_claim_for_one_promise_but_renews() -> None:
    voter = Voter({"initialised": True, "lease/acme": ["a1", 4, False]})
    assert not voter.wait(PROMISE - 1).claim("b1", 5)
    assert voter.renew("a1", 4)
    assert not voter.wait(1).claim("b1", 5), "renewed a moment ago"
    assert voter.wait(PROMISE).claim("b1", 5)


def test_a_promise_counts_from_the_receipt_of_the_renewal() -> None:
    voter = ready()
    assert voter.claim("a1", 1)
    voter.wait(500)
    assert voter.renew("a1", 1)
    assert not voter.wait(PROMISE - 1).claim("b1", 2)
    assert voter.wait(1).claim("b1", 2)


def test_a_larger_promise_asked_for_once_is_honoured_after_a_restart() -> None:
    voter = ready()
    voter.vote("a1", VoteClaim(1, (LeaseRef("acme", 1),), 3 * PROMISE, RULES))
    again = Voter(voter.disk)
    assert not again.wait(3 * PROMISE - 1).claim("b1", 2)
    assert again.wait(1).claim("b1", 2)


def test_other_rules_are_refused_as_a_whole() -> None:
    voter = ready()
    reply = voter.vote("a1", VoteClaim(1, (LeaseRef("acme", 1),), PROMISE, "other"))
    assert reply.refused
    assert "lease/acme" not in voter.disk


def test_an_epoch_is_synced_before_it_is_granted_and_only_grows() -> None:
    voter = ready()
    effects = voter.hear(Agent.SERVER, "a1", VoteClaim(1, (LeaseRef("acme", 7), LeaseRef("globex", 1)), PROMISE, RULES))
    persists = [effect for effect in effects if isinstance(effect, Persist)]
    assert [effect.sync for effect in persists] == [False, True], "many leases, one fsync, before the reply"
    assert isinstance(effects[-1], Send)
    assert not voter.wait(2 * PROMISE).claim("b1", 7)
    assert not voter.claim("b1", 6)
    assert voter.claim("b1", 8)
    assert not voter.renew("a1", 7)


def test_a_released_lease_is_kept_for_its_heir_for_one_promise() -> None:
    voter = ready()
    assert voter.claim("a1", 1)
    assert voter.release("a1", 1, heir="b1")
    assert not voter.claim("a1", 2)
    assert not voter.renew("a1", 1), "a delayed renewal does not bring it back"
    assert voter.claim("b1", 2)


def test_the_heir_that_does_not_come_keeps_nobody_out_for_longer() -> None:
    voter = ready()
    voter.claim("a1", 1)
    voter.release("a1", 1, heir="b1")
    assert voter.wait(PROMISE).claim("a1", 2)


def test_only_the_holder_releases() -> None:
    voter = ready()
    voter.claim("a1", 1)
    assert not voter.release("b1", 1)
    assert not voter.claim("b1", 2)


def test_a_withdrawn_claim_frees_the_lease_at_once() -> None:
    voter = ready()
    voter.claim("a1", 1)
    assert voter.release("a1", 1, withdrawn=True)
    assert voter.claim("b1", 2)


def test_a_probe_changes_nothing() -> None:
    voter = ready()
    voter.claim("a1", 1)
    before = dict(voter.disk)
    voter.wait(300)
    verdict = voter.vote("b1", VoteProbe(1, ("acme",))).verdicts[0]
    assert (verdict.yes, verdict.epoch, verdict.holder, verdict.remaining_ms) == (False, 1, "a1", PROMISE - 300)
    assert voter.vote("a1", VoteProbe(1, ("acme",))).verdicts[0].yes
    assert voter.disk == before
    assert voter.wait(PROMISE - 300).claim("b1", 2)


def test_a_repeated_claim_is_answered_the_same() -> None:
    voter = ready()
    assert voter.claim("a1", 1)
    assert voter.claim("a1", 1)


def test_an_unknown_list_is_asked_for_and_renews_nothing() -> None:
    voter = ready()
    voter.claim("a1", 1)
    reply = voter.wait(100).vote("a1", VoteRenew(1, 9, "unknown", PROMISE, RULES, None))
    assert reply.need_list
    assert voter.wait(PROMISE - 100).claim("b1", 2)


def test_a_voter_without_state_first_copies_from_all_the_others() -> None:
    voter = Voter({})
    hellos = [e for e in witness.step(voter.state, Tick(), voter.now).effects if isinstance(e, Send)]
    assert {(send.node, send.body) for send in hellos} == {(n, VoterHello(2, True)) for n in ("b1", "w1")}
    assert not voter.wait(10 * PROMISE).claim("b1", 1)
    known = VoterState(0, False, 2 * PROMISE, (VoterLease("acme", "b1", 6),))
    voter.hear(Agent.WITNESS, "b1", known)
    assert not voter.claim("a1", 7), "one of two is not all"
    voter.hear(Agent.WITNESS, "w1", VoterState(0, True, PROMISE, ()))
    assert not voter.wait(2 * PROMISE - 1).claim("a1", 7), "what the others promised is honoured"
    assert not voter.claim("a1", 6)
    assert voter.wait(1).claim("a1", 7)


def test_a_voter_with_an_older_boot_counter_than_a_peer_saw_copies_anew() -> None:
    voter = Voter(boots=3)
    voter.hear(Agent.WITNESS, "w1", VoterState(5, False, PROMISE, ()))
    assert voter.state.copying
    assert not voter.wait(5 * PROMISE).claim("b1", 1)


def test_the_boot_counter_of_this_very_start_is_not_held_against_a_peer() -> None:
    voter = ready()
    first = voter.hear(Agent.WITNESS, "b1", VoterHello(4, False), incarnation=77)
    again = voter.hear(Agent.WITNESS, "b1", VoterHello(4, False), incarnation=77)
    later = voter.hear(Agent.WITNESS, "b1", VoterHello(4, False), incarnation=78)
    answers = [e.body for effects in (first, again, later) for e in effects if isinstance(e, Send)]
    assert [a.your_boots for a in answers if isinstance(a, VoterState)] == [0, 0, 4]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "renew", "release", "restart"]),
        st.sampled_from(["a1", "b1"]),
        st.integers(1, 4),
        st.integers(0, 1200),
    ),
    max_size=30,
)


@given(ACTIONS)
def test_never_two_holders_within_a_promise_whatever_is_asked(actions: list[tuple[str, str, int, int]]) -> None:
    voter = ready()
    granted: dict[str, int] = {}  # holder -> until when it was promised
    for kind, holder, epoch, wait in actions:
        voter.wait(wait)
        other = "b1" if holder == "a1" else "a1"
        if kind == "restart":
            now, voter = voter.now, Voter(voter.disk, boots=9)
            voter.now = now
            voter.state = witness.start("a1", SYSTEM, 9, voter.disk, now)
            continue
        if kind == "release":
            if voter.release(holder, epoch):
                granted.pop(holder, None)
            continue
        yes = voter.claim(holder, epoch) if kind == "claim" else voter.renew(holder, epoch)
        if yes:
            assert granted.get(other, 0) <= voter.now, f"{holder} was granted while {other} had a promise"
            granted[holder] = voter.now + PROMISE * MS
