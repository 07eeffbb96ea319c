"""What a copy is started with: its command with placeholders filled in, its environment, its paths."""

from __future__ import annotations

from ha.core.spawning.state import Copy, SpawnerState
from ha.model.plan import Process, fill
from ha.model.status import Role

CONTROL_SOCKET = "control.sock"
NOTIFY_SOCKET = "notify.sock"
OUTPUT_FIFO = "out"


def copy_directory(run_dir: str, node: str, key: str) -> str:
    """Return the directory of a copy: run_dir/NODE/p/TENANT.PROCESS.N."""
    return f"{run_dir}/{node}/p/{key.replace('/', '.')}"


def command_of(state: SpawnerState, copy: Copy, command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with its placeholders filled in."""
    return tuple(_fill(state, copy, word) for word in command)


def environment_of(state: SpawnerState, copy: Copy, process: Process) -> dict[str, str]:
    """Return what plan and order put into the environment, later over earlier."""
    known = state.tenants.get(copy.tenant)
    names = {**(known.environment if known else {}), **process.environment}
    if copy.order is not None:
        names.update(copy.order.environment)
    return {name: _fill(state, copy, value) for name, value in names.items()}


def identity_of(state: SpawnerState, copy: Copy, role: Role, fencing: int) -> dict[str, str]:
    """Return the names by which a program knows who it is; nothing overrides them."""
    directory = copy_directory(state.system.run_dir, state.node.name, copy.key)
    return {
        "HA_ROLE": role.value,
        "HA_EPOCH": str(fencing),
        "HA_TENANT": copy.tenant,
        "HA_PROCESS": copy.process,
        "HA_NODE": state.node.name,
        "HA_SIDE": state.node.side,
        "HA_COPY": str(copy.number),
        "HA_SOCKET": f"{directory}/{CONTROL_SOCKET}",
        "NOTIFY_SOCKET": f"{directory}/{NOTIFY_SOCKET}",
        "HA_INSTANCE": copy.instance,
    }


def _fill(state: SpawnerState, copy: Copy, text: str) -> str:
    if "{" not in text:
        return text
    return fill(text, node=state.node, tenant=copy.tenant, process=copy.process, copy=copy.number)
