"""The demo: a duplex system on loopback with a real call centre, failing over while calls go on.

    make demo            or: python -m examples.callcenter.demo [--keep | --end DIRECTORY]

Every time is measured, every claim is checked. Exit code 0: all held; 1: something did not, and the logs are kept;
130: interrupted (Ctrl-C, SIGTERM), and nothing is left. `--keep` (KEEP=1) leaves the system running after the last
check and prints how to use it and how to end it. With CI=true `sipp`, where it is installed, calls as well.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from examples.callcenter import demo_keep, demo_sipp
from examples.callcenter.demo_story import Calls, Eye, Failed, Json, RoleWatch, Story, end_process, told
from examples.callcenter.demo_system import EXAMPLES, NODES, WITNESS, Hactl, System

TENANTS = ("system", "acme", "globex")
IVR = {"acme": 5100, "globex": 5200, "initech": 5300}
ACD = {"acme": 5110, "globex": 5210, "initech": 5310}
CALLS_BETWEEN = 20  # answered calls to wait for before a step ends
SIPP_CALLS = 40
INTERRUPTED = 130  # exit code, as a shell gives it for SIGINT
EPOCH_BITS = 16  # below them HA_EPOCH counts moves inside a side


@dataclass(slots=True)
class World:
    """What the steps share."""

    story: Story
    system: System
    eye: Eye
    calls: dict[str, Calls] = field(default_factory=dict)
    outside: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def more_calls(self, tenant: str, since: Json) -> Json:
        """Wait until CALLS_BETWEEN more calls were answered since; return how the counts grew."""
        calls = self.calls[tenant]
        self.story.wait("more calls", lambda: calls.grown(since, CALLS_BETWEEN), lambda: told(calls.since(since)))
        return calls.since(since)

    def sipp_calls(self, tenant: str) -> demo_sipp.SippCalls | None:
        """Let sipp call an IVR of the tenant, or return None where it is not to be used."""
        program = demo_sipp.wanted()
        copy = next((copy for copy in self.eye.copies(tenant) if copy["process"] == "ivr"), None)
        if not program or copy is None:
            return None
        return demo_sipp.SippCalls(self.system, program, self.system.address(copy["node"]), IVR[tenant], SIPP_CALLS)

    def check_sipp(self, tenant: str, running: demo_sipp.SippCalls | None) -> None:
        """Wait for sipp, and check that not one call had a flaw."""
        if running is not None:
            wrong = running.wait()
            self.story.check(not wrong, f"{tenant}: {running.count} calls placed by sipp, without a flaw", wrong)


def ordered_start(world: World) -> None:
    """Start all agents; check the order in which the processes came up."""
    story, system, eye = world.story, world.system, world.eye
    story.say(f"directory {system.root}, addresses {system.net}.11 .12 (side a) .21 .22 (side b) .50 (witness)")
    began = time.monotonic()
    for place in (*WITNESS, *NODES):
        system.start(place)
    eye.wait("all tenants", lambda: _none_ended(system) and eye.settled(*TENANTS), timeout=60)
    story.say(f"everything ready {(time.monotonic() - began) * 1000:.0f} ms after the first ha-master was started:")
    started = sorted(
        (copy for tenant in TENANTS for copy in _named(eye, tenant)), key=lambda copy: str(copy["started_at"])
    )
    for copy in (copy for copy in started if copy["pid"]):
        clock = str(copy["started_at"])[11:23]
        story.say(f"    {clock}  {copy['name']:<18} {copy['node']}  {copy['role'] or '-':<8} {copy['run_status']}")
    order = {(copy["name"], copy["side"]): number for number, copy in enumerate(started)}
    first = order["system/directory", eye.active("system", "directory")["side"]]
    users = [number for (name, _), number in order.items() if name.endswith("/acd")]
    story.check(first < min(users), "the active directory was started before every distributor that depends on it")
    story.check(
        all(order[f"{t}/acd", side] < order[f"{t}/ivr", side] for t in ("acme", "globex") for side in "ab"),
        "on each side the distributor was started before its IVR",
    )
    for tenant, side in (("acme", "a"), ("globex", "b")):
        found = eye.seen["tenants"][tenant]["active_side"]
        story.check(found == side, f"{tenant} is active on its home, side {side}", f"on side {found}")


def real_calls(world: World) -> None:
    """Place calls without a break, with human agents behind them."""
    for tenant in ("acme", "globex"):
        acd = world.system.addresses(ACD[tenant])
        world.outside.append(world.system.run("agents.py", "--acd", acd, "--count", 30, log=f"agents-{tenant}"))
        world.calls[tenant] = Calls(world.system, tenant, IVR[tenant])
    zero = world.calls["acme"].report()
    for tenant in ("acme", "globex"):
        grown = world.more_calls(tenant, zero)
        setup = world.calls[tenant].report()
        world.story.check(
            grown["failed"] == 0, f"{tenant}: {told(grown)}; answered after {setup['setup_p50_ms']} ms (median)"
        )
        world.check_sipp(tenant, world.sipp_calls(tenant))


def distributor_killed(world: World) -> None:
    """SIGKILL the active distributor of acme by its pid."""
    story, eye = world.story, world.eye
    lost = eye.active("acme", "acd")
    watch, before = RoleWatch(world.system, ACD["acme"]), world.calls["acme"].report()
    _, node, epoch = watch.hear(0)
    story.check(
        node == lost["node"], f"active at {node}, epoch {_epoch(epoch)}, pid {lost['pid']}: killed with SIGKILL"
    )
    began = time.monotonic()
    os.kill(lost["pid"], signal.SIGKILL)
    at, node, now = watch.hear(epoch)
    watch.close()
    story.say(f"active at {node}, epoch {_epoch(now)}, {(at - began) * 1000:.1f} ms later")
    story.check(node[0] != lost["side"], "the standby of the other side was promoted")
    grown = world.more_calls("acme", before)
    story.check(grown["failed"] == 0 and grown["dropped"] == 0, f"acme meanwhile: {told(grown)}")
    took = eye.wait("a new standby", lambda: eye.settled(*TENANTS), "acme")
    story.say(f"the lost copy is back as the standby, seen {took:.0f} ms later")
    story.check(eye.seen["tenants"]["globex"]["active_side"] == "b", "globex was not touched")


def node_lost(world: World) -> str:
    """Kill all agents and processes of the node where acme's distributor is active; return its name."""
    story, system, eye = world.story, world.system, world.eye
    lost = str(eye.active("acme", "acd")["node"])
    agents = eye.seen["sides"][lost[0]]["nodes"][lost]["agents"]
    story.say(f"agents of {lost}: " + ", ".join(f"{role} {agent['pid']}" for role, agent in agents.items()))
    watch, before = RoleWatch(system, ACD["acme"]), world.calls["acme"].report()
    _, _, epoch = watch.hear(0)
    eye.asked.discard(lost)
    began, count = system.lose(lost)
    story.say(f"{count} processes of {lost} ended at once, as by a power cut")
    at, node, now = watch.hear(epoch)
    watch.close()
    story.check(True, f"acme active at {node}, epoch {_epoch(now)}, {(at - began) * 1000:.0f} ms after the loss")
    grown = world.more_calls("acme", before)
    story.check(grown["failed"] == 0, f"acme meanwhile: {told(grown)} (cut off: were in progress at {lost})")
    eye.wait("all tenants active elsewhere", lambda: _all_active(eye, lost), timeout=30)
    story.say("every exclusive process is active and ready on the nodes that are left")
    return lost


