"""`ha.sdk.Agent` against a real AF_UNIX socket; the other end is a scripted peer that speaks the protocol's lines."""

from __future__ import annotations

import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha.sdk import Agent, Role, connect, protocol

WAIT_S = 5.0


class Peer:
    """The agent's end: accepts one program at a time, says Welcome, keeps what comes."""

    def __init__(self, path: Path, role: Role = Role.ACTIVE, epoch: int = 1) -> None:
        self.path, self.role, self.epoch = path, role, epoch
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(WAIT_S)
        self.program: socket.socket | None = None
        self.buffer = protocol.LineBuffer()
        self.lines: list[bytes] = []

    def accept(self) -> None:
        self.program, _ = self.listener.accept()
        self.program.settimeout(WAIT_S)
        self.buffer, self.lines = protocol.LineBuffer(), []
        self.say(protocol.Welcome(role=self.role, epoch=self.epoch))

    def say(self, line: protocol.ToProgram) -> None:
        self.raw(protocol.encode(line))

    def raw(self, data: bytes) -> None:
        assert self.program is not None
        self.program.sendall(data)

    def hear(self) -> protocol.ToAgent:
        assert self.program is not None
        while not self.lines:
            data = self.program.recv(4_096)
            assert data, "the program closed the connection"
            self.lines += self.buffer.feed(data)
        return protocol.decode_to_agent(self.lines.pop(0))

    def hear_all(self, *expected: protocol.ToAgent) -> None:
        assert tuple(self.hear() for _ in expected) == expected

    def drop(self) -> None:
        assert self.program is not None
        self.program.close()

    def gone(self) -> None:
        """The Spawner dies: no socket, no connection."""
        self.drop()
        self.listener.close()
        self.path.unlink()

    def close(self) -> None:
        if self.program is not None:
            self.program.close()
        self.listener.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path / "control.sock")
    yield made
    made.close()


def environ(peer: Peer, role: str = "active", epoch: int = 1) -> dict[str, str]:
    return {"HA_SOCKET": str(peer.path), "HA_ROLE": role, "HA_EPOCH": str(epoch)}


def wait_poll(agent: Agent) -> list:  # type: ignore[type-arg]
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        select.select([agent], [], [], WAIT_S)
        if changes := agent.poll():
            return changes
    raise AssertionError("no role change came")


def pump_until(agent: Agent, condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        select.select([agent], [], [], 0.1)
        agent.poll()


HELLO = protocol.Hello(sdk="ha.sdk/0.1.0", role=Role.ACTIVE, epoch=1)


def test_a_role_comes_by_callback_and_is_answered_after_the_callback(peer: Peer) -> None:
    taken: queue.Queue[tuple[str, int]] = queue.Queue()
    may_go = threading.Event()

    def follow(epoch: int) -> None:
        may_go.wait(WAIT_S)
        taken.put(("standby", epoch))

    with connect(lambda epoch: taken.put(("active", epoch)), follow, environ=environ(peer)) as agent:
        assert taken.get(timeout=WAIT_S) == ("active", 1)  # the role of the start, before connect() returned
        peer.accept()
        peer.hear_all(HELLO)
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        assert agent.role is Role.ACTIVE  # not taken before the callback has returned
        may_go.set()
        peer.hear_all(protocol.Done(id=1))
        assert taken.get(timeout=WAIT_S) == ("standby", 1)
        assert (agent.role, agent.active) == (Role.STANDBY, False)
        peer.say(protocol.TakeRole(id=2, role=Role.ACTIVE, epoch=2))
        peer.hear_all(protocol.Done(id=2))
        assert (agent.role, agent.epoch) == (Role.ACTIVE, 2)


def test_a_callback_that_raises_answers_failed_and_the_role_stays(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    def follow(epoch: int) -> None:
        raise RuntimeError("cannot stop listening")

    with connect(None, follow, environ=environ(peer)) as agent:
        peer.accept()
        peer.hear_all(HELLO)
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        peer.hear_all(protocol.Failed(id=1, reason="RuntimeError: cannot stop listening"))
        assert agent.role is Role.ACTIVE
    assert "cannot stop listening" in capfd.readouterr().err


def test_a_role_comes_by_descriptor_without_a_thread(peer: Peer) -> None:
    before = threading.active_count()
    with Agent(environ=environ(peer, "standby", 0)) as agent:
        assert agent.poll() == []
        peer.accept()
        peer.say(protocol.TakeRole(id=5, role=Role.ACTIVE, epoch=65_536))
        (change,) = wait_poll(agent)
        assert (change.role, change.epoch) == (Role.ACTIVE, 65_536)
        assert agent.role is Role.STANDBY
        change.done()
        assert (agent.role, agent.epoch) == (Role.ACTIVE, 65_536)
        peer.hear_all(protocol.Hello(sdk=HELLO.sdk, role=Role.STANDBY), protocol.Done(id=5))
        assert threading.active_count() == before


def test_a_doubled_answer_changes_nothing(peer: Peer) -> None:
    with Agent(environ=environ(peer)) as agent:
        peer.accept()
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        (change,) = wait_poll(agent)
        change.failed("no")
        change.done()
        assert agent.role is Role.ACTIVE
        agent.ping()
        peer.hear_all(HELLO, protocol.Failed(id=1, reason="no"), protocol.Ping())


def test_a_lower_epoch_never_makes_it_active(peer: Peer) -> None:
    peer.epoch = 7
    with Agent(environ=environ(peer, epoch=7)) as agent:
        peer.accept()
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=7))
        wait_poll(agent)[0].done()
        peer.hear_all(protocol.Hello(sdk=HELLO.sdk, role=Role.ACTIVE, epoch=7), protocol.Done(id=1))
        peer.say(protocol.TakeRole(id=2, role=Role.ACTIVE, epoch=6))
        pump_until(agent, lambda: select.select([peer.program], [], [], 0)[0])
        peer.hear_all(protocol.Failed(id=2, reason="stale epoch 6, 7 was seen"))
        assert agent.role is Role.STANDBY


