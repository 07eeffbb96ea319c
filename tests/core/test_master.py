"""The Master's machine, against a small model of a node: who runs, what the Spawner was told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ha.core import master
from ha.core.care import LOOK_EVERY_MS, Health
from ha.core.machine import Effect, Event, Received, Send, Tick
from ha.core.master import (
    Announce,
    Asked,
    Clean,
    Died,
    End,
    Holds,
    Look,
    MasterState,
    NotStarted,
    Say,
    Show,
    SignalAgent,
    StartAgent,
    Turned,
    Watch,
    Wish,
)
from ha.core.watcher import Mode
from ha.model import limits
from ha.model.messages import Agents, AgentsAnswer
from ha.model.names import Agent
from ha.model.plan import Node, System
from ha.model.status import AgentState
from ha.model.timing import MS

S = 1_000 * MS
LOOK = LOOK_EVERY_MS * MS
ALL = (Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR, Agent.SERVER, Agent.WITNESS)
SYSTEM = System(
    name="demo", run_dir="/run/ha", data_dir="/var/lib/ha", tenants_dir="/t", node_file="/n", file="/f",
    voters=("a1", "b1", "w1"), sides={"a": ("a1", "a2"), "b": ("b1",)},
    nodes={name: Node(name=name, side=name[0], addresses=("127.0.0.1",)) for name in ("a1", "a2", "a3", "b1")},
)  # fmt: skip


@dataclass
class World:
    """A node. Its Spawner starts what is wanted and ends what is asked for, like the real one, but at once."""

    now: int = 0
    holders: dict[Agent, int] = field(default_factory=dict)
    mode: Mode = Mode.RUN
    empty: bool = True  # no copy runs
    deaf: set[Agent] = field(default_factory=set)  # do not end when asked
    turning: bool = True
    pids: int = 100
    effects: list[Effect] = field(default_factory=list)
    agents_said: list[Agents] = field(default_factory=list)

    def begin(self) -> None:
        state, effects = master.start(SYSTEM, "a1", self.mode, dict(self.holders), self.now)
        self.state: MasterState = state
        self._do(effects)

    def feed(self, event: Event) -> None:
        self.state, effects = master.step(self.state, event, self.now)
        self._do(effects)

    def run_ms(self, duration_ms: int) -> int:
        """Let time pass; return how many ticks that took."""
        end, ticks = self.now + duration_ms * MS, 0
        while (wake := master.wake_at(self.state)) is not None and wake <= end:
            self.now = max(self.now, wake)
            self.feed(Tick())
            ticks += 1
            assert ticks < 100 * (1 + duration_ms // 1_000), "it spins"
        self.now = end
        return ticks

    def die(self, role: Agent) -> None:
        self.feed(Died(role=role, pid=self.holders.pop(role)))

    def seen(self, kind: type[Effect]) -> list:  # type: ignore[type-arg]
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def _start(self, role: Agent) -> int:
        self.pids += 1
        self.holders[role] = self.pids
        return self.pids

    def _do(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            match effect:
                case Announce(mode=mode):
                    self.mode = mode
                case StartAgent(role=role):
                    assert role not in self.holders, f"{role} is started twice"
                    self.feed(Holds(role=role, pid=self._start(role)))
                case Look():
                    for role, pid in list(self.holders.items()):
                        self.feed(Holds(role=role, pid=pid))
                        if self.turning:
                            self.feed(Turned(role=role, pid=pid, counter=self.now + 1))
                case SignalAgent(role=role, pid=pid, name=name):
                    if (
                        self.holders.get(role) == pid
                        and name != "SIGHUP"
                        and (name == "SIGKILL" or role not in self.deaf)
                    ):
                        self.die(role)
                case Send(role=Agent.SPAWNER, body=Agents() as body):
                    self._spawner(body)
                case _:
                    pass

    def _spawner(self, said: Agents) -> None:
        self.agents_said.append(said)
        if Agent.SPAWNER not in self.holders:
            return
        if said.end and Agent(said.end) in self.holders:
            self.die(Agent(said.end))
        for name in said.wanted:
            if Agent(name) not in self.holders:
                self._start(Agent(name))
        pids = {str(role): self.holders.get(role, 0) for role in (Agent.MONITOR, Agent.SERVER, Agent.WITNESS)}
        body = AgentsAnswer(pids=pids, empty=said.leave == "detach" or (self.empty and said.leave == "stop"))
        self.feed(Received(role=Agent.SPAWNER, node="a1", incarnation=1, seq=1, request=0, body=body))


@pytest.fixture
def world() -> World:
    made = World()
    made.begin()
    made.run_ms(2_000)
    made.effects.clear()
    made.agents_said.clear()
    return made


def states(effects: list[Show]) -> list[tuple[Agent, AgentState]]:
    return [(effect.role, effect.state) for effect in effects]


@pytest.mark.parametrize(
    ("node", "roles"),
    [
        ("a1", ALL),
        ("a2", ALL[:4]),
        ("a3", ALL[:3]),
    ],
)
def test_each_node_has_the_agents_that_the_system_file_gives_it(node: str, roles: tuple[Agent, ...]) -> None:
    assert master.wanted_roles(SYSTEM, node) == roles


def test_it_starts_all_agents_and_says_so_once() -> None:
    world = World()
    world.begin()
    world.run_ms(10_000)
    assert set(world.holders) == set(ALL)
    assert [effect.role for effect in world.seen(StartAgent)] == [Agent.SPAWNER, Agent.WATCHER]
    assert [effect.up for effect in world.seen(Say)] == [6]
    assert all(ward.health is Health.UP and ward.restarts == 0 for ward in world.state.wards.values())


def test_a_restarted_master_adopts_what_runs_and_starts_nothing(world: World) -> None:
    again = World(now=world.now, holders=dict(world.holders))
    again.begin()
    again.run_ms(5_000)
    assert again.seen(StartAgent) == []
    assert again.holders == world.holders


@pytest.mark.parametrize("role", [Agent.WATCHER, Agent.SPAWNER])
def test_one_of_its_own_that_dies_is_started_at_once(world: World, role: Agent) -> None:
    world.now += 60 * S
    world.die(role)
    assert world.seen(StartAgent) == [StartAgent(role=role)]
    assert role in world.holders


@pytest.mark.parametrize("role", [Agent.MONITOR, Agent.SERVER, Agent.WITNESS])
def test_one_of_the_spawners_that_dies_is_asked_for_at_once(world: World, role: Agent) -> None:
    world.run_ms(60_000)
    world.agents_said.clear()
    world.die(role)
    assert world.agents_said[0].wanted == ("monitor", "server", "witness")
    assert role in world.holders
    assert (role, AgentState.DEAD) in states(world.seen(Show))


def test_one_that_dies_at_once_is_left_out_for_its_delay(world: World) -> None:
    world.now += 60 * S
    starts = 0
    until = world.now + 10 * S
    while world.now < until:
        if Agent.SERVER in world.holders:
            starts += 1
            world.die(Agent.SERVER)
        world.run_ms(10)
    assert 5 <= starts <= 9  # 0, 0.2, 0.6, 1.4, 3, 6.2 s
    assert set(world.holders) >= set(ALL) - {Agent.SERVER}


def test_one_that_dies_at_once_and_is_its_own_waits_for_its_delay(world: World) -> None:
    world.now += 60 * S
    world.die(Agent.WATCHER)
    world.effects.clear()
    world.die(Agent.WATCHER)
    assert world.seen(StartAgent) == []
    world.run_ms(limits.AGENT_RESTART_FLOOR_MS)
    assert world.seen(StartAgent) == [StartAgent(role=Agent.WATCHER)]


def test_a_failed_start_is_said_and_tried_again(world: World) -> None:
    state, _ = master.start(SYSTEM, "a1", Mode.RUN, {}, 0)
    state, effects = master.step(state, NotStarted(role=Agent.WATCHER, reason="no memory"), 0)
    assert Say(text="cannot start the watcher: no memory") in effects
    state, effects = master.step(state, Tick(), limits.AGENT_RESTART_FLOOR_MS * MS)
    assert StartAgent(role=Agent.WATCHER) in effects


def test_a_restarted_spawner_is_told_again_what_to_start(world: World) -> None:
    world.run_ms(30_000)
    world.agents_said.clear()
    world.die(Agent.SPAWNER)
    assert world.agents_said[-1] == Agents(wanted=("monitor", "server", "witness"))


def test_a_stuck_agent_is_killed_and_started_again(world: World) -> None:
    before = dict(world.holders)
    world.turning = False
    world.run_ms(limits.STUCK_AFTER_MS + 1_500)
    killed = [effect for effect in world.seen(SignalAgent) if effect.name == "SIGKILL"]
    assert [(effect.role, effect.pid) for effect in killed] == list(before.items()) or {
        (effect.role, effect.pid) for effect in killed
    } == set(before.items())
    assert set(world.holders) == set(ALL)
    assert not set(world.holders.values()) & set(before.values())


def test_an_agent_that_never_turned_is_ended_by_its_parent(world: World) -> None:
    world.turning = False
    world.run_ms(60_000)  # all were restarted and are starting for good
    ends = [said.end for said in world.agents_said if said.end]
    assert {"monitor", "server", "witness"} == set(ends)


def test_a_master_that_slept_itself_kills_nobody(world: World) -> None:
    world.now += 60 * S
    world.feed(Tick())
    assert world.seen(SignalAgent) == []


def test_the_agents_the_spawner_names_are_watched_before_they_hold_a_lock(world: World) -> None:
    pids = {"monitor": 900, "server": 0, "witness": 0}
    world.feed(Received(role=Agent.SPAWNER, node="a1", incarnation=1, seq=9, request=0, body=AgentsAnswer(pids=pids)))
    assert Watch(role=Agent.MONITOR, pid=900) in world.effects


def test_stop_empties_the_node_then_ends_the_agents_in_order(world: World) -> None:
    world.empty = False
    world.feed(Asked(wish=Wish.STOP))
    assert world.mode is Mode.STOP  # in the table before anything else happens
    world.run_ms(30_000)
    assert world.seen(SignalAgent) == []  # a grace period is the Spawner's to end
    assert world.agents_said[-1].leave == "stop"
    world.empty = True
    world.run_ms(1_000)
    assert [(effect.role, effect.name) for effect in world.seen(SignalAgent)] == [
        (role, "SIGTERM") for role in (Agent.SERVER, Agent.MONITOR, Agent.WITNESS, Agent.WATCHER, Agent.SPAWNER)
    ]
    assert world.holders == {}
    assert world.effects[-3:] == [Announce(mode=Mode.ENDED), Clean(), End(code=0)]


def test_an_agent_that_ends_is_not_started_again_during_a_stop(world: World) -> None:
    world.feed(Asked(wish=Wish.STOP))
    assert world.seen(StartAgent) == []
    assert world.holders == {}


def test_a_second_stop_is_harmless(world: World) -> None:
    world.empty = False
    world.feed(Asked(wish=Wish.STOP))
    world.feed(Asked(wish=Wish.STOP))
    world.feed(Asked(wish=Wish.DETACH))
    assert world.mode is Mode.STOP
    world.empty = True
    world.run_ms(1_000)
    world.feed(Asked(wish=Wish.STOP))
    assert world.effects[-1] == End(code=0)


def test_detach_ends_the_agents_and_releases_nothing(world: World) -> None:
    world.feed(Asked(wish=Wish.DETACH))
    world.run_ms(1_000)
    assert {effect.name for effect in world.seen(SignalAgent)} == {"SIGUSR1"}
    assert world.holders == {}
    assert world.seen(Clean) == []
    assert world.effects[-1] == End(code=0)


@pytest.mark.parametrize("resumed", [False, True])
def test_detach_ends_the_server_before_the_spawner_is_told(world: World, resumed: bool) -> None:
    server = world.holders[Agent.SERVER]
    if resumed:
        world = World(now=world.now, holders=dict(world.holders), mode=Mode.DETACH, deaf={Agent.SERVER})
        world.begin()
    else:
        world.deaf = {Agent.SERVER}
        world.feed(Asked(wish=Wish.DETACH))
    world.run_ms(limits.AGENT_END_MS - 100)
    assert world.holders[Agent.SERVER] == server
    assert "detach" not in {said.leave for said in world.agents_said}
    world.run_ms(2_000)  # deaf to SIGUSR1: it is killed, which releases nothing either
    assert world.agents_said[-1].leave == "detach"
    assert not {effect.name for effect in world.seen(SignalAgent)} & {"SIGTERM"}
    world.deaf = set()
    world.run_ms(10_000)
    assert world.effects[-1] == End(code=0)


def test_an_agent_that_does_not_end_is_killed_after_its_time(world: World) -> None:
    world.deaf = {Agent.SERVER}
    world.feed(Asked(wish=Wish.STOP))
    world.run_ms(limits.AGENT_END_MS - 100)
    assert Agent.SERVER in world.holders
    world.run_ms(200)
    assert world.holders == {}
    assert world.effects[-1] == End(code=0)


def test_a_spawner_that_says_nothing_does_not_hold_up_the_end_for_ever(world: World) -> None:
    world.feed(Asked(wish=Wish.REREAD))
    state = world.state
    state, _ = master.step(state, Asked(wish=Wish.STOP), world.now)
    now, effects = world.now, []
    while now < world.now + (limits.AGENT_ANSWER_MS + 2_000) * MS:
        now += 100 * MS
        state, some = master.step(state, Tick(), now)
        effects += some
    assert any(isinstance(effect, Say) and "does not answer" in effect.text for effect in effects)
    assert SignalAgent(role=Agent.SERVER, pid=world.holders[Agent.SERVER], name="SIGTERM") in effects


def test_a_master_restarted_during_a_stop_goes_on_with_it(world: World) -> None:
    again = World(now=world.now, holders=dict(world.holders), mode=Mode.STOP)
    again.begin()
    again.run_ms(2_000)
    assert again.holders == {}
    assert again.effects[-1] == End(code=0)


def test_a_master_asked_to_step_aside_ends_and_touches_nothing(world: World) -> None:
    before = dict(world.holders)
    world.feed(Asked(wish=Wish.STEP_ASIDE))
    assert world.holders == before
    assert world.mode is Mode.HANDOVER
    assert [type(effect) for effect in world.effects] == [Announce, Say, End]
    world.feed(Tick())
    assert master.wake_at(world.state) is None


def test_reread_goes_to_the_server(world: World) -> None:
    world.feed(Asked(wish=Wish.REREAD))
    assert world.seen(SignalAgent) == [SignalAgent(role=Agent.SERVER, pid=world.holders[Agent.SERVER], name="SIGHUP")]


def test_late_and_doubled_events_change_nothing(world: World) -> None:
    before = dict(world.holders)
    world.feed(Died(role=Agent.MONITOR, pid=1))
    world.feed(Turned(role=Agent.MONITOR, pid=1, counter=9))
    world.feed(Holds(role=Agent.MONITOR, pid=before[Agent.MONITOR]))
    world.feed(Holds(role=Agent.HACTL, pid=5))
    assert world.effects == []
    assert world.holders == before


def test_an_idle_master_turns_a_few_times_a_second(world: World) -> None:
    assert world.run_ms(60_000) <= 60 * 3 + 3
