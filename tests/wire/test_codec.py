from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha.core.machine import Received
from ha.model import messages as m
from ha.model.errors import WireError
from ha.model.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES
from ha.model.names import Agent
from ha.wire.codec import Codec, Seen, limit_of
from ha.wire.routes import TABLE, Channel, Direction, Route, identity, route, topic

VOTE = Route(Channel.VOTE, Direction.ASK)
STATE = Route(Channel.STATE, Direction.PUBLISH)
PACK = msgspec.msgpack.encode
PROBE = m.VoteProbe(7, ("acme",))


def codec(role: Agent = Agent.WITNESS, node: str = "w1", system: str = "demo") -> Codec:
    return Codec(system=system, role=role, node=node, incarnation=5, nodes=("a1", "b1", "w1"))


def said(body: m.Message = PROBE, role: Agent = Agent.SERVER, **more: object) -> list[bytes]:
    return codec(role, "a1").encode(body, stream="vote", now=99, **more)  # type: ignore[arg-type]


def header(**changes: object) -> bytes:
    base = m.Header(1, "VoteProbe", "demo", "a1", "server", 5, 0, "vote", 1, 99, 0)
    return PACK(msgspec.structs.replace(base, **changes))


def refusal(frames: list[bytes], sender: bytes = b"server/a1", on: Route = VOTE) -> str:
    ours = codec()
    with pytest.raises(WireError) as caught:
        ours.decode(frames, on, sender)
    assert ours.refused == {caught.value.reason: 1}
    return caught.value.reason


def test_what_is_said_is_what_is_heard() -> None:
    got = codec().decode(said(request=3), VOTE, b"server/a1")
    assert got == Received(Agent.SERVER, "a1", 5, 1, 3, PROBE)


def test_sequence_grows_by_one_per_stream() -> None:
    ours = codec(Agent.SERVER, "a1")
    seqs = [
        msgspec.msgpack.decode(ours.encode(PROBE, stream=stream, now=1)[0])[8] for stream in ("vote", "vote", "beat")
    ]
    assert seqs == [1, 2, 1]


def test_trailing_fields_of_a_newer_minor_version_are_ignored() -> None:
    newer_header = PACK([*msgspec.msgpack.decode(header()), "later", {"more": 1}])
    newer_body = PACK([7, ["acme"], "later", [1, 2]])
    assert codec().decode([newer_header, newer_body], VOTE, b"server/a1").body == PROBE


def test_a_field_that_an_older_version_does_not_send_has_its_default() -> None:
    older = PACK([7, 1, "digest", 900, "rules"])
    got = codec().decode([header(type="VoteRenew"), older], VOTE, b"server/a1")
    assert got.body == m.VoteRenew(7, 1, "digest", 900, "rules")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "frame-count"),
        ([header()], "frame-count"),
        ([header(), PACK(PROBE), b""], "frame-count"),
        ([b"", PACK(PROBE)], "bad-header"),
        ([b"\xc1", PACK(PROBE)], "bad-header"),
        ([PACK([1, 2, 3]), PACK(PROBE)], "bad-header"),
        ([header(role="boss"), PACK(PROBE)], "bad-header"),
        ([header(seq=0), PACK(PROBE)], "bad-header"),
        ([header(request=-1), PACK(PROBE)], "bad-header"),
        ([header(major=2), PACK(PROBE)], "unknown-major"),
        ([PACK([2, {"another": "layout"}]), PACK(PROBE)], "unknown-major"),
        ([header(system="other"), PACK(PROBE)], "other-system"),
        ([header(node="c9"), PACK(PROBE)], "unknown-node"),
        ([header(node="b1"), PACK(PROBE)], "not-the-sender"),
        ([header(role="spawner"), PACK(PROBE)], "not-the-sender"),
        ([header(type="Header"), PACK(PROBE)], "unknown-type"),
        ([header(type="Grant"), PACK(PROBE)], "not-here"),
        ([header(), b""], "bad-body"),
        ([header(), PACK({"round": 7, "leases": []})], "bad-body"),
        ([header(), PACK([7, "acme"])], "bad-body"),
        ([header(), PACK(PROBE) + b"\x00"], "bad-body"),
        ([header(), b"\x92\x07\xdd\xff\xff\xff\xff"], "bad-body"),
        ([header(), PACK(m.VoteProbe(7, ("x" * MAX_FRAME_BYTES,)))], "oversize"),
        ([header(stream="x" * 2_000), PACK(PROBE)], "oversize"),
    ],
)
def test_what_does_not_pass_is_refused_with_its_reason(frames: list[bytes], reason: str) -> None:
    assert refusal(frames) == reason


def test_depth_is_refused_where_nothing_is_typed() -> None:
    deep = b"\x91" * 60_000 + b"\x90"
    assert refusal([header(), b"\x93\x07\x91\xa4acme" + deep]) == "bad-body"


