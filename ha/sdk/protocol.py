"""The control socket: the JSON lines a managed process and its node's Spawner say to each other at `HA_SOCKET`.

Laws. One JSON object a line, UTF-8, at most `MAX_LINE_BYTES` with the newline, over AF_UNIX SOCK_STREAM; the agent
listens. A line without `"v"` is version 1; of another version the line is answered with `error`. Unknown keys are
ignored, unknown types are answered with `error` (by the agent) or skipped (by a program): so N and N-1 understand
each other. A line that does not pass changes nothing. Standard library only; docs/control-socket.md is the prose.

    agent -> program     Welcome  at once after the connection: role and epoch as last confirmed, for information
                         TakeRole take this role; repeated after every connection until it is answered
                         EpochNow answer to AskEpoch
                         Refused  ("error") the line before was not understood
    program -> agent     Hello, Done, Failed, Ready, Status, Watchdog, Ping, AskEpoch

A program may have several connections (a shell one-liner that says `ready`, say): role lines go to all of them, the
first Done or Failed with that id counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import cast

VERSION = 1
MAX_LINE_BYTES = 4_096
MAX_TEXT_CHARS = 200
MAX_NUMBER = 2**53 - 1  # what every JSON library keeps exact
MIN_WATCHDOG_MS = 20
MAX_WATCHDOG_MS = 24 * 3_600 * 1_000


class ProtocolError(Exception):
    """A line does not pass. `reason`: too-long, not-json, not-object, version, unknown-type, bad-field."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Role(StrEnum):
    """Whether a copy acts. Equal to `ha.model.status.Role` as a string (the SDK imports nothing of it)."""

    ACTIVE = "active"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """First line of a connection: the role last confirmed. It orders nothing, TakeRole does.

    `watchdog_ms`: the watchdog now armed for this process, 0: none.
    """

    role: Role
    epoch: int
    watchdog_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRole:
    """Take this role at this fencing number, then answer Done or Failed with the same id."""

    id: int
    role: Role
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochNow:
    """Role and fencing number that hold now, and for how long at least.

    `valid_ms`: 0 when the right has lapsed, None when the copy needs none (load-sharing, standby).
    """

    id: int
    role: Role
    epoch: int
    valid_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A line was not understood and changed nothing. `reason`: that of `ProtocolError`."""

    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who speaks: name and version of the library, and what the program is now (None: it does not say).

    An agent that wants another role than the program says it has sends TakeRole, whatever its journal holds: an
    answer may have been lost with the agent before.
    """

    sdk: str = ""
    role: Role | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The role of that id is taken."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The role of that id cannot be taken."""

    id: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """I am ready: the same as READY=1 of sd_notify."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One line for `hactl status`."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdog:
    """Arm: no Ping for `interval_ms` means hung, the agent ends and restarts the process. 0: disarm."""

    interval_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """I am not hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskEpoch:
    """Are my role and epoch valid right now? Answered by EpochNow with the same id."""

    id: int


ToProgram = Welcome | TakeRole | EpochNow | Refused
ToAgent = Hello | Done | Failed | Ready | Status | Watchdog | Ping | AskEpoch


def encode(line: ToProgram | ToAgent) -> bytes:
    """Return the line as bytes, newline included; texts are cut to MAX_TEXT_CHARS printable characters."""
    known: dict[str, object] = {"v": VERSION, "type": _TYPE_OF[type(line)]}
    for field in fields(line):
        value = getattr(line, field.name)
        known[field.name] = _clean(value) if type(value) is str else value
    return json.dumps(known, separators=(",", ":")).encode() + b"\n"


def decode_to_program(line: bytes) -> ToProgram:
    """Return what an agent said to a program. Raises ProtocolError."""
    return cast("ToProgram", _decode(line, _TO_PROGRAM))


def decode_to_agent(line: bytes) -> ToAgent:
    """Return what a program said to its agent. Raises ProtocolError; answer it with `encode(refusal(error))`."""
    found = cast("ToAgent", _decode(line, _TO_AGENT))
    if type(found) is Watchdog and found.interval_ms and not MIN_WATCHDOG_MS <= found.interval_ms <= MAX_WATCHDOG_MS:
        raise ProtocolError(
            "bad-field", f"interval_ms is {found.interval_ms}, expected 0 or {MIN_WATCHDOG_MS} to {MAX_WATCHDOG_MS}"
        )
    return found