def node_healed(world: World, lost: str) -> None:
    """Start the node again; nothing may move because of it."""
    story, eye = world.story, world.eye
    eye.look()
    before = {
        tenant: (eye.seen["tenants"][tenant]["active_side"], eye.seen["tenants"][tenant]["epoch"]) for tenant in TENANTS
    }
    world.system.start(lost)
    took = eye.wait(f"{lost}", lambda: eye.settled(*TENANTS) and _node_state(eye, lost) == "up", timeout=40)
    eye.asked.add(lost)
    story.say(f"ha-master started again on {lost}: node up, all copies ready after {took:.0f} ms")
    after = {
        tenant: (eye.seen["tenants"][tenant]["active_side"], eye.seen["tenants"][tenant]["epoch"]) for tenant in TENANTS
    }
    story.check(before == after, "no tenant moved because of it", f"{before} before, {after} after")


def planned_switchover(world: World) -> None:
    """Move globex to the other side while calls go on in both tenants."""
    story, eye = world.story, world.eye
    eye.look()
    origin = eye.seen["tenants"]["globex"]["active_side"]
    acme_epoch = eye.seen["tenants"]["acme"]["epoch"]
    before = {tenant: world.calls[tenant].report() for tenant in world.calls}
    watch = RoleWatch(world.system, ACD["globex"])
    _, _, epoch = watch.hear(0)
    sipp = world.sipp_calls("acme")
    began = time.monotonic()
    command = world.system.hactl_start("switchover", "globex")
    at, node, now = watch.hear(epoch)
    watch.close()
    said = " ".join("".join(command.communicate(timeout=30)).split())
    story.say(f"hactl switchover globex -> exit {command.returncode}: {said}")
    story.check(command.returncode == 0 and node[0] != origin, f"active at {node}, epoch {_epoch(now)}, "
                f"{(at - began) * 1000:.0f} ms after the command was typed (hactl's own start included)")  # fmt: skip
    for tenant in world.calls:
        grown = world.more_calls(tenant, before[tenant])
        story.check(grown["failed"] == 0 and grown["dropped"] == 0, f"{tenant} meanwhile: {told(grown)}")
    world.check_sipp("acme", sipp)
    eye.wait("globex", lambda: eye.settled("globex"), "globex")
    story.check(eye.seen["tenants"]["acme"]["epoch"] == acme_epoch, "acme was not touched")


