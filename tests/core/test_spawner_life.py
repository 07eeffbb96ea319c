"""The Spawner and the life of a copy: orders, roles, stops, deaths, relinquish, restarts of the Spawner, leaving."""

from __future__ import annotations

import msgspec
import pytest

from ha.core.machine import Persist, Send, Tick
from ha.core.policy import refusal
from ha.core.spawning import events as ev
from ha.core.spawning import household
from ha.model import limits
from ha.model import messages as m
from ha.model.digest import digest_of
from ha.model.names import Agent
from ha.model.plan import Policy, Process, Stop, Tenant, encode_plan
from ha.model.status import Exit, OnDeath, Role, State, Wanted
from tests.core.spawner_bed import ACME, NODE, Bed

IVR, WARM, DB, PLAIN, WEB = "acme/ivr.1", "acme/warm.1", "acme/db.1", "acme/plain.1", "acme/web.1"
F = 65536


def active(copy: str = IVR, fencing: int = F, bed: Bed | None = None) -> Bed:
    bed = bed or Bed()
    bed.allow(copy, fencing, 60_000)
    bed.order(copy, Role.ACTIVE, fencing)
    bed.run(25)
    assert bed.acting(copy)
    return bed


# --- orders --------------------------------------------------------------------------------------


def test_lower_generation_is_refused_and_changes_nothing() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE, generation=(2, 1, 5))
    bed.order(WEB, wanted=Wanted.DOWN, generation=(2, 1, 4))
    assert bed.last(m.OrdersAnswer).refused == ((WEB, "stale"),)
    assert bed.tree(WEB) is not None


def test_order_before_its_plan_is_kept_and_done_when_the_plan_comes() -> None:
    bed = Bed(plan=())
    bed.order(WEB, Role.ACTIVE)
    assert bed.last(m.OrdersAnswer).refused == ((WEB, "plan"),)
    assert not bed.trees
    bed.put_plan(ACME)
    assert bed.tree(WEB) is not None


def test_order_of_a_newer_serial_waits_for_that_plan() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE, serial=2)
    assert not bed.trees
    bed.put_plan(msgspec.structs.replace(ACME, serial=2))
    assert bed.tree(WEB) is not None


def test_full_orders_stop_what_they_do_not_name_and_forget_it() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.receive(m.Orders((5, 1, 1), (), full=True))
    assert not bed.trees
    assert WEB not in bed.state.copies
    assert [effect.copy for effect in bed.all(ev.Forget)] == [WEB]
    assert not [key for key in bed.journal if WEB in key]


def test_copy_key_that_is_none_is_refused() -> None:
    bed = Bed()
    bed.order("../etc.1", Role.ACTIVE)
    assert bed.last(m.OrdersAnswer).refused == (("../etc.1", "name"),)
    assert not bed.state.copies


def test_digest_of_orders_tells_a_loss() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    digest = bed.last(m.OrdersAnswer).digest
    bed.run(100)
    assert bed.last(m.Pull).orders_digest == digest
    bed.order(WEB, wanted=Wanted.DOWN)
    assert bed.last(m.OrdersAnswer).digest != digest


def test_other_sides_server_gives_no_orders() -> None:
    bed = Bed()
    bed.receive(m.Orders((9, 1, 1), (m.Order(WEB, Wanted.UP, (9, 1, 1), 1, Role.ACTIVE),)), node="b1")
    assert not bed.trees


def test_restart_number_restarts_once_as_a_planned_death() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    first = bed.tree(WEB)
    bed.order(WEB, Role.ACTIVE, restart=1)
    second = bed.tree(WEB)
    assert second is not first
    bed.order(WEB, Role.ACTIVE, restart=1)
    assert bed.tree(WEB) is second
    assert bed.fact(WEB).planned


def test_command_and_environment_come_from_plan_and_order() -> None:
    bed = Bed()
    bed.order(DB, Role.STANDBY, environment=(("EXTRA", "{copy}"),))
    spawn = bed.all(ev.Spawn)[0]
    assert spawn.command == ("/bin/db", "a1")
    assert spawn.environment == {"EXTRA": "1"}
    assert spawn.identity["HA_SOCKET"] == "/run/ha/a1/p/acme.db.1/control.sock"
    assert spawn.identity["HA_INSTANCE"] == spawn.instance


