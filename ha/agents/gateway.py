"""Gateway: what `hactl` asks on this node, answered here or passed on to a Server.

    request   {"v": 1, "id": hex, "verb": "status", "args": {...}, "ttl_ms": 5000}
    answer    {"id", "final": bool, "exit": int, "error": str | null, "result": ...}      one or more lines

A request goes to the Server that answered last, then to the others of this side, then to those of the other side,
with the same id, so that one that reaches a Server twice is done once; what a second Server would undo goes to one
only (`_only_once`). What no Server answers within `ttl_ms` has failed with 3 (it only looked) or is unknown, 124 (sent
and may have been done; `hactl request ID` asks later).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ha.agents.lines import Connection, LineServer
from ha.model import limits
from ha.model.errors import HaError
from ha.model.messages import Ask, Told
from ha.model.plan import NodeFile
from ha.model.timing import MS
from ha.runtime.loop import Loop, Timer

VIEW = frozenset({"status", "events", "explain", "logs", "diff", "request"})
OPERATE = frozenset(
    {
        "start", "stop", "restart", "reset", "switchover", "drain", "undrain", "hold", "unhold", "takeover", "apply",
        "failback",
    }
)  # fmt: skip
OWN_DIRECTORY = frozenset({"diff", "apply"})  # only the Server of this node reads this node's tenants directory
LOOK_ELSEWHERE_MS = 300  # a Server that has not answered by then: the next one is asked too
RETRY_UNSENT_MS = 50  # no Server was connected
TTL_MIN_MS, TTL_MAX_MS = 50, 3_600_000
DONE, USAGE, NO_AGENT, FORBIDDEN, UNKNOWN = 0, 2, 3, 4, 124


class Request(msgspec.Struct, frozen=True):
    """One line of hactl."""

    id: str
    verb: str
    args: dict[str, object] = {}
    ttl_ms: int = 5_000
    v: int = 1


_DECODER = msgspec.json.Decoder(Request)

Sender = Callable[[str, Ask], bool]  # (node of the Server, message) -> whether a link took it
Local = Callable[["Asked"], bool]  # answer it yourself; False: not one of yours


@dataclass(slots=True, eq=False)
class Asked:
    """A request that has no final answer yet. `sent`: a Server may have it; `begun`: one has answered."""

    request: Request
    connection: Connection
    line: bytes
    ends: int
    sent: bool = False
    begun: bool = False
    asked: list[str] = field(default_factory=list)
    timer: Timer | None = None

    def answer(self, result: object = None, exit: int = DONE, error: str | None = None, final: bool = True) -> None:
        """Say one line to hactl."""
        self.connection.say({"id": self.request.id, "final": final, "exit": exit, "error": error, "result": result})


class Gateway:
    """`local`: asked at once for every request; `fallback`: asked when no Server has answered in time."""

    def __init__(
        self, loop: Loop, directory: str, node_file: NodeFile, servers: tuple[str, ...], *,
        send: Sender, local: Local, fallback: Local,
    ) -> None:  # fmt: skip
        """`directory`: run_dir/NODE; `servers`: nodes of the Servers, this side first. Raises HaError."""
        self._loop = loop
        self._servers = servers
        self._node = os.path.basename(directory)
        self._preferred = ""
        self._send = send
        self._local = local
        self._fallback = fallback
        self._asked: dict[str, Asked] = {}
        self._sockets: list[LineServer] = []
        for name, group, operator in (
            ("view.sock", node_file.view_group, False), ("operate.sock", node_file.operate_group, True),
        ):  # fmt: skip
            server = LineServer(
                loop, f"{directory}/{name}", group=group, operator=operator, handler=self._line, lost=self._lost
            )
            self._sockets.append(server)

    def close(self) -> None:
        """Drop all clients and remove the sockets."""
        for server in self._sockets:
            server.close()

    def told(self, node: str, told: Told) -> None:
        """Pass a Server's answer on; one to a request that is over is dropped."""
        asked = self._asked.get(told.id)
        if asked is None:
            return
        self._preferred = node
        asked.begun = True
        if asked.timer is not None and told.final:
            asked.timer.cancel()
        asked.connection.say(_complete(told))
        if told.final:
            self._asked.pop(told.id, None)

    def _line(self, connection: Connection, line: bytes) -> None:
        try:
            request = _DECODER.decode(line)
        except msgspec.MsgspecError as error:
            connection.say(_refused("", USAGE, f"cannot read the request: {error}"))
            return
        refusal = _refusal(request, connection.operator)
        if refusal is not None:
            connection.say(refusal)
            return
        ttl_ms = min(max(request.ttl_ms, TTL_MIN_MS), TTL_MAX_MS)
        asked = Asked(request, connection, line, self._loop.now() + ttl_ms * MS)
        if self._local(asked):
            return
        before = self._asked.get(request.id)
        if before is not None and before.timer is not None:
            before.timer.cancel()  # the same request over another connection: it gets the answers now
        self._asked[request.id] = asked
        self._try(asked)

    def _try(self, asked: Asked) -> None:
        """Ask the next Server, or give up."""
        now = self._loop.now()
        if now >= asked.ends:
            self._give_up(asked)
            return
        if asked.begun or (asked.sent and _only_once(asked.request)):
            self._again(asked, asked.ends)  # it was accepted, or may have been: only its end is waited for
            return
        if asked.asked and asked.request.verb in VIEW and self._fallback(asked):
            self._asked.pop(asked.request.id, None)
            return
        took = self._ask_next(asked)
        if not took and asked.request.verb in VIEW and self._fallback(asked):
            self._asked.pop(asked.request.id, None)
            return
        self._again(asked, now + (LOOK_ELSEWHERE_MS if took else RETRY_UNSENT_MS) * MS)

    def _ask_next(self, asked: Asked) -> bool:
        only = asked.request.verb in OWN_DIRECTORY and self._node in self._servers
        order = sorted(self._servers, key=lambda node: node != self._preferred)  # stable: else in their order
        order = [self._node] if only else order
        rest = [node for node in order if node not in asked.asked] or order
        ask = Ask(asked.request.id, asked.line, asked.connection.operator)
        for node in rest:
            if self._send(node, ask):
                asked.asked.append(node)
                asked.sent = True
                return True
        return False

    def _again(self, asked: Asked, at: int) -> None:
        asked.timer = self._loop.call_at(min(at, asked.ends), lambda: self._try(asked))

    def _give_up(self, asked: Asked) -> None:
        if asked.begun and asked.request.verb in VIEW:
            return  # a stream (`--follow`) goes on until its client leaves
        self._asked.pop(asked.request.id, None)
        if asked.sent and asked.request.verb in OPERATE:
            text = f"timed out: outcome unknown, ask later with: hactl request {asked.request.id}"
            asked.answer(exit=UNKNOWN, error=text)
        else:
            asked.answer(
                exit=NO_AGENT, error=f"no Server answers (asked: {', '.join(asked.asked) or 'none connected'})"
            )

    def _lost(self, connection: Connection) -> None:
        for key, asked in list(self._asked.items()):
            if asked.connection is connection:
                if asked.timer is not None:
                    asked.timer.cancel()
                del self._asked[key]


