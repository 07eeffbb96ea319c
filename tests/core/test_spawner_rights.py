"""The Spawner and rights: nothing exclusive acts without one, freeze before kill, thaw by the rules."""

from __future__ import annotations

from ha.core.machine import Received, Tick
from ha.core.spawning import events as ev
from ha.model import messages as m
from ha.model.names import Agent
from ha.model.status import Role, State
from ha.model.timing import MS
from tests.core.spawner_bed import SYSTEM, TIMING, Bed

IVR, WARM, DB = "acme/ivr.1", "acme/warm.1", "acme/db.1"


def active(copy: str = IVR, fencing: int = 65536, ms: int = 600) -> Bed:
    bed = Bed()
    bed.allow(copy, fencing, ms)
    bed.order(copy, Role.ACTIVE, fencing)
    bed.run(25)
    assert bed.acting(copy)
    return bed


def test_active_copy_without_a_right_is_not_started_and_the_node_pulls_at_once() -> None:
    bed = Bed()
    bed.run(TIMING.beat_ms)
    bed.run(TIMING.beat_ms // 2)
    before = bed.now
    bed.order(IVR, Role.ACTIVE, 5)
    assert not bed.trees
    bed.run(1)
    assert bed.state.last_pull - before <= 1 * MS


def test_active_copy_starts_when_the_grant_comes() -> None:
    bed = active()
    spawn = bed.all(ev.Spawn)[0]
    assert isinstance(spawn, ev.Spawn)
    assert (spawn.role, spawn.fencing, spawn.identity["HA_EPOCH"]) == (Role.ACTIVE, 65536, "65536")


def test_standby_needs_no_right() -> None:
    bed = Bed()
    bed.order(WARM, Role.STANDBY)
    assert bed.tree(WARM) is not None
    assert not bed.acting(WARM)


def test_no_start_with_less_than_stall_left() -> None:
    bed = Bed()
    bed.allow(IVR, 5, TIMING.stall_ms - 10)
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(100)
    assert not bed.trees


def test_right_is_counted_from_the_send_of_the_pull() -> None:
    bed = Bed()
    bed.answering = False
    bed.allow(IVR, 5)
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(TIMING.beat_ms)
    pull = next(s for s in reversed(bed.sent) if isinstance(s.body, m.Pull) and s.node == "a1")
    sent = bed.state.last_pull
    bed.now += 50 * MS
    bed.receive(m.Grant(True, 600 * MS, 2, (m.Right(IVR, 5),)), request=pull.request)
    assert bed.guard[IVR] == sent + TIMING.sub_lease_ns(600 * MS)


def test_older_answer_does_not_prolong() -> None:
    bed = Bed()
    bed.answering = False
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(3 * TIMING.beat_ms)
    pulls = [s for s in bed.sent if isinstance(s.body, m.Pull) and s.node == "a1"]
    bed.receive(m.Grant(True, 300 * MS, 2, (m.Right(IVR, 5),)), request=pulls[-1].request)
    deadline = bed.guard[IVR]
    bed.receive(m.Grant(True, 9_000 * MS, 3, (m.Right(IVR, 5),)), request=pulls[-2].request)
    bed.receive(m.Grant(True, 9_000 * MS, 3, (m.Right(IVR, 5),)), request=pulls[-1].request)
    assert bed.guard[IVR] == deadline


def test_grant_of_a_server_without_seat_counts_for_nothing() -> None:
    bed = Bed(seated=False)
    bed.allow(IVR, 5)
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(200)
    assert not bed.trees


def test_short_tenant_has_its_own_deadline() -> None:
    bed = Bed()
    bed.answering = False
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(TIMING.beat_ms)
    pull = next(s for s in reversed(bed.sent) if isinstance(s.body, m.Pull) and s.node == "a1")
    sent = bed.state.last_pull
    grant = m.Grant(True, 600 * MS, 2, (m.Right(IVR, 5),), (("acme", 250 * MS),))
    bed.receive(grant, request=pull.request)
    assert bed.guard[IVR] == sent + TIMING.sub_lease_ns(250 * MS)


def test_copy_is_frozen_at_its_deadline_and_not_before() -> None:
    bed = active()
    bed.answering = False
    deadline = bed.guard[IVR]
    bed.run((deadline - bed.now) // MS - 1)
    assert bed.acting(IVR)
    bed.run(3)
    assert not bed.acting(IVR)
    assert bed.fact(IVR).state is State.FROZEN
    assert bed.state.freezes == 1


def test_deadline_counts_even_if_the_tick_comes_with_another_event() -> None:
    bed = active()
    bed.answering = False
    bed.now = bed.guard[IVR] + 1
    effects = bed.receive(m.Watch(0, 0), Agent.MONITOR)
    assert any(isinstance(effect, ev.Freeze) for effect in effects)


def test_granted_again_in_time_the_same_process_goes_on() -> None:
    bed = active()
    tree = bed.tree(IVR)
    bed.answering = False
    bed.run(800)
    assert tree.frozen
    bed.answering = True
    bed.allow(IVR, 65536)
    bed.run(200)
    assert bed.tree(IVR) is tree
    assert bed.acting(IVR)


def test_thaw_waits_for_stall() -> None:
    bed = active()
    bed.answering = False
    bed.run(800)
    bed.answering = True
    bed.allow(IVR, 65536, TIMING.stall_ms - 5)
    bed.run(TIMING.beat_ms)
    assert not bed.acting(IVR)


def test_deadline_is_read_again_after_the_thaw() -> None:
    bed = active()
    bed.answering = False
    bed.run(800)
    bed.answering = True
    bed.allow(IVR, 65536)
    bed.auto = False
    while not any(isinstance(event, ev.Thawed) for event in bed.pending):
        if bed.pending:
            bed.feed(bed.pending.pop(0))
        else:
            bed.run(10)
    thawed = next(event for event in bed.pending if isinstance(event, ev.Thawed))
    bed.pending.clear()
    bed.answering = False
    bed.state.next_deadline = None  # as if no tick came: the stall happened between the check and the thaw
    bed.now += 700 * MS
    bed.feed(thawed)
    assert bed.tree(IVR).frozen


def test_kill_after_ends_a_frozen_copy_and_then_the_order_counts() -> None:
    bed = active()
    tree = bed.tree(IVR)
    bed.answering = False
    bed.run(600 + TIMING.kill_after_ms + 300)
    assert tree.instance not in bed.trees
    assert not bed.trees
    bed.answering = True
    bed.allow(IVR, 65536)
    bed.run(200)
    assert bed.acting(IVR)
    assert bed.tree(IVR) is not tree


def test_frozen_copy_ordered_standby_is_killed_and_started_as_standby() -> None:
    bed = active(WARM)
    tree = bed.tree(WARM)
    bed.answering = False
    bed.run(800)
    bed.order(WARM, Role.STANDBY, 65536)
    assert tree.instance not in bed.trees
    assert bed.tree(WARM).role is Role.STANDBY


def test_higher_number_for_the_same_copy_lets_it_go_on() -> None:
    bed = active(WARM)
    tree = bed.tree(WARM)
    bed.answering = False
    bed.run(800)
    bed.order(WARM, Role.ACTIVE, 65537)
    bed.answering = True
    bed.allow(WARM, 65537)
    bed.run(200)
    assert bed.tree(WARM) is tree
    assert bed.acting(WARM)
    assert bed.fact(WARM).fencing == 65537


def test_list_without_the_copy_leaves_it_its_deadline_but_prolongs_nothing() -> None:
    bed = active()
    deadline = bed.guard[IVR]
    del bed.rights[IVR]
    bed.version += 1
    bed.lease_until += 10_000 * MS
    bed.run(TIMING.beat_ms)
    assert bed.guard[IVR] <= max(deadline, bed.promises[IVR])
    bed.run(700)
    assert not bed.acting(IVR)


def test_known_version_prolongs_without_a_list_and_an_unknown_one_does_not() -> None:
    bed = active()
    bed.answering = False
    bed.run(TIMING.beat_ms)
    deadline = bed.guard[IVR]
    pulls = [s for s in bed.sent if isinstance(s.body, m.Pull) and s.node == "a1"]
    bed.receive(m.Grant(True, 900 * MS, 99), request=pulls[-1].request)
    assert bed.guard[IVR] == deadline
    bed.run(TIMING.beat_ms)
    last = next(s for s in reversed(bed.sent) if isinstance(s.body, m.Pull) and s.node == "a1")
    assert last.body.rights_version == 0


def test_other_incarnation_of_the_server_has_to_send_its_list() -> None:
    bed = active()
    bed.answering = False
    bed.run(TIMING.beat_ms)
    deadline = bed.guard[IVR]
    last = next(s for s in reversed(bed.sent) if isinstance(s.body, m.Pull) and s.node == "a1")
    bed.feed(Received(Agent.SERVER, "a1", 78, 1, last.request, m.Grant(True, 900 * MS, bed.version)))
    assert bed.guard[IVR] == deadline


def test_pull_goes_to_every_candidate_each_beat_and_names_what_acts() -> None:
    bed = active(ms=5_000)
    bed.sent.clear()
    bed.run(10 * TIMING.beat_ms)
    pulls = [s for s in bed.sent if isinstance(s.body, m.Pull)]
    assert {s.node for s in pulls} == set(SYSTEM.sides["a"])
    assert 18 <= len(pulls) <= 24
    assert pulls[-1].body.holdings == (m.Holding(IVR, 65536, False),)


def test_missing_right_is_not_pulled_for_at_high_rate_for_ever() -> None:
    bed = Bed()
    bed.order(IVR, Role.ACTIVE, 5)
    bed.run(1_000)
    bed.sent.clear()
    bed.run(1_000)
    assert len([s for s in bed.sent if isinstance(s.body, m.Pull) and s.node == "a1"]) <= 13


def test_tree_that_cannot_be_frozen_is_killed() -> None:
    bed = active()
    bed.answering = False
    bed.auto = False
    bed.run(800)
    copy = bed.state.copies[IVR]
    effects = bed.feed(ev.Frozen(IVR, copy.instance, False))
    assert any(isinstance(effect, ev.KillTree) for effect in effects)


def test_late_tick_is_counted_and_freezes_only_by_deadline() -> None:
    bed = active(ms=5_000)
    bed.now += 400 * MS
    bed.feed(Tick())
    assert bed.state.late_ticks == 1
    assert bed.acting(IVR)
