"""The Master's machine: keeps the agents of one node running, and ends them in order.

Laws.
- Watcher and Spawner are the Master's own to start; Monitor, Server and Witness the Spawner starts, told by
  `Agents(wanted)`, which is said again until it is true. One that died too soon is left out of `wanted` for its delay.
- Who holds a role's lock *is* that agent: it is adopted, and nothing is started beside it.
- An agent that runs but whose loop does not turn is killed by its pidfd and started again (`ha.core.care`).
- A stop is written into the table before it begins, so that a Master that dies on the way is started again and goes
  on with it. Stop: the Spawner empties the node, then Server (it releases), Monitor, Witness, Watcher, Spawner end.
  Detach: the copies stay and nothing is released, so the Server is ended by SIGUSR1 before anybody else is told.
- A Master that is asked to step aside ends at once and touches nothing: the one who asked adopts what runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ha.core.care import LATE_MS, LOOK_EVERY_MS, Health, Ward
from ha.core.machine import Effect, Event, Note, Received, Send, Step, Tick
from ha.core.watcher import Mode
from ha.model.limits import AGENT_ANSWER_MS, AGENT_END_MS, COMMAND_RETRY_MS
from ha.model.messages import Agents, AgentsAnswer
from ha.model.names import Agent
from ha.model.plan import System
from ha.model.status import AgentState
from ha.model.timing import MS

OWN = (Agent.SPAWNER, Agent.WATCHER)  # started by the Master itself, the Spawner first: all else waits for it
END_ORDER = (Agent.SERVER, Agent.MONITOR, Agent.WITNESS, Agent.WATCHER, Agent.SPAWNER)
ASK_EVERY_MS = 1_000  # Agents to the Spawner while all is well


class Wish(Enum):
    """What an operator, or another Master, asks of this one (by signal)."""

    STOP = "stop"
    DETACH = "detach"
    REREAD = "reread"
    STEP_ASIDE = "step aside"


class Asked(Event, frozen=True):
    """A signal came."""

    wish: Wish


class Holds(Event, frozen=True):
    """`pid` (never 0) holds the role's lock, or was just started for it."""

    role: Agent
    pid: int


class NotStarted(Event, frozen=True):
    """StartAgent failed."""

    role: Agent
    reason: str


class Died(Event, frozen=True):
    """The pidfd of that pid became readable."""

    role: Agent
    pid: int


class Turned(Event, frozen=True):
    """The progress counter of that process's loop, from the table; said only of a process whose identity is sure."""

    role: Agent
    pid: int
    counter: int


class Look(Effect, frozen=True):
    """Read locks and table, and say Holds and Turned."""


class Watch(Effect, frozen=True):
    """Open a pidfd for an agent that the Spawner started. -> Died, at once if it is gone"""

    role: Agent
    pid: int


class StartAgent(Effect, frozen=True):
    """Start the Watcher or the Spawner. -> Holds | NotStarted"""

    role: Agent


class SignalAgent(Effect, frozen=True):
    """Signal by pidfd; nothing if that pid is gone, or its identity is not sure. `name`: "SIGTERM"."""

    role: Agent
    pid: int
    name: str


class Show(Effect, frozen=True):
    """Write an agent's state into the progress table."""

    role: Agent
    state: AgentState
    restarts: int


class Announce(Effect, frozen=True):
    """Write into the progress table what this Master is about."""

    mode: Mode


class Say(Effect, frozen=True):
    """One line to whoever started ha-master. `up`: all agents run; else what is wrong."""

    up: int = 0
    text: str = ""


class Clean(Effect, frozen=True):
    """Remove what a stopped node leaves in run_dir/NODE: sockets, FIFOs, the directory of each process."""


class End(Effect, frozen=True):
    """End with that exit code."""

    code: int