def _only_once(request: Request) -> bool:
    """Whether it would be undone by a Server that gets it later: "to the other side" is the side it came from then."""
    return request.verb == "switchover" and not request.args.get("to")


def _refusal(request: Request, operator: bool) -> dict[str, object] | None:
    """Return the answer to a request that is not to be passed on, or None."""
    if request.v != limits.SUPPORTED_MAJOR:
        return _refused(request.id, USAGE, f"cannot understand requests of version {request.v}")
    if not 0 < len(request.id) <= 64:
        return _refused(request.id[:64], USAGE, "a request needs an id of at most 64 characters")
    if request.verb not in VIEW | OPERATE:
        return _refused(request.id, USAGE, f"unknown verb {request.verb[:64]!r}")
    if request.verb in OPERATE and not operator:
        return _refused(
            request.id, FORBIDDEN, f"cannot {request.verb} by view.sock: only operators may, by operate.sock"
        )
    return None


def _refused(id: str, exit: int, error: str) -> dict[str, object]:
    return {"id": id, "final": True, "exit": exit, "error": error, "result": None}


def _complete(told: Told) -> dict[str, object]:
    """Return a Server's answer with every key of the contract between Monitor and hactl."""
    try:
        body = msgspec.json.decode(told.body)
    except msgspec.MsgspecError:
        return _refused(told.id, 1, "cannot read the Server's answer")
    said = body if isinstance(body, dict) else {"result": body}
    return {"exit": 0, "error": None, "result": None, **said, "id": told.id, "final": told.final}


__all__ = ["Asked", "Gateway", "HaError", "Request"]