# --- policy --------------------------------------------------------------------------------------


OPT = Policy(commands=("/usr/bin", "/opt"))
STOP = Stop(command=("/x/y",))


@pytest.mark.parametrize(
    ("policy", "process", "passes"),
    [
        (Policy(), Process(name="p", command=("/bin/a",)), False),
        (Policy(users=("root",)), Process(name="p", command=("/bin/a",)), True),
        (Policy(), Process(name="p", command=("/bin/a",), user="acme"), True),
        (Policy(), Process(name="p", command=("/bin/a",), user="0"), False),
        (Policy(), Process(name="p", command=("/bin/a",), user="acme", group="root"), False),
        (Policy(users=("acme",)), Process(name="p", command=("/bin/a",), user="globex"), False),
        (Policy(commands=("/opt",)), Process(name="p", command=("/opt/../bin/a",), user="acme"), False),
        (Policy(commands=("/opt",)), Process(name="p", command=("/opt/a",), user="acme"), True),
        (Policy(commands=("/opt",)), Process(name="p", command=("/optional/a",), user="acme"), False),
        (OPT, Process(name="p", command=("/usr/bin/python3", "/tmp/x"), user="u"), False),
        (OPT, Process(name="p", command=("/usr/bin/python3", "-c", "1"), user="u"), False),
        (OPT, Process(name="p", command=("/usr/bin/python3", "/opt/x"), user="u"), True),
        (Policy(), Process(name="p", command=("a",), user="acme"), False),
        (Policy(), Process(name="p", command=("/bin/a",), user="u", environment={"LD_PRELOAD": "x"}), False),
        (Policy(commands=("/bin",)), Process(name="p", command=("/bin/a",), user="u", stop=STOP), False),
    ],
)  # fmt: skip
def test_policy_of_the_node(policy: Policy, process: Process, passes: bool) -> None:
    reason = refusal(policy, Tenant(name="acme"), process, "root")
    assert (reason is None) is passes


def test_agent_that_is_not_root_runs_processes_as_itself() -> None:
    assert refusal(Policy(), Tenant(name="acme"), Process(name="p", command=("/bin/a",)), "acme") is None


def test_what_does_not_pass_the_policy_is_failed_and_never_started() -> None:
    bed = Bed(policy=Policy())
    bed.order(WEB, Role.ACTIVE)
    assert not bed.trees
    assert bed.fact(WEB).state is State.FAILED
    assert "root" in bed.fact(WEB).reason


def test_denied_name_in_an_order_is_refused() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE, environment=(("LD_PRELOAD", "/x"),))
    assert not bed.trees


def test_malformed_plan_is_refused() -> None:
    bed = Bed()
    bed.receive(m.PutPlan(digest_of(b"\xc1"), b"\xc1"))
    assert bed.last(m.Answer).status == "refused"
    bed.receive(m.PutPlan("other", encode_plan((ACME,))))
    assert bed.last(m.Answer).status == "refused"
    assert bed.state.tenants


# --- deaths and the Monitor ----------------------------------------------------------------------


def test_death_is_told_at_once_and_the_monitor_decides() -> None:
    bed = Bed()
    bed.receive(m.Watch(0, 0), Agent.MONITOR)
    bed.order(WEB, Role.ACTIVE, on_death=OnDeath.REPORT)
    bed.crash(WEB)
    fact = bed.last(m.Facts).facts[0]
    assert (fact.state, fact.exit, fact.planned, fact.on_death) == (State.DOWN, Exit(code=1), False, OnDeath.REPORT)
    assert fact.pid
    bed.run(500)
    assert not bed.trees
    effects = bed.receive(m.Revive(WEB, fact.generation), Agent.MONITOR)
    assert any(isinstance(effect, ev.Spawn) for effect in effects)


def test_same_order_again_does_not_start_what_died() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.crash(WEB)
    bed.order(WEB, Role.ACTIVE)
    assert not bed.trees
    bed.order(WEB, Role.ACTIVE, reset=1)
    assert bed.tree(WEB) is not None


