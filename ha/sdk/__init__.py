"""Floor 2, the SDK: what a tenant's program imports. Standard library only.

`connect`, `Agent`: roles, readiness, watchdog. `Fence`, `StaleEpoch`: the check at a resource. `notify`: sd_notify.
Names are loaded on first use: the Spawner imports `ha.sdk.protocol` and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ha.sdk.client import Agent, RoleChange, connect
    from ha.sdk.fence import Fence, StaleEpoch
    from ha.sdk.protocol import Role
    from ha.sdk.sdnotify import notify

__all__ = ["Agent", "Fence", "Role", "RoleChange", "StaleEpoch", "connect", "notify"]

_HOME = {
    "Agent": "client",
    "RoleChange": "client",
    "connect": "client",
    "Fence": "fence",
    "StaleEpoch": "fence",
    "Role": "protocol",
    "notify": "sdnotify",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'ha.sdk' has no attribute {name!r}")
    found: object = getattr(import_module(f"ha.sdk.{_HOME[name]}"), name)
    globals()[name] = found
    return found
