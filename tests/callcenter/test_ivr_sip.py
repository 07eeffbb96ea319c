"""RFC 3261 over a real UDP socket, against ivr.py as a process."""

import json
import urllib.request

import pytest

SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP {} 101\r\n"


def counters(phone):
    with urllib.request.urlopen(f"http://127.0.0.1:{phone.target + 1}/health", timeout=5) as answer:
        assert answer.status == 200
        return json.load(answer)["counters"]


def establish(phone, **fields):
    """INVITE, 200, ACK; return the 200."""
    answer = phone.ask("INVITE", **fields)
    assert answer.code == 200
    phone.send(phone.request("ACK", branch="z9hG4bK-ack", to_tag=answer.tag, **fields))
    return answer


def test_a_call_is_tried_rung_answered_and_ended(phone):
    phone.send(phone.request("INVITE", body=SDP.format(0)))
    trying, ringing, answer = phone.read(), phone.read(), phone.read()
    assert (trying.code, ringing.code, answer.code) == (100, 180, 200)
    assert trying.tag == ""
    assert ringing.tag == answer.tag != ""
    assert answer.headers["Contact"] == f"<sip:ivr@127.0.0.1:{phone.target}>"
    assert answer.headers["Content-Type"] == "application/sdp"
    assert answer.headers["X-Queue"] == "waiting"
    assert b"m=audio 20002 RTP/AVP 0\r\n" in answer.message.body
    phone.send(phone.request("ACK", branch="z9hG4bK-2", to_tag=answer.tag))
    ended = phone.ask("BYE", branch="z9hG4bK-3", to_tag=answer.tag, cseq=2)
    assert (ended.code, ended.cseq) == (200, (2, "BYE"))
    assert counters(phone)["ended_bye"] == 1


def test_the_200_is_repeated_until_its_ack(phone):
    first = phone.ask("INVITE")
    again = phone.read(timeout=2)
    assert (again.code, again.tag) == (200, first.tag)
    phone.send(phone.request("ACK", branch="z9hG4bK-2", to_tag=first.tag))
    assert phone.read(timeout=1.6) is None, "repeated after its ACK"


def test_a_repeated_invite_is_answered_from_memory(phone):
    first = establish(phone)
    phone.send(phone.request("INVITE"))
    again = phone.read()
    assert (again.code, again.tag) == (200, first.tag)
    assert counters(phone)["retransmitted"] == 1


def test_the_same_invite_by_another_way_is_a_loop(phone):
    establish(phone)
    assert phone.ask("INVITE", branch="z9hG4bK-other").code == 482


def test_cancel_ends_a_call_that_rings(phone, start, free_port, talk):
    """A distributor that says nothing keeps the call ringing for a while."""
    import socket

    silent = socket.create_server(("127.0.0.1", 0))
    port = free_port()
    start("ivr.py", "--port", port, "--acd", f"127.0.0.1:{silent.getsockname()[1]}")
    connection, _ = silent.accept()
    connection.sendall(b"ROLE active 7\n")
    from tests.callcenter.conftest import Phone

    other = Phone(port)
    try:
        # The line is read before any later datagram only by chance: call until a call waits for the distributor.
        for number in range(50):
            ids = {"call": f"cancel-{number}", "branch": f"z9hG4bK-c{number}"}
            other.send(other.request("INVITE", **ids))
            assert other.read().code == 100
            assert other.read().code == 180
            other.send(other.request("CANCEL", **ids))
            answers = sorted((heard.cseq[1], heard.code) for heard in (other.read(), other.read()))
            assert ("CANCEL", 200) in answers
            if ("INVITE", 487) in answers:
                other.send(other.request("ACK", **ids))
                assert other.read(timeout=1.2) is None, "487 repeated after its ACK"
                return
        raise AssertionError("no call was cancelled")
    finally:
        other.close()
        connection.close()
        silent.close()


def test_cancel_of_an_unknown_call_is_481(phone):
    assert phone.ask("CANCEL").code == 481


def test_cancel_after_the_answer_changes_nothing(phone):
    answer = establish(phone)
    assert phone.ask("CANCEL").code == 200
    assert phone.ask("BYE", branch="z9hG4bK-3", to_tag=answer.tag, cseq=2).code == 200


@pytest.mark.parametrize("tag", ["", "nobody"])
def test_bye_of_an_unknown_dialog_is_481(phone, tag):
    assert phone.ask("BYE", to_tag=tag).code == 481


