"""Positions: where keys and values stand in a TOML text, since tomli does not say.

A tolerant scanner over the text: it never raises and never decides what is valid (tomli does). What it cannot follow it
leaves out, and `Positions.of` falls back to the nearest table around it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field

Path = tuple[str | int, ...]  # ("process", "acd", "probe", 0, "timeout")
MAX_DEPTH = 64  # of arrays and inline tables; deeper ones get the position of what holds them

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_VOID = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")  # blanks, newlines and comments
_PLAIN = re.compile(r"[^,\]}#\n]*")  # numbers, booleans, dates
_STRINGS = (
    ('"""', re.compile(r'"""(?:[^\\]|\\.)*?"""', re.DOTALL)),
    ("'''", re.compile(r"'''.*?'''", re.DOTALL)),
    ('"', re.compile(r'"(?:[^"\\\n]|\\.)*"')),
    ("'", re.compile(r"'[^'\n]*'")),
)


@dataclass(slots=True)
class Positions:
    """Offsets of keys and values by path; lines and columns count from 1, columns in characters."""

    starts: list[int] = field(default_factory=lambda: [0])
    keys: dict[Path, int] = field(default_factory=dict)
    values: dict[Path, int] = field(default_factory=dict)

    def of(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Return (line, column) of the value (or the key) at `path`, else of the nearest thing around it."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        for length in range(len(path), 0, -1):
            part = path[:length]
            offset = first.get(part, second.get(part))
            if offset is not None:
                return self.at(offset)
        return (1, 1)

    def at(self, offset: int) -> tuple[int, int]:
        """Return (line, column) of an offset into the text."""
        line = bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1


def index(text: str) -> Positions:
    """Return the positions of everything that could be followed in `text`."""
    scanner = _Scanner(text)
    try:
        scanner.run()
    except _Lost:
        pass  # what was found so far is good
    return scanner.found


class _Lost(Exception):
    """The text is not TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found = Positions([0, *(match.end() for match in re.finditer("\n", text))])
        self.counts: dict[Path, int] = {}  # arrays of tables: how many so far

    def run(self) -> None:
        """Go through all statements; a line that makes no sense is skipped."""
        prefix: Path = ()
        at = self.void(0)
        while at < len(self.text):
            if self.text[at] == "[":
                prefix, at = self.header(at)
            else:
                at = self.pair(at, prefix, 0)
            at = self.void(self.line_end(at))

    def void(self, at: int) -> int:
        match = _VOID.match(self.text, at)
        return match.end() if match else at

    def blank(self, at: int) -> int:
        match = _BLANK.match(self.text, at)
        return match.end() if match else at

    def line_end(self, at: int) -> int:
        end = self.text.find("\n", at)
        return len(self.text) if end < 0 else end + 1

    def header(self, at: int) -> tuple[Path, int]:
        """Take `[a.b]` or `[[a.b]]`; return the path of what follows."""
        many = self.text.startswith("[[", at)
        segments, at = self.dotted(self.blank(at + (2 if many else 1)))
        path: Path = ()
        for name, offset in segments:
            path = (*path, name)
            self.found.keys.setdefault(path, offset)
            last = (name, offset) == segments[-1]
            if path in self.counts and not (many and last):
                path = (*path, self.counts[path] - 1)
        if many and segments:
            number = self.counts.get(path, 0)
            self.counts[path] = number + 1
            path = (*path, number)
            self.found.keys[path] = segments[-1][1]
        return path, at

    def dotted(self, at: int) -> tuple[list[tuple[str, int]], int]:
        """Take a dotted key; return its parts with their offsets, empty where there is none."""
        parts: list[tuple[str, int]] = []
        while True:
            bare = _BARE.match(self.text, at)
            if bare:
                parts.append((bare.group(), at))
                at = bare.end()
            elif self.text[at : at + 1] in ('"', "'"):
                end = self.string(at)
                parts.append((self.text[at + 1 : end - 1], at))
                at = end
            else:
                return parts, at
            at = self.blank(at)
            if self.text[at : at + 1] != ".":
                return parts, at
            at = self.blank(at + 1)

    def pair(self, at: int, prefix: Path, depth: int) -> int:
        """Take `key = value`; return the offset behind it, or where it stopped making sense."""
        segments, at = self.dotted(at)
        path = prefix
        for name, offset in segments:
            path = (*path, name)
            self.found.keys.setdefault(path, offset)
        if not segments or self.text[at : at + 1] != "=":
            return at
        return self.value(self.blank(at + 1), path, depth + 1)

    def value(self, at: int, path: Path, depth: int) -> int:
        """Take any value; return the offset behind it."""
        if depth > MAX_DEPTH:
            raise _Lost
        self.found.values.setdefault(path, at)
        start = self.text[at : at + 1]
        if start in ('"', "'") and start:
            return self.string(at)
        if start == "[":
            return self.items(at, path, depth, "]")
        if start == "{":
            return self.items(at, path, depth, "}")
        match = _PLAIN.match(self.text, at)
        return match.end() if match else at

    def items(self, at: int, path: Path, depth: int, close: str) -> int:
        """Take an array or an inline table."""
        number = 0
        at = self.void(at + 1)
        while at < len(self.text):
            if self.text[at] == close:
                return at + 1
            before = at
            at = self.value(at, (*path, number), depth + 1) if close == "]" else self.pair(at, path, depth)
            number += 1
            at = self.void(at)
            if self.text[at : at + 1] == ",":
                at = self.void(at + 1)
            elif self.text[at : at + 1] != close or at == before:
                raise _Lost
        raise _Lost

    def string(self, at: int) -> int:
        for quote, pattern in _STRINGS:
            if self.text.startswith(quote, at):
                match = pattern.match(self.text, at)
                if match:
                    end = match.end()
                    while len(quote) == 3 and self.text[end : end + 1] == quote[0] and end - match.end() < 2:
                        end += 1  # up to two quotes may stand before the closing three
                    return end
                raise _Lost
        raise _Lost
