"""The Monitor's machine: facts in, broadcast states and restarts out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha.core import monitor
from ha.core.desk import CancelProbe, CloseLog, OpenLog, PidGone, StartProbe, UnwatchPid, WatchPid
from ha.core.machine import Effect, Event, Note, Persist, Publish, Received, Send, Tick
from ha.core.monitor import AgentsKnown, PlanKnown, ProbeDone, ReadPlan
from ha.core.table import StateTable
from ha.model import limits
from ha.model.messages import (
    AgentSeen,
    CopyState,
    Fact,
    Facts,
    Hello,
    Message,
    Revive,
    Snapshot,
    SnapshotRequest,
    StateBeat,
    StateDelta,
    Watch,
)
from ha.model.names import Agent
from ha.model.plan import Node, Probe, Process, Ready, Restart, Tenant
from ha.model.status import Exit, OnDeath, Role, State, Wanted
from ha.model.timing import MS, Timing

NODE = Node(name="a1", addresses=("127.0.0.11",), side="a")
KEY, OTHER = "acme/acd.1", "acme/db.1"
SECOND = 1_000 * MS
BOOM = Exit(signal="SIGKILL")


class Watched:
    """A Monitor with the two ends of its world: a Spawner that tells facts, a Server that keeps a table."""

    def __init__(self, *processes: Process, plan: bool = True) -> None:
        self.now = 1_000 * SECOND
        self.state = monitor.start(NODE, Timing(), ("a1", "b1"), self.now)
        self.table = StateTable()
        self.effects: list[Effect] = []
        self.all: list[Effect] = []
        self.facts: dict[str, Fact] = {}
        self.seq = 0
        self.lives = 100
        self.feed(Tick())
        self.say(full=True)
        if plan:
            self.feed(PlanKnown((Tenant(name="acme", processes=processes),), "p1"))

    def feed(self, event: Event) -> list[Effect]:
        self.state, self.effects = monitor.step(self.state, event, self.now)
        self.all += self.effects
        for effect in self.effects:
            if isinstance(effect, Publish) and isinstance(effect.body, StateDelta | StateBeat | Snapshot):
                self.table.apply("a1", 7, effect.body)
        return self.effects

    def say(self, full: bool = False, incarnation: int = 1, seq: int | None = None) -> None:
        self.seq = self.seq + 1 if seq is None else seq
        body = Facts(self.seq, tuple(self.facts.values()), full, "p1")
        self.feed(Received(Agent.SPAWNER, "a1", incarnation, 1, 0, body))

    def fact(self, state: State, key: str = KEY, **more: Any) -> None:
        """Tell one changed fact."""
        old = self.facts.get(key) or Fact(key, State.DOWN, (1, 1, 1), 1, wanted=Wanted.UP)
        fields = {name: getattr(old, name) for name in Fact.__struct_fields__} | more | {"state": state}
        self.facts[key] = Fact(**fields)
        self.seq += 1
        self.feed(Received(Agent.SPAWNER, "a1", 1, self.seq, 0, Facts(self.seq, (self.facts[key],), False, "p1")))

    def up(self, key: str = KEY, **more: Any) -> None:
        """Begin a new life."""
        self.lives += 1
        life = {"pid": self.lives, "start_ticks": self.lives, "started_ns": self.now, "exit": None, "planned": False}
        self.fact(State.UP, key, **(life | more))

    def die(self, exit: Exit = BOOM, key: str = KEY, **more: Any) -> None:
        self.fact(State.DOWN, key, exit=exit, **more)

    def until(self, ms: int) -> list[Effect]:
        """Let time pass, ticking when asked for; return the effects meanwhile."""
        end, mark = self.now + ms * MS, len(self.all)
        while (wake := monitor.wake_at(self.state)) <= end:
            self.now = max(self.now, wake)
            self.feed(Tick())
        self.now = end
        return self.all[mark:]

    def view(self, key: str = KEY) -> CopyState:
        said = self.table.get("a1", key) or self.state.said.get(key)
        assert said is not None
        return said

    def bodies(self, kind: type[Message], effects: list[Effect] | None = None) -> list[Any]:
        """What was said of this kind; what was only decided ahead (`Revive.ahead`) is `ahead`."""
        effects = self.effects if effects is None else effects
        said = [e.body for e in effects if isinstance(e, Send | Publish) and isinstance(e.body, kind)]
        return [body for body in said if not getattr(body, "ahead", "")]

    def ahead(self) -> list[Any]:
        bodies = [e.body for e in self.all if isinstance(e, Send) and isinstance(e.body, Revive)]
        return [body.ahead for body in bodies if body.ahead]


def process(name: str = "acd", **more: Any) -> Process:
    return Process(name=name, command=("/bin/acd",), **more)


def probe(**more: Any) -> Probe:
    return Probe(kind="tcp", target="{address}:7001", **more)


def synced(watched: Watched) -> Watched:
    watched.feed(Received(Agent.SERVER, "a1", 1, 1, 0, SnapshotRequest()))
    for part in watched.bodies(Snapshot):
        watched.table.apply("a1", 7, part)
    assert watched.table.synced("a1")
    return watched


# --- facts -----------------------------------------------------------------------------------------


def test_first_tick_watches_greets_and_beats() -> None:
    state = monitor.start(NODE, Timing(), ("a1", "b1"), 5)
    _, effects = monitor.step(state, Tick(), 5)
    assert Send(Agent.SPAWNER, "a1", Watch(0, 0)) in effects
    assert [e.node for e in effects if isinstance(e, Send) and isinstance(e.body, Hello)] == ["a1", "b1"]
    assert any(isinstance(e, Publish) and isinstance(e.body, StateBeat) for e in effects)


def test_watch_names_what_was_heard_once_a_second() -> None:
    watched = Watched()
    watches = watched.bodies(Watch, watched.until(2_000))
    assert watches == [Watch(1, 1)] * 2


@pytest.mark.parametrize(("incarnation", "seq"), [(1, 9), (2, 2)])
def test_gap_or_new_spawner_asks_for_all_facts_and_applies_nothing(incarnation: int, seq: int) -> None:
    watched = Watched(process())
    watched.facts[KEY] = Fact(KEY, State.UP, (1, 1, 1), 1, pid=5)
    watched.say(incarnation=incarnation, seq=seq)
    assert watched.bodies(Watch) == [Watch(0, 0)]
    assert KEY not in watched.state.copies


def test_doubled_facts_change_nothing() -> None:
    watched = Watched(process())
    watched.up()
    watched.say(seq=watched.seq)
    assert watched.effects == []


def test_full_facts_of_a_new_spawner_drop_copies_that_are_gone() -> None:
    watched = synced(Watched(process(), process("db")))
    watched.up()
    watched.up(OTHER)
    pid = watched.facts.pop(KEY).pid
    watched.say(full=True, incarnation=2, seq=1)
    assert CloseLog(KEY) in watched.effects
    assert UnwatchPid(KEY, pid) in watched.effects
    assert list(watched.table.copies("a1")) == [OTHER]


def test_full_list_in_several_messages_drops_nothing_before_its_end() -> None:
    keys = [f"acme/acd.{n}" for n in range(limits.MAX_BATCH + 2)]
    watched = synced(Watched(process(copies=len(keys))))
    facts = [Fact(key, State.DOWN, (1, 1, 1), 1) for key in keys]
    for copies, full in ((facts[:-2], True), (facts[-2:], False), (facts[:-2], True), (facts[-1:], False)):
        watched.seq += 1
        body = Facts(watched.seq, tuple(copies), full, "p1")
        watched.feed(Received(Agent.SPAWNER, "a1", 1, 1, 0, body))
        expected = len(keys) - 1 if copies == facts[-1:] else len(copies) if full and watched.seq == 2 else len(keys)
        assert len(watched.state.copies) == expected


def test_facts_of_another_node_change_nothing() -> None:
    watched = Watched(process())
    fact = Fact(KEY, State.UP, (1, 1, 1), 1)
    assert watched.feed(Received(Agent.SPAWNER, "b1", 1, 1, 0, Facts(9, (fact,), True))) == []


def test_plan_is_read_when_its_digest_changes_and_again_until_it_is_there() -> None:
    watched = Watched(plan=False)
    assert ReadPlan("p1") in watched.all
    assert ReadPlan("p1") in watched.until(1_000)
    watched.feed(PlanKnown((), "p1"))
    assert ReadPlan("p1") not in watched.until(3_000)


# --- readiness -------------------------------------------------------------------------------------


def test_started_copy_is_ready_when_it_is_up() -> None:
    watched = synced(Watched(process()))
    watched.fact(State.STARTING)
    assert watched.view().state is State.STARTING
    watched.up()
    assert watched.view().state is State.READY
    pid = watched.facts[KEY].pid
    assert WatchPid(KEY, pid, pid) in watched.effects
    assert any(isinstance(effect, OpenLog) and effect.copy == KEY for effect in watched.effects)
    notes = [(n.from_, n.to) for n in watched.all if isinstance(n, Note)]
    assert notes == [("down", "starting"), ("starting", "ready")]


def test_notifying_copy_is_ready_when_it_says_so() -> None:
    watched = synced(Watched(process(ready=Ready(by="notify"))))
    watched.up()
    assert watched.view().state is State.UP
    watched.fact(State.UP, notified=True, status="serving")
    assert (watched.view().state, watched.view().status) == (State.READY, "serving")


def test_probed_copy_is_ready_when_all_its_probes_pass() -> None:
    watched = synced(Watched(process(ready=Ready(by="probe"), probes=(probe(), probe()))))
    watched.up()
    runs = [effect for effect in watched.effects if isinstance(effect, StartProbe)]
    assert [run.probe.target for run in runs] == ["127.0.0.11:7001"] * 2
    watched.feed(ProbeDone(runs[0].run, True))
    assert watched.view().state is State.UP
    watched.feed(ProbeDone(runs[1].run, True))
    assert watched.view().state is State.READY


def test_copy_not_ready_in_time_is_ended_and_counts_as_a_death() -> None:
    watched = synced(Watched(process(ready=Ready(by="notify", timeout_ms=300))))
    watched.up()
    revives = watched.bodies(Revive, watched.until(300))
    assert revives == [Revive(KEY, (1, 1, 1), True, "not ready within 0.3s")]
    watched.die()
    assert watched.bodies(Revive) == [Revive(KEY, (1, 1, 1), False, "not ready within 0.3s; ended by SIGKILL")]
    assert len(watched.state.copies[KEY].deaths.times) == 1


def test_copy_becomes_ready_when_the_plan_comes_after_it() -> None:
    watched = Watched(plan=False)
    watched.up()
    assert watched.view().state is State.UP
    watched.feed(PlanKnown((Tenant(name="acme", processes=(process(),)),), "p1"))
    assert watched.view().state is State.READY


# --- deaths ----------------------------------------------------------------------------------------


def test_first_death_is_broadcast_and_restarted_at_once() -> None:
    watched = synced(Watched(process()))
    watched.up()
    watched.die()
    assert watched.bodies(Revive) == [Revive(KEY, (1, 1, 1), False, "ended by SIGKILL")]
    said = watched.view()
    assert (said.state, said.exit, said.pid, said.restarts) == (State.DOWN, BOOM, 0, 1)


def test_second_death_waits_in_backoff_then_is_restarted() -> None:
    watched = synced(Watched(process(restart=Restart(jitter=0.0))))
    for _ in range(2):
        watched.up()
        watched.die()
    assert watched.bodies(Revive) == []
    assert watched.view().state is State.BACKOFF
    assert watched.bodies(Revive, watched.until(99)) == []
    assert len(watched.bodies(Revive, watched.until(1))) == 1


def test_more_deaths_than_intensity_fail_with_the_reason() -> None:
    watched = synced(Watched(process(restart=Restart(intensity=1))))
    for _ in range(2):
        watched.up()
        watched.die()
    said = watched.view()
    assert said.state is State.FAILED
    assert said.reason == "2 unplanned deaths within 60s, intensity is 1; ended by SIGKILL"
    assert watched.bodies(Revive, watched.until(60_000)) == []


def test_reset_brings_a_failed_copy_back() -> None:
    watched = synced(Watched(process(restart=Restart(intensity=0))))
    watched.up()
    watched.die()
    watched.fact(State.DOWN, reset=1)
    assert len(watched.bodies(Revive)) == 1
    assert watched.view().reset == 1


def test_clean_end_under_on_failure_stays_down() -> None:
    watched = synced(Watched(process(restart=Restart(policy="on-failure"))))
    watched.up()
    watched.die(Exit(code=0))
    assert (watched.view().state, watched.view().reason) == (State.DOWN, "ended by itself")
    assert watched.bodies(Revive, watched.until(10_000)) == []


@pytest.mark.parametrize("more", [{"planned": True}, {"wanted": Wanted.DOWN}])
def test_planned_death_does_not_count(more: dict[str, Any]) -> None:
    watched = synced(Watched(process()))
    watched.up()
    watched.die(**more)
    assert watched.view().state is State.DOWN
    assert watched.bodies(Revive, watched.until(10_000)) == []
    assert watched.state.copies[KEY].deaths.times == []


def test_reported_death_waits_for_the_server() -> None:
    watched = synced(Watched(process()))
    watched.up(on_death=OnDeath.REPORT, role=Role.ACTIVE)
    watched.die()
    assert watched.view().state is State.DOWN
    assert watched.bodies(Revive) == []
    watched.fact(State.DOWN, generation=(1, 1, 2))
    assert watched.bodies(Revive) == [Revive(KEY, (1, 1, 2), False, "ended by SIGKILL")]


def test_reported_death_is_restarted_by_the_node_when_no_server_speaks() -> None:
    watched = synced(Watched(process()))
    watched.up(on_death=OnDeath.REPORT)
    watched.die()
    assert watched.bodies(Revive, watched.until(limits.FALLBACK_RESTART_MS - 1)) == []
    assert len(watched.bodies(Revive, watched.until(1))) == 1


def test_death_while_the_monitor_was_away_is_judged() -> None:
    watched = Watched(process())
    watched.facts[KEY] = Fact(
        KEY, State.DOWN, (1, 1, 1), 1, wanted=Wanted.UP, pid=9, started_ns=watched.now - SECOND, exit=BOOM
    )
    watched.say(full=True)
    assert len(watched.bodies(Revive)) == 1


def test_copy_that_never_ran_is_left_to_the_spawner() -> None:
    watched = Watched(process())
    watched.fact(State.DOWN, reason="waits for its right")
    assert watched.bodies(Revive, watched.until(5_000)) == []
    assert watched.view().reason == "waits for its right"


def test_revive_is_asked_again_when_the_spawner_does_nothing() -> None:
    watched = synced(Watched(process()))
    watched.up()
    watched.die()
    assert len(watched.bodies(Revive, watched.until(limits.REVIVE_RETRY_MS))) == 1
    assert watched.view().restarts == 1
    watched.up()
    assert watched.bodies(Revive, watched.until(5_000)) == []


def test_repeated_failure_to_start_counts_each_time() -> None:
    watched = synced(Watched(process(restart=Restart(intensity=2))))
    for _ in range(3):
        watched.fact(State.STARTING)
        watched.fact(State.DOWN, exit=Exit(), reason="cannot start /bin/acd: exec: no such file")
    assert watched.view().state is State.FAILED
    assert "no such file" in watched.view().reason


def test_death_before_the_plan_is_judged_when_the_plan_comes() -> None:
    watched = Watched(plan=False)
    watched.up()
    watched.die()
    assert watched.bodies(Revive) == []
    watched.feed(PlanKnown((Tenant(name="acme", processes=(process(),)),), "p1"))
    assert len(watched.bodies(Revive)) == 1


def replaced(watched: Watched, *processes: Process) -> Watched:
    """Return a Monitor that starts with the journal of an earlier one and hears the same facts."""
    journal: dict[str, object] = {}
    for effect in watched.all:
        if isinstance(effect, Persist):
            journal[effect.key] = msgspec.to_builtins(effect.value)
    new = Watched(*processes, plan=False)
    new.now = watched.now + SECOND
    new.state = monitor.start(NODE, Timing(), (), new.now, {key: value for key, value in journal.items() if value})
    new.facts = watched.facts
    new.feed(Tick())
    new.say(full=True)
    new.feed(PlanKnown((Tenant(name="acme", processes=processes),), "p1"))
    return synced(new)


def test_given_up_copy_stays_failed_under_a_new_monitor() -> None:
    spec = process(restart=Restart(intensity=0))
    watched = synced(Watched(spec))
    watched.up()
    watched.die()
    new = replaced(watched, spec)
    assert (new.view().state, new.view().reason) == (State.FAILED, watched.view().reason)
    assert new.bodies(Revive, new.all) == []
    new.fact(State.DOWN, reset=1)
    assert len(new.bodies(Revive)) == 1


def test_deaths_are_counted_on_by_a_new_monitor() -> None:
    spec = process(restart=Restart(intensity=2, jitter=0.0))
    watched = synced(Watched(spec))
    for _ in range(2):
        watched.up()
        watched.die()
    assert watched.view().state is State.BACKOFF
    new = replaced(watched, spec)
    assert (new.view().state, new.view().restarts) == (State.BACKOFF, 1)
    assert len(new.state.copies[KEY].deaths.times) == 2
    new.up()
    new.die()
    assert new.view().state is State.FAILED


def test_damaged_history_is_left_out() -> None:
    state = monitor.start(NODE, Timing(), (), 5, {f"deaths/{KEY}": ["x"]})
    fact = Fact(KEY, State.UP, (1, 1, 1), 1, pid=5)
    state, _ = monitor.step(state, Received(Agent.SPAWNER, "a1", 1, 1, 0, Facts(1, (fact,), True)), 6)
    assert state.copies[KEY].restarts == 0


def test_copy_the_policy_of_the_node_refuses_has_failed() -> None:
    watched = synced(Watched(process()))
    watched.fact(State.FAILED, reason="policy: no such user")
    assert (watched.view().state, watched.view().reason) == (State.FAILED, "policy: no such user")
    assert watched.bodies(Revive, watched.until(5_000)) == []


def test_end_whose_tree_is_still_ending_is_not_called_silence() -> None:
    watched = synced(Watched(process()))
    watched.up()
    pid = watched.facts[KEY].pid
    watched.feed(PidGone(KEY, pid, pid))
    watched.fact(State.STOPPING, exit=BOOM)
    watched.until(1_000)
    assert watched.view().state is State.STOPPING
    watched.die()
    assert len(watched.bodies(Revive)) == 1


# --- own pidfds ------------------------------------------------------------------------------------


def test_end_seen_by_pidfd_is_broadcast_when_the_spawner_is_silent() -> None:
    watched = synced(Watched(process()))
    watched.up()
    pid = watched.facts[KEY].pid
    watched.feed(PidGone(KEY, pid, pid))
    assert watched.view().state is State.READY
    watched.until(limits.FACT_WAIT_MS)
    assert (watched.view().state, watched.view().exit) == (State.DOWN, Exit())
    assert watched.bodies(Revive, watched.all) == []
    watched.die()
    assert watched.view().exit == BOOM
    assert len(watched.bodies(Revive)) == 1


def test_end_seen_by_pidfd_of_an_earlier_life_changes_nothing() -> None:
    watched = synced(Watched(process()))
    watched.up()
    pid = watched.facts[KEY].pid
    watched.die()
    watched.up()
    watched.feed(PidGone(KEY, pid, pid))
    watched.until(1_000)
    assert watched.view().state is State.READY


# --- probes ----------------------------------------------------------------------------------------


def run_probes(watched: Watched, ms: int, ok: bool) -> list[Effect]:
    end, mark = watched.now + ms * MS, len(watched.all)
    while (wake := monitor.wake_at(watched.state)) <= end:
        watched.now = max(watched.now, wake)
        for effect in watched.feed(Tick()):
            if isinstance(effect, StartProbe):
                watched.feed(ProbeDone(effect.run, ok, "" if ok else "refused"))
    watched.now = end
    return watched.all[mark:]


def test_copy_whose_probe_fails_is_ended_and_restarted() -> None:
    watched = synced(Watched(process(probes=(probe(initial_delay_ms=100),))))
    watched.up()
    assert watched.bodies(Revive, run_probes(watched, 5_000, True)) == []
    kills = watched.bodies(Revive, run_probes(watched, 2_999, False))
    assert kills == [Revive(KEY, (1, 1, 1), True, "tcp probe 1 failed 3 times: refused")]
    watched.die(Exit(signal="SIGKILL"), planned=True)
    assert watched.bodies(Revive)[0].kill is False


def test_probes_and_restart_counts_stand_still_while_frozen() -> None:
    watched = synced(Watched(process(probes=(probe(initial_delay_ms=500),), restart=Restart(stable_ms=10_000))))
    watched.up()
    watched.until(100)
    watched.fact(State.FROZEN)
    assert watched.view().state is State.FROZEN
    assert not [e for e in watched.until(60_000) if isinstance(e, StartProbe)]
    watched.fact(State.UP)
    assert watched.view().state is State.READY
    assert not [e for e in watched.until(399) if isinstance(e, StartProbe)]
    assert len([e for e in watched.until(1) if isinstance(e, StartProbe)]) == 1
    watched.die()
    watched.up()
    watched.die()
    assert watched.view().state is State.BACKOFF


def test_readiness_timeout_stands_still_while_frozen() -> None:
    watched = synced(Watched(process(ready=Ready(by="notify", timeout_ms=1_000))))
    watched.up()
    watched.until(600)
    watched.fact(State.FROZEN)
    watched.until(10_000)
    watched.fact(State.UP)
    assert watched.bodies(Revive, watched.until(399)) == []
    assert len(watched.bodies(Revive, watched.until(1))) == 1


def test_probe_that_runs_is_cancelled_when_its_copy_stops() -> None:
    watched = synced(Watched(process(probes=(probe(),))))
    watched.up()
    run = next(effect.run for effect in watched.all if isinstance(effect, StartProbe))
    watched.fact(State.STOPPING, wanted=Wanted.DOWN)
    assert CancelProbe(run) in watched.effects
    assert watched.feed(ProbeDone(run, False, "late")) == []


def test_late_tick_counts_and_judges_nothing_overdue() -> None:
    watched = synced(Watched(process(probes=(probe(timeout_ms=300, failures=1),))))
    watched.up()
    watched.now += 2 * SECOND
    watched.feed(Tick())
    assert watched.bodies(Revive) == []
    assert watched.bodies(StateBeat)[0].late_ticks == 1
    assert len(watched.bodies(Revive, watched.until(200))) == 1


def test_other_probes_of_an_edited_plan_are_used_without_a_restart() -> None:
    watched = synced(Watched(process(probes=(probe(initial_delay_ms=50),))))
    watched.up()
    edited = process(probes=(probe(initial_delay_ms=50, interval_ms=77), probe(initial_delay_ms=60)))
    watched.feed(PlanKnown((Tenant(name="acme", processes=(edited,)),), "p2"))
    assert watched.view().state is State.READY
    assert {e.run.nth for e in watched.until(70) if isinstance(e, StartProbe)} == {0, 1}


# --- what is said ----------------------------------------------------------------------------------


def test_all_changes_of_one_step_are_one_delta() -> None:
    watched = synced(Watched(process(), process("db")))
    for key in (KEY, OTHER):
        watched.facts[key] = Fact(key, State.UP, (1, 1, 1), 1, wanted=Wanted.UP, pid=len(key), start_ticks=1)
    watched.say()
    deltas = watched.bodies(StateDelta)
    assert len(deltas) == 1
    assert [copy.copy for copy in deltas[0].copies] == [KEY, OTHER]


def test_beat_follows_its_rhythm_with_sequence_and_digest_the_table_agrees_with() -> None:
    watched = synced(Watched(process()))
    watched.up()
    beats = watched.bodies(StateBeat, watched.until(900))
    assert len(beats) == 10
    assert beats[-1].last_seq == watched.state.seq
    assert watched.table.synced("a1")


def test_whole_table_is_broadcast_every_five_seconds() -> None:
    watched = Watched(process())
    watched.up()
    parts = watched.bodies(Snapshot, watched.until(10_000))
    assert len(parts) == 2
    assert parts[0].copies == (watched.view(),)


def test_snapshot_of_many_copies_comes_in_parts() -> None:
    watched = Watched(process(copies=1_300))
    for n in range(1_300):
        watched.facts[f"acme/acd.{n}"] = Fact(f"acme/acd.{n}", State.DOWN, (1, 1, 1), 1)
    watched.say()
    watched.feed(Received(Agent.SERVER, "b1", 1, 1, 0, SnapshotRequest()))
    parts = watched.bodies(Snapshot)
    assert [(part.part, part.parts) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert sum(len(part.copies) for part in parts) == 1_300


def test_snapshot_is_refused_by_silence_until_all_facts_are_known() -> None:
    state = monitor.start(NODE, Timing(), (), 5)
    _, effects = monitor.step(state, Received(Agent.SERVER, "b1", 1, 1, 0, SnapshotRequest()), 5)
    assert effects == []


def test_beat_tells_the_agents_of_the_node() -> None:
    watched = Watched()
    seen = (AgentSeen("spawner", 12, "up", 0),)
    watched.feed(AgentsKnown(seen))
    assert watched.bodies(StateBeat, watched.until(100))[0].agents == seen


moves = st.lists(
    st.tuples(
        st.sampled_from((KEY, OTHER)),
        st.sampled_from(("up", "die", "freeze", "thaw", "stop", "starting", "wait", "gone", "probe", "want", "resend")),
        st.integers(0, 3_000),
    ),
    max_size=40,
)


@given(moves)
def test_table_of_a_server_always_converges_and_the_machine_is_total(script: list[tuple[str, str, int]]) -> None:
    specs = (probe(timeout_ms=200, failures=2),)
    watched = synced(
        Watched(process(probes=specs, ready=Ready(by="probe", timeout_ms=2_000)), process("db", probes=specs))
    )
    for key, move, wait in script:
        fact = watched.facts.get(key)
        match move:
            case "up":
                watched.up(key)
            case "die":
                watched.die(key=key)
            case "freeze" | "thaw" | "stop" | "starting":
                states = {"freeze": State.FROZEN, "thaw": State.UP, "stop": State.STOPPING, "starting": State.STARTING}
                watched.fact(states[move], key)
            case "want":
                watched.fact(fact.state if fact else State.DOWN, key, wanted=Wanted.DOWN if wait % 2 else Wanted.UP)
            case "gone":
                watched.feed(PidGone(key, fact.pid if fact else 0, fact.start_ticks if fact else 0))
            case "probe":
                run_probes(watched, wait, wait % 2 == 0)
            case "resend":
                watched.say(full=True)
        watched.until(wait)
        assert watched.table.synced("a1")
        assert dict(watched.table.copies("a1")) == watched.state.said
        for known in watched.state.copies.values():
            assert known.view() == watched.state.said[known.fact.copy]


def test_a_restart_at_once_is_decided_ahead_only_while_it_is_sure() -> None:
    watched = synced(Watched(process(restart=Restart(intensity=2, period_ms=60_000, stable_ms=1_000))))
    watched.up()
    assert watched.ahead() == ["any"]
    watched.die()
    watched.up()
    assert watched.ahead() == ["any"], "the next one would wait its backoff"
    watched.until(1_100)
    assert watched.ahead() == ["any", "any"], "it ran for long enough"
    watched.die()
    watched.up()
    watched.until(1_100)
    assert len(watched.ahead()) == 2, "one more death exhausts the policy: that is nobody's to decide ahead"


def test_nothing_is_decided_ahead_for_a_copy_whose_death_the_server_wants_to_hear_of() -> None:
    watched = synced(Watched(process()))
    watched.up(on_death=OnDeath.REPORT)
    watched.until(20_000)
    assert watched.ahead() == []