def test_revive_of_an_older_generation_or_of_what_should_be_down_is_refused() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.crash(WEB)
    bed.receive(m.Revive(WEB, (0, 0, 0)), Agent.MONITOR)
    assert bed.last(m.Answer).status == "stale"
    bed.down(WEB)
    bed.receive(m.Revive(WEB, (9, 9, 9)), Agent.MONITOR)
    assert bed.last(m.Answer).status == "refused"
    assert not bed.trees


def test_revive_with_kill_is_an_unplanned_death() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.receive(m.Revive(WEB, (9, 9, 9), kill=True, reason="hung"), Agent.MONITOR)
    assert not bed.trees
    assert not bed.fact(WEB).planned
    assert bed.fact(WEB).reason == "hung"


def test_revive_does_not_bypass_the_right() -> None:
    bed = active()
    bed.crash(IVR)
    bed.rights.clear()
    bed.version += 1
    bed.run(100)
    bed.receive(m.Revive(IVR, (9, 9, 9)), Agent.MONITOR)
    bed.run(100)
    assert not bed.trees


def test_failed_start_is_an_unplanned_death_that_differs_each_time() -> None:
    bed = Bed(auto=False)
    bed.order(WEB, Role.ACTIVE)
    ends = []
    for _ in range(2):
        bed.pending.clear()
        bed.trees.clear()
        bed.now += 1_000_000
        bed.feed(ev.SpawnFailed(WEB, bed.state.copies[WEB].instance, "exec: no such file"))
        fact = bed.fact(WEB)
        assert (fact.state, fact.planned) == (State.DOWN, False)
        ends.append((fact.pid, fact.started_ns))
        bed.receive(m.Revive(WEB, (9, 9, 9)), Agent.MONITOR)
    assert ends[0] != ends[1]


def test_outcome_of_an_earlier_instance_changes_nothing() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.feed(ev.Exited(WEB, "other", Exit(code=1)))
    bed.feed(ev.TreeGone(WEB, "other"))
    assert bed.fact(WEB).state is State.UP


def test_watch_gets_the_whole_list_only_when_it_lacks_something() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.receive(m.Watch(0, 0), Agent.MONITOR)
    facts = bed.last(m.Facts)
    assert facts.full
    assert facts.plan_digest == bed.state.plan_digest
    bed.sent.clear()
    bed.receive(m.Watch(bed.incarnation, facts.seq), Agent.MONITOR)
    assert not [send for send in bed.sent if isinstance(send.body, m.Facts)]


def test_readiness_and_status_of_the_program_are_told() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    instance = bed.state.copies[WEB].instance
    bed.feed(ev.Notified(WEB, instance, True, "serving"))
    assert (bed.fact(WEB).notified, bed.fact(WEB).status) == (True, "serving")


def test_missed_watchdog_is_an_unplanned_death() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    instance = bed.state.copies[WEB].instance
    bed.feed(ev.WatchdogArmed(WEB, instance, 100))
    bed.feed(ev.WatchdogMissed(WEB, instance))
    bed.settle()
    assert not bed.fact(WEB).planned
    assert not bed.trees


# --- stop ----------------------------------------------------------------------------------------


def test_stubborn_copy_is_killed_after_its_grace() -> None:
    bed = Bed(stubborn=True)
    bed.order(PLAIN, Role.STANDBY)
    bed.down(PLAIN)
    bed.run(900)
    assert bed.fact(PLAIN).state is State.STOPPING
    assert bed.trees
    bed.run(200)
    assert not bed.trees
    assert bed.fact(PLAIN).state is State.DOWN


def test_up_again_while_stopping_ends_up() -> None:
    bed = Bed(stubborn=True)
    bed.order(PLAIN, Role.STANDBY)
    bed.down(PLAIN)
    bed.order(PLAIN, Role.STANDBY)
    bed.run(1_100)
    assert bed.fact(PLAIN).state is State.UP


def test_stop_while_starting_ends_down() -> None:
    bed = Bed(auto=False)
    bed.order(PLAIN, Role.STANDBY)
    bed.down(PLAIN)
    bed.settle()
    bed.settle()
    assert bed.fact(PLAIN).state is State.DOWN


