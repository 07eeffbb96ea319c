"""Kinds: what a value may be. One object reads it (with findings), says it in words and gives its JSON Schema.

`read` returns what the plan's structs hold (milliseconds, bytes, ...), or BAD after reporting why not. A Table reads to
a dict by field name; keys that were bad are left out, so that one pass finds every error.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from ha.config.positions import Path
from ha.config.report import Report, did_you_mean, dotted, shown
from ha.model.names import NAME, NAME_HELP

Schema = dict[str, object]


class Bad(Enum):
    """A value that did not pass; it was reported."""

    BAD = "bad"


BAD: Final = Bad.BAD

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_DURATION_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(B|KiB|MiB|GiB|TiB)")
_SIZE_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIGNALS = tuple(sorted(found.name for found in signal.Signals))
UNCATCHABLE = ("SIGKILL", "SIGSTOP")


def type_word(value: object) -> str:
    """Return the TOML word for the type of a value."""
    if isinstance(value, bool):
        return "a boolean"
    for kind, word in (
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "an array"),
        (dict, "a table"),
    ):
        if isinstance(value, kind):
            return word
    return "a date or time"


class Kind:
    """Base: subclasses set `words` ("an integer") and `suffix` (of the struct's field)."""

    words = "a value"
    suffix = ""

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return what the plan holds, or BAD."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """Return its JSON Schema, draft 4."""
        raise NotImplementedError

    def show(self, value: object) -> str:
        """Return a plan's value as it is written in TOML."""
        return "" if value is None else shown(value)

    def wrong(self, value: object, path: Path, report: Report, help: str = "") -> Bad:
        """Report a value of the wrong type."""
        text = f"{dotted(path)} = {shown(value)} is {type_word(value)}, expected {self.words}"
        report.add("wrong-type", path, text, help or f"write {self.words}")
        return BAD


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string without NUL; `check` returns what is wrong with it as (code, why, help), or None."""

    words: str = "a string"
    check: Callable[[str], tuple[str, str, str] | None] | None = None
    pattern: str = ""  # for the schema

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the string."""
        if not isinstance(value, str):
            plain = isinstance(value, int | float)
            return self.wrong(value, path, report, f'write it in quotes: "{shown(value)}"' if plain else "")
        wrong = ("bad-value", "holds a NUL character", "remove it") if "\0" in value else None
        if wrong is None and self.check is not None:
            wrong = self.check(value)
        if wrong is None:
            return value
        report.add(wrong[0], path, f"{dotted(path)} = {shown(value)} {wrong[1]}", wrong[2])
        return BAD

    def schema(self) -> Schema:
        """Return a string with its pattern."""
        return {"type": "string", "pattern": self.pattern} if self.pattern else {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Kind):
    """A number with a unit, in a string; read to an int of the smallest unit."""

    words: str
    suffix: str
    pattern: re.Pattern[str]
    units: dict[str, int] = field(hash=False)
    example: str
    least: int
    most: int

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return milliseconds or bytes."""
        names = ", ".join(self.units)
        form = f'write a number and a unit without a blank, such as "{self.example}"; units: {names}'
        if not isinstance(value, str):
            return self.wrong(value, path, report, form)
        match = self.pattern.fullmatch(value)
        if match is None:
            report.add("bad-unit", path, f"{dotted(path)} = {shown(value)} is not {self.words}", form)
            return BAD
        number, unit = match.groups()
        whole, _, part = number.partition(".")
        scaled, rest = divmod(int(whole + part) * self.units[unit], 10 ** len(part))
        if rest:
            smallest = next(iter(self.units))
            report.add("bad-unit", path, f"{dotted(path)} = {shown(value)} is no whole number of {smallest}", form)
            return BAD
        if not self.least <= scaled <= self.most:
            ends = f"from {self.show(self.least)} to {self.show(self.most)}"
            report.add("out-of-range", path, f"{dotted(path)} = {shown(value)} is out of range", f"give a value {ends}")
            return BAD
        return scaled

    def schema(self) -> Schema:
        """Return a string with the pattern of number and unit."""
        return {"type": "string", "pattern": f"^{self.pattern.pattern.replace('?:', '')}$"}

    def show(self, value: object) -> str:
        """Return the value in the largest unit that keeps it whole."""
        if not isinstance(value, int):
            return ""
        for unit in reversed(self.units):
            if value % self.units[unit] == 0 and (value or unit == next(iter(self.units))):
                return f"{value // self.units[unit]}{unit}"
        return str(value)


def duration(least: int = 0, most: int = 365 * 86_400_000) -> Unit:
    """Return a duration kind with bounds in ms."""
    return Unit(
        words="a duration", suffix="_ms", pattern=_DURATION, units=_DURATION_MS, example="100ms", least=least, most=most
    )


def size(least: int = 0, most: int = 1 << 50) -> Unit:
    """Return a size kind with bounds in bytes."""
    return Unit(
        words="a size", suffix="_bytes", pattern=_SIZE, units=_SIZE_BYTES, example="64MiB", least=least, most=most
    )


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """An integer, or any number when `whole` is False."""

    least: float
    most: float
    whole: bool = True

    @property
    def words(self) -> str:  # type: ignore[override]
        """What is expected."""
        return "an integer" if self.whole else "a number"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            digits = isinstance(value, str) and re.fullmatch(r"[0-9.]{1,20}", value)
            help = f"write it without quotes: {value}" if digits else f"give one from {self.least:g} to {self.most:g}"
            return self.wrong(value, path, report, help)
        if not self.least <= value <= self.most:  # false for nan, too
            text = f"{dotted(path)} = {shown(value)} is out of range"
            report.add("out-of-range", path, text, f"give a value from {self.least:g} to {self.most:g}")
            return BAD
        return value if self.whole else float(value)

    def schema(self) -> Schema:
        """Return a number with its bounds."""
        return {"type": "integer" if self.whole else "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """A boolean."""

    words: str = "true or false"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the boolean."""
        return value if isinstance(value, bool) else self.wrong(value, path, report, "write true or false, no quotes")

    def schema(self) -> Schema:
        """Return a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of some words; `later` are words of the contract that this version does not know yet."""

    choices: tuple[str, ...]
    later: tuple[str, ...] = ()
    words: str = "a string"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the word."""
        if not isinstance(value, str):
            return self.wrong(value, path, report, f"one of: {', '.join(self.choices)}")
        if value in self.choices:
            return value
        if value in self.later:
            report.add(*not_yet(path, value, f"use one of: {', '.join(self.choices)}"))
        else:
            text = f"{dotted(path)} = {shown(value)} is not known"
            report.add("bad-value", path, text, did_you_mean(value, self.choices, kind="one of"))
        return BAD

    def schema(self) -> Schema:
        """Return an enumeration."""
        return {"enum": list(self.choices)}


@dataclass(frozen=True, slots=True)
class Many(Kind):
    """An array of one kind; `unique`: nothing stands in it twice."""

    item: Kind
    least: int = 0
    unique: bool = False
    words: str = "an array"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return a list; bad items are left out."""
        if not isinstance(value, list):
            help = f"write [{shown(value)}]" if isinstance(value, str | int) else ""
            return self.wrong(value, path, report, help)
        if len(value) < self.least:
            report.add("bad-value", path, f"{dotted(path)} = [] is empty", f"name at least {self.least}")
            return BAD
        found: list[object] = []
        for number, item in enumerate(value):
            read = self.item.read(item, (*path, number), report)
            if read is BAD:
                continue
            if self.unique and read in found:
                at = (*path, number)
                report.add(
                    "duplicate", at, f"{dotted(at)} = {shown(item)} stands in {dotted(path)} twice", "remove one"
                )
                continue
            found.append(read)
        return found

    def schema(self) -> Schema:
        """Return an array."""
        schema: Schema = {"type": "array", "items": self.item.schema()}
        if self.least:
            schema["minItems"] = self.least
        if self.unique:
            schema["uniqueItems"] = True
        return schema

    def show(self, value: object) -> str:
        """Return the array as TOML."""
        items = value if isinstance(value, list | tuple) else ()
        return "[" + ", ".join(self.item.show(item) for item in items) + "]"


@dataclass(frozen=True, slots=True)
class Command(Kind):
    """Program and arguments; the program is an absolute path, and no shell is involved."""

    words: str = "an array of strings (program and arguments)"
    argument: Kind = field(default_factory=Text)

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the list of strings."""
        if isinstance(value, str):
            return self.wrong(value, path, report, f"write [{', '.join(_split(value))}]; no shell is involved")
        if not isinstance(value, list):
            return self.wrong(value, path, report)
        if not value:
            report.add("bad-value", path, f"{dotted(path)} = [] is empty", "name the program by its absolute path")
            return BAD
        found = [self.argument.read(item, (*path, number), report) for number, item in enumerate(value)]
        program = found[0]
        if isinstance(program, str) and not program.startswith("/"):
            text = f"{dotted(path)} starts with {shown(program)}, which is no absolute path"
            report.add("bad-value", (*path, 0), text, 'PATH is not searched: write the program as "/usr/bin/NAME"')
            return BAD
        return BAD if BAD in found else found

    def schema(self) -> Schema:
        """Return an array of strings."""
        return {"type": "array", "items": {"type": "string"}, "minItems": 1}

    def show(self, value: object) -> str:
        """Return that there is none: no command has a default."""
        return "none"


def _split(text: str) -> list[str]:
    try:
        return [f'"{word}"' for word in shlex.split(text[:200])][:8]
    except ValueError:
        return ['"/path/to/program"', '"argument"']


def not_yet(path: Path, value: object, help: str) -> tuple[Literal["not-yet"], Path, str, str]:
    """Return the arguments of `Report.add` for something that a later version brings."""
    return "not-yet", path, f"{dotted(path)} = {shown(value)} is not supported yet", help


def name_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with a name."""
    return None if NAME.fullmatch(value) else ("bad-name", "is not a name", NAME_HELP)


def path_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with an absolute path."""
    if not value.startswith("/"):
        return "bad-value", "is no absolute path", "write it from the root: /..."
    if ".." in value.split("/"):
        return "bad-value", "holds '..'", "write the path without it"
    return None


def signal_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with a signal's name."""
    if value not in SIGNALS:
        return "bad-value", "is no signal", did_you_mean(value, SIGNALS, kind="such as")
    return None


def address_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with a node's address: only loopback ones until there is encryption."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return "bad-address", "is no IP address", "write an IP address such as 127.0.0.11; names are not looked up"
    if address == ipaddress.ip_address("::1") or (address.version == 4 and address.is_loopback):
        return None
    help = "encryption comes with a later version; until then only loopback addresses: 127.0.0.0/8 and ::1"
    return "not-yet", "is not supported yet", help


def umask_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with a umask."""
    good = re.fullmatch(r"0?[0-7]{3}", value)
    return None if good else ("bad-value", "is no umask", 'write it in octal, in quotes: "0027"')


def account_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with a user's or group's name."""
    good = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", value)
    return None if good else ("bad-value", "is no user or group name", "at most 32 of a-z, 0-9, '_', '.' and '-'")
