"""Watched copies: what the Monitor makes of the facts of one copy, and what it does about its end.

The Spawner tells `Fact`s (what it did and saw); ready, backoff and failed are decided here. A copy is `ready` when
it started, said READY=1, or all its probes pass, as `ready.by` says. An end nobody ordered is judged by the restart
policy once per life; a copy that does not get ready in time, or whose probe fails, is ended and judged like any
other death. While it is frozen its probes, its readiness timeout and its restart window stand still.
"""

from __future__ import annotations

from ha.core.desk import (
    CancelProbe,
    CloseLog,
    Copy,
    Desk,
    Life,
    OpenLog,
    PidGone,
    Rest,
    StartProbe,
    Timer,
    UnwatchPid,
    WatchPid,
    say,
)
from ha.core.history import forget, remember
from ha.core.machine import Note, Send
from ha.core.probes import Run, Told, Verdict
from ha.core.restart import Act, at_once_next, ended, on_death
from ha.model import limits
from ha.model.messages import Fact, Revive
from ha.model.names import Agent, split_copy
from ha.model.plan import Probe, Process, fill
from ha.model.status import OnDeath, State, Wanted
from ha.model.timing import MS


def take_fact(desk: Desk, copy: Copy, fact: Fact, first: bool = False) -> None:
    """Take in what the Spawner says; the same fact again changes nothing. `first`: the copy was not known."""
    old = copy.fact
    if fact == old and not first:
        return
    copy.fact = fact
    desk.dirty[fact.copy] = None
    if not first and fact.reset != old.reset:
        _forget(desk, copy)
    if fact.wanted is Wanted.DOWN:
        desk.timers.clear(fact.copy, Timer.BACKOFF, Timer.FALLBACK, Timer.RETRY)
        copy.deaths.forget()
        copy.rest, copy.killing = Rest.NONE, ""
    if fact.state.runs:
        copy.judged = None
        life = (fact.pid, fact.start_ticks, fact.started_ns)
        if fact.pid and life != copy.life:
            _begin_life(desk, copy, life)
        settle(desk, copy)
    else:
        new_order = not first and (fact.generation, fact.restart) != (old.generation, old.restart)
        _take_down(desk, copy, new_order)


def take_process(desk: Desk, copy: Copy, process: Process | None) -> None:
    """The plan is known, or another: judge what waited for it, and probe as it says now."""
    old, copy.process = copy.process, process
    key = copy.fact.copy
    if process is not None and (old is None or old.log != process.log):
        desk.effects.append(OpenLog(key, process.log))
    if copy.rest is Rest.UNJUDGED:
        _judge(desk, copy)
    elif copy.fact.state.runs and process != old:
        specs = desk.probes.specs(key)
        if specs is not None and (process is None or specs != process.probes):
            _cancel(desk, desk.probes.remove(key))
        if copy.fact.state in (State.STARTING, State.UP) and not copy.ready:
            _arm_ready(desk, copy)
        settle(desk, copy)


def settle(desk: Desk, copy: Copy) -> None:
    """Derive the state of a copy that runs."""
    key, fact, process = copy.fact.copy, copy.fact, copy.process
    if copy.gone:
        return
    if fact.state is not State.FROZEN and copy.frozen_at is not None:
        _thawed(desk, copy)
    match fact.state:
        case State.UP:
            if process is not None:
                copy.ready = copy.ready or _is_ready(desk, copy, process)
            if copy.ready:
                desk.timers.clear(key, Timer.READY)
                _probe(desk, copy, eager=False)
            say(desk, copy, State.READY if copy.ready else State.UP, copy.killing or fact.reason)
            _decide_ahead(desk, copy)
        case State.FROZEN:
            _freeze(desk, copy)
            say(desk, copy, State.FROZEN, fact.reason)
        case _:
            if fact.state is not State.STARTING:
                desk.timers.clear(key, Timer.READY)
                _cancel(desk, desk.probes.remove(key))
            say(desk, copy, fact.state, copy.killing or fact.reason)


def take_verdict(desk: Desk, copy: Copy, told: Told) -> None:
    """A probe began to pass or to fail."""
    process = copy.process
    if process is None or told.nth >= len(process.probes):
        return
    probe = process.probes[told.nth]
    name = f"{probe.kind} probe {told.nth + 1}"
    desk.effects.append(
        Note("probe", told.copy, to=told.verdict, reason=f"{name}: {told.reason}" if told.reason else name)
    )
    if told.verdict is Verdict.PASSES:
        settle(desk, copy)
    elif copy.ready and copy.fact.state is State.UP:
        _kill(desk, copy, f"{name} failed {probe.failures} times: {told.reason}")


