"""The lines of the control socket: what passes, what does not, and with which reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha.sdk import protocol
from ha.sdk.protocol import ProtocolError, Role

TO_PROGRAM = (
    protocol.Welcome(role=Role.ACTIVE, epoch=65_536, watchdog_ms=10_000),
    protocol.TakeRole(id=1, role=Role.STANDBY, epoch=2),
    protocol.EpochNow(id=9, role=Role.ACTIVE, epoch=2, valid_ms=0),
    protocol.EpochNow(id=9, role=Role.ACTIVE, epoch=2, valid_ms=None),
    protocol.Refused(reason="unknown-type", text="type x is not known"),
)
TO_AGENT = (
    protocol.Hello(),
    protocol.Hello(sdk="ha.sdk/0.1.0", role=Role.STANDBY, epoch=3),
    protocol.Done(id=1),
    protocol.Failed(id=1, reason="no database"),
    protocol.Ready(),
    protocol.Status(text="12 calls"),
    protocol.Watchdog(interval_ms=0),
    protocol.Watchdog(interval_ms=10_000),
    protocol.Ping(),
    protocol.AskEpoch(id=7),
)


@pytest.mark.parametrize("line", TO_PROGRAM, ids=lambda line: type(line).__name__)
def test_what_an_agent_says_comes_back_equal(line: protocol.ToProgram) -> None:
    assert protocol.decode_to_program(protocol.encode(line)) == line


@pytest.mark.parametrize("line", TO_AGENT, ids=lambda line: type(line).__name__)
def test_what_a_program_says_comes_back_equal(line: protocol.ToAgent) -> None:
    assert protocol.decode_to_agent(protocol.encode(line)) == line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x" * 5_000, "too-long"),
        (b"{", "not-json"),
        (b"\xff\xfe", "not-json"),
        (b"[" * 4_000, "not-json"),
        (b"3", "not-object"),
        (b'{"v":2,"type":"ping"}', "version"),
        (b'{"v":"1","type":"ping"}', "version"),
        (b'{"type":"reboot"}', "unknown-type"),
        (b'{"type":["ping"]}', "unknown-type"),
        (b"{}", "unknown-type"),
        (b'{"type":"done"}', "bad-field"),
        (b'{"type":"done","id":-1}', "bad-field"),
        (b'{"type":"done","id":true}', "bad-field"),
        (b'{"type":"done","id":9007199254740992}', "bad-field"),
        (b'{"type":"status","text":7}', "bad-field"),
        (b'{"type":"watchdog","interval_ms":1}', "bad-field"),
    ],
)
def test_a_line_that_does_not_pass_is_refused_with_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_to_agent(line)
    assert caught.value.reason == reason
    assert len(protocol.encode(protocol.refusal(caught.value))) <= protocol.MAX_LINE_BYTES


def test_a_role_that_is_none_is_refused() -> None:
    with pytest.raises(ProtocolError, match="neither"):
        protocol.decode_to_program(b'{"type":"role","id":1,"role":"master","epoch":1}')


def test_unknown_keys_of_a_later_version_are_ignored() -> None:
    assert protocol.decode_to_agent(b'{"type":"done","id":4,"mood":"good"}') == protocol.Done(id=4)


def test_texts_are_cut_and_lose_control_characters() -> None:
    long = protocol.decode_to_agent(json.dumps({"type": "status", "text": "\x1b[31m" + "x" * 500}).encode())
    assert isinstance(long, protocol.Status)
    assert len(long.text) == protocol.MAX_TEXT_CHARS
    assert "\x1b" not in long.text


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes) -> None:
    for decode in (protocol.decode_to_agent, protocol.decode_to_program):
        try:
            decode(data)
        except ProtocolError:
            pass


@given(st.dictionaries(st.sampled_from(["type", "id", "role", "epoch", "v", "text", "interval_ms"]), st.one_of(
    st.sampled_from(["done", "role", "epoch", "status", "watchdog", "welcome"]), st.integers(), st.floats(), st.none(),
    st.lists(st.integers(), max_size=2),
)))  # fmt: skip
def test_no_object_raises_anything_but_a_protocol_error(said: dict[str, object]) -> None:
    data = json.dumps(said).encode()
    for decode in (protocol.decode_to_agent, protocol.decode_to_program):
        try:
            decode(data)
        except ProtocolError:
            pass


@given(st.lists(st.integers(1, 9), max_size=30))
def test_lines_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    whole = b"".join(protocol.encode(line) for line in TO_AGENT) + b"\n"
    buffer, got = protocol.LineBuffer(), []
    for cut in cuts:
        got += buffer.feed(whole[:cut])
        whole = whole[cut:]
    got += buffer.feed(whole)
    assert [protocol.decode_to_agent(line) for line in got] == list(TO_AGENT)


def test_a_line_without_end_is_refused_before_it_grows() -> None:
    buffer = protocol.LineBuffer()
    buffer.feed(b"x" * 4_000)
    with pytest.raises(ProtocolError) as caught:
        buffer.feed(b"x" * 4_000)
    assert caught.value.reason == "too-long"
