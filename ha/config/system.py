"""The system file: TOML -> `System`, with what only the whole file shows: voters, addresses, timing, socket paths."""

from __future__ import annotations

import os
from typing import cast

import msgspec

from ha.config import source
from ha.config.keys import SYSTEM
from ha.config.report import Report, did_you_mean, dotted, in_order, shown
from ha.model.errors import ConfigError
from ha.model.limits import UNIX_PATH_BYTES
from ha.model.names import SIDES
from ha.model.plan import Node, Ports, System
from ha.model.timing import PROFILES, Timing

Tables = dict[str, dict[str, object]]
AGENT_SOCKETS = ("agents/spawner.sock", "operate.sock")  # the longest of run_dir/NODE (docs/architecture.md)


def load_system(path: str) -> System:
    """Return the system of a file. Raises ConfigError with every finding."""
    system, report = read_system(path)
    if report.findings or system is None:
        raise ConfigError(in_order(report.findings))
    return system


def read_system(path: str) -> tuple[System | None, Report]:
    """Return the system as far as it could be read, None where not at all, and the findings."""
    report = Report(path)
    found = source.load(path, report)
    if found is None:
        return None, report
    tables = cast("Tables", SYSTEM.read(found, (), report))
    sides = {name: _texts(table, "servers") for name, table in _maps(tables, "sides").items()}
    nodes = {
        name: Node(
            name=name, side=str(table.get("side", "")), addresses=_texts(table, "addresses"),
            labels=_texts(table, "labels"),
        )
        for name, table in _maps(tables, "nodes").items()
    }  # fmt: skip
    witnesses = {
        name: Node(name=name, addresses=_texts(table, "addresses"))
        for name, table in _maps(tables, "witnesses").items()
    }
    head, arbitration = tables.get("system", {}), tables.get("arbitration", {})
    here = os.path.dirname(os.path.abspath(path))
    profile = str(head.get("profile", "default"))
    default_voters = (*(sides[side][0] for side in sorted(sides) if sides[side]), *sorted(witnesses))
    system = System(
        name=str(head.get("name", "unnamed")),
        run_dir=str(head.get("run_dir", "/run/ha")),
        data_dir=str(head.get("data_dir", "/var/lib/ha")),
        tenants_dir=os.path.normpath(os.path.join(here, str(head.get("tenants_dir", "tenants.d")))),
        node_file=os.path.normpath(os.path.join(here, str(head.get("node_file", "/etc/ha/node.toml")))),
        file=os.path.abspath(path),
        profile=profile,
        timing=msgspec.convert({**msgspec.structs.asdict(PROFILES[profile]), **tables.get("timing", {})}, Timing),
        voters=_texts(arbitration, "voters") or default_voters,
        ports=msgspec.convert(tables.get("ports", {}), Ports),
        sides=sides,
        nodes=nodes,
        witnesses=witnesses,
    )
    for check in (_timing, _sides, _nodes, _voters, _addresses, _ports, _paths):
        check(system, report)
    return system, report


def _maps(tables: Tables, key: str) -> Tables:
    return cast("Tables", tables.get(key, {}))


def _texts(table: dict[str, object], key: str) -> tuple[str, ...]:
    return tuple(str(item) for item in cast("list[object]", table.get(key, [])))


def _timing(system: System, report: Report) -> None:
    if not report.sound("timing") or not report.sound("system", "profile"):
        return
    times = system.timing
    help = f'change [timing] or take a profile as it is: profile = "{system.profile}"'
    for line in times.broken_lines():
        report.add("unsafe-timing", ("timing",), line, help, key=True)
    if times.suspect_ms <= times.beat_ms:
        text = f"suspect is {times.suspect_ms}ms, not more than beat, {times.beat_ms}ms"
        report.add("unsafe-timing", ("timing", "suspect"), text, "give suspect at least three beats")


def _sides(system: System, report: Report) -> None:
    for side in SIDES:
        if side not in system.sides and report.sound("sides"):
            text = f"there is no [sides.{side}]: a duplex system has two sides"
            report.add("missing-key", ("sides",), text, f'add [sides.{side}] with servers = ["NODE"]', key=True)
    for side, servers in system.sides.items():
        for number, name in enumerate(servers):
            at = _item(("sides", side, "servers"), number, name, report)
            node = system.nodes.get(name)
            if node is None:
                text = f"{dotted(at)} = {shown(name)} is no node"
                report.add("unknown-node", at, text, did_you_mean(name, system.nodes, kind="nodes"))
            elif node.side and node.side != side:
                text = f"{dotted(at)} = {shown(name)} is a node of side {node.side}"
                report.add("unknown-node", at, text, f"name nodes of side {side}")


def _item(path: tuple[str, ...], number: int, value: str, report: Report) -> tuple[str | int, ...]:
    """Return the path of an item, or of its array where bad items before it shifted the numbers."""
    return (*path, number) if report.sound(*path) else path


def _nodes(system: System, report: Report) -> None:
    for name in system.witnesses:
        if name in system.nodes:
            text = f'"{name}" is both a node and a witness'
            report.add("duplicate", ("witnesses", name), text, "a node can be a voter by itself: rename one", key=True)


def _voters(system: System, report: Report) -> None:
    at = ("arbitration", "voters")
    places = {**system.nodes, **system.witnesses}
    explicit = at in report.positions.values
    for number, name in enumerate(system.voters if explicit else ()):
        if name not in places:
            path = _item(at, number, name, report)
            text = f"{dotted(path)} = {shown(name)} is no node and no witness"
            report.add("unknown-node", path, text, did_you_mean(name, places, kind="nodes and witnesses"))
    if len(system.voters) % 2 == 0 and report.sound(*at) and report.sound("sides") and report.sound("witnesses"):
        names = ", ".join(system.voters) or "none"
        text = f"the number of voters must be odd, but there are {len(system.voters)}: {names}"
        help = "add a third place as [witnesses.w1], or name an odd number in [arbitration] voters"
        report.add("bad-voters", at if explicit else ("sides",), text, help, key=not explicit)


def _addresses(system: System, report: Report) -> None:
    owner: dict[str, str] = {}
    for table, places in (("nodes", system.nodes), ("witnesses", system.witnesses)):
        for name, place in places.items():
            for number, address in enumerate(place.addresses):
                if owner.setdefault(address, name) != name:
                    at = _item((table, name, "addresses"), number, address, report)
                    text = f"{dotted(at)} = {shown(address)} is an address of {owner[address]} too"
                    report.add("duplicate", at, text, "give each node its own, such as 127.0.0.11")


def _ports(system: System, report: Report) -> None:
    seen: dict[int, str] = {}
    for name, port in msgspec.structs.asdict(system.ports).items() if report.sound("ports") else ():
        if seen.setdefault(port, name) != name:
            text = f"ports.{name} = {port} is the port of {seen[port]} too"
            report.add("duplicate", ("ports", name), text, "give each channel its own port")


def _paths(system: System, report: Report) -> None:
    if not (report.sound("system", "run_dir") and system.nodes):
        return
    name = max(system.nodes, key=len)
    longest = max((f"{system.run_dir}/{name}/{socket}" for socket in AGENT_SOCKETS), key=len)
    if len(os.fsencode(longest)) > UNIX_PATH_BYTES:
        text = f"the socket {shown(longest)} has {len(os.fsencode(longest))} bytes, more than {UNIX_PATH_BYTES}"
        report.add("path-too-long", ("system", "run_dir"), text, "take a shorter run_dir or node name")
