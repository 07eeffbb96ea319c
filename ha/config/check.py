"""Check: all files together. The one entry point of Server (`check_files`) and of `hactl check` (`check_paths`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from ha.config import source
from ha.config.cross import check_tenants
from ha.config.node import read_node_file
from ha.config.report import Report, in_order
from ha.config.system import read_system
from ha.config.tenant import read_tenant
from ha.model.errors import Finding
from ha.model.plan import System, Tenant

SUFFIX = ".toml"


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What files compile to. A file with findings is in `failed`, and its tenant not among `tenants`."""

    tenants: tuple[Tenant, ...]  # sorted by name
    findings: tuple[Finding, ...]  # by file and position
    failed: tuple[str, ...]  # keys of `files`
    names: dict[str, str]  # key of `files` -> tenant, of those that passed


def read_directory(path: str) -> dict[str, bytes] | None:
    """Return the content of a drop-in directory's `*.toml` by name without suffix; None: it is not there.

    Hidden files and all that is no regular file are left out; a file that is there but cannot be read has the content
    `source.UNREADABLE`, so that it fails the check instead of looking removed. Raises OSError when the directory is
    there but cannot be listed.
    """
    try:
        names = sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    files: dict[str, bytes] = {}
    for name in names:
        full = os.path.join(path, name)
        if not name.endswith(SUFFIX) or name.startswith(".") or not _printable(name):
            continue
        try:
            files[name.removesuffix(SUFFIX)] = source.read_bytes(full)
        except FileNotFoundError:
            continue  # removed meanwhile, or a dangling link
        except OSError:
            if os.path.isfile(full):
                files[name.removesuffix(SUFFIX)] = source.UNREADABLE
    return files


def check_files(files: Mapping[str, bytes], system: System, *, paths: Mapping[str, str] | None = None) -> Checked:
    """Return the tenants of all files that pass, and every finding.

    `files`: name without suffix -> content; `paths`: what findings call the file, by default its path in the system's
    tenants_dir. Never raises, whatever the bytes are.
    """
    loaded = {
        key: read_tenant(
            files[key], file=(paths or {}).get(key) or os.path.join(system.tenants_dir, key + SUFFIX), system=system
        )
        for key in sorted(files)
    }
    check_tenants(loaded, system)
    good = {key: found.tenant for key, found in loaded.items() if found.tenant and not found.report.findings}
    return Checked(
        tenants=tuple(sorted(good.values(), key=lambda tenant: tenant.name)),
        findings=in_order(finding for found in loaded.values() for finding in found.report.findings),
        failed=tuple(key for key in loaded if key not in good),
        names={key: tenant.name for key, tenant in good.items()},
    )


def check_paths(system_file: str, files: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Return every finding of the system file, the node file and the tenant files.

    `files`: tenant files to check as if they stood in tenants_dir, next to what is there (or in place of a file of the
    same name); of the files there only what goes wrong because of them is said. None named: all of tenants_dir.
    """
    system, report = read_system(system_file)
    findings = list(report.findings)
    if system is None:
        system = System(name="unnamed", run_dir="/run/ha", data_dir="", tenants_dir="", node_file="", file="")
    else:
        findings += _node_findings(system.node_file, required=any(_same(path, system.node_file) for path in files))
    present, trouble = _present(system)
    given: dict[str, bytes] = {}
    labels: dict[str, str] = {}
    for path in dict.fromkeys(files):
        if _same(path, system_file) or _same(path, system.node_file):
            continue
        key = os.path.basename(path).removesuffix(SUFFIX)
        key = path if key in given else key
        try:
            given[key] = source.read_bytes(path)
            labels[key] = path
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its path holds a NUL character"
            text = f"cannot read the file: {reason}"
            findings.append(Finding(file=path, code="unreadable", text=text, help="check its path and mode"))
    if given or not files:
        findings += [*_tenant_findings(system, present, given, labels), *trouble]
    return in_order(findings)


def _tenant_findings(
    system: System, present: Mapping[str, bytes], given: Mapping[str, bytes], labels: Mapping[str, str]
) -> list[Finding]:
    together = check_files({**present, **given}, system, paths=labels).findings
    if not given:
        return list(together)
    known = set(check_files(present, system).findings)
    named = set(labels.values())
    return [finding for finding in together if finding.file in named or finding not in known]


def _present(system: System) -> tuple[dict[str, bytes], list[Finding]]:
    if not system.tenants_dir:
        return {}, []
    try:
        found = read_directory(system.tenants_dir)
    except OSError as error:
        reason = error.strerror or "unknown"
    else:
        if found is not None:
            return found, []
        reason = "there is no such directory"
    text = f"cannot read the directory: {reason}"
    return {}, [Finding(file=system.tenants_dir, code="unreadable", text=text, help="check [system] tenants_dir")]


def _node_findings(path: str, *, required: bool) -> list[Finding]:
    """Return the findings of this machine's own file; who may not read it (mode 0600) checks the rest without it."""
    if not required and os.path.exists(path) and not os.access(path, os.R_OK):
        return []
    report = Report(path)
    read_node_file(path, report)
    return report.findings


def _same(one: str, other: str) -> bool:
    return "\0" not in one + other and bool(other) and os.path.realpath(one) == os.path.realpath(other)


def _printable(name: str) -> bool:
    """Return whether a name is valid UTF-8 (it goes into journals and messages)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
