"""Statuses: run status, role, wanted and observed state. Wanted and observed never share a type.

Source: design sections 2 and 6; the words are the glossary's.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class RunStatus(StrEnum):
    """What a process is on the two sides (design section 2)."""

    COLD = "cold"
    WARM = "warm"
    HOT = "hot"
    LOAD_SHARING = "load_sharing"

    @property
    def exclusive(self) -> bool:
        """At most one active copy in the whole system."""
        return self is not RunStatus.LOAD_SHARING

    @property
    def standby_runs(self) -> bool:
        """The other side runs a standby copy."""
        return self in (RunStatus.WARM, RunStatus.HOT)


class Role(StrEnum):
    """Whether a copy acts."""

    ACTIVE = "active"
    STANDBY = "standby"


class Wanted(StrEnum):
    """What a copy should be."""

    UP = "up"
    DOWN = "down"


class State(StrEnum):
    """What a copy was seen to be."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    FROZEN = "frozen"
    UNKNOWN = "unknown"

    @property
    def runs(self) -> bool:
        """An OS process of this copy exists, or may exist."""
        return self in (State.STARTING, State.UP, State.READY, State.STOPPING, State.FROZEN, State.UNKNOWN)


class OnDeath(StrEnum):
    """What the node does when a copy dies unasked."""

    RESTART = "restart"  # the Monitor restarts it by its policy
    REPORT = "report"  # a ready standby waits: the Server moves the tenant first


class NodeState(StrEnum):
    """How a Server sees a node."""

    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"
    DRAINING = "draining"
    DRAINED = "drained"
    UNKNOWN = "unknown"


class TenantState(StrEnum):
    """How a tenant is, over both sides."""

    OK = "ok"
    STARTING = "starting"
    MOVING = "moving"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"
    NO_LEASE = "no-lease"
    UNKNOWN = "unknown"


class AgentState(StrEnum):
    """How a Master sees an agent."""

    STARTING = "starting"
    UP = "up"
    STUCK = "stuck"
    DEAD = "dead"


class Exit(msgspec.Struct, frozen=True, array_like=True):
    """How an OS process ended; never invented: both None means unknown."""

    code: int | None = None
    signal: str | None = None  # "SIGKILL"

    @property
    def clean(self) -> bool:
        """Ended by itself with code 0."""
        return self.code == 0

    def to_json(self) -> dict[str, object]:
        """Return the contract's form: {"code": 1}, {"signal": "SIGKILL"} or {"unknown": true}."""
        if self.code is not None:
            return {"code": self.code}
        if self.signal is not None:
            return {"signal": self.signal}
        return {"unknown": True}
