"""The node file: this machine's own policy. It says what a plan may do here, so nobody else may write to it."""

from __future__ import annotations

import os
import stat
from typing import cast

import msgspec

from ha.config import source
from ha.config.keys import NODE
from ha.config.report import Report, in_order
from ha.model.errors import ConfigError
from ha.model.plan import NodeFile


def load_node_file(path: str) -> NodeFile:
    """Return the node file's content, the defaults where there is none. Raises ConfigError with every finding."""
    report = Report(path)
    node_file = read_node_file(path, report)
    if report.findings:
        raise ConfigError(in_order(report.findings))
    return node_file


def read_node_file(path: str, report: Report) -> NodeFile:
    """Return the node file as far as it could be read; its owner and mode are those of the file that is read."""
    data = _guarded(path, report)
    if data is None:
        return NodeFile()
    found = source.parse(data, report)
    tables = cast("dict[str, dict[str, object]]", NODE.read(found, (), report) if found else {})
    return msgspec.convert({"policy": tables.get("policy", {}), **tables.get("control", {})}, NodeFile)


def _guarded(path: str, report: Report) -> bytes | None:
    """Return the content if nobody else can have written it; None where there is no file, or after reporting."""
    try:
        fd = source.open_regular(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its path holds a NUL character"
        report.place("unreadable", f"cannot read the file: {reason}", "check its path and mode")
        return None
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in (0, os.geteuid()):
            report.place("unsafe-file", f"the file belongs to user {status.st_uid}", "chown it to root")
        elif mode & 0o022:
            report.place("unsafe-file", f"the file's mode is {mode:04o}: others may write to it", "chmod it to 0600")
        else:
            return source.read_open(fd)
    finally:
        os.close(fd)
    return None
