from __future__ import annotations

import socket as stdsocket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ha.core.machine import Received
from ha.model import messages as m
from ha.model.errors import HaError
from ha.model.names import Agent
from ha.model.plan import Node, Ports, System
from ha.wire.codec import Codec
from ha.wire.routes import Channel
from ha.wire.sockets import Port, Sockets, bind_endpoints, connect_endpoints
from ha.wire.switchboard import Switchboard

PROBE = m.VoteProbe(7, ("acme",))
NODES = {
    "a1": Node(name="a1", addresses=("127.8.0.11", "127.8.1.11"), side="a"),
    "b1": Node(name="b1", addresses=("127.8.0.21", "127.8.1.21"), side="b"),
}


def clock() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def free_ports() -> Ports:
    """Ports that are free on every loopback address as far as one of them tells."""
    held = [stdsocket.create_server(("127.8.0.11", 0)) for _ in range(5)]
    numbers = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return Ports(**dict(zip(("state", "command", "vote", "control", "beat"), numbers, strict=True)))


def system() -> System:
    return System(
        name="demo",
        run_dir="/x",
        data_dir="/x",
        tenants_dir="/x",
        node_file="",
        file="",
        nodes=NODES,
        ports=free_ports(),
    )


@contextmanager
def agent(on: System, role: Agent, node: str, incarnation: int = 1, silence_ms: int = 100) -> Iterator[Switchboard]:
    codec = Codec(system="demo", role=role, node=node, incarnation=incarnation, nodes=NODES)
    sockets = Sockets(codec, clock, silence_ms=silence_ms)
    try:
        yield Switchboard(sockets, on, on.nodes[node])
    finally:
        sockets.close()


def receive(port: Port, within_s: float = 5.0) -> list[tuple[int, Received | None]]:
    """Return what came in, as (link, message), as soon as something did."""
    poller = zmq.Poller()
    for socket in port.sockets:
        poller.register(socket, zmq.POLLIN)
    got: list[tuple[int, Received | None]] = []
    ready = dict(poller.poll(int(within_s * 1000)))
    for index, socket in enumerate(port.sockets):
        if socket in ready:
            got.append((index, port.accept(index, socket.recv_multipart(zmq.DONTWAIT))))
    return got


def until(claim: Callable[[], bool], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.002)


def test_a_question_goes_over_both_addresses_counts_once_and_is_answered_over_both() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness, agent(on, Agent.SERVER, "b1") as server:
        vote = witness.listen(Channel.VOTE)
        dealer = server.ask(Channel.VOTE, Agent.WITNESS, "a1")
        server.await_connections(Channel.VOTE, 5_000)
        assert server.send(Agent.WITNESS, "a1", PROBE, now=1, request=4)
        heard: list[tuple[int, Received | None]] = []
        until(lambda: len(heard.extend(receive(vote, 0.01)) or heard) == 2)
        assert {link for link, _ in heard} == {0, 1}
        (message,) = [one for _, one in heard if one is not None]
        assert (message.node, message.request, message.body) == ("b1", 4, PROBE)
        witness.send(Agent.SERVER, "b1", m.VoteReply(7, "probe"), now=2, request=4)
        answers: list[tuple[int, Received | None]] = []
        until(lambda: len(answers.extend(receive(dealer, 0.01)) or answers) == 2)
        assert [one.body for _, one in answers if one is not None] == [m.VoteReply(7, "probe")]


def test_on_loopback_a_link_starts_from_our_own_address_of_that_index() -> None:
    assert connect_endpoints(NODES["b1"], NODES["a1"], 7)[1] == "tcp://127.8.1.21:0;127.8.1.11:7"
    far = Node(name="x", addresses=("10.0.0.1",))
    assert connect_endpoints(NODES["b1"], far, 7) == ("tcp://10.0.0.1:7",)
    assert bind_endpoints(Node(name="y", addresses=("::1",)), 7) == ("tcp://[::1]:7",)


def test_nothing_is_queued_to_a_peer_that_is_not_there() -> None:
    on = system()
    with agent(on, Agent.SERVER, "b1") as server:
        server.ask(Channel.VOTE, Agent.WITNESS, "a1")
        assert not server.send(Agent.WITNESS, "a1", PROBE, now=1)
        with agent(on, Agent.WITNESS, "a1") as witness:
            vote = witness.listen(Channel.VOTE)
            server.await_connections(Channel.VOTE, 5_000)
            assert server.send(Agent.WITNESS, "a1", m.VoteProbe(8, ()), now=2)
            ((_, message), *_) = receive(vote)
            assert message is not None
            assert message.body == m.VoteProbe(8, ())
        assert server.sockets.drops == {"vote:not-connected": 1}