@dataclass(slots=True)
class MasterState:
    """All of a Master. Times are ns of CLOCK_BOOTTIME."""

    node: str
    wards: dict[Agent, Ward]
    mode: Mode
    looked_at: int
    asked_at: int  # last Agents
    answered_at: int  # last AgentsAnswer, or since when one is waited for
    answered: bool = False  # by the Spawner that now runs
    ending: list[Agent] = field(default_factory=list)  # whose turn it is, and those after; empty before the end
    asked_to_end_at: int = 0  # the first of `ending`; 0: not yet
    killed: bool = False  # the first of `ending`
    detaching_at: int = 0  # since when the Server is being ended by a detach; 0: it is not, or is gone
    up_said: bool = False
    asks: int = 0  # Agents sent so far
    code: int = 0
    ended: bool = False
    out: list[Effect] = field(default_factory=list)


def wanted_roles(system: System, node: str) -> tuple[Agent, ...]:
    """Return the agents of a node besides its Master, in the order in which they are shown."""
    roles = [Agent.WATCHER, Agent.SPAWNER, Agent.MONITOR]
    if any(node in servers for servers in system.sides.values()):
        roles.append(Agent.SERVER)
    if node in system.voters:
        roles.append(Agent.WITNESS)
    return tuple(roles)


def start(system: System, node: str, mode: Mode, holders: dict[Agent, int], now: int) -> Step[MasterState]:
    """Return a Master that adopts `holders` (role -> pid) and goes on with a stop that was begun (`mode`)."""
    wards = {role: Ward(role.value) for role in wanted_roles(system, node)}
    state = MasterState(node, wards, mode, looked_at=now, asked_at=0, answered_at=now)
    state.out.append(Announce(mode=mode))
    for role, pid in holders.items():
        if role in wards:
            wards[role].seen(pid, now)
    for ward in wards.values():
        _show(state, ward)
    _start_what_may(state, now)
    if mode is Mode.DETACH:
        _let_go(state, now)
    return _handed_over(state)


def step(state: MasterState, event: Event, now: int) -> Step[MasterState]:
    """Decide."""
    if state.ended:
        return Step(state, [])
    match event:
        case Tick():
            _tick(state, now)
        case Holds(role=role, pid=pid):
            _holds(state, role, pid, now)
        case Turned(role=role, pid=pid, counter=counter):
            if role in state.wards and state.wards[role].turned(pid, counter, now):
                _show(state, state.wards[role])
        case Died(role=role, pid=pid):
            _died(state, role, pid, now)
        case NotStarted(role=role, reason=reason):
            state.wards[role].not_started(now)
            _show(state, state.wards[role])
            state.out.append(Say(text=f"cannot start the {role}: {reason}"))
        case Asked(wish=wish):
            _asked(state, wish, now)
        case Received(role=Agent.SPAWNER, body=AgentsAnswer() as answer):
            _answer(state, answer, now)
        case _:
            pass
    if not state.ended:
        _go_on(state, now)
    return _handed_over(state)


def wake_at(state: MasterState) -> int | None:
    """Return when a Tick is wanted."""
    if state.ended:
        return None
    when = state.looked_at + LOOK_EVERY_MS * MS
    to_ask = state.wards[Agent.SPAWNER].pid != 0
    if to_ask:
        when = min(when, state.asked_at + _ask_every_ms(state) * MS)
    for role, ward in state.wards.items():
        start_at = ward.wake_at()
        if start_at is None or state.ending:
            continue
        if role in OWN or (to_ask and start_at > state.asked_at):
            when = min(when, start_at)
    if state.asked_to_end_at:
        when = min(when, state.asked_to_end_at + AGENT_END_MS * MS)
    return when