def test_what_cannot_be_killed_keeps_its_slot() -> None:
    bed = Bed()
    bed.order(PLAIN, Role.STANDBY)
    bed.auto = False
    bed.down(PLAIN)
    bed.pending.clear()
    bed.run(1_000 + limits.KILL_CONFIRM_MS + 100)
    bed.order(PLAIN, Role.STANDBY)
    assert (bed.fact(PLAIN).state, bed.fact(PLAIN).reason) == (State.STOPPING, "unkillable")
    assert len(bed.all(ev.Spawn)) == 1


def test_child_that_outlives_the_main_process_is_killed_before_down() -> None:
    bed = Bed(auto=False)
    bed.order(PLAIN, Role.STANDBY)
    bed.settle()
    bed.down(PLAIN)
    bed.feed(bed.pending.pop(0))
    assert bed.fact(PLAIN).state is State.STOPPING
    assert bed.all(ev.KillTree)
    bed.settle()
    assert bed.fact(PLAIN).state is State.DOWN


# --- roles ---------------------------------------------------------------------------------------


def test_promote_and_demote_by_signal_keep_the_process() -> None:
    bed = Bed()
    bed.order(WARM, Role.STANDBY)
    tree = bed.tree(WARM)
    bed.allow(WARM, F, 60_000)
    bed.order(WARM, Role.ACTIVE, F)
    bed.run(25)
    assert bed.tree(WARM) is tree
    assert (bed.fact(WARM).role, bed.fact(WARM).fencing) == (Role.ACTIVE, F)
    bed.order(WARM, Role.STANDBY, F)
    assert bed.tree(WARM) is tree
    assert tree.role is Role.STANDBY


def test_promote_waits_for_the_right() -> None:
    bed = Bed()
    bed.order(WARM, Role.STANDBY)
    bed.order(WARM, Role.ACTIVE, F)
    bed.run(200)
    assert not bed.all(ev.TellRole)


def test_copy_without_a_method_is_restarted_with_its_role() -> None:
    bed = Bed()
    bed.order(PLAIN, Role.STANDBY)
    bed.allow(PLAIN, F, 60_000)
    bed.order(PLAIN, Role.ACTIVE, F)
    bed.run(25)
    assert [effect.role for effect in bed.all(ev.Spawn)] == [Role.STANDBY, Role.ACTIVE]
    assert bed.fact(PLAIN).planned


def test_program_on_the_control_socket_is_told_there() -> None:
    bed = Bed()
    bed.order(PLAIN, Role.STANDBY)
    bed.feed(ev.Connected(PLAIN, bed.state.copies[PLAIN].instance))
    bed.allow(PLAIN, F, 60_000)
    bed.order(PLAIN, Role.ACTIVE, F)
    bed.run(25)
    assert [effect.method for effect in bed.all(ev.TellRole)] == ["socket"]
    assert len(bed.all(ev.Spawn)) == 1


def test_standby_that_says_it_is_active_has_no_right_to_be_and_is_started_anew() -> None:
    bed = Bed()
    bed.order(PLAIN, Role.STANDBY)
    instance = bed.state.copies[PLAIN].instance
    bed.feed(ev.Connected(PLAIN, instance, Role.STANDBY, 0))
    assert bed.state.copies[PLAIN].instance == instance
    bed.feed(ev.Connected(PLAIN, instance, Role.ACTIVE, F))
    assert [effect.instance for effect in bed.all(ev.Freeze)] == [instance]
    assert [effect.role for effect in bed.all(ev.Spawn)] == [Role.STANDBY, Role.STANDBY]


def test_active_copy_that_says_it_is_standby_is_told_again() -> None:
    bed = active(WARM)
    instance = bed.state.copies[WARM].instance
    bed.feed(ev.Connected(WARM, instance, Role.STANDBY, F))
    assert [(effect.role, effect.instance) for effect in bed.all(ev.TellRole)] == [(Role.ACTIVE, instance)]
    assert bed.fact(WARM).role is Role.ACTIVE