def test_a_role_already_taken_is_confirmed_without_taking_it_again(peer: Peer) -> None:
    with Agent(environ=environ(peer)) as agent:
        peer.accept()
        peer.say(protocol.TakeRole(id=3, role=Role.ACTIVE, epoch=1))
        peer.say(protocol.TakeRole(id=4, role=Role.STANDBY, epoch=1))
        changes = wait_poll(agent)
        assert [change.role for change in changes] == [Role.STANDBY]
        peer.hear_all(HELLO, protocol.Done(id=3))


def test_it_comes_back_to_a_restarted_agent_with_role_ready_status_and_watchdog(peer: Peer, tmp_path: Path) -> None:
    with connect(environ=environ(peer)) as agent:
        peer.accept()
        agent.ready()
        agent.status("12 calls")
        agent.watchdog(10)
        peer.hear_all(HELLO, protocol.Ready(), protocol.Status(text="12 calls"), protocol.Watchdog(interval_ms=10_000))
        peer.gone()
        assert agent.role is Role.ACTIVE  # losing the agent changes no role
        again = Peer(peer.path, Role.ACTIVE, 1)
        again.accept()
        again.hear_all(HELLO, protocol.Watchdog(interval_ms=10_000), protocol.Status(text="12 calls"), protocol.Ready())
        again.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        again.hear_all(protocol.Done(id=1))
        again.close()


def test_a_change_in_progress_while_the_agent_restarts_is_taken_once_and_answered(peer: Peer) -> None:
    taken: queue.Queue[str] = queue.Queue()
    may_go = threading.Event()

    def follow(epoch: int) -> None:
        taken.put("standby")
        may_go.wait(WAIT_S)

    with connect(lambda epoch: taken.put("active"), follow, environ=environ(peer)):
        assert taken.get(timeout=WAIT_S) == "active"
        peer.accept()
        peer.say(protocol.TakeRole(id=40, role=Role.STANDBY, epoch=1))
        assert taken.get(timeout=WAIT_S) == "standby"
        peer.gone()
        may_go.set()
        again = Peer(peer.path)  # its journal still says active 1: the answer was lost
        again.accept()
        again.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        again.hear_all(protocol.Hello(sdk=HELLO.sdk, role=Role.STANDBY, epoch=1), protocol.Done(id=1))
        assert taken.empty()
        again.close()


def test_it_starts_while_the_agent_is_away_and_finds_it_later(tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    with connect(environ={"HA_SOCKET": str(path), "HA_ROLE": "standby", "HA_EPOCH": "0"}) as agent:
        assert not agent.connected
        agent.ready()
        peer = Peer(path, Role.STANDBY, 0)
        peer.accept()
        peer.hear_all(protocol.Hello(sdk=HELLO.sdk, role=Role.STANDBY), protocol.Ready())
        peer.close()


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (protocol.EpochNow(id=1, role=Role.ACTIVE, epoch=1, valid_ms=400), True),
        (protocol.EpochNow(id=1, role=Role.ACTIVE, epoch=1, valid_ms=None), True),
        (protocol.EpochNow(id=1, role=Role.ACTIVE, epoch=1, valid_ms=0), False),
        (protocol.EpochNow(id=1, role=Role.ACTIVE, epoch=2, valid_ms=400), False),
        (protocol.EpochNow(id=1, role=Role.STANDBY, epoch=1, valid_ms=None), False),
    ],
)
@pytest.mark.parametrize("threaded", [True, False])
def test_the_epoch_holds_only_by_the_agents_word(
    peer: Peer, answer: protocol.EpochNow, held: bool, threaded: bool
) -> None:
    agent = Agent(environ=environ(peer))
    if threaded:
        agent.start()
    with agent:
        peer.accept()

        def reply() -> None:
            peer.hear_all(HELLO, protocol.AskEpoch(id=1))
            peer.say(answer)

        replying = threading.Thread(target=reply)
        replying.start()
        assert agent.check_epoch(WAIT_S) is held
        replying.join()