def tenant_dropped_in(world: World) -> None:
    """Drop a new tenant's file into the directory and call it."""
    story, eye = world.story, world.eye
    before = world.calls["acme"].report()
    began = time.monotonic()
    file = world.system.drop(EXAMPLES / "initech.toml")
    watch = RoleWatch(world.system, ACD["initech"])
    at, node, _ = watch.hear(0)
    watch.close()
    story.say(f"{file.name} dropped: its distributor is active at {node} {(at - began) * 1000:.0f} ms later")
    eye.wait("initech", lambda: eye.settled("initech"), "initech")
    story.say(f"all its copies are ready, seen {(time.monotonic() - began) * 1000:.0f} ms after the drop")
    report = Calls(world.system, "initech", IVR["initech"], count=10).wait()
    story.check(report["answered"] == 10 and not report["failed"], f"initech: {told(report)}")
    grown = world.calls["acme"].since(before)
    story.check(grown["failed"] == 0 and grown["dropped"] == 0, f"acme meanwhile: {told(grown)}")


def broken_file(world: World) -> None:
    """Drop a file with two mistakes: refused with file, line and column, and nothing changes."""
    story, system, eye = world.story, world.system, world.eye
    eye.look()
    before = {tenant: data["epoch"] for tenant, data in eye.seen["tenants"].items()}
    file = system.drop(EXAMPLES / "broken.toml")
    eye.wait("the error", lambda: any(error["file"].endswith(file.name) for error in eye.look()["plan"]["errors"]))
    for error in eye.seen["plan"]["errors"]:
        story.say(f"    hactl status: {error['file']}:{error['line']}:{error['column']}: {error['text']}")
    try:
        system.hactl("check", str(file))
        story.check(False, "hactl check refuses the file")
    except Hactl as refusal:
        story.check(refusal.code == 2 and f"{file.name}:3:" in str(refusal), "hactl check refuses it with exit code 2:")
        for line in str(refusal).splitlines():
            story.say(f"    {line}")
    after = {tenant: data["epoch"] for tenant, data in eye.look()["tenants"].items()}
    story.check(before == after, "nothing else changed", f"{before} before, {after} after")
    file.unlink()
    eye.wait("the error to go", lambda: not eye.look()["plan"]["errors"])


def ordered_stop(world: World) -> None:
    """End the callers, stop the tenants by hactl, then the nodes by SIGTERM."""
    story, system = world.story, world.system
    for tenant, calls in world.calls.items():
        report = calls.end()
        story.say(f"{tenant} in all: {told(report)}; p50 {report['setup_p50_ms']} ms, p95 {report['setup_p95_ms']} ms, "
                  f"longest gap between answers {report['longest_gap_ms']} ms")  # fmt: skip
    for process in world.outside:
        end_process(process)
    for tenant in ("initech", "globex", "acme", "system"):
        began = time.monotonic()
        system.hactl("stop", tenant, "--wait", node=sorted(world.eye.asked)[0])
        story.say(f"hactl stop {tenant} --wait: {(time.monotonic() - began) * 1000:.0f} ms")
    began = time.monotonic()
    for node in NODES:
        system.places[node].send_signal(signal.SIGTERM)
    codes = {place: system.places[place].wait(timeout=30) for place in NODES}
    codes |= {place: end_process(system.places[place]) for place in WITNESS}
    took = (time.monotonic() - began) * 1000
    story.check(not any(codes.values()), f"all nodes and the witness ended within {took:.0f} ms", f"exit codes {codes}")


