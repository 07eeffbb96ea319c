"""A request of an operator that reaches a Server more than once, on more than one way, is done once."""

from __future__ import annotations

import msgspec
from server_bed import Bed, up

from ha.model.messages import Ask, CopyState, Relinquish, Told
from ha.model.names import Agent
from ha.model.plan import Process, Tenant
from ha.model.status import Role, RunStatus
from ha.model.status import State as Seen

SWITCHOVER = msgspec.json.encode({"verb": "switchover", "args": {"tenant": "acme"}, "ttl_ms": 2000})


def running() -> Bed:
    process = Process(name="acd", command=("/bin/true",), run_status=RunStatus.WARM, on_failure="failover")
    bed = up((Tenant(name="acme", serial=1, processes=(process,)),))
    bed.obey("acme/acd.1")
    bed.tell("b1", CopyState("acme/acd.1", Seen.READY, (1, 1, 1), 1, Role.STANDBY, pid=5))
    bed.peer()
    bed.beat("b1")
    bed.beat("b2")
    bed.pass_time(60)
    return bed


def told(bed: Bed) -> list[tuple[str, bool]]:
    return [(send.node, send.body.final) for send in bed.sent if isinstance(send.body, Told)]


def test_a_request_that_takes_time_is_accepted_at_once() -> None:
    bed = running()
    bed.hear(Agent.MONITOR, "a1", Ask("s1", SWITCHOVER, True))
    assert told(bed) == [("a1", False)]


def test_a_request_that_comes_again_on_another_way_is_done_once_and_its_end_told_on_both() -> None:
    bed = running()
    bed.hear(Agent.MONITOR, "a1", Ask("s1", SWITCHOVER, True))
    for _ in range(2):
        bed.hear(Agent.SERVER, "a2", Ask("s1", SWITCHOVER, True, forwarded=True), request=4)
    assert told(bed) == [("a1", False), ("a2", False), ("a2", False)]
    assert len({(send.node, send.body.fencing) for send in bed.sent if isinstance(send.body, Relinquish)}) == 1
    bed.pass_time(2_100)  # nobody takes the tenant: the time of the request is over
    assert sorted(told(bed)[3:]) == [("a1", True), ("a2", True)]