def take_gone(desk: Desk, copy: Copy, event: PidGone) -> None:
    """Our own pidfd saw an end: the Spawner is given a moment to say how."""
    told = copy.fact.state is State.STOPPING and copy.fact.exit is not None  # only its tree is still ending
    same = copy.life is not None and copy.life[:2] == (event.pid, event.start_ticks)
    if same and copy.fact.state.runs and not copy.gone and not told:
        desk.timers.set(event.copy, Timer.FACT, desk.now + limits.FACT_WAIT_MS * MS)


def take_timer(desk: Desk, copy: Copy, timer: Timer, grace_ns: int) -> None:
    """A timer ran out. `grace_ns` above 0: the agent was late itself, so it waits that long before a verdict."""
    key, process = copy.fact.copy, copy.process
    match timer:
        case Timer.READY if grace_ns:
            desk.timers.set(key, Timer.READY, desk.now + grace_ns)
        case Timer.READY:
            limit = f"{process.ready.timeout_ms / 1000:g}s" if process else "its timeout"
            _kill(desk, copy, f"not ready within {limit}")
        case Timer.BACKOFF:
            _revive(desk, copy)
        case Timer.FALLBACK:
            reason = f"no word of a Server, restarted by its node; {copy.decision.reason}"
            copy.decision = copy.decision._replace(reason=reason)
            _act(desk, copy)
        case Timer.RETRY:
            _ask_again(desk, copy)
        case Timer.AHEAD:
            _decide_ahead(desk, copy)
        case Timer.FACT if copy.fact.state is State.STOPPING and copy.fact.exit is not None:
            pass
        case Timer.FACT:
            copy.gone = True
            desk.dirty[key] = None
            _cancel(desk, desk.probes.remove(key))
            desk.timers.clear(key, Timer.READY, Timer.RETRY)
            say(desk, copy, State.DOWN, "the process is gone, the Spawner has not said how")


def leave(desk: Desk, copy: Copy) -> None:
    """The Spawner knows the copy no more."""
    _end_life(desk, copy)
    desk.timers.clear(copy.fact.copy, *Timer)
    desk.effects.append(CloseLog(copy.fact.copy))
    forget(desk, copy.fact.copy)
    if copy.state is not State.DOWN:
        say(desk, copy, State.DOWN, "no longer on this node")


def start_probe(desk: Desk, copy: Copy, run: Run) -> StartProbe:
    """Return the effect for a run that is due."""
    process = copy.process
    assert process is not None, "only planned copies are probed"
    tenant, name, number = split_copy(run.copy)
    probe = process.probes[run.nth]

    def filled(text: str) -> str:
        return fill(text, node=desk.node, tenant=tenant, process=name, copy=number)

    return StartProbe(
        run,
        Probe(
            kind=probe.kind, target=filled(probe.target), command=tuple(filled(word) for word in probe.command),
            status=probe.status, timeout_ms=probe.timeout_ms,
        ),
        process.user,
        process.group,
        process.working_directory,
        tuple((name, filled(value)) for name, value in process.environment.items()),
    )  # fmt: skip


# --- a life begins and ends -----------------------------------------------------------------------


def _begin_life(desk: Desk, copy: Copy, life: Life) -> None:
    _end_life(desk, copy)
    key = copy.fact.copy
    copy.life, copy.rest, copy.killing = life, Rest.NONE, ""
    desk.timers.clear(key, *Timer)
    desk.effects.append(WatchPid(key, life[0], life[1]))
    if copy.process is not None:
        desk.effects.append(OpenLog(key, copy.process.log))
        _arm_ready(desk, copy)


def _arm_ready(desk: Desk, copy: Copy) -> None:
    if copy.process is not None and copy.frozen_at is None:
        begun = copy.life[2] if copy.life and copy.life[2] else desk.now
        timeout = copy.process.ready.timeout_ms * MS
        # A Monitor that has just started has not seen how long it took to get ready: it may well be.
        desk.timers.set(
            copy.fact.copy, Timer.READY, max(begun + timeout, desk.now + min(timeout, limits.READY_GRACE_MS * MS))
        )


