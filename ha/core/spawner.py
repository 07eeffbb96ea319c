"""The Spawner's machine: the only one that starts, signals, freezes, thaws and stops managed processes on its node.

Laws.
- Nothing exclusive is started, promoted or thawed without a right that has `stall` left, nor at or below `never`.
- An acting copy is frozen at its deadline, before anything else is decided in that step.
- Orders of a lower generation are refused; of one copy the latest order wins, whatever it was doing.
- A copy is down when nothing of it is left; what cannot be killed keeps its slot.
- What died unasked is started again only when the Monitor, a new restart or reset number, or a new start says so.
- The intent to start is journalled before the fork, `never` before the answer that promises it.
- After a restart all copies from before are adopted, those whose deadline has passed frozen first.

The parts: `rights` (pulls, deadlines, freeze), `copies` (towards the order), `roles`, `ending`, `letting` (Relinquish),
`orders` (Orders, PutPlan, Watch, Revive), `household` (the node's agents, leaving), `launch` (environment).
Source: design sections 2, 3 (rules 7, 8, 10) and 6.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ha.core.machine import Event, Persist, Received, Step, Tick
from ha.core.spawning import copies, household, letting, orders, rights, roles
from ha.core.spawning import events as ev
from ha.core.spawning.ending import gone, kill
from ha.core.spawning.state import Copy, Ice, Phase, Record, SpawnerState
from ha.model.digest import digest_of
from ha.model.errors import HaError
from ha.model.messages import Agents, Generation, Grant, Order, Orders, PutPlan, Relinquish, Revive, Watch
from ha.model.names import Agent, split_copy
from ha.model.plan import Node, Policy, Process, System, decode_plan
from ha.model.status import Exit, Role
from ha.model.timing import MS

_PROCESS = msgspec.msgpack.Decoder(Process)
ROUNDS = 8  # of reconciling in one step; each copy settles in two or three


def start(
    node: Node,
    system: System,
    policy: Policy,
    boot: str,
    incarnation: int,
    restored: Mapping[str, object],
    now: int,
    *,
    guard: Mapping[str, int] | None = None,
    plan: bytes = b"",
    agent_user: str = "root",
) -> SpawnerState:
    """Return a Spawner just started; its first step (a Tick, at once) brings the effects of the start.

    `boot`: boot id; `incarnation`: random per process start; `restored`: the runtime journal; `guard`: copy ->
    deadline as the guard table has it; `plan`: data_dir/NODE/plan.mp, empty if there is none; `agent_user`: name of
    the user this agent runs as.
    """
    state = SpawnerState(node, system, policy, agent_user, boot, incarnation, now)
    state.next_pull = now
    if plan:
        try:
            orders.use_plan(state, decode_plan(plan), digest_of(plan))
        except (msgspec.ValidationError, msgspec.DecodeError):
            state.note("plan-refused", node.name, reason="what is on disk is no plan")
    if restored.get("boot") == boot:
        _restore(state, restored, guard or {})
    else:
        state.out += [Persist(key, None, sync=False) for key in restored]
        state.out.append(Persist("boot", boot))
    return state


def step(state: SpawnerState, event: Event, now: int) -> Step[SpawnerState]:
    """Take in one event. Unknown events and messages, late and doubled ones change nothing."""
    state.now = now
    rights.sweep(state, now)
    match event:
        case Tick():
            pass
        case Received():
            _take_message(state, event, now)
        case _:
            _take_outcome(state, event, now)
    if state.ending:
        return _hand_over(state)
    for copy in state.due_timers(now):
        copies.timed_out(state, copy, now)
    letting.tick(state, now)
    household.tick(state, now)
    for _ in range(ROUNDS):
        rights.refresh(state, now)
        letting.finish(state, now)
        if not state.dirty:
            break
        dirty, state.dirty = state.dirty, {}
        for key in dirty:
            if key in state.copies:
                copies.reconcile(state, state.copies[key], now)
    rights.refresh(state, now)
    household.finish(state)
    rights.tick(state, now)
    for key in list(state.unsaved):
        state.save(state.copies[key])
    if state.full_due is not None and now >= state.full_due and state.watched:
        orders.tell_full(state)
    else:
        orders.tell_changes(state)
    return _hand_over(state)


def wake_at(state: SpawnerState) -> int:
    """Return when a Tick is wanted."""
    wakes = [state.next_pull]
    for at in (
        state.next_deadline, state.next_timer(), letting.wake_at(state, state.now),
        household.wake_at(state, state.now), state.full_due if state.watched else None,
    ):  # fmt: skip
        if at is not None:
            wakes.append(at)
    return min(wakes)


def _hand_over(state: SpawnerState) -> Step[SpawnerState]:
    out, state.out = state.out, []
    return Step(state, out)


# --- messages ------------------------------------------------------------------------------------


def _take_message(state: SpawnerState, event: Received, now: int) -> None:
    own = event.node == state.node.name
    match event.role, event.body:
        case Agent.SERVER, Grant() as grant:
            rights.take_grant(state, event, grant, now)
        case Agent.SERVER, Orders() as body:
            if _of_our_side(state, event.node):
                orders.take_orders(state, event, body)
        case Agent.SERVER, Relinquish() as body:
            if _of_our_side(state, event.node):
                letting.take(state, event, body, now)
        case Agent.SERVER, PutPlan() as body:
            if _of_our_side(state, event.node):
                orders.take_plan(state, event, body)
        case Agent.MONITOR, Watch() as body if own:
            orders.take_watch(state, body)
        case Agent.MONITOR, Revive() as body if own:
            orders.take_revive(state, event, body, now)
        case Agent.MASTER, Agents() as body if own:
            household.take_agents(state, event, body, now)
        case _:
            return


def _of_our_side(state: SpawnerState, server: str) -> bool:
    return server in rights.servers_of(state)


# --- outcomes ------------------------------------------------------------------------------------


def _take_outcome(state: SpawnerState, event: Event, now: int) -> None:
    match event:
        case ev.AgentSpawned():
            household.spawned(state, event.role, event.pid, now)
        case ev.AgentSpawnFailed():
            household.exited(state, event.role, household.STARTING, event.reason)
        case ev.AgentExited():
            household.exited(state, event.role, event.pid, event.reason)
        case ev.MasterState():
            state.house.master = event.pid
        case ev.WatcherState():
            state.house.watcher = event.pid
            if state.house.pids.get(household.WATCHER):
                state.house.pids[household.WATCHER] = event.pid
        case _:
            copy = state.copies.get(getattr(event, "copy", ""))
            if copy is not None and copy.instance and copy.instance == getattr(event, "instance", ""):
                _take_copy_outcome(state, copy, event, now)


def _take_copy_outcome(state: SpawnerState, copy: Copy, event: Event, now: int) -> None:
    match event:
        case ev.Spawned():
            _spawned(state, copy, event)
        case ev.SpawnFailed() if copy.phase is Phase.SPAWNING:
            copy.planned, copy.exit = False, Exit()
            copy.reason = event.reason
            gone(state, copy)
            state.note("spawn-failed", copy.key, reason=event.reason)
        case ev.Withheld() if copy.phase is Phase.SPAWNING:
            gone(state, copy)
        case ev.Adopted() if copy.phase is Phase.ADOPTING:
            _adopted(state, copy, event, now)
        case ev.Exited():
            _exited(state, copy, event, now)
        case ev.TreeGone():
            if copy.phase not in (Phase.KILLING, Phase.STOPPING):
                copy.planned = False
            copy.exit = copy.exit or Exit()
            gone(state, copy)
        case ev.Frozen():
            _frozen(state, copy, event, now)
        case ev.Thawed() if copy.ice is Ice.THAWING:
            _thawed(state, copy, event, now)
        case ev.RoleTold():
            roles.told(state, copy, event, now)
        case ev.CommandDone() if copy.phase is Phase.STOPPING and not event.ok and copy.plan is not None:
            state.out.append(ev.Signal(copy.key, copy.instance, copy.plan.stop.signal))
        case _:
            _take_word(state, copy, event, now)


def _take_word(state: SpawnerState, copy: Copy, event: Event, now: int) -> None:
    """What the program itself says."""
    match event:
        case ev.Notified() if (event.ready and not copy.notified) or event.status not in (None, copy.status):
            copy.notified = copy.notified or event.ready
            copy.status = copy.status if event.status is None else event.status
            state.touch(copy)
        case ev.Connected():
            _connected(state, copy, event)
        case ev.WatchdogArmed() if event.interval_ms != copy.watchdog_ms:
            copy.watchdog_ms = event.interval_ms
            state.touch(copy)
        case ev.WatchdogMissed() if copy.phase is Phase.RUNNING and copy.ice is Ice.NONE:
            state.note("kill", copy.key, reason="watchdog")
            kill(state, copy, now, planned=False, reason="watchdog: no ping in time")
        case _:
            return


def _connected(state: SpawnerState, copy: Copy, event: ev.Connected) -> None:
    """A program that is not what was confirmed (an answer was lost with a Spawner, say) is told again what to be."""
    if not copy.spoke:
        copy.spoke = True
        state.touch(copy)
    if event.role is None or copy.phase is not Phase.RUNNING or copy.telling is not None or copy.unsure:
        return
    if event.role is not copy.role or (event.role is Role.ACTIVE and event.fencing != copy.fencing):
        copy.unsure = copy.plan is not None and copy.plan.run_status.exclusive
        state.touch(copy)


def _spawned(state: SpawnerState, copy: Copy, event: ev.Spawned) -> None:
    if copy.phase is not Phase.SPAWNING:
        return
    copy.phase, copy.pid, copy.start_ticks = Phase.RUNNING, event.pid, event.start_ticks
    copy.started_at = event.started_at
    state.touch(copy)


def _adopted(state: SpawnerState, copy: Copy, event: ev.Adopted, now: int) -> None:
    copy.pid, copy.start_ticks = event.pid, event.start_ticks
    copy.phase = Phase.RUNNING
    state.touch(copy)
    if copy.ice is not Ice.NONE:
        state.set_timer(copy, copy.lapsed_at + state.system.timing.kill_after_ms * MS)
    if copy.reason == ENDING:
        kill(state, copy, now, planned=copy.planned, reason="it was being stopped when the Spawner ended")


def _exited(state: SpawnerState, copy: Copy, event: ev.Exited, now: int) -> None:
    copy.exit = event.exit
    said = len(state.out)
    match copy.phase:
        case Phase.KILLING:
            state.touch(copy)
        case Phase.STOPPING:
            kill(state, copy, now, planned=True, reason="")
        case Phase.ADOPTING:
            # Without a pid nobody saw it start: that is no death, it is started (again) as ordered.
            kill(state, copy, now, planned=not copy.pid or (copy.planned and copy.reason == ENDING), reason="")
        case _:
            kill(state, copy, now, planned=False, reason="")
    if event.gone:
        state.out[said:] = [effect for effect in state.out[said:] if not isinstance(effect, ev.KillTree)]
        gone(state, copy)
        orders.revive_ahead(state, copy, event.instance)


def _frozen(state: SpawnerState, copy: Copy, event: ev.Frozen, now: int) -> None:
    if copy.ice is not Ice.FREEZING:
        return
    if not event.ok:
        state.set_ice(copy, Ice.NONE)
        if copy.phase is not Phase.KILLING:
            kill(state, copy, now, planned=True, reason="it could not be frozen")
        return
    state.set_ice(copy, Ice.FROZEN)
    if copy.phase is Phase.STOPPING and copy.tenant not in state.lettings:
        kill(state, copy, now, planned=True, reason="")


def _thawed(state: SpawnerState, copy: Copy, event: ev.Thawed, now: int) -> None:
    """Only here, after the thaw, is the deadline read again: the check before it may have been overrun by a stall."""
    if not event.ok:
        kill(state, copy, now, planned=True, reason="it could not be thawed")
        return
    state.note("thaw", copy.key, epoch=copy.fencing >> 16)
    copy.reason = ""
    state.set_ice(copy, Ice.NONE)  # `rights.refresh` of this step freezes it again if its deadline has passed


# --- the start -----------------------------------------------------------------------------------

ENDING = "ending"  # reason of an adopted copy that was being ended


def _restore(state: SpawnerState, restored: Mapping[str, object], guard: Mapping[str, int]) -> None:
    adopt: list[Copy] = []
    for key, value in restored.items():
        kind, _, name = key.partition("/")
        try:
            match kind:
                case "generation":
                    state.generation = msgspec.convert(value, Generation)
                case "never":
                    state.never[name] = msgspec.convert(value, int)
                case "order":
                    state.adopt_order(_copy(state, name), msgspec.convert(value, Order))
                case "copy":
                    copy = _copy(state, name)
                    _restore_copy(copy, msgspec.convert(value, Record))
                    if copy.phase is Phase.ADOPTING:
                        adopt.append(copy)
        except (ValueError, msgspec.ValidationError, msgspec.DecodeError) as error:
            raise HaError(f"cannot use the runtime journal: {key}: {error}; end all copies, then remove it") from None
    _adopt(state, adopt, guard)
    for copy in state.copies.values():
        orders.judge(state, copy)
        state.touch(copy)


def _copy(state: SpawnerState, key: str) -> Copy:
    return state.copy(key, *split_copy(key))


def _restore_copy(copy: Copy, record: Record) -> None:
    copy.instance, copy.pid, copy.start_ticks = record.instance, record.pid, record.start_ticks
    copy.plan = _PROCESS.decode(record.process) if record.process else None
    copy.started_ns, copy.started_at = record.started_ns, record.started_at
    copy.role, copy.fencing, copy.unsure = record.role, record.fencing, record.unsure
    copy.serial, copy.restart, copy.reset = record.serial, record.restart, record.reset
    copy.dead, copy.planned, copy.exit = record.dead, record.planned, record.exit
    copy.notified, copy.spoke, copy.status = record.notified, record.spoke, record.status
    copy.watchdog_ms, copy.reason = record.watchdog_ms, record.reason
    if not record.instance:
        return
    copy.phase, copy.ice = Phase.ADOPTING, record.ice
    if record.phase in (Phase.STOPPING, Phase.KILLING, Phase.SPAWNING):
        copy.reason = ENDING if record.phase is not Phase.SPAWNING else ""


def _adopt(state: SpawnerState, copies_found: list[Copy], guard: Mapping[str, int]) -> None:
    """Freeze first what has no right left, then look for the rest."""
    later: list[ev.Adopt] = []
    for copy in copies_found:
        adopt = ev.Adopt(copy.key, copy.instance, copy.pid, copy.start_ticks)
        deadline = guard.get(copy.key, 0)
        if not copy.acts:
            copy.ice = Ice.NONE
            later.append(adopt)
            continue
        state.inherited[copy.key] = (copy.fencing, deadline)
        if copy.ice is Ice.NONE and state.now < deadline:
            later.append(adopt)
            continue
        state.out.append(adopt)
        copy.lapsed_at, copy.ice = min(deadline or state.now, state.now), Ice.NONE
        rights.freeze(state, copy, "right lapsed")
    state.out += later


def may_start(state: SpawnerState, key: str, instance: str, now: int) -> bool:
    """Return whether a Spawn that was made to wait may still be carried out: same instance, right with `stall` left."""
    copy = state.copies.get(key)
    if copy is None or copy.instance != instance or copy.phase is not Phase.SPAWNING:
        return False
    return not copy.acts or rights.granted(state, copy, copy.fencing, now) is not None
