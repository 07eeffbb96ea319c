"""SIP over UDP, what both ends need: parsing with a reason, responses that copy what RFC 3261 says, SDP, timers.

The grammar is `sipmessage`'s. Here stands what it leaves to the caller: line folding, a body shorter than its
Content-Length, where a response goes (RFC 3261 18.2.2, RFC 3581), and headers that must be copied byte for byte.
No media is sent anywhere: the SDP names a port, and says so with `a=inactive`.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from sipmessage import Message, Request, Response, Via

T1 = 0.5  # seconds: estimate of a round trip (RFC 3261 17.1.1.1)
T2 = 4.0  # longest interval between retransmissions
T4 = 5.0  # how long a message may stay in the network
TIMEOUT = 64 * T1  # timers B, F, H, J, L
MAGIC = "z9hG4bK"
MAX_DATAGRAM_BYTES = 16 * 1024
ALLOW = "INVITE, ACK, BYE, CANCEL, OPTIONS"
ALLOWED = frozenset(ALLOW.split(", "))
KNOWN_METHODS = frozenset(("REGISTER", "SUBSCRIBE", "NOTIFY", "PUBLISH", "MESSAGE", "INFO", "UPDATE", "PRACK", "REFER"))
PHRASES = {
    100: "Trying", 180: "Ringing", 200: "OK", 400: "Bad Request", 405: "Method Not Allowed",
    416: "Unsupported URI Scheme",
    420: "Bad Extension", 480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist", 482: "Loop Detected",
    487: "Request Terminated", 488: "Not Acceptable Here", 500: "Server Internal Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "Version Not Supported",
}  # fmt: skip
REQUIRED = ("Via", "From", "To", "Call-ID", "CSeq")
SUPPORTED_PAYLOADS = ("0", "8")  # PCMU, PCMA
_FOLDED = re.compile(rb"\r\n[ \t]+")
_SPACE_BEFORE_COLON = re.compile(rb"^([^:\s]+)[ \t]+:", re.MULTILINE)
_REQUEST_LINE = re.compile(r"^([A-Za-z0-9.!%*_+`'~-]+) (\S+) SIP/(\d+\.\d+)$")
_RAW_HEADER = re.compile(r"^([A-Za-z-]+)[ \t]*:[ \t]*(.*)$")
_COMPACT = {"v": "via", "f": "from", "t": "to", "i": "call-id"}
_RPORT = re.compile(r";\s*rport(?=\s*(;|$))", re.IGNORECASE)

Address = tuple[str, int]


class Malformed(Exception):
    """A datagram that is no valid SIP message. `reply` answers it where an answer can be made, else None."""

    def __init__(self, why: str, reply: bytes | None = None) -> None:
        super().__init__(why)
        self.reply = reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The fields of a valid message that every decision needs, parsed once."""

    branch: str
    sent_by: str
    call_id: str
    from_tag: str
    to_tag: str  # "": none
    cseq: int
    cseq_method: str


def token(count: int = 8) -> str:
    """Return a random token for a tag, branch or Call-ID; `count` random bytes."""
    return secrets.token_hex(count)


def parse(data: bytes) -> tuple[Request | Response, Parts]:
    """Return the message and its parts. Raises Malformed."""
    head, blank, body = data.partition(b"\r\n\r\n")
    head = _SPACE_BEFORE_COLON.sub(rb"\1:", _FOLDED.sub(b" ", head))
    version = _request_version(head)
    if version not in (None, "2.0"):
        raise Malformed(f"version {version}", _raw_reply(head, 505))
    try:
        message = Message.parse(head + (blank or b"\r\n\r\n") + body)
        parts = _parts(message)
        length = message.content_length
        if isinstance(message, Request) and message.method == "INVITE" and len(message.contact) != 1:
            raise ValueError("an INVITE has one Contact")
    except (ValueError, KeyError, TypeError, IndexError) as error:  # TypeError: a parameter called "self"
        raise Malformed(f"{type(error).__name__}: {error}", _raw_reply(head, 400)) from None
    if length is not None and not 0 <= length <= len(body):
        raise Malformed(f"Content-Length {length}, the body has {len(body)}", _raw_reply(head, 400))
    if isinstance(message, Request) and parts.cseq_method != message.method:
        raise Malformed(f"CSeq names {parts.cseq_method}, the request is {message.method}", _raw_reply(head, 400))
    if length is not None:
        message.body = body[:length]
    return message, parts