def _end_life(desk: Desk, copy: Copy) -> None:
    key = copy.fact.copy
    if copy.life is not None:
        desk.effects.append(UnwatchPid(key, copy.life[0]))
    if copy.frozen_at is not None:
        _thawed(desk, copy)
    copy.life, copy.ready, copy.gone, copy.frozen_ns, copy.ready_left = None, False, False, 0, None
    _cancel(desk, desk.probes.remove(key))
    desk.timers.clear(key, Timer.READY, Timer.FACT, Timer.RETRY)


def _take_down(desk: Desk, copy: Copy, new_order: bool) -> None:
    fact = copy.fact
    lived = copy.life is not None or copy.state is State.STARTING
    end = ((fact.pid, fact.start_ticks, fact.started_ns), fact.exit)
    ran_ns = max(0, desk.now - fact.started_ns) if fact.started_ns else 0
    if copy.life is not None:
        frozen_now = desk.now - copy.frozen_at if copy.frozen_at is not None else 0
        ran_ns = max(0, ran_ns - copy.frozen_ns - frozen_now)
    planned = fact.planned and not copy.killing
    _end_life(desk, copy)
    if fact.state is State.FAILED:  # this node's policy refuses to run it
        desk.timers.clear(fact.copy, *Timer)
        copy.rest = Rest.NONE
        say(desk, copy, State.FAILED, fact.reason)
    elif fact.wanted is Wanted.DOWN or planned or (fact.exit is None and not lived):
        desk.timers.clear(fact.copy, *Timer)
        copy.rest = Rest.NONE
        say(desk, copy, State.DOWN, fact.reason or (ended(fact.exit) if fact.exit else ""))
    elif end != copy.judged:
        copy.judged = end
        copy.frozen_ns = 0
        _judge(desk, copy, ran_ns)
    elif new_order and copy.rest in (Rest.REPORTED, Rest.REVIVING):
        _act(desk, copy)  # the Server has spoken: what was decided is done under its new order


def _judge(desk: Desk, copy: Copy, ran_ns: int = 0) -> None:
    """Decide about an unplanned end, once."""
    fact, process = copy.fact, copy.process
    why = copy.killing or fact.reason
    if process is None:
        copy.rest = Rest.NONE if desk.plan_known else Rest.UNJUDGED
        say(desk, copy, State.DOWN, why or ended(fact.exit))
        return
    decision = on_death(copy.deaths, process.restart, fact.exit, ran_ns, desk.now)
    reason = f"{why}; {decision.reason}" if why else decision.reason
    copy.decision, copy.killing = decision._replace(reason=reason), ""
    if decision.act in (Act.NOW, Act.LATER) and fact.on_death is OnDeath.REPORT:
        copy.rest = Rest.REPORTED
        desk.timers.set(fact.copy, Timer.FALLBACK, desk.now + limits.FALLBACK_RESTART_MS * MS)
        say(desk, copy, State.DOWN, reason)
    else:
        _act(desk, copy)
    remember(desk, copy)


def _act(desk: Desk, copy: Copy) -> None:
    """Do what was decided about the last end."""
    key, (act, at, reason) = copy.fact.copy, copy.decision
    desk.timers.clear(key, Timer.FALLBACK)
    match act:
        case Act.NOW:
            say(desk, copy, State.DOWN, reason)
            _revive(desk, copy)
        case Act.LATER if at <= desk.now:
            _revive(desk, copy)
        case Act.LATER:
            copy.rest = Rest.BACKOFF
            desk.timers.set(key, Timer.BACKOFF, at)
            say(desk, copy, State.BACKOFF, reason)
        case Act.STAY:
            copy.rest = Rest.STAYS
            say(desk, copy, State.DOWN, reason)
        case Act.GIVE_UP:
            copy.rest = Rest.GIVEN_UP
            say(desk, copy, State.FAILED, reason)


def _revive(desk: Desk, copy: Copy) -> None:
    fact = copy.fact
    if copy.rest is not Rest.REVIVING:
        copy.restarts += 1
        desk.dirty[fact.copy] = None
    copy.rest = Rest.REVIVING
    desk.timers.set(fact.copy, Timer.RETRY, desk.now + limits.REVIVE_RETRY_MS * MS)
    body = Revive(fact.copy, fact.generation, reason=copy.reason[: limits.MAX_REASON_CHARS])
    desk.effects.append(Send(Agent.SPAWNER, desk.node.name, body))


