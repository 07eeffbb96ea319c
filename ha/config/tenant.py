"""One tenant file: TOML -> `Tenant`, with what one file alone can show. What needs other files is in `cross`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import msgspec

from ha.config import source
from ha.config.keys import TENANT
from ha.config.kinds import UNCATCHABLE
from ha.config.positions import Path
from ha.config.report import Report, dotted, in_order, shown
from ha.model.errors import ConfigError
from ha.model.limits import UNIX_PATH_BYTES
from ha.model.names import NAME, NAME_HELP
from ha.model.plan import Process, System, Tenant
from ha.model.status import RunStatus

Fields = dict[str, object]
CONTROL_SOCKET = "control.sock"  # the longest of run_dir/NODE/p/TENANT.PROCESS.N (docs/architecture.md)


@dataclass(slots=True)
class Loaded:
    """A tenant file as far as it could be read. `tenant`: None where it is no TOML; `stem`: file name without .toml."""

    stem: str
    tenant: Tenant | None
    report: Report

    @property
    def name(self) -> str:
        """The tenant's name, as far as it is known."""
        return self.tenant.name if self.tenant else self.stem


def load_tenant(text: bytes, *, file: str, system: System) -> Tenant:
    """Return the tenant of one file, checked alone. Raises ConfigError with every finding."""
    loaded = read_tenant(text, file=file, system=system)
    if loaded.report.findings or loaded.tenant is None:
        raise ConfigError(in_order(loaded.report.findings))
    return loaded.tenant


def read_tenant(text: bytes, *, file: str, system: System) -> Loaded:
    """Return the tenant as far as it could be read, and the findings."""
    report = Report(file)
    stem = os.path.basename(file).removesuffix(".toml")
    found = source.parse(text, report)
    if found is None:
        return Loaded(stem, None, report)
    tables = cast("dict[str, Fields]", TENANT.read(found, (), report))
    head = tables.get("tenant", {})
    name = str(head.get("name", stem))
    if "name" not in head and report.sound("tenant", "name") and not NAME.fullmatch(stem):
        report.place("bad-name", f"the file's name {shown(stem)} is not a name", f"{NAME_HELP}; or set [tenant] name")
    if not tables.get("process") and report.sound("process") and "process" in found:
        report.add("missing-key", ("process",), "the tenant has no process", "add [process.NAME]", key=True)
    processes = [
        _process(name, process, cast("Fields", fields), report) for process, fields in tables.get("process", {}).items()
    ]
    tenant = msgspec.convert({**head, "name": name, "processes": processes}, Tenant)
    if report.sound("tenant", "name"):
        _paths(tenant, system, report)
    return Loaded(stem, tenant, report)


def _process(tenant: str, name: str, fields: Fields, report: Report) -> Process:
    at: Path = ("process", name)
    fields = dict(fields)
    fields.pop("kind", None)
    cast("Fields", fields.get("log", {})).pop("to", None)
    if isinstance(fields.get("umask"), str):
        fields["umask"] = int(str(fields["umask"]), 8)
    fields["depends_on"] = _dependencies(tenant, at, cast("list[Fields]", fields.get("depends_on", [])), report)
    fields["probes"] = _probes(cast("list[tuple[Path, Fields]]", fields.get("probes", [])), fields, report)
    for change in ("promote", "demote"):
        _role_change((*at, change), cast("Fields", fields.get(change, {})), report)
    _restart((*at, "restart"), cast("Fields", fields.get("restart", {})), report)
    if cast("Fields", fields.get("stop", {})).get("signal") == "SIGSTOP":
        path = (*at, "stop", "signal")
        report.add("bad-value", path, f'{dotted(path)} = "SIGSTOP" does not end a process', 'take "SIGTERM"')
    ready = cast("Fields", fields.get("ready", {}))
    if ready.get("by") == "probe" and not fields["probes"] and report.sound(*at, "probe"):
        path = (*at, "ready", "by")
        report.add("bad-value", path, f'{dotted(path)} = "probe", but there is no probe', f"add [{dotted(at)}.probe]")
    run_status = RunStatus(str(fields.get("run_status", "cold")))
    if run_status is RunStatus.LOAD_SHARING and fields.get("on_failure") == "failover":
        path = (*at, "on_failure")
        text = f'{dotted(path)} = "failover", but a load_sharing process has nothing to move'
        report.add("bad-value", path, text, 'take "restart"')
    fields.setdefault("on_failure", "failover" if run_status.standby_runs else "restart")
    return msgspec.convert({"command": [], **fields, "name": name}, Process)


