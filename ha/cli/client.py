"""Client: one question to the local Monitor, and its answers.

One JSON line goes out: {"v": 1, "id", "verb", "args", "ttl_ms"}; JSON lines come back: {"id", "final", "exit", "error",
"result"}, the last one with `final` true. Answers with another id are not ours and are passed over.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ha.cli.failure import ExitCode, Failure

PROTOCOL = 1
MAX_LINE_BYTES = 64 * 1024 * 1024  # a status of tens of thousands of copies; more is not an answer
ANSWER_MARGIN_S = 0.25  # the agent says itself that time is up, and knows more than our clock; give it this chance
CHUNK_BYTES = 256 * 1024


SUBSCRIPTION_MS = 3_600_000  # the longest a gateway keeps one; who follows subscribes again


class WentAway(Failure):
    """The agent closed the connection before its final answer, so that the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `exit`: an ExitCode; `result`: JSON, its shape depends on the verb."""

    final: bool
    exit: int
    error: str | None
    result: object


def new_id() -> str:
    """Return a fresh request id."""
    return os.urandom(8).hex()


def ask(
    stream: socket.socket, verb: str, args: dict[str, object], *, request: str, timeout_s: float, endless: bool
) -> Iterator[Reply]:
    """Yield the answers up to the final one.

    `endless`: a subscription, `timeout_s` then only bounds the sending. Raises Failure (124: no final answer in time,
    so that the outcome is unknown; 1: what came is not this protocol) and WentAway.
    """
    deadline = time.monotonic() + timeout_s + ANSWER_MARGIN_S
    line = {
        "v": PROTOCOL,
        "id": request,
        "verb": verb,
        "args": args,
        "ttl_ms": SUBSCRIPTION_MS if endless else int(timeout_s * 1000),
    }
    try:
        stream.settimeout(timeout_s)
        stream.sendall(json.dumps(line).encode() + b"\n")
        for data in _lines(stream, None if endless else deadline):
            reply = _decode(data, request)
            if reply is not None:
                yield reply
                if reply.final:
                    return
    except TimeoutError as error:
        raise Failure(
            ExitCode.TIMED_OUT, f"{verb}: no answer in time, the outcome is unknown", request=request
        ) from error
    except OSError as error:
        raise _went_away(verb, request) from error
    raise _went_away(verb, request)


def _lines(stream: socket.socket, deadline: float | None) -> Iterator[bytes]:
    parts: list[bytes] = []
    length = 0
    while True:
        if deadline is None:
            stream.settimeout(None)
        else:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            stream.settimeout(left)
        chunk = stream.recv(CHUNK_BYTES)
        if not chunk:
            return
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            parts.append(piece)
            yield b"".join(parts)
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > MAX_LINE_BYTES:
            raise Failure(ExitCode.FAILED, f"cannot read the answer: a line of more than {MAX_LINE_BYTES} bytes")


def _decode(data: bytes, request: str) -> Reply | None:
    try:
        line = json.loads(data)
        if line["id"] != request:
            return None
        return Reply(bool(line["final"]), int(line.get("exit") or 0), line.get("error"), line.get("result"))
    except (ValueError, TypeError, KeyError) as error:
        raise Failure(
            ExitCode.FAILED, f"cannot read the answer: {data[:80]!r} is not of protocol {PROTOCOL}",
            help="hactl and the agents are of different versions: see `ha-master --version` and `hactl --version`",
        ) from error  # fmt: skip


def _went_away(verb: str, request: str) -> WentAway:
    text = f"{verb}: the agent went away before its answer, the outcome is unknown"
    return WentAway(ExitCode.TIMED_OUT, text, request=request)
