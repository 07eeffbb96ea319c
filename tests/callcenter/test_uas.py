"""Timers of the answering end on a clock of the test's own: what takes 32 seconds for real."""

import pytest
from uas import CallState, Datagram, Ended, Offered, Uas

SOURCE = ("127.0.0.1", 4000)


def invite(branch="z9hG4bK-1", call="c1", rport=";rport"):
    return (
        f"INVITE sip:100@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:4999;branch={branch}{rport}\r\n"
        f"From: <sip:t@127.0.0.1>;tag=f\r\nTo: <sip:100@127.0.0.1>\r\nCall-ID: {call}\r\nCSeq: 1 INVITE\r\n"
        "Contact: <sip:t@127.0.0.1:4000>\r\n\r\n"
    ).encode()


def codes(out):
    return [int(one.data.split()[1]) for one in out if isinstance(one, Datagram) and one.data.startswith(b"SIP/2.0")]


def answered(uas):
    uas.receive(invite(), SOURCE, 0.0)
    call = next(one.call for one in uas.take() if isinstance(one, Offered))
    uas.answer(call, 0.0)
    uas.take()
    return call


def turn_until(uas, end):
    """Tick whenever it wants; return (time, what came out) of each tick."""
    seen = []
    while (at := uas.wake_at()) is not None and at <= end:
        uas.tick(at)
        seen.append((at, uas.take()))
    return seen


@pytest.fixture
def uas():
    return Uas("127.0.0.1", 5060)


def test_the_200_is_repeated_at_t1_doubling_to_t2(uas):
    answered(uas)
    times = [at for at, out in turn_until(uas, 31.9) if codes(out) == [200]]
    assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]


def test_a_200_nobody_acknowledges_ends_the_call_by_bye_after_64_t1(uas):
    call = answered(uas)
    at, out = next((at, out) for at, out in turn_until(uas, 40) if Ended(call, "no-ack") in out)
    assert at == 32.0
    assert any(one.data.startswith(b"BYE sip:t@127.0.0.1:4000 ") for one in out if isinstance(one, Datagram))
    assert call.state is CallState.ENDED


def test_nothing_is_kept_in_the_end(uas):
    answered(uas)
    turn_until(uas, 1000)
    assert uas.wake_at() is None
    assert [uas.calls, uas._invites, uas._answers, uas._merged, uas._byes] == [{}] * 5


def test_a_refusal_is_repeated_until_its_ack(uas):
    uas.receive(invite(), SOURCE, 0.0)
    call = next(one.call for one in uas.take() if isinstance(one, Offered))
    uas.reject(call, 480, 0.0)
    assert Ended(call, "rejected") in uas.take()
    assert codes(turn_until(uas, 0.5)[0][1]) == [480]
    ack = invite().replace(b"INVITE", b"ACK").replace(b"Contact", b"X")
    uas.receive(ack, SOURCE, 0.6)
    assert not [out for _, out in turn_until(uas, 100) if out]


@pytest.mark.parametrize(("rport", "port"), [(";rport", 4000), ("", 4999)])
def test_an_answer_goes_where_the_via_says(uas, rport, port):
    uas.receive(invite(rport=rport), SOURCE, 0.0)
    assert uas.take()[0].address == ("127.0.0.1", port)


def test_requests_of_an_old_kind_without_magic_branch_are_told_apart(uas):
    for call in ("c1", "c2", "c2"):
        uas.receive(invite(branch="1", call=call), SOURCE, 0.0)
    assert len(uas.calls) == 2
    assert uas.counters["retransmitted"] == 1


def test_a_late_event_for_an_ended_call_changes_nothing(uas):
    call = answered(uas)
    uas.hang_up(call, 1.0)
    uas.take()
    uas.answer(call, 1.0)
    uas.ring(call)
    uas.reject(call, 480, 1.0)
    uas.hang_up(call, 1.0)
    assert uas.take() == []
