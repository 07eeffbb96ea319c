"""The Server's decisions about leases: claims, releases, moves inside a side, holds, operators' requests."""

from __future__ import annotations

import msgspec
from server_bed import Bed, up

from ha.core import server
from ha.core.machine import Persist, Received, Send
from ha.core.server import step
from ha.core.server.complaints import Complaint
from ha.model import limits
from ha.model.errors import Finding
from ha.model.messages import (
    Ask,
    CopyState,
    LeaseRef,
    PeerOffer,
    PeerShare,
    Register,
    Relinquish,
    Relinquished,
    TenantHeld,
    Told,
    VoteRelease,
)
from ha.model.names import Agent
from ha.model.plan import Process, Tenant
from ha.model.status import Exit, NodeState, OnDeath, Role, RunStatus, Wanted
from ha.model.status import State as Seen
from ha.model.timing import MS


def tenant(status: RunStatus = RunStatus.WARM, **more: object) -> Tenant:
    on_failure = "failover" if status.standby_runs else "restart"
    process = Process(name="acd", command=("/bin/true",), run_status=status, on_failure=on_failure)  # type: ignore[arg-type]
    return Tenant(name="acme", serial=1, processes=(process,), **more)  # type: ignore[arg-type]


def standby_on_b(bed: Bed, state: Seen = Seen.READY) -> None:
    bed.tell("b1", CopyState("acme/acd.1", state, (1, 1, 1), 1, Role.STANDBY, pid=5))


def running(status: RunStatus = RunStatus.WARM, **more: object) -> Bed:
    bed = up((tenant(status, **more),))
    bed.obey("acme/acd.1")
    if status.standby_runs:
        standby_on_b(bed)
    keep_alive(bed, 60)
    return bed


