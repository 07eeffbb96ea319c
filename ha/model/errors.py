"""Errors: what leaves an edge as an exception. Operating failures are events, not exceptions.

HaError
├── ConfigError        a file does not pass; carries every finding
├── WireError          a frame does not pass
├── PersistError       a journal could not be written: the agent must stop speaking
├── AlreadyRunning     another live process holds this role on this node
└── NotPermitted       the caller or the file modes do not allow it
"""

from __future__ import annotations

import msgspec


class HaError(Exception):
    """Root of this package's exceptions; `str()` is one line: "cannot X: why"."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One error of a configuration file; line and column count from 1, 0 where there is none."""

    file: str
    line: int = 0
    column: int = 0
    code: str  # stable, e.g. "unknown-key"
    text: str  # what, and the value
    help: str = ""  # what to do

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.code}: {self.text}" + (f"; {self.help}" if self.help else "")


class ConfigError(HaError):
    """A file does not pass. `findings`: every error, in file order."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


class WireError(HaError):
    """A frame does not pass; `reason` is a stable counter name such as "bad-body"."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class PersistError(HaError):
    """A journal could not be written or synced."""


class AlreadyRunning(HaError):
    """Another live process holds this role on this node."""


class NotPermitted(HaError):
    """The caller, or the modes of a file, do not allow it."""
