"""The Spawner's laws under random interleavings: orders, grants, relinquish, deaths, late outcomes, restarts.

What the kernel does is in `spawner_bed`; the bed remembers until when any Grant has allowed a copy to act, which is
the truth the machine is held to. Time passes as the machine asks for it, so that a tick is never late here.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha.core.machine import Tick
from ha.core.spawning import events as ev
from ha.core.spawning.state import Ice, Phase
from ha.model import messages as m
from ha.model.names import Agent
from ha.model.status import Exit, Role, State, Wanted
from ha.model.timing import MS
from tests.core.spawner_bed import TIMING, Bed

COPIES = ("acme/ivr.1", "acme/warm.1", "acme/plain.1", "acme/db.1", "acme/web.1")
F = 65536

ORDERS = st.tuples(
    st.just("order"), st.sampled_from(COPIES), st.sampled_from([Role.ACTIVE, Role.STANDBY, None]), st.integers(0, 3)
)
ACTIVATE = st.tuples(
    st.just("activate"), st.sampled_from(COPIES[:4]), st.integers(0, 3), st.sampled_from([400, 700, 2_000])
)
DEEDS = st.one_of(
    ORDERS,
    ACTIVATE,
    ACTIVATE,
    st.tuples(
        st.just("allow"), st.sampled_from(COPIES[:4]), st.integers(0, 3), st.sampled_from([150, 400, 700, 2_000])
    ),
    st.tuples(st.just("forbid"), st.sampled_from(COPIES[:4])),
    st.tuples(st.just("relinquish"), st.integers(0, 3), st.sampled_from([0, 0, 100, 250])),
    st.tuples(st.just("run"), st.sampled_from([1, 20, 95, 300, 900, 6_000])),
    st.tuples(st.just("outcomes"), st.integers(1, 6)),
    st.tuples(st.just("crash"), st.sampled_from(COPIES)),
    st.tuples(st.just("revive"), st.sampled_from(COPIES), st.booleans()),
    st.tuples(st.just("answering"), st.booleans()),
    st.tuples(st.just("connect"), st.sampled_from(COPIES)),
    st.tuples(st.just("fail-role"), st.sampled_from(COPIES)),
    st.tuples(st.just("restart")),
)


class Lawful(Bed):
    """A bed that checks the laws after every step."""

    def __init__(self, auto: bool) -> None:
        self.wanted: dict[str, m.Order] = {}
        self.started: dict[str, int] = {}
        super().__init__(auto=auto, check=lambda _: self.laws())

    def laws(self) -> None:
        for tree in self.trees.values():
            if not tree.exclusive or tree.frozen or tree.role is not Role.ACTIVE:
                continue
            copy = self.state.copies[tree.copy]
            if copy.phase in (Phase.SPAWNING, Phase.ADOPTING, Phase.KILLING):
                continue  # its outcome is due: checked when it comes
            until = self.promises.get(tree.copy, 0)
            assert self.now < until, f"{tree.copy} acts at {self.now}, its right was over at {until}"
        for copy in self.state.copies.values():
            never = self.state.never.get(copy.tenant, 0)
            tree = self.trees.get(copy.instance)
            if tree is not None and copy.acts and not tree.frozen and copy.phase is Phase.RUNNING:
                assert copy.acting_fencing > never, f"{copy.key} acts at {copy.acting_fencing}, never is {never}"
            if copy.phase is Phase.DOWN:
                assert not copy.instance
            assert (copy.key in self.state.icy) is (copy.ice is not Ice.NONE)

    def do(self, effect: Any) -> None:
        """Check what the machine may only ask for with a right that has `stall` left."""
        key = getattr(effect, "copy", "")
        needs = isinstance(effect, ev.Thaw)
        if isinstance(effect, ev.Spawn):
            needs = effect.process.run_status.exclusive and effect.role is Role.ACTIVE
        if isinstance(effect, ev.TellRole):
            needs = effect.role is Role.ACTIVE and self.state.copies[key].plan.run_status.exclusive
        if needs:
            left = self.promises.get(key, 0) - self.now
            assert left >= TIMING.stall_ms * MS, f"{type(effect).__name__} of {key} with {left} ns left"
            fencing = getattr(effect, "fencing", self.state.copies[key].fencing)
            assert fencing > self.state.never.get("acme", 0)
        if isinstance(effect, ev.Freeze | ev.Thaw | ev.Signal | ev.TellRole):
            assert effect.instance == self.state.copies[key].instance
        super().do(effect)

    def boot(self) -> None:
        self.promises = dict(getattr(self, "promises", {}))
        super().boot()

    def play(self, deed: tuple[Any, ...]) -> None:
        match deed:
            case ("order", copy, role, step):
                wanted = Wanted.UP if role is not None else Wanted.DOWN
                if copy == COPIES[4] and role is not None:
                    role = Role.ACTIVE
                self.order(copy, role, F + step if role is Role.ACTIVE else 0, wanted=wanted)
                self.wanted[copy] = self.state.copies[copy].order if copy in self.state.copies else None
            case ("activate", copy, step, ms):
                self.answering = True
                self.play(("allow", copy, step, ms))
                self.play(("order", copy, Role.ACTIVE, step))
                self.run(25)
            case ("allow", copy, step, ms):
                self.allow(copy, F + step, ms)
            case ("forbid", copy):
                self.rights.pop(copy, None)
                self.version += 1
            case ("relinquish", step, polite):
                # A Server that has a tenant relinquished grants it no more at that number.
                for copy in [copy for copy, fencing in self.rights.items() if fencing <= F + step]:
                    del self.rights[copy]
                self.version += 1
                self.receive(m.Relinquish("acme", F + step, polite))
            case ("run", ms):
                self.run(ms)
            case ("outcomes", count):
                for _ in range(min(count, len(self.pending))):
                    self.feed(self.pending.pop(0))
            case ("crash", copy):
                tree = self.tree(copy)
                if tree is not None:
                    self.end_main(tree.instance, Exit(code=1))
            case ("revive", copy, kill):
                self.receive(m.Revive(copy, (9, 9, 9), kill), Agent.MONITOR)
            case ("answering", yes):
                self.answering = yes
            case ("connect", copy):
                tree = self.tree(copy)
                if tree is not None and not tree.frozen:
                    self.feed(ev.Connected(copy, tree.instance, tree.role, tree.fencing))
            case ("fail-role", copy):
                found = self.state.copies.get(copy)
                if found is not None and found.telling is not None:
                    told = (found.instance, found.telling, found.telling_fencing)
                    self.pending = [event for event in self.pending if not isinstance(event, ev.RoleTold)]
                    self.feed(ev.RoleTold(copy, *told, False, "no"))
            case ("restart",):
                self.trees_outlive()
                self.restart()
        self.settle_some()

    def trees_outlive(self) -> None:
        """The Spawner dies: what it has asked for and not heard of has happened all the same."""

    def settle_some(self) -> None:
        if self.auto:
            self.settle()

    def finish(self) -> None:
        """Outcomes come, the Server grants what it orders: every copy reaches its order."""
        self.auto = True
        self.settle()
        self.answering, self.seated, self.stubborn = True, True, False
        high = max(self.state.never.get("acme", 0), self.state.void("acme"), F + 4)
        for copy in COPIES[:4]:
            self.rights.pop(copy, None)
        self.lease_until = self.now + 10**6 * MS
        for copy, role in zip(COPIES, (Role.ACTIVE, Role.ACTIVE, Role.STANDBY, Role.STANDBY, Role.ACTIVE), strict=True):
            if role is Role.ACTIVE and copy != COPIES[4]:
                self.allow(copy, high + 1, 10**6)
            self.order(copy, role, high + 1 if role is Role.ACTIVE else 0, reset=7)
        self.run(TIMING.kill_after_ms + 12_000)
        for copy in COPIES:
            if self.state.copies[copy].dead:
                self.receive(m.Revive(copy, (9, 9, 9)), Agent.MONITOR)
        self.run(3_000)
        for copy, role in zip(COPIES, (Role.ACTIVE, Role.ACTIVE, Role.STANDBY, Role.STANDBY, Role.ACTIVE), strict=True):
            fact = self.fact(copy)
            tree = self.tree(copy)
            assert (fact.state, fact.role) == (State.UP, role), f"{copy}: {fact}"
            assert tree is not None
            assert not tree.frozen
            assert tree.role is role
        assert not self.state.lettings
        assert not self.state.dirty
        self.feed(Tick())


@given(st.booleans(), st.lists(DEEDS, min_size=8, max_size=40))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_interleaving_breaks_the_laws_and_all_end_as_ordered(auto: bool, deeds: list[tuple[Any, ...]]) -> None:
    bed = Lawful(auto)
    for deed in deeds:
        bed.play(deed)
    bed.finish()


def drawn(random: Random) -> tuple[Any, ...]:
    """A deed as it comes: mostly what lets copies act, and time."""
    copy, step = random.choice(COPIES), random.randrange(4)
    return random.choice(
        [
            ("activate", random.choice(COPIES[:4]), step, random.choice([400, 700, 2_000])),
            ("activate", random.choice(COPIES[:4]), step, random.choice([400, 700, 2_000])),
            ("order", copy, random.choice([Role.ACTIVE, Role.STANDBY, Role.STANDBY, None]), step),
            ("allow", random.choice(COPIES[:4]), step, random.choice([150, 400, 700, 2_000])),
            ("forbid", random.choice(COPIES[:4])),
            ("relinquish", step, random.choice([0, 0, 100, 250])),
            ("run", random.choice([1, 20, 95, 95, 300, 900, 6_000])),
            ("run", random.choice([1, 20, 95, 95, 300, 900])),
            ("outcomes", random.randrange(1, 7)),
            ("outcomes", random.randrange(1, 7)),
            ("crash", copy),
            ("revive", copy, random.random() < 0.3),
            ("revive", copy, False),
            ("answering", random.random() < 0.7),
            ("connect", copy),
            ("fail-role", copy),
            ("restart",),
        ]
    )


@pytest.mark.parametrize("seed", range(120))
def test_long_walks_keep_the_laws(seed: int) -> None:
    random = Random(seed)
    bed = Lawful(seed % 3 != 0)
    for _ in range(80):
        bed.play(drawn(random))
    bed.finish()