def refusal(error: ProtocolError) -> Refused:
    """Return the line that tells the other end of an error."""
    return Refused(reason=error.reason, text=str(error))


class LineBuffer:
    """Cuts a byte stream into lines. Bounded: it never holds more than one line of MAX_LINE_BYTES."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are now complete, without newlines and empty ones left out.

        Raises ProtocolError("too-long"): close the connection, what follows cannot be told apart any more.
        """
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= MAX_LINE_BYTES or any(len(line) >= MAX_LINE_BYTES for line in whole):
            self._rest = b""
            raise ProtocolError("too-long", f"a line is longer than {MAX_LINE_BYTES} bytes")
        return [line for line in whole if line.strip()]


def _decode(line: bytes, known: dict[str, tuple[Callable[..., object], dict[str, _Check]]]) -> object:
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError("too-long", f"a line is longer than {MAX_LINE_BYTES} bytes")
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8
        raise ProtocolError("not-json", f"a line is not JSON: {error}") from None
    if type(said) is not dict:
        raise ProtocolError("not-object", "a line is not a JSON object")
    version = said.get("v", VERSION)
    if type(version) is not int or version != VERSION:
        raise ProtocolError("version", f"version {_clean(str(version))} is not spoken here, expected {VERSION}")
    name = said.get("type")
    if type(name) is not str or name not in known:
        raise ProtocolError("unknown-type", f"type {_clean(str(name))} is not known")
    make, checks = known[name]
    given = {key: check(key, said[key]) for key, check in checks.items() if key in said}
    try:
        return make(**given)
    except TypeError:
        lacking = ", ".join(key for key in checks if key not in said)
        raise ProtocolError("bad-field", f"a line of type {name} lacks {lacking}") from None


_Check = Callable[[str, object], object]


def _number(key: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ProtocolError("bad-field", f"{key} is not a whole number from 0 to 2^53-1")
    return value


def _number_or_null(key: str, value: object) -> int | None:
    return None if value is None else _number(key, value)


def _role(key: str, value: object) -> Role:
    if value not in ("active", "standby"):
        raise ProtocolError("bad-field", f'{key} is neither "active" nor "standby"')
    return Role(value)


def _role_or_null(key: str, value: object) -> Role | None:
    return None if value is None else _role(key, value)


def _text(key: str, value: object) -> str:
    if type(value) is not str:
        raise ProtocolError("bad-field", f"{key} is not a string")
    return _clean(value)


def _clean(text: str) -> str:
    """Return at most MAX_TEXT_CHARS characters that do no harm on a terminal or in a log line."""
    cut = text[:MAX_TEXT_CHARS]
    return cut if cut.isprintable() else "".join(char if char.isprintable() else " " for char in cut)


_TO_PROGRAM: dict[str, tuple[Callable[..., object], dict[str, _Check]]] = {
    "welcome": (Welcome, {"role": _role, "epoch": _number, "watchdog_ms": _number}),
    "role": (TakeRole, {"id": _number, "role": _role, "epoch": _number}),
    "epoch": (EpochNow, {"id": _number, "role": _role, "epoch": _number, "valid_ms": _number_or_null}),
    "error": (Refused, {"reason": _text, "text": _text}),
}
_TO_AGENT: dict[str, tuple[Callable[..., object], dict[str, _Check]]] = {
    "hello": (Hello, {"sdk": _text, "role": _role_or_null, "epoch": _number}),
    "done": (Done, {"id": _number}),
    "failed": (Failed, {"id": _number, "reason": _text}),
    "ready": (Ready, {}),
    "status": (Status, {"text": _text}),
    "watchdog": (Watchdog, {"interval_ms": _number}),
    "ping": (Ping, {}),
    "epoch": (AskEpoch, {"id": _number}),
}
_TYPE_OF: dict[object, str] = {make: name for table in (_TO_PROGRAM, _TO_AGENT) for name, (make, _) in table.items()}