def keep_alive(bed: Bed, ms: int) -> None:
    """Time passes; the other side beats, and its copies stay heard."""
    for _ in range(max(1, ms // 60)):
        bed.peer()
        bed.beat("b1")
        bed.beat("b2")
        bed.pass_time(60)


def node_of(bed: Bed) -> str:
    return next(node for node, orders in bed.orders.items() if "acme/acd.1" in orders)


def releases(bed: Bed) -> list[str]:
    bodies = [send.body for send in bed.sent if isinstance(send.body, VoteRelease)]
    return [f"{one.name}>{one.heir}" for body in bodies for one in body.releases if not one.withdrawn]


def ask(bed: Bed, verb: str, *, operator: bool = True, id_: str = "r1", **args: object) -> dict[str, object] | None:
    """Return the answer, None while there is none."""
    body = msgspec.json.encode({"verb": verb, "args": args, "ttl_ms": 2000})
    before = len(bed.sent)
    bed.hear(Agent.MONITOR, "a1", Ask(id_, body, operator))
    answers = [send.body for send in bed.sent[before:] if isinstance(send.body, Told) and send.body.final]
    return msgspec.json.decode(answers[0].body) if answers else None


def test_a_seated_server_claims_its_home_tenant_and_starts_it_with_the_right() -> None:
    bed = running()
    order = bed.orders[node_of(bed)]["acme/acd.1"]
    assert (order.wanted, order.role, order.fencing >> 16) == (Wanted.UP, Role.ACTIVE, 1)
    bed.pull(node_of(bed))
    assert [right.fencing for right in bed.grants[node_of(bed)].rights or ()] == [order.fencing]
    assert bed.journal["held/acme"]["epoch"] == 1  # type: ignore[index]


def test_a_tenant_at_home_on_the_other_side_is_left_to_it_for_startup_wait() -> None:
    bed = up((tenant(home="b"),))
    keep_alive(bed, 3000)
    assert not bed.state.runs["acme"].epoch
    keep_alive(bed, bed.system.timing.startup_wait_ms)
    assert bed.state.runs["acme"].epoch


def test_a_live_holder_is_never_asked_away() -> None:
    bed = up((tenant(home="b"),))
    for _ in range(600):
        bed.peer(held=(TenantHeld("acme", 3, "held"),))
        bed.pass_time(60)
    assert not bed.state.runs["acme"].epoch


def test_a_dead_copy_with_a_ready_standby_moves_its_tenant_only_when_the_node_let_go() -> None:
    bed = running()
    node = node_of(bed)
    assert bed.orders[node]["acme/acd.1"].on_death is OnDeath.REPORT
    dead = CopyState("acme/acd.1", Seen.DOWN, bed.orders[node]["acme/acd.1"].generation, 1, exit=Exit(signal="SIGKILL"))
    bed.pull(node)
    bed.tell(node, dead)
    assert [(at, ask.polite_ms) for at, ask in bed.asked] == [(node, 0)]
    assert releases(bed) == [], "the monitor saw it die is no word of the Spawner"
    bed.word(node, "acme")
    assert set(releases(bed)) == {"acme>b1"}
    offers = [send for send in bed.sent if isinstance(send.body, PeerOffer)]
    assert [(o.node, o.body) for o in offers] == [("b1", PeerOffer((LeaseRef("acme", 1),)))]
    assert "held/acme" not in bed.journal


def test_the_release_is_journalled_before_it_is_sent() -> None:
    bed = running()
    node = node_of(bed)
    bed.pull(node)
    bed.tell(node, CopyState("acme/acd.1", Seen.DOWN, (1, 1, 1), 1, exit=Exit(code=1)))
    word = Received(Agent.SPAWNER, node, 7, 0, 0, Relinquished("acme", 1 << 16))
    effects = step(bed.state, word, bed.now).effects
    journalled = next(i for i, e in enumerate(effects) if isinstance(e, Persist) and e.key == "held/acme")
    sent = next(i for i, e in enumerate(effects) if isinstance(e, Send) and isinstance(e.body, VoteRelease))
    assert journalled < sent


def test_without_a_ready_standby_the_node_restarts_the_copy() -> None:
    bed = up((tenant(),))
    bed.obey("acme/acd.1")
    standby_on_b(bed, Seen.STARTING)
    keep_alive(bed, 60)
    assert bed.orders[node_of(bed)]["acme/acd.1"].on_death is OnDeath.RESTART


def test_a_hold_keeps_a_dead_copy_on_its_side() -> None:
    bed = running()
    assert ask(bed, "hold", tenant="acme") == {"exit": 0, "error": None, "result": None}
    keep_alive(bed, 60)
    node = node_of(bed)
    assert bed.orders[node]["acme/acd.1"].on_death is OnDeath.RESTART
    bed.tell(node, CopyState("acme/acd.1", Seen.DOWN, (1, 1, 1), 1, exit=Exit(code=1)))
    keep_alive(bed, 600)
    assert releases(bed) == []


def test_a_lost_node_is_waited_out_before_its_cold_copy_starts_elsewhere_at_a_higher_number() -> None:
    bed = running(RunStatus.COLD)
    node = node_of(bed)
    other = "a2" if node == "a1" else "a1"
    fencing = bed.orders[node]["acme/acd.1"].fencing
    bed.pull(node)
    granted = bed.now
    bed.quiet.add(node)
    while "acme/acd.1" not in bed.orders[other]:
        keep_alive(bed, 60)
        assert bed.now - granted < 3_000 * MS
    assert bed.now - granted >= (bed.system.timing.freeze_after_ms + bed.system.timing.stall_ms - 150) * MS
    assert bed.state.nodes[node].state is NodeState.DEAD
    assert bed.orders[other]["acme/acd.1"].fencing == fencing + 1
    assert releases(bed) == []


def test_a_load_sharing_copy_of_a_silent_node_is_placed_elsewhere_only_when_the_node_is_given_up() -> None:
    bed = running(RunStatus.LOAD_SHARING)
    node = node_of(bed)
    other = "a2" if node == "a1" else "a1"
    bed.quiet.add(node)
    keep_alive(bed, limits.NODE_GIVEN_UP_MS - 200)
    assert bed.state.nodes[node].state is NodeState.DEAD
    assert "acme/acd.1" not in bed.orders[other]
    assert bed.state.nodes[node].orders["acme/acd.1"].wanted is Wanted.UP
    keep_alive(bed, 400)
    assert bed.orders[other]["acme/acd.1"].wanted is Wanted.UP


def test_a_started_server_renews_from_its_journal_and_moves_nothing_for_one_promise() -> None:
    old = running()
    journal = dict(old.journal)
    bed = Bed((tenant(),), journal)
    bed.voters = old.voters
    assert bed.state.runs["acme"].epoch == 1
    waiting = {node: view.granted["acme"] for node, view in bed.state.nodes.items()}
    promise = bed.system.timing.freeze_after_ms + bed.system.timing.stall_ms
    assert all(until >= bed.now + promise * MS for until in waiting.values())


def test_switchover_is_refused_with_the_reason_while_the_standby_is_not_ready() -> None:
    bed = up((tenant(),))
    bed.obey("acme/acd.1")
    standby_on_b(bed, Seen.STARTING)
    keep_alive(bed, 60)
    answer = ask(bed, "switchover", tenant="acme")
    assert answer is not None
    assert answer["exit"] == 5
    assert "acme/acd on side b is not ready" in str(answer["error"])


def test_switchover_is_polite_and_answered_when_the_other_side_is_active() -> None:
    bed = running()
    node = node_of(bed)
    bed.pull(node)
    assert ask(bed, "switchover", tenant="acme", id_="s1") is None
    assert isinstance(bed.asked[-1][1], Relinquish)
    assert bed.asked[-1][1].polite_ms > 0
    bed.word(node, "acme")
    before = len(bed.sent)
    bed.peer(held=(TenantHeld("acme", 2, "held"),))
    bed.tell("b1", CopyState("acme/acd.1", Seen.READY, (1, 1, 2), 1, Role.ACTIVE, 2 << 16, 5))
    told = [send.body for send in bed.sent[before:] if isinstance(send.body, Told)]
    assert msgspec.json.decode(told[0].body)["exit"] == 0
    assert ask(bed, "switchover", tenant="acme", id_="s1") is not None, "asked again, answered the same"


def test_a_request_that_does_not_come_true_in_time_is_unknown_and_can_be_asked_for() -> None:
    bed = running()
    bed.pull(node_of(bed))
    before = len(bed.sent)
    ask(bed, "switchover", tenant="acme", id_="s2")
    keep_alive(bed, 2_400)
    told = [send.body for send in bed.sent[before:] if isinstance(send.body, Told) and send.body.final]
    assert msgspec.json.decode(told[0].body)["exit"] == 124
    later = ask(bed, "request", operator=False, id="s2", id_="q")
    assert later is not None
    assert later["result"]["state"] == "unknown"  # type: ignore[index]


def test_requests_are_refused_by_exit_code() -> None:
    bed = running()
    assert ask(bed, "stop", operator=False, target="acme")["exit"] == 4  # type: ignore[index]
    assert ask(bed, "stop", target="nobody", id_="r2")["exit"] == 3  # type: ignore[index]
    assert ask(bed, "stop", target="acme/nobody", id_="r3")["exit"] == 3  # type: ignore[index]
    assert ask(bed, "dance", id_="r4")["exit"] == 2  # type: ignore[index]
    assert ask(bed, "switchover", tenant="acme", to="a", id_="r5")["exit"] == 5  # type: ignore[index]


def test_a_stopped_tenant_gives_its_lease_back_when_nothing_runs() -> None:
    bed = running()
    node = node_of(bed)
    bed.pull(node)
    ask(bed, "stop", target="acme")
    keep_alive(bed, 120)
    assert bed.orders[node]["acme/acd.1"].wanted is Wanted.DOWN
    assert releases(bed) == []
    bed.obey("acme/acd.1")
    keep_alive(bed, 60)
    bed.word(node, "acme")
    assert set(releases(bed)) == {"acme>"}
    keep_alive(bed, 3_000)
    assert not bed.state.runs["acme"].epoch, "nobody claims what should not run"


def test_too_many_unplanned_moves_leave_the_tenant_where_it_is() -> None:
    bed = running()
    run = bed.state.runs["acme"]
    run.moves, run.moves_since = 3, bed.now
    bed.state.touch("acme")
    keep_alive(bed, 60)
    assert bed.orders[node_of(bed)]["acme/acd.1"].on_death is OnDeath.RESTART


def test_intents_survive_a_restart_and_spread_to_the_other_servers() -> None:
    bed = running()
    ask(bed, "hold", tenant="acme")
    shares = [send.node for send in bed.sent if type(send.body).__name__ == "PeerShare"]
    assert {"a2", "b1"} <= set(shares)
    again = Bed((tenant(),), dict(bed.journal))
    assert again.state.registers["hold/acme"].value == "1"


def test_a_removed_tenant_is_given_back_when_nothing_of_it_runs_and_is_forgotten() -> None:
    bed = running(RunStatus.COLD)
    node = node_of(bed)
    bed.feed(server.Directory({}))
    assert bed.orders[node]["acme/acd.1"].wanted is Wanted.DOWN
    keep_alive(bed, 300)
    assert releases(bed) == []  # it still runs
    bed.obey("acme/acd.1")
    while bed.asked and not releases(bed):
        bed.word(node, "acme")
    assert set(releases(bed)) == {"acme>"}
    assert "held/acme" not in bed.journal
    keep_alive(bed, 300)
    assert "acme" not in bed.state.runs
    bed.feed(server.Directory(dict(bed.files)))
    keep_alive(bed, 2_000)
    assert bed.journal["held/acme"]["epoch"] == 2  # type: ignore[index]


def test_a_server_that_ends_gives_back_a_removed_tenant_too() -> None:
    bed = running(RunStatus.COLD)
    bed.feed(server.Directory({}))
    bed.feed(server.Stopping())
    assert [asked.tenant for _, asked in bed.asked] == ["acme"]


def test_a_drain_does_not_stop_what_nobody_can_take() -> None:
    bed = running()
    standby_on_b(bed, Seen.STARTING)
    node = node_of(bed)
    bed.pull(node)
    ask(bed, "drain", target="a")
    keep_alive(bed, 300)
    assert bed.orders[node]["acme/acd.1"].wanted is Wanted.UP
    assert releases(bed) == []
    standby_on_b(bed)
    keep_alive(bed, 120)
    bed.word(node, "acme")
    assert set(releases(bed)) == {"acme>b1"}
    keep_alive(bed, 120)
    assert bed.orders[node]["acme/acd.1"].wanted is Wanted.DOWN


def test_what_another_directory_complains_of_is_shown_here() -> None:
    bed = running()
    bed.feed(server.Checked("directory", (), (Finding(file="x.toml", line=2, column=1, code="c", text="own"),)))
    said = Complaint((Finding(file="y.toml", line=3, column=1, code="c", text="other"),), "2 files are gone from b1")
    value = msgspec.json.encode(said).decode()
    bed.hear(Agent.SERVER, "b1", PeerShare((Register("dir/b1", value, 99, "b1"),), ()))
    result = ask(bed, "status")["result"]  # type: ignore[index]
    assert [error["text"] for error in result["plan"]["errors"]] == ["own", "other"]  # type: ignore[index]
    helps = [alarm["help"] for alarm in result["alarms"] if alarm["text"] == said.waits]  # type: ignore[index]
    assert helps == ["hactl --node b1 diff; hactl --node b1 apply --confirm"]
    bed.hear(Agent.SERVER, "b1", PeerShare((Register("dir/b1", "", 100, "b1"),), ()))
    assert len(ask(bed, "status", id_="r2")["result"]["plan"]["errors"]) == 1  # type: ignore[index]