def nothing_left(world: World) -> None:
    """Look for processes, listening sockets, unix sockets and cgroups."""
    left = world.system.leftovers()
    world.story.check(not left, "no process, no socket and no cgroup is left", "; ".join(left))


# --- running the steps ----------------------------------------------------------------------------


def tell(world: World) -> None:
    """Run all steps up to the stop."""
    title = world.story.title
    title("Ordered start: four nodes, a witness, three tenants")
    ordered_start(world)
    title("Real SIP calls, 20 a second and tenant, over all IVRs")
    real_calls(world)
    title("The active distributor of acme is killed")
    distributor_killed(world)
    title("A whole node is lost")
    lost = node_lost(world)
    title(f"{lost} comes back")
    node_healed(world, lost)
    title("Planned switchover of globex")
    planned_switchover(world)
    title("A new tenant is dropped in")
    tenant_dropped_in(world)
    title("A broken tenant file is refused")
    broken_file(world)


def stop(world: World) -> None:
    """Run the last steps."""
    world.story.title("Ordered stop")
    ordered_stop(world)
    world.story.title("Nothing is left behind")
    nothing_left(world)


def main() -> int:
    """Return 0 when every check held."""
    parser = argparse.ArgumentParser(description="a duplex call centre on loopback, failing over before your eyes")
    parser.add_argument("--keep", action="store_true", help="leave the system running at the end (KEEP=1)")
    parser.add_argument("--end", type=Path, metavar="DIRECTORY", help="end a system that was left running")
    args = parser.parse_args()
    if args.end is not None:
        return demo_keep.end(args.end.resolve())
    keep = args.keep
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    story, system = Story(), System()
    world = World(story, system, Eye(system, story))
    kept = False
    try:
        done = _guarded(story, lambda: tell(world))
        kept = done and keep
        if done and not keep:
            _guarded(story, lambda: stop(world))
    except KeyboardInterrupt:
        return _interrupted(system)
    finally:
        if not kept:
            system.end()
    if story.failures:
        print(f"\nfailed, {len(story.failures)} of the claims did not hold; logs and data are kept in {system.root}:")
        print("\n".join(f"  - {failure}" for failure in story.failures))
    if kept:
        demo_keep.explain(system)
    elif not story.failures:
        system.remove()
        story.say("every claim held; the directory is removed")
    return 1 if story.failures else 0


def _interrupted(system: System) -> int:
    """End all at once and leave nothing."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C is not to stop the cleaning up
    print("\ninterrupted: ending everything that was started", flush=True)
    system.end()
    left = system.leftovers()
    system.remove()
    print("\n".join(left) or "nothing is left")
    return INTERRUPTED


def _guarded(story: Story, run: Callable[[], None]) -> bool:
    """Run it; what cannot go on fails the demo in one line instead of a traceback."""
    try:
        run()
    except (Failed, Hactl, subprocess.TimeoutExpired, OSError, LookupError) as error:
        story.check(False, f"{type(error).__name__}: {error}")
        return False
    return True


def _none_ended(system: System) -> bool:
    """Raise Failed if an agent that was started has ended: nothing will come of waiting."""
    if ended := system.ended():
        raise Failed("; ".join(ended))
    return True


def _named(eye: Eye, tenant: str) -> list[Json]:
    return [{**copy, "name": f"{tenant}/{copy['process']}"} for copy in eye.copies(tenant)]


def _epoch(fencing: int) -> str:
    """Return a fencing number as people read it: the tenant's epoch, and the moves inside its side."""
    return f"{fencing >> EPOCH_BITS}.{fencing & ((1 << EPOCH_BITS) - 1)}"


def _node_state(eye: Eye, node: str) -> str:
    return str(eye.seen["sides"][node[0]]["nodes"][node]["state"])


def _all_active(eye: Eye, lost: str) -> bool:
    """Return whether every exclusive process has a ready active copy on a node other than the lost one."""
    eye.look()
    wanted = {
        copy["name"] for tenant in TENANTS for copy in _named(eye, tenant) if copy["run_status"] != "load_sharing"
    }
    found = {
        copy["name"]
        for tenant in TENANTS
        for copy in _named(eye, tenant)
        if copy["role"] == "active" and copy["state"] == "ready" and copy["node"] != lost
    }
    return bool(wanted) and wanted <= found


if __name__ == "__main__":
    sys.exit(main())
