"""The answering end of SIP calls (RFC 3261 user agent server over UDP), apart from sockets and clocks.

`Uas.receive` and `Uas.tick` take a datagram or the time; `take` hands out what is due: datagrams to send, calls
offered, calls ended. Laws: a retransmitted request is answered from memory and decides nothing again; a 200 to an
INVITE is repeated (T1, doubling, at most T2) until its ACK, and given up with a BYE after 64*T1 (13.3.1.4); other
final answers to an INVITE are repeated until their ACK (17.2.1); nothing is kept longer than 64*T1 after its use.
Times are float seconds of any steady clock. Routes are not followed: requests of ours go where the INVITE came from.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

import sip
from sipmessage import Request, Response

MAX_CALLS = 5_000  # more are refused with 503
MAX_ANSWERS = 20_000  # remembered answers to requests other than INVITE


class CallState(Enum):
    """Life of a call as the answering end sees it."""

    OFFERED = "offered"
    ANSWERED = "answered"  # 200 sent, no ACK yet
    CONFIRMED = "confirmed"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """A call: the dialog, and its latest INVITE. `remote_cseq`: the highest seen from the caller."""

    number: int
    call_id: str
    local_tag: str
    remote_tag: str
    remote: sip.Address
    remote_uri: str
    local_header: str
    remote_header: str
    user: str  # who was called
    remote_cseq: int
    payloads: tuple[str, ...]
    state: CallState = CallState.OFFERED
    invite: _Invite | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Invite:
    """One INVITE transaction; `final`: 0 until a final answer was sent. `acked` stops the repeats."""

    key: str
    request: Request
    parts: sip.Parts
    source: sip.Address
    call: Call | None
    tag: str
    answer: bytes = b""
    final: int = 0
    acked: bool = False
    interval: float = sip.T1
    give_up_at: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Bye:
    """A BYE of ours, repeated until an answer comes."""

    data: bytes
    address: sip.Address
    branch: str
    interval: float = sip.T1
    give_up_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Datagram:
    """Send `data` to `address`."""

    data: bytes
    address: sip.Address


@dataclass(frozen=True, slots=True)
class Offered:
    """A call came in: `ring`, `answer` or `reject` it."""

    call: Call


@dataclass(frozen=True, slots=True)
class Ended:
    """A call is over; `why`: bye, cancelled, no-ack, rejected."""

    call: Call
    why: str


Out = Datagram | Offered | Ended


@dataclass(slots=True)
class Uas:
    """The machine. `host` and `port` stand in our Contact. `counters`: what came, what was refused, and why."""

    host: str
    port: int
    counters: Counter[str] = field(default_factory=Counter)
    calls: dict[tuple[str, str], Call] = field(default_factory=dict)  # (Call-ID, our tag)
    _invites: dict[str, _Invite] = field(default_factory=dict)
    _answers: dict[str, bytes] = field(default_factory=dict)  # requests other than INVITE
    _merged: dict[tuple[str, str, int], str] = field(default_factory=dict)  # 8.2.2.2
    _byes: dict[str, _Bye] = field(default_factory=dict)
    _timers: list[tuple[float, int, _Invite | _Bye | str]] = field(default_factory=list)
    _count: count[int] = field(default_factory=lambda: count(1))
    _out: list[Out] = field(default_factory=list)

    def take(self) -> list[Out]:
        """Return what is due since the last call, in order."""
        out, self._out = self._out, []
        return out

    def wake_at(self) -> float | None:
        """Return when `tick` is due, or None."""
        return self._timers[0][0] if self._timers else None

    def receive(self, data: bytes, source: sip.Address, now: float) -> None:
        """Take a datagram; what cannot be answered is dropped and counted."""
        if not data.strip(b"\r\n\0 "):
            self.counters["keepalive"] += 1
            return
        if len(data) > sip.MAX_DATAGRAM_BYTES:
            self.counters["dropped_too_large"] += 1
            return
        try:
            message, parts = sip.parse(data)
        except sip.Malformed as bad:
            self.counters["malformed" if bad.reply else "dropped_malformed"] += 1
            if bad.reply:
                self._out.append(Datagram(bad.reply, source))
            return
        if isinstance(message, Response):
            if message.code >= 200 and parts.cseq_method == "BYE":
                self._byes.pop(parts.branch, None)
            return
        self.counters[message.method if message.method in sip.ALLOWED else "other"] += 1
        key = _key(message, parts)
        if message.method == "ACK":
            self._acknowledged(key, parts)
        elif message.method == "INVITE":
            self._invited(key, message, parts, source, now)
        elif remembered := self._answers.get(f"{key} {message.method}"):
            self.counters["retransmitted"] += 1
            self._out.append(Datagram(remembered, sip.reply_address(message, source)))
        else:
            self._asked(key, message, parts, source, now)

    def tick(self, now: float) -> None:
        """Repeat and forget what is due at `now`."""
        while self._timers and self._timers[0][0] <= now:
            _, _, what = heapq.heappop(self._timers)
            if isinstance(what, str):
                self._answers.pop(what, None)
            elif isinstance(what, _Bye):
                self._repeat_bye(what, now)
            else:
                self._repeat_invite(what, now)

    def ring(self, call: Call) -> None:
        """Say 180 to a call not answered yet."""
        if call.state is CallState.OFFERED and call.invite:
            self._provisional(call.invite, 180)

    def answer(self, call: Call, now: float, headers: dict[str, str] | None = None) -> None:
        """Say 200 with our SDP to a call not answered yet; `headers` are added."""
        if call.state is CallState.OFFERED and call.invite:
            call.state = CallState.ANSWERED
            self._accept(call.invite, call, now, headers)

    def reject(self, call: Call, code: int, now: float) -> None:
        """Refuse a call not answered yet."""
        if call.state is CallState.OFFERED and call.invite:
            self._refuse(call.invite, code, now)
            self._end(call, "rejected")

    def hang_up(self, call: Call, now: float, why: str = "bye") -> None:
        """End an answered call with a BYE of ours."""
        if call.state not in (CallState.ANSWERED, CallState.CONFIRMED):
            return
        branch = sip.MAGIC + sip.token()
        lines = (
            f"BYE {call.remote_uri} SIP/2.0", f"Via: SIP/2.0/UDP {self.host}:{self.port};branch={branch};rport",
            "Max-Forwards: 70", f"From: {call.local_header}", f"To: {call.remote_header}", f"Call-ID: {call.call_id}",
            "CSeq: 1 BYE", "Content-Length: 0", "", "",
        )  # fmt: skip
        bye = _Bye(data="\r\n".join(lines).encode(), address=call.remote, branch=branch, give_up_at=now + sip.TIMEOUT)
        self._byes[branch] = bye
        self._out.append(Datagram(bye.data, bye.address))
        self._timer(now + bye.interval, bye)
        self._end(call, why)

    # --- requests -------------------------------------------------------------------------------------

    def _invited(self, key: str, request: Request, parts: sip.Parts, source: sip.Address, now: float) -> None:
        if known := self._invites.get(key):
            self.counters["retransmitted"] += 1
            self._out.append(Datagram(known.answer, sip.reply_address(known.request, source)))
            return
        invite = _Invite(key=key, request=request, parts=parts, source=source, call=None, tag=sip.token())
        self._invites[key] = invite
        if parts.to_tag:
            self._reinvited(invite, now)
            return
        merge = (parts.call_id, parts.from_tag, parts.cseq)
        code, headers = self._refusal(request)
        payloads = sip.answer_payloads(request.body)
        if merge in self._merged:
            code = 482
        elif not code and not payloads:
            code = 488
        elif not code and len(self.calls) >= MAX_CALLS:
            code = 503
        if code:
            self._refuse(invite, code, now, headers)
            return
        self._merged[merge] = key
        invite.call = call = self._new_call(invite, payloads)
        self._provisional(invite, 100)
        self._out.append(Offered(call))

    def _reinvited(self, invite: _Invite, now: float) -> None:
        call = self._dialog(invite.parts)
        if call is None or call.state is CallState.ENDED:
            self._refuse(invite, 481, now)
        elif invite.parts.cseq <= call.remote_cseq or call.state is CallState.OFFERED:
            self._refuse(invite, 500, now)
        elif not (payloads := sip.answer_payloads(invite.request.body)):
            self._refuse(invite, 488, now)
        else:
            call.remote_cseq, call.payloads, call.invite = invite.parts.cseq, payloads, invite
            invite.call, invite.tag = call, call.local_tag
            self._accept(invite, call, now)

    def _acknowledged(self, key: str, parts: sip.Parts) -> None:
        """An ACK to a refusal has the branch of the INVITE (17.1.1.3), one to a 200 belongs to the dialog."""
        invite = self._invites.get(key)
        if invite is None and (call := self._dialog(parts)):
            invite = call.invite
        if invite is None or not invite.final or invite.parts.cseq != parts.cseq:
            self.counters["stray_ack"] += 1
            return
        invite.acked = True
        if invite.call and invite.call.state is CallState.ANSWERED and invite.final == 200:
            invite.call.state = CallState.CONFIRMED

    def _asked(self, key: str, request: Request, parts: sip.Parts, source: sip.Address, now: float) -> None:
        call = self._dialog(parts) if parts.to_tag else None
        tag, code, headers = sip.token(), 200, {}
        if request.method not in sip.ALLOWED:
            code = 405 if request.method in sip.KNOWN_METHODS else 501
            headers = {"Allow": sip.ALLOW}
        elif request.method == "CANCEL":
            invite = self._invites.get(key)
            code, tag = (200, invite.tag) if invite else (481, tag)
            if invite and invite.call and not invite.final:
                self._refuse(invite, 487, now)
                self._end(invite.call, "cancelled")
        elif (parts.to_tag or request.method == "BYE") and (call is None or call.state is CallState.ENDED):
            code = 481
        elif call and parts.cseq <= call.remote_cseq:
            code = 500
        elif refused := self._refusal(request):
            code, headers = refused[0] or 200, refused[1]
            if request.method == "OPTIONS" and code == 200:
                headers = {"Allow": sip.ALLOW, "Accept": "application/sdp", "Contact": self._contact()}
        if call and code == 200:
            call.remote_cseq = parts.cseq
            if request.method == "BYE":
                self._byed(call, now)
        data = sip.response(request, source, code, tag=tag, headers=headers)
        self._remember(f"{key} {request.method}", data, now)
        self._out.append(Datagram(data, sip.reply_address(request, source)))

    def _byed(self, call: Call, now: float) -> None:
        if call.state is CallState.OFFERED and call.invite:
            self._refuse(call.invite, 487, now)
        if call.invite:
            call.invite.acked = True  # a caller that says BYE has seen the 200
        self._end(call, "bye")

    def _refusal(self, request: Request) -> tuple[int, dict[str, str]]:
        """Return the code and headers to refuse a request with before looking at what it wants; 0: go on."""
        if request.uri.scheme != "sip":
            return 416, {}
        if wanted := request.require:
            return 420, {"Unsupported": ", ".join(wanted)}
        return 0, {}

    # --- answers --------------------------------------------------------------------------------------

    def _provisional(self, invite: _Invite, code: int) -> None:
        headers = {"Contact": self._contact()} if code > 100 else None
        invite.answer = sip.response(invite.request, invite.source, code, tag=invite.tag, headers=headers)
        self._out.append(Datagram(invite.answer, sip.reply_address(invite.request, invite.source)))

    def _accept(self, invite: _Invite, call: Call, now: float, headers: dict[str, str] | None = None) -> None:
        body = sip.sdp(self.host, 20_000 + 2 * (call.number % 10_000), call.payloads)
        full = {"Contact": self._contact(), "Allow": sip.ALLOW, **(headers or {}), "Content-Type": "application/sdp"}
        self._final(invite, 200, now, full, body)

    def _refuse(self, invite: _Invite, code: int, now: float, headers: dict[str, str] | None = None) -> None:
        self.counters[f"refused_{code}"] += 1
        self._final(invite, code, now, headers or {}, b"")

    def _final(self, invite: _Invite, code: int, now: float, headers: dict[str, str], body: bytes) -> None:
        invite.final, invite.give_up_at = code, now + sip.TIMEOUT
        invite.answer = sip.response(invite.request, invite.source, code, tag=invite.tag, headers=headers, body=body)
        self._out.append(Datagram(invite.answer, sip.reply_address(invite.request, invite.source)))
        self._timer(now + invite.interval, invite)

    def _repeat_invite(self, invite: _Invite, now: float) -> None:
        if now >= invite.give_up_at:
            self._forget(invite)
            if not invite.acked:
                self.counters["no_ack"] += 1
                if invite.final == 200 and invite.call:
                    self.hang_up(invite.call, now, "no-ack")
            return
        if invite.acked:
            self._timer(invite.give_up_at, invite)
            return
        self.counters["repeated"] += 1
        self._out.append(Datagram(invite.answer, sip.reply_address(invite.request, invite.source)))
        invite.interval = min(2 * invite.interval, sip.T2)
        self._timer(min(now + invite.interval, invite.give_up_at), invite)

    def _repeat_bye(self, bye: _Bye, now: float) -> None:
        if bye.branch not in self._byes:
            return
        if now >= bye.give_up_at:
            del self._byes[bye.branch]
            return
        self._out.append(Datagram(bye.data, bye.address))
        bye.interval = min(2 * bye.interval, sip.T2)
        self._timer(min(now + bye.interval, bye.give_up_at), bye)

    # --- bookkeeping ----------------------------------------------------------------------------------

    def _new_call(self, invite: _Invite, payloads: tuple[str, ...]) -> Call:
        request, parts = invite.request, invite.parts
        call = Call(
            number=next(self._count), call_id=parts.call_id, local_tag=invite.tag, remote_tag=parts.from_tag,
            remote=invite.source, remote_uri=str(request.contact[0].uri),
            local_header=f"{request.headers['To']};tag={invite.tag}", remote_header=request.headers["From"],
            user=request.uri.user or "", remote_cseq=parts.cseq, payloads=payloads, invite=invite,
        )  # fmt: skip
        self.calls[call.call_id, call.local_tag] = call
        return call

    def _dialog(self, parts: sip.Parts) -> Call | None:
        call = self.calls.get((parts.call_id, parts.to_tag))
        return call if call and call.remote_tag == parts.from_tag else None

    def _end(self, call: Call, why: str) -> None:
        if call.state is not CallState.ENDED:
            call.state = CallState.ENDED
            self.counters[f"ended_{why}"] += 1
            del self.calls[call.call_id, call.local_tag]
            self._out.append(Ended(call, why))

    def _forget(self, invite: _Invite) -> None:
        self._invites.pop(invite.key, None)
        self._merged.pop((invite.parts.call_id, invite.parts.from_tag, invite.parts.cseq), None)

    def _remember(self, key: str, data: bytes, now: float) -> None:
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.pop(next(iter(self._answers)))
        self._answers[key] = data
        self._timer(now + sip.TIMEOUT, key)

    def _timer(self, at: float, what: _Invite | _Bye | str) -> None:
        heapq.heappush(self._timers, (at, next(self._count), what))

    def _contact(self) -> str:
        return f"<sip:ivr@{self.host}:{self.port}>"


def _key(request: Request, parts: sip.Parts) -> str:
    """Return what names a transaction; ACK and CANCEL have that of their INVITE (17.2.3)."""
    if parts.branch.startswith(sip.MAGIC):
        return f"{parts.branch} {parts.sent_by}"
    return f"2543 {request.uri} {parts.from_tag} {parts.call_id} {parts.cseq} {request.headers['Via']}"
