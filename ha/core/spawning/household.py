"""The agents of this node that the Spawner starts for the Master, and the end of the node.

`leave="stop"`: the Server is asked to move everything away (Pull.leaving) and orders the copies down. If no seated
Server answers for LEAVE_SILENCE, or copies are left after the largest grace + LEAVE_EXTRA, all are stopped here, what
depends on others first. `leave="detach"`: the agents end, copies stay.

Two laws about agents that the Master does not name. While the node stays, they are not started, but one that runs is
never ended: a Spawner that was just started has not been told anything yet, and a Master names nobody whose start it
delays. And an agent that died soon after its start is started again only when the Master says so once more.
"""

from __future__ import annotations

from ha.core.machine import Received, Send
from ha.core.spawning.events import End, SignalAgent, SpawnAgent
from ha.core.spawning.state import Phase, SpawnerState
from ha.model import limits
from ha.model.messages import Agents, AgentsAnswer
from ha.model.names import Agent
from ha.model.timing import MS

STARTED_HERE = (Agent.MONITOR, Agent.SERVER, Agent.WITNESS)
WATCHER = Agent.WATCHER.value
LEAVE_SILENCE_MS = 1_000
LEAVE_EXTRA_MS = 5_000
EARLY_MS = 2_000  # a death sooner than this after the start is left to the Master, which delays (`ha.core.care`)
STARTING = -1


def take_agents(state: SpawnerState, event: Received, body: Agents, now: int) -> None:
    """Make these agents run; begin or end leaving."""
    house = state.house
    house.wanted = tuple(role.value for role in STARTED_HERE if role in body.wanted)
    end = body.end
    if house.pids.get(end, 0) > 0 and now - house.started.get(end, 0) >= limits.STUCK_AFTER_MS * MS:
        house.started[end] = now  # not again at the next request, which may still name it
        state.out.append(SignalAgent(end, house.pids[end], "SIGKILL"))
        state.note("agent-ended", end, reason="the Master says it is stuck")
    if body.leave != state.leaving:
        _leave(state, body.leave, now)
    state.leave_asker = (event.role.value, event.node, event.request)
    _answer(state)
    if state.leaving == "detach":
        state.ending = True  # the Master ends the others: a Server that gets SIGTERM would release what goes on
        state.out.append(End())


def _leave(state: SpawnerState, leave: str, now: int) -> None:
    state.leaving = leave if leave in ("stop", "detach") else ""
    state.leaving_since, state.empty_told = now, False
    state.stopping = state.forced = False
    state.next_pull = min(state.next_pull, now)
    state.dirty.update(dict.fromkeys(state.copies))
    if state.leaving:
        state.note("leaving", state.node.name, to=state.leaving)


def tick(state: SpawnerState, now: int) -> None:
    """Start and end agents as wanted; stop the copies ourselves if nobody takes them."""
    if state.ending:
        return
    house = state.house
    for role in house.wanted:
        _start(state, role, now)
    if state.leaving:
        _end_others(state)
    if house.master == 0 and house.watcher == 0 and not state.leaving:
        _start(state, WATCHER, now)
    if state.leaving == "stop":
        _leave_tick(state, now)


def _end_others(state: SpawnerState) -> None:
    house = state.house
    for role, pid in house.pids.items():
        if pid > 0 and role not in house.wanted and role != WATCHER and house.ended.get(role) != pid:
            house.ended[role] = pid
            state.out.append(SignalAgent(role, pid, "SIGTERM"))


def _start(state: SpawnerState, role: str, now: int) -> None:
    house = state.house
    if house.pids.get(role, 0) or now < start_at(state, role):
        return
    house.pids[role] = STARTING
    house.started[role] = now
    state.out.append(SpawnAgent(role))


def start_at(state: SpawnerState, role: str) -> int:
    """Return when the agent may be started again."""
    started = state.house.started.get(role)
    return 0 if started is None else started + limits.AGENT_RESTART_FLOOR_MS * MS


def spawned(state: SpawnerState, role: str, pid: int, now: int) -> None:
    """An agent runs: started, or found."""
    state.house.pids[role] = pid
    state.house.started.setdefault(role, now)


def exited(state: SpawnerState, role: str, pid: int, reason: str) -> None:
    """An agent ended, or could not be started."""
    house = state.house
    if house.pids.get(role) != pid:
        return
    house.pids[role] = 0
    if state.now - house.started.get(role, 0) < EARLY_MS * MS:
        house.wanted = tuple(other for other in house.wanted if other != role)
    state.note("agent-exit", role, reason=reason)


def _leave_tick(state: SpawnerState, now: int) -> None:
    if not state.stopping:
        graces = [copy.plan.stop.grace_ms for copy in state.copies.values() if copy.plan is not None]
        limit_ms = max(graces, default=0) + LEAVE_EXTRA_MS
        silent = now - max(state.seated_at, state.leaving_since) >= LEAVE_SILENCE_MS * MS
        if silent or now - state.leaving_since >= limit_ms * MS:
            state.stopping = True
            state.note("stop-all", state.node.name, reason="no seated Server answers" if silent else "grace is over")
            state.dirty.update(dict.fromkeys(state.copies))
    elif not any(copy.phase in (Phase.SPAWNING, Phase.STOPPING, Phase.KILLING) and not copy.unkillable
                 for copy in state.copies.values()):  # fmt: skip
        state.forced = True  # only what waits for something that never ends is left
        state.dirty.update(dict.fromkeys(state.copies))


def finish(state: SpawnerState) -> None:
    """Say once, unasked, that no copy is left."""
    if state.leaving == "stop" and not state.empty_told and is_empty(state):
        state.empty_told = True
        _answer(state)


def is_empty(state: SpawnerState) -> bool:
    """Return whether no copy runs here, and while leaving none will be started."""
    return all(copy.phase is Phase.DOWN for copy in state.copies.values())


def _answer(state: SpawnerState) -> None:
    role, node, request = state.leave_asker
    empty = state.leaving == "detach" or (state.leaving == "stop" and is_empty(state))
    state.empty_told = state.empty_told or empty
    pids = {name: max(0, pid) for name, pid in state.house.pids.items()}
    state.out.append(Send(Agent(role), node, AgentsAnswer(pids, empty), request))


def wake_at(state: SpawnerState, now: int) -> int | None:
    """Return when an agent may be started; the rest is looked at with every beat."""
    house = state.house
    missing = [role for role in house.wanted if not house.pids.get(role, 0)]
    if house.master == 0 and house.watcher == 0 and not state.leaving and not house.pids.get(WATCHER, 0):
        missing.append(Agent.WATCHER)
    return min((max(now, start_at(state, role)) for role in missing), default=None) if not state.ending else None