def test_a_topic_that_is_not_the_senders_is_refused() -> None:
    beat = codec(Agent.MONITOR, "a1").encode(m.StateBeat(1, "d"), stream="state", now=1)
    server = codec(Agent.SERVER, "b1")
    sender = (Agent.MONITOR, "a1")
    assert server.decode_published([topic(Channel.STATE, "a1"), *beat], STATE, sender).node == "a1"
    for frames in ([b"st/a11/", *beat], [b"bt/a1/", *beat], beat):
        with pytest.raises(WireError):
            server.decode_published(frames, STATE, sender)
    assert server.refused == {"not-the-sender": 2, "frame-count": 1}


def test_only_what_grows_with_the_plan_may_be_as_large_as_a_chunk() -> None:
    assert limit_of(m.PutPlan) == MAX_CHUNK_BYTES
    assert limit_of(m.VoteClaim) == MAX_FRAME_BYTES
    large = m.PutPlan("digest", b"x" * (MAX_FRAME_BYTES + 1))
    on = Route(Channel.COMMAND, Direction.ASK)
    frames = codec(Agent.SERVER, "a1").encode(large, stream="command", now=1)
    assert codec(Agent.SPAWNER, "a1").decode(frames, on, b"server/a1").body == large


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(WireError, match="cannot send VoteProbe"):
        said(m.VoteProbe(1, ("x" * MAX_FRAME_BYTES,)))


def test_every_message_stands_in_the_table_of_routes() -> None:
    assert {body for row in TABLE for body in row[4]} == set(m.TYPES.values())


def test_a_body_has_one_way_from_one_agent_to_another() -> None:
    ways = [(row[0], row[1], body) for row in TABLE for body in row[4] if row[3] is not Direction.PUBLISH]
    assert len(ways) == len(set(ways))
    assert route(Agent.SERVER, Agent.MONITOR, m.Told) == Route(Channel.CONTROL, Direction.ANSWER)
    assert route(Agent.WITNESS, Agent.MONITOR, m.Told) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4), st.binary(max_size=40))
def test_random_frames_raise_nothing_but_a_wire_error(frames: list[bytes], sender: bytes) -> None:
    with pytest.raises(WireError):
        codec().decode(frames, VOTE, sender)


GOOD = [
    (Agent.SERVER, VOTE, Agent.WITNESS, m.VoteClaim(1, (m.LeaseRef("acme", 3),), 900, "rules")),
    (Agent.SERVER, VOTE, Agent.WITNESS, m.VoteRelease(1, (m.LeaseRelease("acme", 3, "b1"),))),
    (Agent.WITNESS, VOTE, Agent.WITNESS, m.VoterHello(3, True)),
    (Agent.SERVER, Route(Channel.COMMAND, Direction.ASK), Agent.SPAWNER, m.Orders((1, 2, 3), ())),
]


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(GOOD), st.integers(0, 1), st.integers(0, 10_000), st.integers(0, 255),
    st.sampled_from(["flip", "cut", "insert", "double"]),
)  # fmt: skip
def test_mangled_frames_are_read_or_refused(case: tuple[object, ...], which: int, at: int, byte: int, how: str) -> None:
    sender, on, receiver, body = case
    assert isinstance(sender, Agent)
    assert isinstance(on, Route)
    assert isinstance(receiver, Agent)
    assert isinstance(body, m.Message)
    frames = codec(sender, "a1").encode(body, stream="x", now=1)
    data = bytearray(frames[which])
    at %= len(data)
    match how:
        case "flip":
            data[at] ^= byte
        case "cut":
            del data[at:]
        case "insert":
            data.insert(at, byte)
        case "double":
            data.extend(bytes(data))
    frames[which] = bytes(data)
    try:
        got = codec(receiver, "w1").decode(frames, on, identity(sender, "a1"))
    except WireError:
        return
    assert isinstance(got.body, m.Message)


def test_a_message_that_came_over_two_links_counts_once() -> None:
    seen = Seen()

    def came(seq: int, incarnation: int = 1, node: str = "a1") -> bool:
        return seen.fresh(Received(Agent.SERVER, node, incarnation, seq, 0, PROBE))

    assert [came(1), came(1), came(3), came(2), came(2), came(3)] == [True, False, True, True, False, False]
    assert came(1, node="b1")
    assert came(1, incarnation=2)
    assert came(1_000, incarnation=2)
    assert not came(936, incarnation=2)  # later than the window
    assert came(937, incarnation=2)
    assert not came(937, incarnation=2)


@given(st.lists(st.integers(1, 200), max_size=100))
def test_no_sequence_counts_twice_in_any_order(seqs: list[int]) -> None:
    seen = Seen()
    fresh = [seq for seq in seqs if seen.fresh(Received(Agent.SERVER, "a1", 1, seq, 0, PROBE))]
    assert len(fresh) == len(set(fresh))
