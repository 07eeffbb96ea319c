"""Operate: what operators ask by hactl. Every request has an id; asked again, it gets the same answer.

An answer is JSON {"exit", "error", "result"} with the exit codes of the contract: 0 done, 2 wrong usage, 3 unknown
name, 4 not permitted, 5 refused in this state (with the reason), 124 timed out (outcome unknown).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from ha.core.machine import Received, Send
from ha.core.server import awaited, moves, plans, view
from ha.core.server.registers import set_register
from ha.core.server.state import State, Wait, fresh_peer, peer_name, register, seated, seated_peer
from ha.model import limits
from ha.model.messages import Ask, EventRecord, EventsSaid, Told
from ha.model.names import SIDES, Agent
from ha.model.plan import Tenant
from ha.model.timing import MS


class Request(msgspec.Struct, frozen=True):
    """A line of hactl, as the Monitor passed it on."""

    verb: str
    args: dict[str, Any] = {}
    ttl_ms: int = 10_000


class Reply(msgspec.Struct, frozen=True):
    """What a verb gives back; `wait` (kind, target, detail): not done yet."""

    exit: int = 0
    error: str | None = None
    result: object = None
    wait: tuple[str, str, str] | None = None
    forward: str = ""


def on_ask(state: State, event: Received, ask: Ask, now: int) -> None:
    """Take a request of hactl, from a Monitor or forwarded by another Server."""
    who = (event.role, event.node, event.request)
    known = state.requests.get(ask.id)
    if known is not None and "exit" in known:
        _tell(state, who, ask.id, known)
        return
    if known is not None and _ask_along(state, who, ask.id):
        return
    try:
        request = msgspec.json.decode(ask.body, type=Request)
    except (msgspec.DecodeError, ValueError) as error:
        _tell(state, who, ask.id, {"exit": 2, "error": f"cannot read the request: {error}"})
        return
    about_seat = request.verb not in OWN_VERBS
    if (
        about_seat
        and not seated(state, now)
        and not ask.forwarded
        and _forward(state, who, ask, _holder(state, request, now), now)
    ):
        return
    reply = _carry_out(state, request, ask, event, now)
    if reply.forward:
        if not ask.forwarded and _forward(state, who, ask, reply.forward, now):
            return
        reply = Reply(3, f"cannot reach the Server on {reply.forward}, which holds the tenant; try again")
    if reply.wait is not None:
        kind, target, detail = reply.wait
        until = now + request.ttl_ms * MS
        state.waits.append(Wait(ask.id, event.role, event.node, event.request, kind, target, until, detail))
        _keep(state, ask.id, {"id": ask.id, "verb": request.verb, "state": "accepted"})
        if kind != "never":
            _tell(state, who, ask.id, {}, final=False)
        return
    answer = {"exit": reply.exit, "error": reply.error, "result": reply.result}
    if request.verb in VERBS and request.verb not in VIEW_VERBS:
        _keep(state, ask.id, {"id": ask.id, "verb": request.verb, "state": _word(reply.exit), **answer})
    _tell(state, who, ask.id, answer)


def _holder(state: State, request: Request, now: int) -> str:
    """Return the Server that alone can do what is asked, as beats show it; empty: any that is seated."""
    side = view.active_side(state, str(request.args.get("tenant", "")), now) if request.verb == "switchover" else None
    return peer_name(state, side, now) if side else ""


def _ask_along(state: State, who: tuple[str, str, int], id_: str) -> bool:
    """A request that is being done came again, on another way perhaps: it is not done twice, its end is told to both.

    Return False if it is not being done any more.
    """
    waiting = [wait for wait in state.waits if wait.id == id_]
    if not waiting:
        return False
    if all((wait.role, wait.node, wait.request) != who for wait in waiting):
        state.waits.append(dataclasses.replace(waiting[0], role=who[0], node=who[1], request=who[2]))
    _tell(state, who, id_, {}, final=False)
    return True


def on_told(state: State, told: Told, now: int) -> None:
    """A forwarded request was answered: pass it on to who asked us."""
    who = state.forwarded.get(told.id)
    if who is None:
        return
    if told.final:
        del state.forwarded[told.id]
    state.out.append(Send(Agent(who[0]), who[1], told, who[2]))


def on_events(state: State, node: str, said: EventsSaid, now: int) -> None:
    """Keep what the nodes tell, and pass it to those who follow."""
    new: list[EventRecord] = []
    for record in said.events:
        if record.seq > state.node_events.get(f"{node}:{record.id.split(':')[1] if ':' in record.id else ''}", 0):
            state.node_events[f"{node}:{record.id.split(':')[1] if ':' in record.id else ''}"] = record.seq
            new.append(record)
    state.events.extend(new)
    del state.events[: -limits.EVENTS_KEEP]
    for id_, (role, at, request, until) in list(state.followers.items()):
        if now >= until:
            del state.followers[id_]
            _tell(state, (role, at, request), id_, {"exit": 0, "error": None, "result": []})
        elif new:
            body = {"exit": 0, "error": None, "result": [view.event(record) for record in new]}
            _tell(state, (role, at, request), id_, body, final=False)


def settle(state: State, now: int) -> None:
    """Answer the requests whose wish has come true, or whose time is over."""
    for wait in list(state.waits):
        outcome = awaited.outcome(state, wait, now)
        if outcome is None and now < wait.until:
            continue
        state.waits.remove(wait)
        answer: dict[str, object] = outcome or {
            "exit": 124,
            "error": f"timed out, the outcome is unknown: {awaited.missing(state, wait)}",
            "result": None,
        }
        known = state.requests.get(wait.id, {})
        code = answer["exit"]
        _keep(state, wait.id, {**known, "state": _word(code if isinstance(code, int) else 1), **answer})
        _tell(state, (wait.role, wait.node, wait.request), wait.id, answer)


def _carry_out(state: State, request: Request, ask: Ask, event: Received, now: int) -> Reply:
    verb = VERBS.get(request.verb)
    if verb is None:
        return Reply(2, f"unknown request {request.verb!r}")
    if request.verb not in VIEW_VERBS and not ask.operator:
        return Reply(4, f"{request.verb} is not permitted on view.sock; ask by operate.sock")
    if request.verb == "events" and request.args.get("follow"):
        state.followers[ask.id] = (event.role, event.node, event.request, now + request.ttl_ms * MS)
        listed = _events(state, request.args, now)
        body = {"exit": 0, "error": None, "result": listed.result}
        _tell(state, (event.role, event.node, event.request), ask.id, body, final=False)
        return Reply(wait=("never", "", ""))
    return verb(state, request.args, now)


def _forward(state: State, who: tuple[str, str, int], ask: Ask, to: str, now: int) -> bool:
    """Pass the request to another Server. Return False if none answers."""
    if not to:
        seats = [
            name for name, peer in sorted(state.peers.items()) if peer.beat.seated and fresh_peer(state, peer, now)
        ]
        own = [name for name in seats if state.system.nodes[name].side == state.side]
        to = next(iter(own or seats), "")
    if not to:
        return False
    state.forwarded[ask.id] = who
    state.out.append(Send(Agent.SERVER, to, Ask(ask.id, ask.body, ask.operator, forwarded=True)))
    return True


def _tell(state: State, who: tuple[str, str, int], id_: str, answer: dict[str, Any], *, final: bool = True) -> None:
    body = {key: answer.get(key) for key in ("exit", "error", "result")}
    state.out.append(Send(Agent(who[0]), who[1], Told(id_, msgspec.json.encode(body), final), who[2]))


def _keep(state: State, id_: str, record: dict[str, object]) -> None:
    state.requests[id_] = record
    while len(state.requests) > limits.REQUEST_KEEP:
        del state.requests[next(iter(state.requests))]


def _word(code: int) -> str:
    return {0: "done", 5: "refused", 124: "unknown"}.get(code, "failed")


def _target(state: State, args: dict[str, Any]) -> tuple[Tenant, str] | Reply:
    """Return (tenant, process or empty) that a request names, or the refusal."""
    target = str(args.get("target", ""))
    name, _, process = target.partition("/")
    tenant = state.tenants.get(name)
    if tenant is None:
        return Reply(3, f"unknown tenant {name!r}; known: {', '.join(sorted(state.tenants)) or 'none'}")
    if process and tenant.process(process) is None:
        known = ", ".join(p.name for p in tenant.processes)
        return Reply(3, f"unknown process {target!r}; {name} has: {known}")
    return tenant, process


def _status(state: State, args: dict[str, Any], now: int) -> Reply:
    return Reply(result=view.status(state, now))


def _events(state: State, args: dict[str, Any], now: int) -> Reply:
    records = [view.event(record) for record in state.events]
    since = str(args.get("since") or "")
    if since:
        ids = [record["id"] for record in records]
        gap = [{"kind": "gap", "since": since}, *records]
        records = records[ids.index(since) + 1 :] if since in ids else gap
    limit = args.get("limit")
    if isinstance(limit, int) and limit > 0:
        records = records[-limit:]
    return Reply(result=records)


def _start(state: State, args: dict[str, Any], now: int) -> Reply:
    found = _target(state, args)
    if isinstance(found, Reply):
        return found
    tenant, process = found
    failed = register(state, f"failed/{tenant.name}")
    if failed:
        return Reply(5, f"cannot start {tenant.name}: it has failed ({failed}); hactl reset {tenant.name}")
    if not tenant.enabled:
        return Reply(5, f"cannot start {tenant.name}: its file says enabled = false")
    target = f"{tenant.name}/{process}" if process else tenant.name
    if process and register(state, f"wanted/{tenant.name}") == "stopped":
        return Reply(5, f"cannot start {target}: its tenant is stopped; hactl start {tenant.name}")
    set_register(state, f"wanted/{target}", "started", now)
    return _done_or_wait(args, "started", target)


def _stop(state: State, args: dict[str, Any], now: int) -> Reply:
    found = _target(state, args)
    if isinstance(found, Reply):
        return found
    tenant, process = found
    target = f"{tenant.name}/{process}" if process else tenant.name
    set_register(state, f"wanted/{target}", "stopped", now)
    return _done_or_wait(args, "stopped", target)


def _restart(state: State, args: dict[str, Any], now: int) -> Reply:
    found = _target(state, args)
    if isinstance(found, Reply):
        return found
    tenant, process = found
    how = "rolling" if args.get("rolling") else "now"
    for one in tenant.processes:
        if not process or one.name == process:
            set_register(state, f"restart/{tenant.name}/{one.name}", how, now)
    target = f"{tenant.name}/{process}" if process else tenant.name
    return _done_or_wait(args, "restarted", target)


def _reset(state: State, args: dict[str, Any], now: int) -> Reply:
    found = _target(state, args)
    if isinstance(found, Reply):
        return found
    tenant, process = found
    target = f"{tenant.name}/{process}" if process else tenant.name
    set_register(state, f"reset/{target}", "reset", now)
    if register(state, f"failed/{tenant.name}"):
        set_register(state, f"failed/{tenant.name}", "", now)
    return _done_or_wait(args, "started", target)


def _switchover(state: State, args: dict[str, Any], now: int) -> Reply:
    found = _target(state, {"target": args.get("tenant", "")})
    if isinstance(found, Reply):
        return found
    name = found[0].name
    to = str(args.get("to") or "")
    run = state.runs[name]
    active = state.side if run.epoch else view.active_side(state, name, now)
    if to and to not in SIDES:
        return Reply(2, f"unknown side {to!r}; sides are a and b")
    if active is None:
        return Reply(5, f"cannot switch over {name}: no side holds it now")
    if to == active:
        return Reply(5, f"cannot switch over {name}: it is active on side {active} already")
    if active != state.side:
        peer = seated_peer(state, active, now)
        holder = next((n for n, p in state.peers.items() if p is peer), "")
        return Reply(forward=holder) if holder else Reply(3, f"the Server of side {active} does not answer")
    if run.move is not None:
        return Reply(5, f"cannot switch over {name}: it is on the move already ({run.move.reason})")
    why = moves.refusal_to_move(state, found[0], standby=True, now=now)
    if why:
        return Reply(5, f"cannot switch over {name}: {why}")
    plan = {"tenant": name, "from": active, "to": state.other, "epoch": run.epoch}
    if args.get("dry_run"):
        return Reply(result={**plan, "dry_run": True})
    moves.begin_release(state, name, "switchover", heir=moves.heir_of(state, now), planned=True, now=now)
    return Reply(wait=("moved", name, state.other))


def _drain(state: State, args: dict[str, Any], now: int, value: str = "1") -> Reply:
    target = str(args.get("target", ""))
    if target in state.system.nodes:
        set_register(state, f"drain/{target}", value, now)
    elif target in state.system.sides:
        set_register(state, f"drain-side/{target}", value, now)
    else:
        return Reply(3, f"unknown node or side {target!r}; known: {', '.join([*sorted(state.system.nodes), *SIDES])}")
    return _done_or_wait(args, "drained", target) if value else Reply()


def _undrain(state: State, args: dict[str, Any], now: int) -> Reply:
    return _drain(state, args, now, "")


def _hold(state: State, args: dict[str, Any], now: int, value: str = "1") -> Reply:
    tenant = args.get("tenant")
    if tenant is not None and tenant not in state.tenants:
        return Reply(3, f"unknown tenant {tenant!r}; known: {', '.join(sorted(state.tenants)) or 'none'}")
    set_register(state, f"hold/{tenant}" if tenant else "hold", value, now)
    return Reply()


def _unhold(state: State, args: dict[str, Any], now: int) -> Reply:
    return _hold(state, args, now, "")


def _request(state: State, args: dict[str, Any], now: int) -> Reply:
    known = state.requests.get(str(args.get("id", "")))
    if known is None:
        return Reply(3, f"no request {args.get('id')!r} is known here (the last {limits.REQUEST_KEEP} are kept)")
    return Reply(result=known)


def _diff(state: State, args: dict[str, Any], now: int) -> Reply:
    changes = plans.pending(state)
    return Reply(1 if changes else 0, None, changes)


def _apply(state: State, args: dict[str, Any], now: int) -> Reply:
    refusal = plans.apply(state, bool(args.get("confirm")), now)
    return Reply(5, refusal) if refusal else Reply()


def _done_or_wait(args: dict[str, Any], kind: str, target: str) -> Reply:
    return Reply(wait=(kind, target, "")) if args.get("wait") else Reply()


OWN_VERBS = ("diff", "apply")  # about the directory of this Server's own node, seated or not
VIEW_VERBS = ("status", "events", "diff", "request")
VERBS: dict[str, Callable[[State, dict[str, Any], int], Reply]] = {
    "status": _status, "events": _events, "diff": _diff, "request": _request, "start": _start, "stop": _stop,
    "restart": _restart, "reset": _reset, "switchover": _switchover, "drain": _drain, "undrain": _undrain,
    "hold": _hold, "unhold": _unhold, "apply": _apply,
}  # fmt: skip