def response(request: Request, source: Address, code: int, *, tag: str = "", headers: dict[str, str] | None = None,
             body: bytes = b"") -> bytes:  # fmt: skip
    """Return the bytes of a response to `request`, which came from `source`; `tag` is our To tag."""
    values = {name: request.headers.getlist(name) for name in REQUIRED}
    return _render(code, values, source, tag if code != 100 else "", headers, body)


def reply_address(request: Request, source: Address) -> Address:
    """Return where a response goes: the source host; the source port with rport, else the one of the Via."""
    via = Via.parse_many(request.headers.getlist("Via")[0])[0]
    if "rport" in via.parameters:
        return source
    return (source[0], via.port or 5060)


def sdp(host: str, port: int, payloads: tuple[str, ...] = SUPPORTED_PAYLOADS) -> bytes:
    """Return a session description with one inactive audio stream."""
    names = {"0": "PCMU", "8": "PCMA"}
    lines = ["v=0", f"o=- {port} 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0"]
    lines.append(f"m=audio {port} RTP/AVP {' '.join(payloads)}")
    lines += [f"a=rtpmap:{payload} {names[payload]}/8000" for payload in payloads]
    return "\r\n".join([*lines, "a=inactive", ""]).encode()


def answer_payloads(offer: bytes) -> tuple[str, ...]:
    """Return the payload types of the offer that are supported; no offer: all of them; empty: none fits."""
    if not offer.strip():
        return SUPPORTED_PAYLOADS
    for line in offer.decode("utf-8", "replace").splitlines():
        if line.startswith("m=audio "):
            return tuple(payload for payload in line.split()[3:] if payload in SUPPORTED_PAYLOADS)
    return ()


def _parts(message: Request | Response) -> Parts:
    via = message.via[0]
    cseq = message.cseq
    if not message.call_id:
        raise ValueError("Call-ID is empty")
    if cseq.sequence >= 2**31:
        raise ValueError("CSeq is too large")
    sender, target = message.from_address, message.to_address
    return Parts(
        branch=via.parameters.get("branch") or "", sent_by=f"{via.host}:{via.port or 5060}".lower(),
        call_id=message.call_id, from_tag=sender.parameters.get("tag") or "", to_tag=target.parameters.get("tag") or "",
        cseq=cseq.sequence, cseq_method=cseq.method,
    )  # fmt: skip


def _request_version(head: bytes) -> str | None:
    match = _REQUEST_LINE.match(head.split(b"\r\n", 1)[0].decode("utf-8", "replace"))
    return match.group(3) if match else None


def _raw_reply(head: bytes, code: int) -> bytes | None:
    """Return an answer to a request that could not be parsed, or None: no request, an ACK, or a header is missing."""
    lines = head.decode("utf-8", "replace").split("\r\n")
    start = _REQUEST_LINE.match(lines[0])
    if start is None or start.group(1) == "ACK":
        return None
    values: dict[str, list[str]] = {name: [] for name in REQUIRED}
    canonical = {name.lower(): name for name in REQUIRED}
    for line in lines[1:]:
        if match := _RAW_HEADER.match(line):
            key = match.group(1).lower()
            if name := canonical.get(_COMPACT.get(key, key)):
                values[name].append(match.group(2))
    if not all(values.values()):
        return None
    tag = "" if "tag=" in values["To"][0].lower() else token()
    return _render(code, values, None, tag, None, b"")


def _render(code: int, values: dict[str, list[str]], source: Address | None, tag: str,
            headers: dict[str, str] | None, body: bytes) -> bytes:  # fmt: skip
    lines = [f"SIP/2.0 {code} {PHRASES[code]}"]
    vias = list(values["Via"])
    if source is not None:
        vias[0] = _stamp(vias[0], source)
    lines += [f"Via: {via}" for via in vias]
    lines.append(f"From: {values['From'][0]}")
    target = values["To"][0]
    lines.append(f"To: {target};tag={tag}" if tag and not _has_tag(target) else f"To: {target}")
    lines += [f"Call-ID: {values['Call-ID'][0]}", f"CSeq: {values['CSeq'][0]}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _has_tag(target: str) -> bool:
    return re.search(r";\s*tag\s*=", target.rpartition(">")[2]) is not None


def _stamp(via: str, source: Address) -> str:
    """Add `received` and fill in `rport` in the topmost Via, leaving every other byte as it came."""
    first, comma, rest = via.partition(",")
    first = _RPORT.sub(f";rport={source[1]}", first)
    host = Via.parse_many(via)[0].host
    if host != source[0] or "rport=" in first:
        first = f"{first.rstrip()};received={source[0]}"
    return first + comma + rest
