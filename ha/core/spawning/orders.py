"""What Server and Monitor say: orders, plans, the Monitor's Watch and Revive."""

from __future__ import annotations

import msgspec

from ha.core.graph import graph_of
from ha.core.machine import Persist, Received, Send
from ha.core.policy import environment_refusal, refusal
from ha.core.spawning.ending import kill
from ha.core.spawning.events import KeepPlan
from ha.core.spawning.state import Copy, Ice, Phase, SpawnerState
from ha.model import limits
from ha.model.digest import digest_of
from ha.model.messages import Answer, Fact, Facts, Order, Orders, OrdersAnswer, PutPlan, Revive, Watch
from ha.model.names import NAME, Agent, process_id, split_copy
from ha.model.plan import Tenant, decode_plan
from ha.model.status import Wanted


def take_orders(state: SpawnerState, event: Received, body: Orders) -> None:
    """Keep the orders that are not older than what was accepted, and answer at once."""
    if body.generation < state.generation:
        refused = tuple((order.copy, "stale") for order in body.orders) or (("", "stale"),)
        answer = OrdersAnswer(state.generation, state.orders_digest, refused)
        state.out.append(Send(event.role, event.node, answer, event.request))
        return
    if body.generation != state.generation:
        state.generation = body.generation
        state.out.append(Persist("generation", list(body.generation), sync=False))
    refusals: list[tuple[str, str]] = []
    for order in body.orders:
        reason = _take_order(state, order)
        if reason:
            refusals.append((order.copy, reason[: limits.MAX_REASON_CHARS]))
    if body.full:
        named = {order.copy for order in body.orders}
        for copy in [copy for key, copy in state.copies.items() if key not in named and copy.order is not None]:
            state.put_order(copy, None)
            state.touch(copy)
    answer = OrdersAnswer(state.generation, state.orders_digest, tuple(refusals))
    state.out.append(Send(event.role, event.node, answer, event.request))


def _take_order(state: SpawnerState, order: Order) -> str:
    """Keep one order; return why it cannot be done (yet), or nothing."""
    try:
        tenant, process, number = split_copy(order.copy)
    except ValueError:
        return "name"
    if not (NAME.match(tenant) and NAME.match(process) and number > 0):
        return "name"
    known = state.copies.get(order.copy)
    old = known.order if known else None
    if old is not None and order.generation < old.generation:
        return "stale"
    copy = state.copy(order.copy, tenant, process, number)
    if order != old:
        state.put_order(copy, order)
        state.touch(copy)
        if order.wanted is Wanted.DOWN or order.restart != copy.restart or order.reset != copy.reset:
            copy.dead = False
    return judge(state, copy)


def judge(state: SpawnerState, copy: Copy) -> str:
    """Set and return why this node does not run the copy as ordered; empty: it does. "plan": not here yet."""
    order = copy.order
    copy.refused = ""
    if order is None or order.wanted is Wanted.DOWN:
        return ""
    found = state.processes.get(copy.id)
    if found is None or order.serial > found[0].serial or copy.number > found[1].copies:
        return "plan"
    names = [name for name, _ in order.environment]
    copy.refused = state.refusals.get(copy.id, "") or environment_refusal(state.policy, names) or ""
    return copy.refused


def take_plan(state: SpawnerState, event: Received, body: PutPlan) -> None:
    """Check and keep a plan; what it brings is done at once."""
    reason = ""
    if state.policy.plans == "local" and event.node != state.node.name:
        reason = "plan: this node takes plans only from its own Server"
    elif digest_of(body.tenants) != body.digest:
        reason = "plan: its digest is another one"
    else:
        try:
            tenants = decode_plan(body.tenants)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            reason = f"plan: {error}"
    if reason:
        state.note("plan-refused", state.node.name, reason=reason)
        state.out.append(
            Send(event.role, event.node, Answer("refused", reason[: limits.MAX_REASON_CHARS]), event.request)
        )
        return
    if body.digest != state.plan_digest:
        state.out.append(KeepPlan(body.digest, body.tenants))
        use_plan(state, tenants, body.digest)
        for copy in state.copies.values():
            before = copy.refused
            judge(state, copy)
            state.dirty[copy.key] = None
            if copy.refused != before:
                state.touch(copy)
        state.facts_due = True
    state.out.append(Send(event.role, event.node, Answer("done"), event.request))


