"""Report: collects every finding of one file, with its position, instead of stopping at the first."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from ha.config.positions import Path, Positions
from ha.model.errors import Finding
from ha.model.limits import MAX_FINDINGS

SHOWN_CHARS = 60  # of a value
MAX_LISTED = 30  # of known words


@dataclass(slots=True)
class Report:
    """Findings of one file. `broken`: paths with a finding, so that later checks do not report them again."""

    file: str
    positions: Positions = field(default_factory=Positions)
    findings: list[Finding] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)

    def add(self, code: str, path: Path, text: str, help: str = "", *, key: bool = False) -> None:
        """Report one error at `path`; `key`: it is about the key, not about the value."""
        line, column = self.positions.of(path, key=key)
        self.broken.add(path)
        self.put(Finding(file=self.file, line=line, column=column, code=code, text=text, help=help))

    def place(self, code: str, text: str, help: str = "", line: int = 0, column: int = 0) -> None:
        """Report an error of the file as a whole, or at a place that is known otherwise."""
        self.put(Finding(file=self.file, line=line, column=column, code=code, text=text, help=help))

    def put(self, finding: Finding) -> None:
        """Keep a finding; beyond MAX_FINDINGS only say that there are more."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        elif len(self.findings) == MAX_FINDINGS:
            self.findings.append(
                Finding(file=self.file, code="too-many", text=f"more than {MAX_FINDINGS} errors; the rest is not shown")
            )

    def sound(self, *path: str | int) -> bool:
        """Return whether nothing at or below `path` was reported."""
        return not any(broken[: len(path)] == path for broken in self.broken)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by file and position; those without a position last in their file."""
    return tuple(sorted(findings, key=lambda found: (found.file, found.line == 0, found.line, found.column)))


def dotted(path: Path) -> str:
    """Return a path as people write it: `process.acd.probe[0].timeout`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return clip(text)


def shown(value: object) -> str:
    """Return a value as it would stand in TOML, clipped."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return "[...]" if value else "[]"
    if isinstance(value, str):
        return clip(json.dumps(value[: SHOWN_CHARS + 1], ensure_ascii=False))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN_CHARS:
        return "a number of many digits"  # Python refuses to print very long ones
    return clip(str(value).lower() if isinstance(value, bool) else str(value))


def clip(text: str) -> str:
    """Return at most SHOWN_CHARS characters, on one line."""
    text = "".join(char if char.isprintable() else "?" for char in text[: SHOWN_CHARS + 1])
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def did_you_mean(word: str, known: Iterable[str], *, kind: str = "known") -> str:
    """Return the help for an unknown word: the nearest known one, else those there are."""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word[:SHOWN_CHARS].lower(), names, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{names[near[0]]}"?'
    listed = [*names.values()][:MAX_LISTED]
    more = ", ..." if len(names) > MAX_LISTED else ""
    return f"{kind}: {', '.join(listed)}{more}" if names else f"{kind}: none"