def test_an_answer_to_somebody_who_never_asked_is_a_counted_drop() -> None:
    on = system()
    with agent(on, Agent.SERVER, "a1") as server:
        server.listen(Channel.CONTROL)
        assert not server.send(Agent.MONITOR, "b1", m.SnapshotRequest(), now=1)
        assert not server.send(Agent.WITNESS, "b1", PROBE, now=1)
        assert not server.send(Agent.MONITOR, "b1", PROBE, now=1)
        assert server.sockets.drops == {"control:unroutable": 1, "vote:no-port": 1, "VoteProbe:no-route": 1}


def test_a_restarted_peer_takes_over_its_identity() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness:
        vote = witness.listen(Channel.VOTE)
        with agent(on, Agent.SERVER, "b1") as old:
            old.ask(Channel.VOTE, Agent.WITNESS, "a1")
            old.await_connections(Channel.VOTE, 5_000)
            old.send(Agent.WITNESS, "a1", PROBE, now=1)
            assert receive(vote)
            with agent(on, Agent.SERVER, "b1", incarnation=2) as new:
                dealer = new.ask(Channel.VOTE, Agent.WITNESS, "a1")
                new.await_connections(Channel.VOTE, 5_000)
                new.send(Agent.WITNESS, "a1", PROBE, now=1)
                seen: list[int] = []
                until(lambda: 2 in (seen.extend(x.incarnation for _, x in receive(vote, 0.01) if x) or seen))
                witness.send(Agent.SERVER, "b1", m.VoteReply(7, "probe"), now=1)
                assert receive(dealer)


def test_a_false_claim_of_role_or_node_is_refused_by_the_router() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness, agent(on, Agent.SERVER, "b1") as liar:
        vote = witness.listen(Channel.VOTE)
        liar.ask(Channel.VOTE, Agent.WITNESS, "a1")
        liar.await_connections(Channel.VOTE, 5_000)
        liar.sockets.codec.node = "a1"
        liar.send(Agent.WITNESS, "a1", PROBE, now=1)
        assert receive(vote)[0][1] is None
        assert witness.sockets.codec.refused["not-the-sender"] >= 1


def test_a_link_that_owes_an_answer_too_long_is_connected_anew_and_works_again() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness, agent(on, Agent.SERVER, "b1", silence_ms=20) as server:
        vote = witness.listen(Channel.VOTE)
        dealer = server.ask(Channel.VOTE, Agent.WITNESS, "a1")
        server.await_connections(Channel.VOTE, 5_000)
        server.tend(clock())
        assert not server.sockets.refreshes
        server.send(Agent.WITNESS, "a1", PROBE, now=clock())
        until(lambda: bool(server.tend(clock()) or len(server.sockets.refreshes) == 2))
        server.await_connections(Channel.VOTE, 5_000)
        while any(link for link in receive(vote, 0.01)):
            pass
        server.send(Agent.WITNESS, "a1", m.VoteProbe(9, ()), now=clock())
        got: list[Received] = []
        until(lambda: bool(got.extend(one for _, one in receive(vote, 0.01) if one) or got))
        assert got[0].body == m.VoteProbe(9, ())
        witness.send(Agent.SERVER, "b1", m.VoteReply(9, "probe"), now=1)
        assert receive(dealer)


def test_a_broadcast_reaches_its_subscribers_and_a_silent_one_is_connected_anew() -> None:
    on = system()
    with agent(on, Agent.SERVER, "b1", silence_ms=20) as server:
        server.hear(Channel.STATE, Agent.MONITOR, ["a1"])
        (port,) = server.ports
        until(lambda: bool(server.tend(clock()) or server.sockets.refreshes))
        with agent(on, Agent.MONITOR, "a1") as monitor:
            monitor.broadcast(Channel.STATE)
            got: list[Received] = []

            def heard() -> bool:
                monitor.publish(m.StateBeat(3, "digest"), now=clock())
                server.tend(clock())
                got.extend(one for _, one in receive(port, 0.01) if one)
                return bool(got)

            until(heard)
            assert got[0].body == m.StateBeat(3, "digest")
            assert got[0].role is Agent.MONITOR


def test_a_second_bind_is_refused_by_name() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as first, agent(on, Agent.WITNESS, "a1") as second:
        first.listen(Channel.VOTE)
        with pytest.raises(HaError, match=r"cannot bind tcp://127\.8\.0\.11"):
            second.listen(Channel.VOTE)


def test_a_peer_that_announces_a_huge_frame_is_cut_off() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness:
        vote = witness.listen(Channel.VOTE)
        context = zmq.Context()
        rogue = context.socket(zmq.DEALER)
        rogue.setsockopt(zmq.LINGER, 0)
        rogue.setsockopt(zmq.IDENTITY, b"server/b1")
        rogue.connect(f"tcp://127.8.0.11:{on.ports.vote}")
        rogue.send_multipart([b"x" * 2_000_000, b""])
        assert receive(vote, 0.3) == []
        context.destroy(0)


