"""IVR: answers SIP calls over UDP, asks the directory for the skill and the distributor for an agent.

A call is never refused because a service behind it moves: without a skill within LOOKUP_S it is support, without an
agent within ROUTE_S it is answered as queued, and the queue is offered again until an agent takes it. The answer says
which, in `X-Agent` or `X-Queue`. Every call event goes to the recorder, kept until that has confirmed it.
`GET /health` at the health port answers 200 with the counters. Load-sharing: every copy of every side takes calls.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import OrderedDict

from lines import Connection, Finder, LineServer
from program import Loop, Seat, addresses, arguments, fail, log
from uas import Call, CallState, Datagram, Ended, Offered, Uas

LOOKUP_S = 0.2
ROUTE_S = 0.3
REQUEUE_S = 0.25
CACHE_S = 10.0
KEEP_EVENTS = 10_000
DEFAULT_SKILL = "support"
Where = tuple[tuple[str, int], ...]


class Tape:
    """Events on their way to the recorder, oldest first; the oldest are lost (and counted) beyond KEEP_EVENTS."""

    def __init__(self, loop: Loop, where: Where) -> None:
        self._source = f"{os.environ.get('HA_NODE', 'alone')}-{os.getpid()}"
        self._unconfirmed: OrderedDict[int, str] = OrderedDict()
        self._seq = 0
        self.lost = 0
        self._finder = Finder(loop, where, self._said, self._send_all)
        loop.every(1.0, self._send_all)

    @property
    def waiting(self) -> int:
        """How many events the recorder has not confirmed."""
        return len(self._unconfirmed)

    def event(self, **fields: object) -> None:
        """Record an event of a call."""
        self._seq += 1
        text = json.dumps({"time": round(time.time(), 3), **fields}, separators=(",", ":"))
        self._unconfirmed[self._seq] = f"EVENT {self._source} {self._seq} {text}"
        if len(self._unconfirmed) > KEEP_EVENTS:
            self._unconfirmed.popitem(last=False)
            self.lost += 1
        self._finder.send(self._unconfirmed[self._seq])

    def _said(self, line: str) -> None:
        words = line.split()
        if len(words) == 4 and words[0] == "OK":
            self._unconfirmed.pop(int(words[2]), None)

    def _send_all(self) -> None:
        for line in tuple(self._unconfirmed.values())[:500]:
            if not self._finder.send(line):
                return


class Ivr:
    """One copy: the SIP socket, and each call's way from the directory over the distributor to its answer."""

    def __init__(self, loop: Loop, bind: str, port: int, *, acd: Where, directory: Where, recorder: Where) -> None:
        self._loop = loop
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._sock.bind((bind, port))
        except OSError as error:
            fail(f"cannot listen at {bind}:{port}/udp: {error.strerror}")
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
        self.uas = Uas(bind, port)
        self._skills: dict[str, tuple[float, str]] = {}
        self._looking: dict[str, list[Call]] = {}
        self._routing: dict[str, Call] = {}  # asked, not answered yet
        self._queue: dict[str, Call] = {}  # answered, waiting for an agent
        self._connected: dict[str, str] = {}  # call -> human agent
        self._tick_at: float | None = None
        self._acd = Finder(loop, acd, self._distributor_said, self._offer_again)
        self._directory = Finder(loop, directory, self._directory_said)
        self.tape = Tape(loop, recorder)
        loop.watch(self._sock, lambda _: self._receive())
        loop.every(REQUEUE_S, self._offer_again)

    def health(self) -> dict[str, object]:
        """Return what `GET /health` shows."""
        return {"calls": len(self.uas.calls), "queued": len(self._queue), "acd_epoch": self._acd.epoch,
                "unrecorded": self.tape.waiting, "counters": dict(self.uas.counters)}  # fmt: skip

    def hang_up(self) -> None:
        """End all calls: this copy stops."""
        for call in tuple(self.uas.calls.values()):
            self.uas.hang_up(call, time.monotonic())
            self.uas.reject(call, 480, time.monotonic())
        self._act()

    # --- SIP ------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(64):  # then the other sockets and the timers have their turn
            try:
                data, source = self._sock.recvfrom(65536)
            except OSError:  # nothing more, or the word of a caller that is gone
                break
            self.uas.receive(data, source, time.monotonic())
        self._act()

    def _act(self) -> None:
        """Do what the SIP machine wants, and be back when it is due."""
        while out := self.uas.take():
            for what in out:
                match what:
                    case Datagram(data, address):
                        try:
                            self._sock.sendto(data, address)
                        except OSError as error:
                            log("unsent", to=address[0], why=error.strerror)
                    case Offered(call):
                        self._offered(call)
                    case Ended(call, why):
                        self._ended(call, why)
        due = self.uas.wake_at()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self._loop.after(due - time.monotonic(), self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        self.uas.tick(time.monotonic())
        self._act()

    # --- a call's way ---------------------------------------------------------------------------------

    def _offered(self, call: Call) -> None:
        self.uas.ring(call)
        self.tape.event(call=call.call_id, what="offered", to=call.user)
        found = self._skills.get(call.user)
        if found and found[0] > time.monotonic():
            self._route(call, found[1])
            return
        key = call.user if call.user and not any(char.isspace() for char in call.user) else "none"
        self._looking.setdefault(key, []).append(call)
        if len(self._looking[key]) == 1:
            if self._directory.send(f"GET {key}"):
                self._loop.after(LOOKUP_S, lambda: self._looked_up(key, DEFAULT_SKILL, keep=False))
            else:
                self._looked_up(key, DEFAULT_SKILL, keep=False)

    def _directory_said(self, line: str) -> None:
        match line.split():
            case ["VALUE", key, skill, _]:
                self._looked_up(key, skill, keep=True)
            case ["NONE", key, _]:
                self._looked_up(key, DEFAULT_SKILL, keep=True)
            case ["STANDBY", key, _]:
                self._looked_up(key, DEFAULT_SKILL, keep=False)

    def _looked_up(self, key: str, skill: str, *, keep: bool) -> None:
        if keep:
            if len(self._skills) > 1_000:
                self._skills.clear()
            self._skills[key] = (time.monotonic() + CACHE_S, skill)
        for call in self._looking.pop(key, []):
            self._route(call, skill)
        self._act()

    def _route(self, call: Call, skill: str) -> None:
        if call.state is not CallState.OFFERED:
            return
        self._routing[_name(call)] = call
        if self._acd.send(f"ROUTE {skill} {_name(call)}"):
            self._loop.after(ROUTE_S, lambda: self._answer(call, ""))
        else:
            self._answer(call, "")

    def _distributor_said(self, line: str) -> None:
        match line.split():
            case ["AGENT", agent, name, _]:
                if call := self._routing.get(name):
                    self._answer(call, agent)
                elif name in self._queue:
                    call = self._queue.pop(name)
                    self._connect(call, agent)
                elif name not in self._connected:
                    self._acd.send(f"BYE {name}")  # the call ended while the distributor was asked
            case ["NONE" | "STANDBY" | "STALE", name, _]:
                if call := self._routing.get(name):
                    self._answer(call, "")

    def _answer(self, call: Call, agent: str) -> None:
        if self._routing.pop(_name(call), None) is None:
            return
        if call.state is not CallState.OFFERED:
            self._acd.send(f"BYE {_name(call)}")
            return
        header = {"X-Agent": agent} if agent else {"X-Queue": "waiting"}
        self.uas.answer(call, time.monotonic(), header)
        self._act()
        if agent:
            self._connect(call, agent)
        else:
            self._queue[_name(call)] = call
            self.tape.event(call=call.call_id, what="queued")

    def _connect(self, call: Call, agent: str) -> None:
        self._connected[_name(call)] = agent
        self.tape.event(call=call.call_id, what="connected", agent=agent, acd_epoch=self._acd.epoch)
        log("connected", call=call.call_id, agent=agent, acd_epoch=self._acd.epoch)

    def _offer_again(self) -> None:
        for name, call in tuple(self._queue.items())[:50]:
            found = self._skills.get(call.user)
            self._acd.send(f"ROUTE {found[1] if found else DEFAULT_SKILL} {name}")

    def _ended(self, call: Call, why: str) -> None:
        name = _name(call)
        self._routing.pop(name, None)
        self._queue.pop(name, None)
        if self._connected.pop(name, None):
            self._acd.send(f"BYE {name}")
        self.tape.event(call=call.call_id, what="ended", why=why)
        log("ended", call=call.call_id, why=why)


def _name(call: Call) -> str:
    """Return the call's name in the line protocol: no blanks, the same at every copy of the distributor."""
    return f"{call.local_tag}-{call.number}"


def serve_health(loop: Loop, bind: str, port: int, ivr: Ivr) -> None:
    """Answer HTTP at the health port: 200 for `GET /health`, 404 for other paths, 405 for other methods."""
    asked: dict[Connection, str] = {}

    def said(connection: Connection, line: str) -> None:
        if line:
            asked.setdefault(connection, line)
            return
        method, path, *_ = [*asked.pop(connection, "").split(), "", ""]
        code = "405 Method Not Allowed"
        if method == "GET":
            code = "200 OK" if path == "/health" else "404 Not Found"
        body = json.dumps(ivr.health() if code == "200 OK" else {"error": code}) + "\n"
        head = f"HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: close\r\n\r\n"
        connection.send(head + body)
        connection.finish()

    def forget(connection: Connection) -> None:
        asked.pop(connection, None)

    LineServer(loop, bind, port, said, on_close=forget)


def main() -> None:
    """Run until SIGTERM, then end the calls with a BYE."""
    parser = arguments("interactive voice response", 5100)
    parser.add_argument("--health-port", type=int, default=0, metavar="PORT", help="TCP port of GET /health (port + 1)")
    for name in ("acd", "directory", "recorder"):
        parser.add_argument(
            f"--{name}", type=addresses, default=(), metavar="HOST:PORT,...", help=f"every {name}'s address"
        )
    args = parser.parse_args()
    loop = Loop()
    ivr = Ivr(loop, args.bind, args.port, acd=args.acd, directory=args.directory, recorder=args.recorder)
    serve_health(loop, args.bind, args.health_port or args.port + 1, ivr)
    Seat(loop).ready()
    loop.run()
    ivr.hang_up()
    log("stopped", **ivr.health())


if __name__ == "__main__":
    main()
