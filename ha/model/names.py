"""Names: how sides, nodes, tenants, processes and copies are written.

A name is `^[a-z][a-z0-9-]{0,30}$`: it stands in unix socket paths (107 bytes at most), so it is
short, and `.`, `/` and `#` stay free as separators.

    process   tenant/process            acme/acd
    copy      tenant/process.number     acme/acd.1     the n-th copy of a side; `Place` adds the node
    lease     tenant name, or seat/side                the right that voters grant
"""

from __future__ import annotations

import re
from enum import StrEnum

NAME = re.compile(r"^[a-z][a-z0-9-]{0,30}$")
NAME_HELP = "a name is a lower-case letter, then at most 30 of a-z, 0-9 and '-'"
SIDES = ("a", "b")
SEAT_PREFIX = "seat/"


class Agent(StrEnum):
    """The OS processes of a node (and `HACTL`, who only asks)."""

    SERVER = "server"
    MONITOR = "monitor"
    SPAWNER = "spawner"
    MASTER = "master"
    WATCHER = "watcher"
    WITNESS = "witness"
    HACTL = "hactl"


def process_id(tenant: str, process: str) -> str:
    """Return `tenant/process`."""
    return f"{tenant}/{process}"


def copy_key(tenant: str, process: str, number: int) -> str:
    """Return `tenant/process.number`, the key of a copy on its node; number counts from 1 per side."""
    return f"{tenant}/{process}.{number}"


def split_copy(key: str) -> tuple[str, str, int]:
    """Return (tenant, process, number) of a copy key. Raises ValueError on anything else."""
    process, dot, number = key.rpartition(".")
    tenant, slash, name = process.partition("/")
    if not (dot and slash and number.isdigit()):
        raise ValueError(f"not a copy key: {key!r}, expected tenant/process.number")
    return tenant, name, int(number)


def tenant_of(key: str) -> str:
    """Return the tenant of a process id or copy key."""
    return key.partition("/")[0]


def process_of(key: str) -> str:
    """Return the process id `tenant/process` of a copy key."""
    return key.rpartition(".")[0]


def seat(side: str) -> str:
    """Return the lease name of the Server's seat of a side."""
    return SEAT_PREFIX + side


def is_seat(lease: str) -> bool:
    """Return whether the lease is a Server's seat (a tenant name holds no slash)."""
    return lease.startswith(SEAT_PREFIX)


def other_side(side: str) -> str:
    """Return the other half of the duplex system."""
    return SIDES[1] if side == SIDES[0] else SIDES[0]