def test_a_repeated_bye_is_answered_the_same(phone):
    answer = establish(phone)
    bye = {"branch": "z9hG4bK-3", "to_tag": answer.tag, "cseq": 2}
    assert [phone.ask("BYE", **bye).code for _ in range(2)] == [200, 200]
    assert phone.ask("BYE", branch="z9hG4bK-4", to_tag=answer.tag, cseq=3).code == 481


def test_a_reinvite_is_answered_in_its_dialog(phone):
    answer = establish(phone)
    again = phone.ask("INVITE", branch="z9hG4bK-r", to_tag=answer.tag, cseq=2, body=SDP.format(8))
    assert (again.code, again.tag) == (200, answer.tag)
    phone.send(phone.request("ACK", branch="z9hG4bK-ra", to_tag=answer.tag, cseq=2))
    assert phone.read(timeout=1.2) is None
    old = phone.ask("INVITE", branch="z9hG4bK-r2", to_tag=answer.tag, cseq=1)
    assert old.code == 500


def test_options_tells_what_is_allowed(phone):
    answer = phone.ask("OPTIONS")
    assert answer.code == 200
    assert answer.headers["Allow"] == "INVITE, ACK, BYE, CANCEL, OPTIONS"
    assert answer.headers["Accept"] == "application/sdp"


@pytest.mark.parametrize(("method", "code"), [("REGISTER", 405), ("INFO", 405), ("DANCE", 501)])
def test_other_methods_are_refused_with_allow(phone, method, code):
    answer = phone.ask(method)
    assert answer.code == code
    assert answer.headers["Allow"] == "INVITE, ACK, BYE, CANCEL, OPTIONS"


def test_an_extension_that_is_required_is_refused_by_name(phone):
    answer = phone.ask("INVITE", extra=("Require: 100rel",))
    assert (answer.code, answer.headers["Unsupported"]) == (420, "100rel")


def test_an_offer_without_a_known_codec_is_488(phone):
    assert phone.ask("INVITE", body=SDP.format(18)).code == 488


def test_a_tel_uri_is_416(phone):
    assert phone.ask("INVITE", uri="tel:+4930123").code == 416


@pytest.mark.parametrize(
    "change",
    [
        ("CSeq: 1 INVITE", "CSeq: one INVITE"),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE"),
        ("Content-Length: 0", "Content-Length: 500"),
        ("Content-Length: 0", "Content-Length: -1"),
        ("Max-Forwards: 70", "this is no header"),
        ("From: <sip:test@127.0.0.1>;tag=abc", "From: <sip:test@127.0.0.1>;self=1"),
        ("Contact: <sip:test", "X-Contact: <sip:test"),
        ("INVITE sip:100@", "INVITE sip:%%%@"),
    ],
)
def test_a_malformed_request_is_400(phone, change):
    phone.send(phone.request("INVITE").replace(*change))
    assert phone.read_raw().startswith(b"SIP/2.0 400 Bad Request\r\n")
    assert counters(phone)["malformed"] == 1


def test_another_version_is_505(phone):
    phone.send(phone.request("INVITE").replace(" SIP/2.0\r\n", " SIP/7.0\r\n", 1))
    assert phone.read().code == 505


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\x00garbage",
        b"INVITE sip:a@b SIP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"A" * 60_000,
        b"SIP/2.0 x y\r\n\r\n",
    ],
    ids=["bytes", "no-headers", "http", "huge", "broken-answer"],
)
def test_garbage_is_dropped_and_counted_and_calls_go_on(phone, garbage):
    phone.send(garbage)
    establish(phone)
    found = counters(phone)
    assert found.get("dropped_malformed", 0) + found.get("dropped_too_large", 0) == 1


def test_compact_folded_and_spaced_headers_are_understood(phone):
    text = (
        phone.request("INVITE")
        .replace("Call-ID: call-1", "i : call-\r\n 1")
        .replace("From:", "f:")
        .replace("Via:", "v:")
    )
    phone.send(text)
    assert phone.final().code == 200


def test_keepalives_are_not_answered(phone):
    phone.send(b"\r\n\r\n")
    assert phone.ask("OPTIONS").code == 200
    assert counters(phone)["keepalive"] == 1


def test_health_knows_its_path(phone):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{phone.target + 1}/other", timeout=5)


def test_a_stopped_ivr_ends_its_calls(start, free_port):
    from tests.callcenter.conftest import Phone

    port = free_port()
    ivr, phone = start("ivr.py", "--port", port), Phone(port)
    answer = establish(phone)
    assert ivr.end() == 0
    bye = phone.read()
    assert (bye.method, bye.headers["Call-ID"]) == ("BYE", "call-1")
    assert bye.tag == "abc"
    assert f"tag={answer.tag}" in bye.headers["From"]
    phone.close()