def use_plan(state: SpawnerState, tenants: tuple[Tenant, ...], digest: str) -> None:
    """Make this the plan, and judge every process by this node's policy."""
    state.plan_digest = digest
    state.tenants = {tenant.name: tenant for tenant in tenants}
    state.processes, state.refusals = {}, {}
    for tenant in tenants:
        for process in tenant.processes:
            key = process_id(tenant.name, process.name)
            state.processes[key] = (tenant, process)
            reason = refusal(state.policy, tenant, process, state.agent_user)
            if reason:
                state.refusals[key] = reason
    state.graph = graph_of(state.tenants)


# --- Monitor -------------------------------------------------------------------------------------


def take_watch(state: SpawnerState, body: Watch) -> None:
    """The Monitor listens; it gets the whole list if it does not know it up to now."""
    if not state.watched or body.incarnation != state.incarnation or body.seq != state.facts_seq:
        state.watched = True
        tell_full(state)


def tell_full(state: SpawnerState) -> None:
    """Send all facts; beyond one message the rest follows as changes."""
    facts = [copy.fact() for copy in state.copies.values()]
    _send_facts(state, tuple(facts[: limits.MAX_BATCH]), full=True)
    for start in range(limits.MAX_BATCH, len(facts), limits.MAX_BATCH):
        _send_facts(state, tuple(facts[start : start + limits.MAX_BATCH]), full=False)
    state.changed = {}
    state.full_due = None
    state.facts_due = False


def tell_changes(state: SpawnerState) -> None:
    """Send the facts that changed since the last message."""
    if not state.changed and not state.facts_due:
        return
    if state.watched:
        copies = [state.copies[key] for key in state.changed if key in state.copies]
        for start in range(0, max(1, len(copies)), limits.MAX_BATCH):
            _send_facts(state, tuple(copy.fact() for copy in copies[start : start + limits.MAX_BATCH]), full=False)
    state.changed = {}
    state.facts_due = False


def tell_now(state: SpawnerState, copy: Copy) -> None:
    """Send one fact before what follows in the same step changes it."""
    if state.watched:
        _send_facts(state, (copy.fact(),), full=False)


def revive_ahead(state: SpawnerState, copy: Copy, instance: str) -> None:
    """A copy died unasked and left nothing: start it at once if the Monitor has said so for this very instance."""
    standing, order = copy.standing, copy.order
    copy.standing = None
    if standing is None or order is None or not copy.dead or standing[:2] != (instance, order.generation):
        return
    if standing[2] == "unclean" and copy.exit is not None and copy.exit.clean:
        return
    tell_now(state, copy)  # the Monitor counts the death
    copy.dead = False
    state.touch(copy)


def _send_facts(state: SpawnerState, facts: tuple[Fact, ...], *, full: bool) -> None:
    state.facts_seq += 1
    body = Facts(state.facts_seq, facts, full, state.plan_digest)
    state.out.append(Send(Agent.MONITOR, state.node.name, body))


def take_revive(state: SpawnerState, event: Received, body: Revive, now: int) -> None:
    """Start a dead copy again, or end one that does not answer (its death then counts as unplanned)."""
    copy = state.copies.get(body.copy)
    reason = _revive_refusal(copy, body)
    if reason or copy is None:
        status = "stale" if reason == "stale" else "refused"
        state.out.append(Send(event.role, event.node, Answer(status, reason), event.request))
        return
    if body.ahead:
        copy.standing = (copy.instance, body.generation, body.ahead)
        return
    if body.kill:
        state.note("kill", copy.key, reason=body.reason)
        copy.standing = None  # this death is the Monitor's to judge
        kill(state, copy, now, planned=False, reason=body.reason[: limits.MAX_REASON_CHARS])
    else:
        copy.dead = False
        state.touch(copy)
    state.out.append(Send(event.role, event.node, Answer("accepted"), event.request))


def _revive_refusal(copy: Copy | None, body: Revive) -> str:
    if copy is None or copy.order is None:
        return "no such copy"
    if body.generation < copy.order.generation:
        return "stale"
    if copy.order.wanted is not Wanted.UP:
        return "not wanted up"
    if body.ahead:
        return "" if copy.phase is Phase.RUNNING else f"it is {copy.phase}"
    if body.kill and copy.ice is not Ice.NONE:
        return "frozen"
    if body.kill and copy.phase is not Phase.RUNNING:
        return f"it is {copy.phase}"
    if not body.kill and copy.phase is not Phase.DOWN:
        return f"it is {copy.phase}"
    return ""