def test_the_epoch_does_not_hold_when_the_agent_is_silent_or_gone(peer: Peer) -> None:
    with Agent(environ=environ(peer)) as agent:
        peer.accept()
        assert not agent.check_epoch(0.05)
        peer.gone()
        assert not agent.check_epoch(0.05)


def test_the_epoch_may_be_asked_for_in_a_callback(peer: Peer) -> None:
    asked: queue.Queue[bool] = queue.Queue()
    agent = Agent(None, lambda epoch: asked.put(agent.check_epoch(WAIT_S)), environ=environ(peer))
    agent.start()
    with agent:
        peer.accept()
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        peer.hear_all(HELLO, protocol.AskEpoch(id=1))
        peer.say(protocol.EpochNow(id=1, role=Role.ACTIVE, epoch=1, valid_ms=300))
        assert asked.get(timeout=WAIT_S) is True
        peer.hear_all(protocol.Done(id=1))


def test_lines_of_a_later_version_are_skipped(peer: Peer) -> None:
    with connect(environ=environ(peer)):
        peer.accept()
        peer.raw(b'{"v":1,"type":"weather","sun":true}\nnot json\n{"v":9,"type":"role"}\n')
        peer.say(protocol.TakeRole(id=1, role=Role.STANDBY, epoch=1))
        peer.hear_all(HELLO, protocol.Done(id=1))


def test_pings_are_few_however_often_the_loop_turns(peer: Peer) -> None:
    with Agent(environ=environ(peer)) as agent:
        peer.accept()
        agent.watchdog(3_600)
        for _ in range(1_000):
            agent.ping()
        agent.ready()
        peer.hear_all(HELLO, protocol.Watchdog(interval_ms=3_600_000), protocol.Ready())


def test_a_stuck_agent_never_blocks_the_program(peer: Peer) -> None:
    with Agent(environ=environ(peer)) as agent:
        peer.accept()  # and reads nothing from here on
        started = time.monotonic()
        for number in range(20_000):
            agent.status(f"call {number}")
            if not agent.connected:
                break
        assert not agent.connected
        assert time.monotonic() - started < WAIT_S


@pytest.mark.parametrize("interval", [0.001, 90_000.0, -1.0])
def test_a_watchdog_out_of_range_is_refused(interval: float) -> None:
    with Agent(environ={}) as agent, pytest.raises(ValueError, match="cannot arm"):
        agent.watchdog(interval)


def test_without_a_socket_it_stands_alone_and_is_active() -> None:
    taken: list[int] = []
    with connect(taken.append, environ={}) as agent:
        assert (agent.standalone, agent.role, agent.epoch, taken) == (True, Role.ACTIVE, 0, [0])
        assert agent.check_epoch()
        assert agent.poll() == []
        assert select.select([agent], [], [], 0)[0] == []
    with connect(environ={"HA_ROLE": "standby", "HA_EPOCH": "3"}) as agent:
        assert (agent.role, agent.epoch) == (Role.STANDBY, 3)


def test_without_a_socket_it_speaks_sd_notify(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify.sock"))
        systemd.settimeout(WAIT_S)
        with connect(environ={"NOTIFY_SOCKET": str(tmp_path / "notify.sock")}) as agent:
            agent.ready()
            agent.status("12\ncalls")
            agent.watchdog(0.02)
            said = [systemd.recv(200) for _ in range(3)]
            assert said == [b"READY=1", b"STATUS=12 calls", b"WATCHDOG_USEC=20000"]
            deadline = time.monotonic() + WAIT_S
            while not select.select([systemd], [], [], 0)[0]:
                assert time.monotonic() < deadline
                agent.ping()
            assert systemd.recv(200) == b"WATCHDOG=1"


def test_starting_twice_is_refused(peer: Peer) -> None:
    with connect(environ=environ(peer)) as agent, pytest.raises(RuntimeError, match="started already"):
        agent.start()


def test_the_sdk_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys; from ha.sdk import Agent, Fence, connect, notify\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in names if not name.startswith('_')))\n"
        "print(sorted(name for name in sys.modules if name.startswith('ha.') and not name.startswith('ha.sdk')))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout == "['ha']\n[]\n"
