"""Faults: what goes wrong in a run, drawn from the seed; then everything is mended and must converge.

Not drawn here, because no timer covers it (design rule 11, a later issue brings the guards): a Spawner that stands
still or is away for longer than the accepted stall, and a whole node that pauses for longer than that.
"""

from __future__ import annotations

from ha.model.names import Agent
from ha.model.timing import MS
from ha.sim.world import World


def throw(world: World) -> str:
    """Let one thing go wrong now; return what, in words."""
    rng = world.kernel.rng
    nodes = sorted(world.system.nodes)
    kinds = [
        (_crash_copy, 5), (_crash_agent, 4), (_pause_agent, 4), (_lose_node, 2), (_cut, 3), (_one_way, 2),
        (_lossy, 2), (_lose_witness, 1), (_pause_node, 1), (_lose_side, 1), (_lose_voters, 1), (_lose_disk, 1),
        (_lose_all, 0.3),
    ]  # fmt: skip
    fault = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
    return fault(world, rng.choice(nodes))


def mend(world: World) -> None:
    """Everything is healed: links, pauses, dead agents."""
    world.net.heal()
    for node in list(world.programs.paused):
        world.programs.pause(node, False)
    for host in world.hosts.values():
        if host.alive and host.paused:
            host.pause(False)
        elif not host.alive and host.node not in world.down:
            world.kernel.after(50 * MS, lambda host=host: None if host.alive else host.start())  # type: ignore[misc]


def _crash_copy(world: World, node: str) -> str:
    running = world.programs.running()
    if not running:
        return "nothing runs"
    program = world.kernel.rng.choice(running)
    world.programs.crash(program.node, program.copy)
    return f"{program.copy} on {program.node} dies"


def _crash_agent(world: World, node: str) -> str:
    role = world.kernel.rng.choice([Agent.SERVER, Agent.MONITOR, Agent.WITNESS, Agent.SPAWNER])
    longest = 120 if role is Agent.SPAWNER else 800
    back = world.kernel.between(30, longest)
    world.crash_agent(role, node, back * MS)
    return f"{role} of {node} dies for {back} ms"


def _pause_agent(world: World, node: str) -> str:
    role = world.kernel.rng.choice([Agent.SERVER, Agent.MONITOR, Agent.WITNESS, Agent.SPAWNER])
    longest = world.system.timing.stall_ms - 20 if role is Agent.SPAWNER else 3000
    length = world.kernel.between(10, longest)
    host = world.hosts.get((role, node))
    if host is None or not host.alive or host.paused:
        return "nothing to pause"
    host.pause(True)
    world.kernel.after(length * MS, lambda: host.pause(False) if host.alive and host.paused else None)
    return f"{role} of {node} stands still for {length} ms"


def _pause_node(world: World, node: str) -> str:
    length = world.kernel.between(5, world.system.timing.stall_ms - 20)
    hosts = [host for (_, name), host in world.hosts.items() if name == node and host.alive and not host.paused]
    world.programs.pause(node, True)
    for host in hosts:
        host.pause(True)

    def go_on() -> None:
        world.programs.pause(node, False)
        for host in hosts:
            if host.alive and host.paused:
                host.pause(False)

    world.kernel.after(length * MS, go_on)
    return f"node {node} stands still for {length} ms"


def _lose_node(world: World, node: str) -> str:
    back = world.kernel.between(500, 6000)
    world.lose_node(node, back * MS)
    return f"node {node} is lost for {back} ms"


def _lose_witness(world: World, node: str) -> str:
    back = world.kernel.between(200, 4000)
    world.lose_node("w1", back * MS)
    return f"w1 is lost for {back} ms"


def _lose_side(world: World, node: str) -> str:
    side = world.system.nodes[node].side
    back = world.kernel.between(500, 6000)
    for name in world.system.nodes_of(side):
        world.lose_node(name, back * MS)
    return f"side {side} is lost for {back} ms"


def _lose_voters(world: World, node: str) -> str:
    back = world.kernel.between(50, 2000)
    for name in world.system.voters:
        world.crash_agent(Agent.WITNESS, name, back * MS)
    return f"all voters are away for {back} ms"


def _lose_disk(world: World, node: str) -> str:
    """One voter forgets everything; the next one does so no sooner than the copying has surely ended."""
    now = world.kernel.now
    away = [name for name in world.system.voters if not world.hosts[(Agent.WITNESS, name)].alive]
    if now < world.disk_lost_at + 20_000 * MS or away:
        return "no disk is lost"
    world.disk_lost_at = now
    name = world.kernel.rng.choice(world.system.voters)
    world.lose_disk(name)
    return f"the Witness of {name} loses its disk"


def _lose_all(world: World, node: str) -> str:
    back = world.kernel.between(500, 3000)
    for name in [*world.system.nodes, *world.system.witnesses]:
        world.lose_node(name, back * MS)
    return f"everything is lost for {back} ms"


def _heal_after(world: World) -> int:
    length = world.kernel.between(50, 4000)
    world.kernel.after(length * MS, world.net.heal)
    return length


def _cut(world: World, node: str) -> str:
    places = [*world.system.nodes, "w1"]
    count = world.kernel.between(1, len(places) - 1)
    some = set(world.kernel.rng.sample(places, count))
    world.net.isolate(some, set(places) - some)
    return f"{sorted(some)} are cut off for {_heal_after(world)} ms"


def _one_way(world: World, node: str) -> str:
    places = [*world.system.nodes, "w1"]
    other = world.kernel.rng.choice([place for place in places if place != node])
    world.net.isolate({node}, {other}, one_way=True)
    return f"{node} cannot send to {other} for {_heal_after(world)} ms"


def _lossy(world: World, node: str) -> str:
    world.net.loss = world.kernel.rng.choice([0.01, 0.05, 0.2])
    return f"{world.net.loss:.0%} of messages are lost for {_heal_after(world)} ms"
