"""The calling end of a SIP call (RFC 3261 user agent client over UDP), apart from sockets and clocks.

`Leg` is one INVITE to one address and what becomes of it: INVITE repeated (timer A) until anything comes back, ACK,
hold, BYE repeated (timer E) until its 200. What is to be sent stands in `out`; times are seconds of a steady clock.
A leg that was given up is cancelled, and should it be answered after all, acknowledged and ended at once (15.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import sip
from sipmessage import Request, Response


class LegState(Enum):
    """Life of a leg."""

    CALLING = "calling"  # nothing came back yet
    PROCEEDING = "proceeding"
    UP = "up"
    ENDING = "ending"  # BYE sent
    ENDED = "ended"  # as wanted
    FAILED = "failed"  # never answered: see `why`
    DROPPED = "dropped"  # answered, then lost or ended by the other end
    GIVEN_UP = "given-up"  # cancelled by us; waits for a late answer


OVER = frozenset((LegState.ENDED, LegState.FAILED, LegState.DROPPED))


@dataclass(slots=True, kw_only=True, eq=False)
class Leg:
    """One try at one address. `answered_at`: when the 200 came, None before."""

    user: str
    local: sip.Address
    remote: sip.Address
    hold: float
    state: LegState = LegState.CALLING
    why: str = ""
    code: int = 0  # final code of the INVITE
    started_at: float = 0.0
    answered_at: float | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    call_id: str = field(default_factory=lambda: f"{sip.token()}@demo")
    out: list[bytes] = field(default_factory=list)
    _tag: str = field(default_factory=lambda: sip.token(4))
    _branch: str = field(default_factory=lambda: sip.MAGIC + sip.token())
    _to: str = ""
    _target: str = ""
    _last: bytes = b""
    _ack: bytes = b""
    _repeat_at: float | None = None
    _interval: float = sip.T1
    _deadline: float = 0.0

    def start(self, now: float) -> None:
        """Place the call."""
        self._target = f"sip:{self.user}@{self.remote[0]}:{self.remote[1]}"
        self._to = f"<{self._target}>"
        self.started_at = now
        self._send(self._request("INVITE", 1, self._branch, sip.sdp(self.local[0], 30_000)), now)

    def wake_at(self) -> float | None:
        """Return when `tick` is due, or None when the leg is over."""
        if self.state in OVER:
            return None
        return min(self._deadline, self._repeat_at) if self._repeat_at is not None else self._deadline

    def tick(self, now: float) -> None:
        """Repeat, hang up or give up what is due at `now`."""
        if self.state in OVER:
            return
        if now >= self._deadline:
            if self.state is LegState.UP:
                self.hang_up(now)
            elif self.state is LegState.ENDING:
                self._over(LegState.DROPPED, "BYE unanswered")
            else:
                self._over(LegState.FAILED, self.why or "timeout")
        elif self._repeat_at is not None and now >= self._repeat_at:
            self.out.append(self._last)
            self._interval *= 2
            if self.state is not LegState.CALLING:
                self._interval = min(self._interval, sip.T2)
            self._repeat_at = now + self._interval

    def hang_up(self, now: float) -> None:
        """End an answered call."""
        if self.state is LegState.UP:
            self.state = LegState.ENDING
            self._send(self._request("BYE", 2, sip.MAGIC + sip.token()), now)

    def give_up(self, now: float, why: str) -> None:
        """Stop waiting for an answer: cancel what is in progress; a leg nobody answered to is just left."""
        self.why = why
        if self.state is LegState.CALLING:
            self.state, self._repeat_at = LegState.GIVEN_UP, None
        elif self.state is LegState.PROCEEDING:
            self.state = LegState.GIVEN_UP
            self._send(self._request("CANCEL", 1, self._branch), now)

    def unreachable(self) -> None:
        """The network said that nobody listens there."""
        if self.state in (LegState.CALLING, LegState.PROCEEDING, LegState.GIVEN_UP):
            self._over(LegState.FAILED, self.why or "refused by the network")
        elif self.state is LegState.ENDING:
            self._over(LegState.DROPPED, "gone before BYE")

    def receive(self, message: Request | Response, parts: sip.Parts, now: float) -> None:
        """Take a message of this Call-ID."""
        if isinstance(message, Request):
            self._asked(message)
        elif parts.cseq_method == "INVITE":
            self._invite_answered(message, now)
        elif parts.cseq_method == "BYE" and message.code >= 200 and self.state is LegState.ENDING:
            lost = message.code >= 300
            self._over(LegState.DROPPED if lost else LegState.ENDED, f"BYE answered {message.code}" if lost else "")
        elif parts.cseq_method == "CANCEL" and message.code >= 200 and self.state is LegState.GIVEN_UP:
            self._repeat_at = None

    def _invite_answered(self, response: Response, now: float) -> None:
        if response.code < 200:
            if self.state is LegState.CALLING:
                self.state, self._repeat_at = LegState.PROCEEDING, None
        elif self._ack:
            self.out.append(self._ack)  # our ACK was lost
        elif response.code < 300:
            self._answered(response, now)
        else:
            self._to = response.headers["To"]
            self._ack = self._request("ACK", 1, self._branch)
            self.out.append(self._ack)
            self.code = response.code
            self._over(LegState.FAILED, self.why or f"{response.code} {response.phrase}")

    def _answered(self, response: Response, now: float) -> None:
        self._to = response.headers["To"]
        if response.contact:
            self._target = str(response.contact[0].uri)
        self._ack = self._request("ACK", 1, sip.MAGIC + sip.token())
        self.out.append(self._ack)
        given_up = self.state is LegState.GIVEN_UP
        self.state, self.code, self.answered_at = LegState.UP, response.code, now
        self.answer_headers = {
            name: response.headers[name] for name in ("X-Agent", "X-Queue") if response.headers.get(name)
        }
        self._repeat_at, self._deadline = None, now + self.hold
        if given_up:
            self.hang_up(now)

    def _asked(self, request: Request) -> None:
        """Only a BYE of the other end is expected; an ended call answers it all the same."""
        code = 200 if request.method == "BYE" else 501
        if request.method != "ACK":
            self.out.append(sip.response(request, self.remote, code))
        if request.method == "BYE" and self.state is LegState.UP:
            self._over(LegState.DROPPED, "ended by the other end")

    def _send(self, data: bytes, now: float) -> None:
        self._last, self._interval = data, sip.T1
        self._repeat_at, self._deadline = now + sip.T1, now + sip.TIMEOUT
        self.out.append(data)

    def _over(self, state: LegState, why: str) -> None:
        self.state, self.why, self._repeat_at = state, why, None

    def _request(self, method: str, cseq: int, branch: str, body: bytes = b"") -> bytes:
        """A CANCEL, and an ACK to a refusal, go to the URI of the INVITE with its branch; all else to the Contact."""
        host, port = self.local
        lines = [
            f"{method} {self._target} SIP/2.0", f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
            "Max-Forwards: 70", f"From: <sip:caller@{host}:{port}>;tag={self._tag}", f"To: {self._to}",
            f"Call-ID: {self.call_id}", f"CSeq: {cseq} {method}", f"Contact: <sip:caller@{host}:{port}>",
        ]  # fmt: skip
        if body:
            lines.append("Content-Type: application/sdp")
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