def _tick(state: MasterState, now: int) -> None:
    late = now - state.looked_at - LOOK_EVERY_MS * MS
    if late < 0:
        return
    state.looked_at = now
    for role, ward in state.wards.items():
        if late > LATE_MS * MS:
            ward.excuse(late)
        if ward.stuck(now):
            state.out.append(Note(kind="agent.stuck", subject=role, reason=f"pid {ward.pid}: its loop does not turn"))
            if role in OWN or ward.turn[0]:
                state.out.append(SignalAgent(role=role, pid=ward.pid, name="SIGKILL"))
            else:
                state.asked_at = 0  # who it is is not sure: its parent ends it, see `_ask`
            _show(state, ward)
        elif ward.vanished(now):
            _show(state, ward)
    state.out.append(Look())


def _holds(state: MasterState, role: Agent, pid: int, now: int) -> None:
    ward = state.wards.get(role)
    if ward is None or not ward.seen(pid, now):
        return
    _show(state, ward)
    if role is Agent.SPAWNER:
        state.answered = False
        state.asked_at = 0  # tell the new one at once


def _died(state: MasterState, role: Agent, pid: int, now: int) -> None:
    ward = state.wards.get(role)
    if ward is None or not ward.died(pid, now):
        return
    _show(state, ward)
    if role is Agent.SPAWNER:
        state.answered = False
    else:
        state.asked_at = 0
    if role is Agent.SERVER:
        state.detaching_at = 0
    if not state.ending:
        state.out.append(Note(kind="agent.died", subject=role, reason=f"pid {pid}"))


def _asked(state: MasterState, wish: Wish, now: int) -> None:
    match wish:
        case Wish.STEP_ASIDE:
            state.ended = True
            state.out.append(Announce(mode=Mode.HANDOVER))
            state.out.append(Say(text="another ha-master takes over; this one ends and touches nothing"))
            state.out.append(End(code=0))
        case Wish.REREAD:
            server = state.wards.get(Agent.SERVER)
            if server is not None and server.pid:
                state.out.append(SignalAgent(role=Agent.SERVER, pid=server.pid, name="SIGHUP"))
        case Wish.STOP | Wish.DETACH if state.mode is Mode.RUN:
            state.mode = Mode.STOP if wish is Wish.STOP else Mode.DETACH
            state.out.append(Announce(mode=state.mode))
            state.out.append(Note(kind="node.stopping", subject=state.node, reason=wish.value))
            state.answered_at = now
            state.asked_at = 0
            if wish is Wish.DETACH:
                _let_go(state, now)
        case _:
            pass  # a second signal: it ends already


def _let_go(state: MasterState, now: int) -> None:
    """End the Server by SIGUSR1: at SIGTERM, which the Spawner may use, it would release what runs on."""
    server = state.wards.get(Agent.SERVER)
    if server is not None and server.pid:
        state.detaching_at = now
        state.out.append(SignalAgent(role=Agent.SERVER, pid=server.pid, name="SIGUSR1"))


def _answer(state: MasterState, answer: AgentsAnswer, now: int) -> None:
    state.answered = True
    state.answered_at = now
    for name, pid in answer.pids.items():
        if pid and name in state.wards and name not in OWN:
            role = Agent(name)
            if state.wards[role].pid != pid:
                state.out.append(Watch(role=role, pid=pid))
            _holds(state, role, pid, now)
    if state.ending or state.mode is Mode.RUN:
        return
    if answer.empty and not state.detaching_at:
        _begin_the_end(state)


def _go_on(state: MasterState, now: int) -> None:
    """Do what follows from the state, whatever the event was."""
    if state.ending:
        _end_next(state, now)
    else:
        _start_what_may(state, now)
        if state.detaching_at and now > state.detaching_at + AGENT_END_MS * MS:
            state.detaching_at = now
            pid = state.wards[Agent.SERVER].pid
            state.out.append(SignalAgent(role=Agent.SERVER, pid=pid, name="SIGKILL"))
        if state.mode is not Mode.RUN and now > state.answered_at + AGENT_ANSWER_MS * MS:
            state.code = 1
            state.out.append(Say(text="cannot stop what runs here: the Spawner does not answer; the agents end"))
            _begin_the_end(state)
            _end_next(state, now)
    if not state.ended and state.wards[Agent.SPAWNER].pid and now >= state.asked_at + _ask_every_ms(state) * MS:
        _ask(state, now)
    if not state.up_said and all(ward.health is Health.UP for ward in state.wards.values()):
        state.up_said = True
        state.out.append(Say(up=len(state.wards) + 1))


