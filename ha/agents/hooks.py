"""Hooks: a tenant's `on_event` command, run on the node where an event of the tenant happened.

The event stands in HA_EVENT as one line of JSON (as `hactl --json events` prints it), its words in HA_EVENT_KIND,
HA_SUBJECT, HA_FROM, HA_TO, HA_REASON, and the fencing number's epoch in HA_EPOCH. Hooks run as the agent's own user,
one after the other, each for at most `HOOK_TIMEOUT_MS`; beyond `WAITING` events the oldest wait no longer. They are
for telling people; nothing is decided by their outcome.
"""

from __future__ import annotations

import os
from collections import deque

import msgspec

from ha.agents.eventlog import to_json
from ha.core.policy import allows_root, command_refusal
from ha.linux.identity import reap, send
from ha.linux.spawn import Spawned, SpawnError, SpawnRequest, begin, finish
from ha.model.messages import EventRecord
from ha.model.names import tenant_of
from ha.model.plan import Policy, Tenant
from ha.model.timing import MS
from ha.runtime import log
from ha.runtime.loop import Loop, Timer

KINDS = frozenset({"claimed", "released", "lost", "move", "failed", "escalate", "refused", "plan"})
STATES = frozenset({"failed", "frozen", "backoff"})  # of a copy: its other transitions are no news
HOOK_TIMEOUT_MS = 10_000
WAITING = 64
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Hooks:
    """Runs the hooks of one node. `tenants` is replaced with each plan."""

    def __init__(self, loop: Loop, policy: Policy, user: str) -> None:
        """`user`: the name this agent runs as."""
        self._loop = loop
        self._policy = policy
        self._user = user
        self._waiting: deque[tuple[Tenant, EventRecord]] = deque(maxlen=WAITING)
        self._child: Spawned | None = None
        self._timer: Timer | None = None
        self.tenants: dict[str, Tenant] = {}

    def on_event(self, event: EventRecord) -> None:
        """Take an event of this node; run the tenant's command if it has one and the event is news."""
        tenant = self.tenants.get(tenant_of(event.subject))
        news = event.kind in KINDS or (event.kind == "state" and event.to in STATES)
        if tenant is None or not tenant.on_event or not news:
            return
        reason = command_refusal(self._policy, tenant.on_event)
        if reason is None and not allows_root(self._policy, self._user):
            reason = "policy: hooks run as root here, and root is not named in users of this node"
        if reason:
            log.warning("hook.refused", tenant=tenant.name, reason=reason)
            return
        self._waiting.append((tenant, event))
        self._next()

    def close(self) -> None:
        """End what runs."""
        self._waiting.clear()
        if self._child is not None:
            send(self._child.pidfd, 9)

    def _next(self) -> None:
        if self._child is not None or not self._waiting:
            return
        tenant, event = self._waiting.popleft()
        environment = {
            "PATH": PATH, "LANG": "C.UTF-8", "HA_TENANT": tenant.name, "HA_NODE": event.node,
            "HA_EVENT": msgspec.json.encode(to_json(event)).decode(), "HA_EVENT_KIND": event.kind,
            "HA_SUBJECT": event.subject, "HA_FROM": event.from_, "HA_TO": event.to, "HA_REASON": event.reason,
            "HA_EPOCH": str(event.epoch),
        }  # fmt: skip
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            child = finish(begin(SpawnRequest(argv=tenant.on_event, environment=environment, output=null, umask=0o077)))
        except SpawnError as error:
            log.warning("hook.failed", tenant=tenant.name, reason=str(error))
            self._loop.call_at(self._loop.now(), self._next)
            return
        finally:
            os.close(null)
        self._child = child
        self._timer = self._loop.call_at(self._loop.now() + HOOK_TIMEOUT_MS * MS, lambda: self._too_long(tenant))
        self._loop.add_fd(child.pidfd, lambda _: self._ended(child, tenant))

    def _too_long(self, tenant: Tenant) -> None:
        if self._child is not None:
            log.warning("hook.ended", tenant=tenant.name, reason=f"ran longer than {HOOK_TIMEOUT_MS} ms")
            send(self._child.pidfd, 9)

    def _ended(self, child: Spawned, tenant: Tenant) -> None:
        exit_ = reap(child.pidfd)
        if exit_ is None:
            return
        if not exit_.clean:
            log.warning("hook.failed", tenant=tenant.name, reason=str(exit_.to_json()))
        self._loop.remove_fd(child.pidfd)
        os.close(child.pidfd)
        if self._timer is not None:
            self._timer.cancel()
        self._child = None
        self._next()