def test_what_is_too_large_is_a_counted_drop_on_every_kind_of_port() -> None:
    on = system()
    large = m.EventsSaid(tuple(m.EventRecord("i" * 60_000, "a1", 1, 0.0, "k" * 9_000, "s") for _ in range(1)))
    with agent(on, Agent.MONITOR, "a1") as monitor, agent(on, Agent.SERVER, "a1") as server:
        monitor.broadcast(Channel.STATE)
        monitor.publish(large, now=1)
        monitor.ask(Channel.CONTROL, Agent.SERVER, "a1")
        assert not monitor.send(Agent.SERVER, "a1", large, now=1)
        server.listen(Channel.CONTROL)
        assert not server.send(Agent.MONITOR, "a1", large, now=1)
        server.publish(m.PeerBeat("a", False, 0, 0, (), (), "", "", 1), now=1)
        assert monitor.sockets.drops == {"state:oversize": 1, "control:oversize": 1}
        assert server.sockets.drops == {"control:oversize": 1, "publish:no-port": 1}


def test_a_stranger_on_any_port_is_refused_and_counted() -> None:
    on = system()
    with agent(on, Agent.WITNESS, "a1") as witness, agent(on, Agent.SERVER, "b1") as server:
        vote = witness.listen(Channel.VOTE)
        dealer = server.ask(Channel.VOTE, Agent.WITNESS, "a1")
        server.hear(Channel.STATE, Agent.MONITOR, ["a1"])
        assert [vote.accept(0, []), dealer.accept(0, [b"x"]), server.ports[1].accept(0, [b"x"])] == [None, None, None]
        assert server.sockets.codec.refused == {"frame-count": 2}
        assert len(dealer.heard_at()) == 2


def test_without_a_router_an_answer_is_a_counted_drop() -> None:
    with agent(system(), Agent.SERVER, "a1") as server:
        assert not server.send(Agent.MONITOR, "a1", m.SnapshotRequest(), now=1)
        assert server.sockets.drops == {"control:no-port": 1}


def test_a_broadcast_that_nobody_takes_any_more_is_a_counted_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    on = system()
    with agent(on, Agent.MONITOR, "a1") as monitor:
        monitor.broadcast(Channel.STATE)

        def full(*_: object) -> None:
            raise zmq.Again

        monkeypatch.setattr(zmq.Socket, "send_multipart", full)
        monitor.publish(m.StateBeat(1, "d"), now=1)
        assert monitor.sockets.drops == {"state:full": 1}


def test_an_error_that_is_no_full_queue_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with agent(system(), Agent.SERVER, "b1") as server:
        dealer = server.ask(Channel.VOTE, Agent.WITNESS, "a1")

        def broken(*_: object) -> None:
            raise zmq.ZMQError(zmq.ENOTSOCK)

        with monkeypatch.context() as patch:
            patch.setattr(zmq.Socket, "send_multipart", broken)
            with pytest.raises(zmq.ZMQError):
                server.send(Agent.WITNESS, "a1", PROBE, now=1)
        with monkeypatch.context() as patch:
            patch.setattr(zmq.Socket, "disconnect", broken)
            with pytest.raises(zmq.ZMQError):
                dealer.refresh(0, clock())
        dealer.sockets[0].disconnect(dealer._endpoints[0])
        dealer.refresh(0, clock())


def test_ipv6_loopback_and_ipc_work_and_ipc_is_never_connected_anew(tmp_path: Path) -> None:
    if not stdsocket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this host has no IPv6")
    nodes = {"a1": Node(name="a1", addresses=("::1",), side="a"), "b1": Node(name="b1", addresses=("::1",), side="b")}
    on = system()
    six = System(
        name="demo", run_dir="/x", data_dir="/x", tenants_dir="/x", node_file="", file="", nodes=nodes, ports=on.ports
    )
    path = f"ipc://{tmp_path}/s"
    with agent(six, Agent.SPAWNER, "a1") as spawner, agent(six, Agent.SERVER, "b1", silence_ms=1) as server:
        command = spawner.listen(Channel.COMMAND, path)
        server.ask(Channel.COMMAND, Agent.SPAWNER, "a1")
        local = server.sockets.dealer(Channel.COMMAND, Agent.SPAWNER, "a1", [path])
        server.await_connections(Channel.COMMAND, 5_000)
        assert server.send(Agent.SPAWNER, "a1", m.Relinquish("acme", 1, 1), now=clock())
        until(lambda: local.send(m.Relinquish("acme", 2, 1), now=1))
        got: list[Received] = []
        until(lambda: len(got.extend(one for _, one in receive(command, 0.01) if one) or got) == 2)
        local.tend(clock())
        assert path not in server.sockets.refreshes