def _decide_ahead(desk: Desk, copy: Copy) -> None:
    """If a restart at once surely follows the next death, tell the Spawner now: it saves asking when it counts."""
    fact, process = copy.fact, copy.process
    if copy.life is None or process is None or fact.state is not State.UP or copy.killing:
        return
    told = (copy.life, fact.generation)
    if copy.ahead == told or fact.on_death is OnDeath.REPORT or fact.wanted is Wanted.DOWN:
        return
    ran_ns = max(0, desk.now - fact.started_ns - copy.frozen_ns)
    if at_once_next(copy.deaths, process.restart, ran_ns, desk.now):
        copy.ahead = told
        after = "any" if process.restart.policy == "always" else "unclean"
        body = Revive(fact.copy, fact.generation, ahead=after)
        desk.effects.append(Send(Agent.SPAWNER, desk.node.name, body))
    elif process.restart.policy != "never":
        desk.timers.set(fact.copy, Timer.AHEAD, desk.now + max(MS, process.restart.stable_ms * MS - ran_ns))


def _kill(desk: Desk, copy: Copy, reason: str) -> None:
    fact = copy.fact
    if not fact.state.runs or fact.wanted is Wanted.DOWN:
        return
    copy.killing = reason[: limits.MAX_REASON_CHARS]
    desk.timers.set(fact.copy, Timer.RETRY, desk.now + limits.REVIVE_RETRY_MS * MS)
    desk.effects.append(Send(Agent.SPAWNER, desk.node.name, Revive(fact.copy, fact.generation, True, copy.killing)))
    say(desk, copy, copy.state, copy.killing)


def _ask_again(desk: Desk, copy: Copy) -> None:
    """The Spawner did not do it: it may have been replaced meanwhile. It takes the same request twice as once."""
    if copy.killing and copy.fact.state in (State.STARTING, State.UP):
        _kill(desk, copy, copy.killing)
    elif copy.rest is Rest.REVIVING and copy.fact.state is State.DOWN:
        _revive(desk, copy)


def _forget(desk: Desk, copy: Copy) -> None:
    """`hactl reset`: deaths, backoff and `failed` are forgotten; what should run is started again."""
    copy.deaths.forget()
    copy.restarts = 0
    forget(desk, copy.fact.copy)
    if copy.fact.state is State.DOWN and copy.rest in (Rest.BACKOFF, Rest.GIVEN_UP) and copy.fact.wanted is Wanted.UP:
        desk.timers.clear(copy.fact.copy, Timer.BACKOFF)
        say(desk, copy, State.DOWN, "reset")
        _revive(desk, copy)


# --- readiness, probes, freezing ------------------------------------------------------------------


def _is_ready(desk: Desk, copy: Copy, process: Process) -> bool:
    match process.ready.by:
        case "started":
            return True
        case "notify":
            return copy.fact.notified
        case "probe":
            _probe(desk, copy, eager=True)
            return desk.probes.passes(copy.fact.copy) or not process.probes


def _probe(desk: Desk, copy: Copy, eager: bool) -> None:
    if copy.process is not None and copy.process.probes and desk.probes.specs(copy.fact.copy) is None:
        desk.probes.add(copy.fact.copy, copy.process.probes, eager, desk.now)


def _freeze(desk: Desk, copy: Copy) -> None:
    if copy.frozen_at is None:
        key = copy.fact.copy
        desk.freezes += 1
        copy.frozen_at = desk.now
        copy.ready_left = desk.timers.left(key, Timer.READY, desk.now)
        desk.timers.clear(key, Timer.READY)
        _cancel(desk, desk.probes.suspend(key, desk.now))


def _thawed(desk: Desk, copy: Copy) -> None:
    assert copy.frozen_at is not None, "only a frozen copy thaws"
    key, frozen_ns = copy.fact.copy, desk.now - copy.frozen_at
    copy.frozen_at = None
    copy.frozen_ns += frozen_ns
    copy.deaths.shift(frozen_ns)
    desk.probes.resume(key, desk.now)
    if copy.ready_left is not None and not copy.ready:
        desk.timers.set(key, Timer.READY, desk.now + copy.ready_left)
    copy.ready_left = None


def _cancel(desk: Desk, runs: tuple[Run, ...]) -> None:
    desk.effects.extend(CancelProbe(run) for run in runs)