@pytest.mark.parametrize("late", [False, True])
def test_promotion_that_fails_or_times_out_restarts_the_copy_as_active(late: bool) -> None:
    bed = Bed()
    bed.order(WARM, Role.STANDBY)
    bed.allow(WARM, F, 60_000)
    bed.auto = False
    bed.order(WARM, Role.ACTIVE, F)
    bed.run(25)
    bed.settle()
    bed.pending = [event for event in bed.pending if not isinstance(event, ev.RoleTold)]
    instance = bed.state.copies[WARM].instance
    if late:
        bed.state.copies[WARM].telling, bed.state.copies[WARM].role = Role.ACTIVE, Role.STANDBY
        bed.state.copies[WARM].telling_fencing = F
        bed.state.set_timer(bed.state.copies[WARM], bed.now)
        bed.feed(Tick())
    else:
        bed.state.copies[WARM].telling, bed.state.copies[WARM].telling_fencing = Role.ACTIVE, F
        bed.feed(ev.RoleTold(WARM, instance, Role.ACTIVE, F, False, "no"))
    bed.settle()
    assert bed.fact(WARM).role is Role.ACTIVE
    assert bed.state.copies[WARM].instance != instance


# --- relinquish ----------------------------------------------------------------------------------


def relinquished(bed: Bed) -> list[Send]:
    return [send for send in bed.sent if isinstance(send.body, m.Relinquished)]


def test_relinquish_at_once_freezes_records_answers_then_kills_in_that_order() -> None:
    bed = active()
    bed.auto = False
    effects = bed.receive(m.Relinquish("acme", F, 0))
    assert any(isinstance(effect, ev.Freeze) for effect in effects)
    assert not relinquished(bed)
    effects = bed.feed(bed.pending.pop(0))
    kinds = [
        type(effect).__name__ for effect in effects
        if isinstance(effect, ev.KillTree)
        or (isinstance(effect, Persist) and effect.key == "never/acme")
        or (isinstance(effect, Send) and isinstance(effect.body, m.Relinquished))
    ]  # fmt: skip
    assert kinds == ["Persist", "Send", "KillTree"]


def test_relinquish_of_what_does_not_run_is_answered_at_once_and_again() -> None:
    bed = Bed()
    bed.receive(m.Relinquish("acme", F, 0), request=7)
    bed.receive(m.Relinquish("acme", F, 0), request=8)
    assert [send.request for send in relinquished(bed)] == [7, 8]
    assert bed.journal["never/acme"] == F


def test_relinquished_number_is_never_started_again() -> None:
    bed = active()
    bed.receive(m.Relinquish("acme", F, 0))
    bed.run(300)
    assert not bed.trees
    bed.order(IVR, Role.ACTIVE, F)
    bed.run(300)
    assert not bed.trees
    bed.allow(IVR, F + 1, 60_000)
    bed.order(IVR, Role.ACTIVE, F + 1)
    bed.run(100)
    assert bed.acting(IVR)


def test_relinquish_with_time_demotes_politely() -> None:
    bed = active(WARM)
    tree = bed.tree(WARM)
    bed.receive(m.Relinquish("acme", F, 250))
    assert relinquished(bed)
    assert bed.tree(WARM) is tree
    assert not bed.all(ev.Freeze)
    assert tree.role is Role.STANDBY


def test_relinquish_with_time_freezes_what_does_not_end() -> None:
    bed = active(bed=Bed(stubborn=True))
    bed.receive(m.Relinquish("acme", F, 250))
    bed.run(240)
    assert not relinquished(bed)
    bed.run(20)
    assert relinquished(bed)
    assert not bed.trees


def test_relinquish_leaves_standby_load_sharing_and_other_tenants_alone() -> None:
    bed = active()
    bed.order(WARM, Role.STANDBY)
    bed.order(WEB, Role.ACTIVE)
    bed.receive(m.Relinquish("acme", F, 0))
    assert {tree.copy for tree in bed.trees.values()} == {WARM, WEB}


def test_never_survives_a_restart_of_the_spawner() -> None:
    bed = active()
    bed.receive(m.Relinquish("acme", F, 0))
    bed.restart()
    bed.run(300)
    assert not bed.trees


# --- restart of the Spawner ----------------------------------------------------------------------