def _dependencies(tenant: str, at: Path, entries: list[Fields], report: Report) -> list[Fields]:
    """Return the entries as Dependency fields; inside a tenant the side is always the own one."""
    found: list[Fields] = []
    exact = report.sound(*at, "depends_on")  # else bad entries were left out, and the numbers do not fit
    for number, entry in enumerate(entries):
        path = (*at, "depends_on", number) if exact else (*at, "depends_on")
        if "process" not in entry:
            continue
        owner, _, process = str(entry["process"]).rpartition("/")
        inner = owner in ("", tenant)
        if inner and entry.get("where") == "any-side":
            text = f'{dotted(path)}: where = "any-side", but "{process}" is of the same tenant'
            report.add("bad-value", path, text, "in one tenant it is always the copy on the same side: remove where")
        where = "same-side" if inner else entry.get("where", "any-side")
        if any(known["tenant"] == (owner or tenant) and known["process"] == process for known in found):
            report.add("duplicate", path, f'{dotted(path)}: "{entry["process"]}" stands in it twice', "remove one")
            continue
        found.append({"tenant": owner or tenant, "process": process, "where": where})
    return found


def _probes(entries: list[tuple[Path, Fields]], process: Fields, report: Report) -> list[Fields]:
    found: list[Fields] = []
    for path, entry in entries:
        kinds = [kind for kind in ("tcp", "http", "exec") if kind in entry]
        if len(kinds) != 1:
            if report.sound(*path):
                text = f"{dotted(path)} names {' and '.join(kinds) or 'nothing to check'}"
                report.add("bad-value", path, text, "name exactly one of tcp, http, exec; several probes: an array")
            continue
        kind = kinds[0]
        if "status" in entry and kind != "http":
            at = (*path, "status")
            report.add("bad-value", at, f"{dotted(at)}: only http has a status", "remove it", key=True)
        target = entry.pop(kind)
        entry.setdefault("interval_ms", process.get("monitor_interval_ms", 1_000))
        found.append({**entry, "kind": kind, "command" if kind == "exec" else "target": target})
    return found


def _role_change(path: Path, fields: Fields, report: Report) -> None:
    if not fields and path not in report.positions.keys:
        return
    ways = [way for way in ("command", "signal", "socket") if fields.get(way)]
    if len(ways) != 1 and report.sound(*path):
        text = f"{dotted(path)} names {' and '.join(ways) or 'no way'}"
        report.add("bad-value", path, text, 'name exactly one: command = [...], signal = "SIG...", socket = true')
    if fields.get("signal") in UNCATCHABLE:
        at = (*path, "signal")
        report.add("bad-value", at, f"{dotted(at)} = {shown(fields['signal'])} cannot be caught", 'such as "SIGUSR1"')


def _restart(path: Path, fields: Fields, report: Report) -> None:
    first, last = cast("int", fields.get("backoff_ms", 100)), cast("int", fields.get("backoff_max_ms", 30_000))
    if last < first:
        text = f"{dotted(path)}: backoff_max, {last}ms, is less than backoff, {first}ms"
        report.add("out-of-range", path, text, "give backoff_max at least as much")


def _paths(tenant: Tenant, system: System, report: Report) -> None:
    """Report sockets whose path would not fit, with the longest of the node names."""
    longest = max(system.nodes, key=len, default="")
    for process in tenant.processes:
        directory = f"{tenant.name}.{process.name}.{process.copies}"
        path = f"{system.run_dir}/{longest}/p/{directory}/{CONTROL_SOCKET}"
        size = len(os.fsencode(path))
        if size > UNIX_PATH_BYTES:
            text = f"{directory}/{CONTROL_SOCKET} below {system.run_dir} has a path of {size} bytes"
            help = f"unix sockets have at most {UNIX_PATH_BYTES}: shorten the process, tenant or run_dir name"
            report.add("path-too-long", ("process", process.name), text, help, key=True)
