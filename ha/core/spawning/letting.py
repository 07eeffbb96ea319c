"""Relinquish: letting go of a tenant's exclusive copies, so that its lease can be released (rules 7 and 8).

Politely until `until`: what can be demoted is, the rest is sent its stop signal. Then whatever still acts is frozen.
When every acting copy is frozen, demoted or gone, `never/TENANT` is journalled, then the answer is sent, then what is
frozen is killed. From the moment of the request nothing of the tenant is started, promoted or thawed at or below that
number; a repeated request is answered again.
"""

from __future__ import annotations

from ha.core.machine import Persist, Received, Send
from ha.core.spawning import rights
from ha.core.spawning.ending import kill
from ha.core.spawning.state import Copy, Ice, Letting, Phase, SpawnerState
from ha.model.messages import Relinquish, Relinquished
from ha.model.names import Agent
from ha.model.timing import MS


def take(state: SpawnerState, event: Received, body: Relinquish, now: int) -> None:
    """Begin to let go, or answer again."""
    if body.fencing <= state.never.get(body.tenant, 0):
        state.out.append(Send(event.role, event.node, Relinquished(body.tenant, body.fencing), event.request))
        return
    until = now + max(0, body.polite_ms) * MS
    letting = state.lettings.get(body.tenant)
    if letting is None:
        letting = state.lettings[body.tenant] = Letting(body.fencing, until)
    letting.fencing = max(letting.fencing, body.fencing)
    letting.until = min(letting.until, until)
    letting.askers[(event.role.value, event.node)] = event.request
    state.dirty.update(state.by_tenant.get(body.tenant, {}))
    tick(state, now)


def tick(state: SpawnerState, now: int) -> None:
    """Freeze what still acts when the polite time is over."""
    for tenant, letting in state.lettings.items():
        if now < letting.until:
            continue
        for copy in _acting(state, tenant, letting.fencing):
            if copy.phase in (Phase.RUNNING, Phase.STOPPING) and copy.ice in (Ice.NONE, Ice.THAWING):
                copy.lapsed_at = now
                rights.freeze(state, copy, "relinquished")


def finish(state: SpawnerState, now: int) -> None:
    """Record and answer every letting of which nothing acts any more."""
    for tenant in [name for name, letting in state.lettings.items() if _done(state, name, letting.fencing)]:
        letting = state.lettings.pop(tenant)
        state.never[tenant] = letting.fencing
        state.out.append(Persist(f"never/{tenant}", letting.fencing))
        for (role, node), request in letting.askers.items():
            state.out.append(Send(Agent(role), node, Relinquished(tenant, letting.fencing), request))
        state.note("relinquished", tenant, epoch=letting.fencing >> 16)
        for copy in _acting(state, tenant, letting.fencing):
            if copy.phase is not Phase.KILLING:
                kill(state, copy, now, planned=True, reason="relinquished")
        state.dirty.update(state.by_tenant.get(tenant, {}))


def wake_at(state: SpawnerState, now: int) -> int | None:
    """Return when the first polite time is over; None: none is running."""
    return min((letting.until for letting in state.lettings.values() if letting.until > now), default=None)


def _acting(state: SpawnerState, tenant: str, fencing: int) -> list[Copy]:
    copies = (state.copies[key] for key in state.by_tenant.get(tenant, ()))
    return [copy for copy in copies if copy.acts and copy.lowest_fencing <= fencing]


def _done(state: SpawnerState, tenant: str, fencing: int) -> bool:
    return all(copy.ice is Ice.FROZEN for copy in _acting(state, tenant, fencing))