def test_restarted_spawner_adopts_everything_with_roles_orders_and_generation() -> None:
    bed = active(WARM)
    bed.order(WEB, Role.ACTIVE)
    before = {key: (copy.instance, copy.pid, copy.role, copy.fencing) for key, copy in bed.state.copies.items()}
    digest, generation = bed.state.orders_digest, bed.state.generation
    bed.restart()
    after = {key: (copy.instance, copy.pid, copy.role, copy.fencing) for key, copy in bed.state.copies.items()}
    assert before == after
    assert (bed.state.orders_digest, bed.state.generation) == (digest, generation)
    assert bed.acting(WARM)
    assert len(bed.all(ev.Spawn)) == 2


def test_restarted_spawner_freezes_what_is_over_before_anything_else() -> None:
    bed = active()
    bed.order(WEB, Role.ACTIVE)
    bed.answering = False
    bed.effects.clear()
    bed.now = bed.guard[IVR] + 1
    bed.restart()
    first = [effect for effect in bed.effects if isinstance(effect, ev.Adopt | ev.Freeze)]
    assert [(type(effect), effect.copy) for effect in first][:2] == [(ev.Adopt, IVR), (ev.Freeze, IVR)]
    assert bed.tree(IVR).frozen


def test_restarted_spawner_lets_a_copy_within_its_right_run_until_its_deadline() -> None:
    bed = active()
    bed.answering = False
    deadline = bed.guard[IVR]
    bed.restart()
    bed.run((deadline - bed.now) // 1_000_000 - 1)
    assert bed.acting(IVR)
    bed.run(3)
    assert not bed.acting(IVR)


def test_inherited_deadline_starts_nothing() -> None:
    bed = active()
    bed.answering = False
    bed.restart()
    bed.trees.clear()
    bed.feed(ev.Exited(IVR, bed.state.copies[IVR].instance, Exit(code=1)))
    bed.feed(ev.TreeGone(IVR, bed.state.copies[IVR].instance))
    bed.receive(m.Revive(IVR, (9, 9, 9)), Agent.MONITOR)
    bed.run(100)
    assert not bed.trees


def test_death_during_the_outage_is_unplanned_and_its_exit_unknown() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.trees.clear()
    bed.restart()
    fact = bed.fact(WEB)
    assert (fact.state, fact.exit, fact.planned) == (State.DOWN, Exit(), False)
    bed.run(300)
    assert not bed.trees


def test_state_of_another_boot_is_void() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.journal["boot"] = "boot-0"
    bed.trees.clear()
    bed.restart()
    assert not bed.state.copies
    assert set(bed.journal) == {"boot"}


def test_stop_that_a_restart_interrupts_is_finished() -> None:
    bed = Bed(stubborn=True)
    bed.order(PLAIN, Role.STANDBY)
    bed.down(PLAIN)
    bed.restart()
    bed.run(100)
    assert not bed.trees
    assert bed.fact(PLAIN).planned


# --- agents and leaving --------------------------------------------------------------------------


def ask(bed: Bed, *wanted: str, leave: str = "", end: str = "") -> m.AgentsAnswer:
    bed.receive(m.Agents(wanted, end, leave), Agent.MASTER)
    answer = bed.last(m.AgentsAnswer)
    assert isinstance(answer, m.AgentsAnswer)
    return answer


def test_agents_are_started_once_and_again_after_a_floor() -> None:
    bed = Bed()
    ask(bed, "monitor", "server")
    answer = ask(bed, "monitor", "server")
    assert sorted(answer.pids) == ["monitor", "server"]
    assert len(bed.all(ev.SpawnAgent)) == 2
    bed.feed(ev.AgentExited("server", answer.pids["server"]))
    ask(bed, "monitor", "server")
    assert len(bed.all(ev.SpawnAgent)) == 2
    bed.run(limits.AGENT_RESTART_FLOOR_MS + 1)
    assert len(bed.all(ev.SpawnAgent)) == 3


def test_agent_that_died_soon_waits_for_the_masters_word_one_that_ran_long_does_not() -> None:
    bed = Bed()
    ask(bed, "monitor", "server")
    pids = ask(bed, "monitor", "server").pids
    bed.feed(ev.AgentExited("server", pids["server"]))
    bed.run(household.EARLY_MS)
    assert len(bed.all(ev.SpawnAgent)) == 2
    bed.feed(ev.AgentExited("monitor", pids["monitor"]))
    assert [effect.role for effect in bed.all(ev.SpawnAgent)[2:]] == ["monitor"]


def test_agent_that_a_new_spawner_finds_is_left_alone() -> None:
    bed = Bed()
    bed.feed(ev.AgentSpawned("server", 77))
    ask(bed, "monitor")
    bed.run(300)
    assert not bed.all(ev.SignalAgent)


def test_agent_no_longer_wanted_by_a_leaving_node_is_told_to_end_once() -> None:
    bed = Bed()
    ask(bed, "monitor", "server", leave="stop")
    ask(bed, "monitor", leave="stop")
    bed.run(300)
    assert [(effect.role, effect.signal) for effect in bed.all(ev.SignalAgent)] == [("server", "SIGTERM")]


def test_stuck_agent_is_killed_but_not_its_successor() -> None:
    bed = Bed()
    ask(bed, "server")
    bed.run(limits.STUCK_AFTER_MS)
    ask(bed, "server", end="server")
    ask(bed, "server", end="server")
    assert [effect.signal for effect in bed.all(ev.SignalAgent)] == ["SIGKILL"]


def test_master_and_watcher_both_dead_starts_the_watcher() -> None:
    bed = Bed()
    bed.feed(ev.MasterState(0))
    bed.feed(ev.WatcherState(55))
    assert not bed.all(ev.SpawnAgent)
    bed.feed(ev.WatcherState(0))
    assert [effect.role for effect in bed.all(ev.SpawnAgent)] == ["watcher"]


def test_leaving_without_a_server_stops_dependents_first_and_says_empty() -> None:
    bed = Bed(answering=False)
    bed.order(DB, Role.STANDBY)
    bed.order(WEB, Role.ACTIVE)
    assert not ask(bed, "monitor", leave="stop").empty
    assert bed.last(m.Pull).leaving
    bed.run(1_200)
    assert [effect.copy for effect in bed.all(ev.Signal)] == [WEB, DB]
    assert not bed.trees
    assert bed.last(m.AgentsAnswer).empty


def test_leaving_with_a_server_waits_for_its_orders() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    ask(bed, "monitor", leave="stop")
    bed.run(3_000)
    assert bed.tree(WEB) is not None
    bed.down(WEB)
    assert bed.last(m.AgentsAnswer).empty


def test_detach_ends_the_agents_and_leaves_the_copies() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    ask(bed, "monitor")
    assert ask(bed, "monitor", leave="detach").empty
    assert bed.tree(WEB) is not None
    assert bed.all(ev.End)
    assert not bed.all(ev.SignalAgent)


def test_node_is_the_one_of_the_bed() -> None:
    assert Bed().state.node == NODE


def test_a_death_decided_ahead_is_told_and_mended_in_the_same_step() -> None:
    bed = Bed()
    bed.order(WEB, Role.ACTIVE)
    bed.receive(m.Revive(WEB, bed.state.copies[WEB].order.generation, ahead="any"), Agent.MONITOR)  # type: ignore[union-attr]
    first = bed.tree(WEB)
    bed.receive(m.Watch(0, 0), Agent.MONITOR)
    bed.crash_alone(WEB)
    second = bed.tree(WEB)
    assert first is not None
    assert second is not None
    assert second.instance != first.instance
    bed.crash_alone(WEB)
    assert not bed.trees, "it held for that instance alone"


def test_what_was_decided_ahead_is_void_after_another_order_or_a_clean_end() -> None:
    for clean in (False, True):
        bed = Bed()
        bed.order(WEB, Role.ACTIVE)
        order = bed.state.copies[WEB].order
        assert order is not None
        bed.receive(m.Revive(WEB, order.generation, ahead="unclean" if clean else "any"), Agent.MONITOR)
        if not clean:
            bed.order(WEB, Role.ACTIVE)
        bed.crash_alone(WEB, Exit(code=0) if clean else Exit(signal="SIGKILL"))
        assert not bed.trees
