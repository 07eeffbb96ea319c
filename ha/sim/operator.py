"""Operator: commands and edits in the middle of a run, and what must hold after them."""

from __future__ import annotations

from ha.model.plan import Tenant, encode_plan
from ha.model.timing import MS
from ha.sim.invariants import Truth
from ha.sim.tenants import edited
from ha.sim.world import World

EXCUSE_MS = 15_000  # a command may move even a held tenant for this long


def act(world: World, truth: Truth) -> str:
    """Let the operator do one thing; return what, in words."""
    rng = world.kernel.rng
    kinds = [
        (_switch, 5), (_restart, 3), (_stop, 2), (_start, 3), (_drain, 2), (_undrain, 2), (_hold, 2), (_unhold, 2),
        (_reset, 2), (_edit, 3), (_remove, 1), (_add, 2), (_leave, 1), (_return, 2),
    ]  # fmt: skip
    kind = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
    nodes = [node for node in sorted(world.system.nodes) if node not in world.down] or sorted(world.system.nodes)
    return kind(world, truth, rng.choice(nodes))


def relent(world: World, truth: Truth) -> None:
    """Take back what keeps things from running; what was stopped stays stopped."""
    node = next(iter(sorted(world.system.nodes)))
    for one in sorted(world.down):
        world.come_back(one)
    for target in sorted(world.drained):
        world.client.ask(node, "undrain", target=target)
    for tenant in sorted({*truth.held, ""}):
        world.client.ask(node, "unhold", tenant=tenant or None)
    world.drained.clear()
    truth.held.clear()


def reset_all(world: World) -> None:
    """`hactl reset` of every tenant: what failed is tried again."""
    node = next(iter(sorted(world.system.nodes)))
    for tenant in world.wanted_tenants():
        if tenant.name not in world.stopped:
            world.client.ask(node, "reset", target=tenant.name)


def _tenant(world: World) -> Tenant | None:
    tenants = world.wanted_tenants()
    return world.kernel.rng.choice(tenants) if tenants else None


def _target(world: World) -> str:
    tenant = _tenant(world)
    if tenant is None:
        return "nobody"
    if world.kernel.rng.random() < 0.6:
        return tenant.name
    return f"{tenant.name}/{world.kernel.rng.choice(tenant.processes).name}"


def _wait(world: World) -> bool:
    return world.kernel.rng.random() < 0.4


def _switch(world: World, truth: Truth, node: str) -> str:
    tenant = _tenant(world)
    truth.excused_until = world.kernel.now + EXCUSE_MS * MS
    name = tenant.name if tenant else "nobody"
    to = world.kernel.rng.choice("ab") if world.kernel.rng.random() < 0.5 else ""
    world.client.ask(node, "switchover", tenant=name, to=to)
    return f"switchover {name} {to}"


def _restart(world: World, truth: Truth, node: str) -> str:
    target, rolling = _target(world), world.kernel.rng.random() < 0.5
    world.client.ask(node, "restart", target=target, rolling=rolling, wait=_wait(world))
    return f"restart {target} rolling={rolling}"


def _stop(world: World, truth: Truth, node: str) -> str:
    target = _target(world)
    world.client.ask(node, "stop", target=target, wait=_wait(world))
    world.stopped.add(target)
    return f"stop {target}"


def _start(world: World, truth: Truth, node: str) -> str:
    if not world.stopped:
        return "nothing is stopped"
    target = world.kernel.rng.choice(sorted(world.stopped))
    world.client.ask(node, "reset", target=target.partition("/")[0])
    world.client.ask(node, "start", target=target, wait=_wait(world))
    world.stopped.discard(target)
    return f"start {target}"


def _drain(world: World, truth: Truth, node: str) -> str:
    target = world.kernel.rng.choice([*sorted(world.system.nodes), "a", "b"])
    truth.excused_until = world.kernel.now + EXCUSE_MS * MS
    world.drained.add(target)
    world.client.ask(node, "drain", target=target)
    return f"drain {target}"


def _undrain(world: World, truth: Truth, node: str) -> str:
    if not world.drained:
        return "nothing is drained"
    target = world.kernel.rng.choice(sorted(world.drained))
    truth.excused_until = world.kernel.now + EXCUSE_MS * MS
    world.drained.discard(target)
    world.client.ask(node, "undrain", target=target)
    return f"undrain {target}"


def _hold(world: World, truth: Truth, node: str) -> str:
    tenant = _tenant(world)
    if tenant is None:
        return "no tenant"
    one = world.client.ask(node, "hold", tenant=tenant.name)

    def look() -> None:
        if one.exit == 0 and tenant.name not in truth.held:
            truth.held[tenant.name] = world.kernel.now + 3_000 * MS  # both sides have heard of it by then

    world.kernel.after(2_000 * MS, look)
    return f"hold {tenant.name}"


def _unhold(world: World, truth: Truth, node: str) -> str:
    if not truth.held:
        return "nothing is held"
    name = world.kernel.rng.choice(sorted(truth.held))
    del truth.held[name]
    world.client.ask(node, "unhold", tenant=name)
    return f"unhold {name}"


def _reset(world: World, truth: Truth, node: str) -> str:
    target = _target(world)
    world.client.ask(node, "reset", target=target, wait=_wait(world))
    return f"reset {target}"


def _edit(world: World, truth: Truth, node: str) -> str:
    tenant = _tenant(world)
    if tenant is None:
        return "no tenant"
    new = edited(world.kernel.rng, tenant)
    _write(world, tenant.name, encode_plan((new,)))
    return f"edit {tenant.name}"


def _remove(world: World, truth: Truth, node: str) -> str:
    tenants = world.wanted_tenants()
    needed = {d.tenant for t in tenants for p in t.processes for d in p.depends_on if d.tenant != t.name}
    free = [tenant.name for tenant in tenants if tenant.name not in needed]
    if len(free) < 2:
        return "nothing may be removed"
    name = world.kernel.rng.choice(free)
    world.removed[name] = world.content(name)
    world.stopped = {one for one in world.stopped if one.partition("/")[0] != name}
    _write(world, name, None)
    return f"remove {name}"


def _add(world: World, truth: Truth, node: str) -> str:
    if not world.removed:
        return "nothing was removed"
    name = world.kernel.rng.choice(sorted(world.removed))
    world.client.ask(node, "start", target=name)
    _write(world, name, world.removed.pop(name))
    return f"add {name}"


def _leave(world: World, truth: Truth, node: str) -> str:
    truth.excused_until = world.kernel.now + EXCUSE_MS * MS
    world.leave(node)
    return f"ha-master of {node} is ended"


def _return(world: World, truth: Truth, node: str) -> str:
    if not world.down:
        return "nobody is away"
    name = world.kernel.rng.choice(sorted(world.down))
    world.come_back(name)
    return f"ha-master of {name} is started"


def _write(world: World, name: str, content: bytes | None) -> None:
    """Write or remove the file wherever it lies: the directories are kept the same by the operator."""
    for node, files in world.files.items():
        if content is None:
            files.pop(name, None)
        else:
            files[name] = content
        world.kernel.after(world.kernel.between(1, 50) * MS, lambda node=node: world.read_directory(node))  # type: ignore[misc]


__all__ = ["act", "relent", "reset_all"]