def _start_what_may(state: MasterState, now: int) -> None:
    for role in OWN:
        ward = state.wards[role]
        if ward.may_start(now):
            ward.begin(now)
            _show(state, ward)
            state.out.append(StartAgent(role=role))
    # The others' delay is over: `wanted` names them again.
    for role, ward in state.wards.items():
        if role not in OWN and ward.may_start(now) and ward.next_start_at > state.asked_at:
            state.asked_at = 0


def _ask(state: MasterState, now: int) -> None:
    wanted = []
    for role, ward in state.wards.items():
        if role in OWN or (state.ending and role not in state.ending[1:]):
            continue
        if ward.health is not Health.DEAD or ward.may_start(now):
            wanted.append(role.value)
        if ward.may_start(now) and state.answered:
            ward.begin(now)
            _show(state, ward)
    leave = {Mode.STOP: "stop", Mode.DETACH: "" if state.detaching_at else "detach"}.get(state.mode, "")
    # Said again, in turn if they are several, until they are gone: one message may be lost.
    stuck = [r.value for r, ward in state.wards.items() if r not in OWN and ward.health is Health.STUCK]
    end = stuck[state.asks % len(stuck)] if stuck else ""
    state.asked_at = now
    state.asks += 1
    body = Agents(wanted=tuple(wanted), end=end, leave=leave)
    state.out.append(Send(role=Agent.SPAWNER, node=state.node, body=body))


def _ask_every_ms(state: MasterState) -> int:
    """A Spawner that has not answered yet may not have bound its socket: what is sent to it is lost."""
    if not state.answered:
        return COMMAND_RETRY_MS // 5
    return ASK_EVERY_MS if state.mode is Mode.RUN else COMMAND_RETRY_MS


def _begin_the_end(state: MasterState) -> None:
    state.ending = [role for role in END_ORDER if role in state.wards]
    state.asked_at = 0  # the Spawner must not start again what ends


def _end_next(state: MasterState, now: int) -> None:
    """End one agent after the other; each is gone before the next one's turn, or cannot be killed."""
    while state.ending:
        ward = state.wards[state.ending[0]]
        if ward.pid:
            if not state.asked_to_end_at:
                state.asked_to_end_at, state.killed = now, False
                # A detached Server releases nothing: its leases go on to whoever starts here within their time.
                name = "SIGTERM" if state.mode is Mode.STOP else "SIGUSR1"
                state.out.append(SignalAgent(role=state.ending[0], pid=ward.pid, name=name))
                return
            if now < state.asked_to_end_at + AGENT_END_MS * MS:
                return
            if not state.killed:
                state.asked_to_end_at, state.killed = now, True
                state.out.append(SignalAgent(role=state.ending[0], pid=ward.pid, name="SIGKILL"))
                return
            state.code = 1
            state.out.append(Say(text=f"cannot end the {state.ending[0]}: pid {ward.pid} cannot be killed"))
        state.ending.pop(0)
        state.asked_to_end_at = 0
        state.asked_at = 0
    _end(state)


def _end(state: MasterState) -> None:
    stopped = state.mode is Mode.STOP
    state.ended = True
    state.out.append(Announce(mode=Mode.ENDED))
    if stopped and state.code == 0:
        state.out.append(Clean())
    state.out.append(End(code=state.code))


def _show(state: MasterState, ward: Ward) -> None:
    state.out.append(Show(role=Agent(ward.role), state=AgentState(ward.health.value), restarts=ward.restarts))


def _handed_over(state: MasterState) -> Step[MasterState]:
    out, state.out = state.out, []
    return Step(state, out)
