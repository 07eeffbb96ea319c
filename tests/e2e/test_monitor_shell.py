"""The Monitor's shell on loopback: real sockets, pidfds, FIFOs and probes; the Spawner and the Server are bare ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ha.agents import common
from ha.agents.monitor import Shell
from ha.core.machine import Received
from ha.linux.fifo import make_fifo
from ha.linux.identity import start_ticks
from ha.linux.locks import hold_role
from ha.linux.table import ProgressTable
from ha.model.messages import Ask, EventsSaid, Fact, Facts, Hello, Message, Revive, StateBeat, StateDelta, Told, Watch
from ha.model.names import Agent
from ha.model.plan import (
    Node,
    NodeFile,
    Policy,
    Ports,
    Probe,
    Process,
    Ready,
    Restart,
    System,
    Tenant,
    digest_of,
    encode_plan,
)
from ha.model.status import Exit, OnDeath, State, Wanted
from ha.runtime.loop import Loop
from ha.wire.codec import Codec
from ha.wire.routes import Channel
from ha.wire.sockets import Sockets
from ha.wire.switchboard import Switchboard

pytestmark = pytest.mark.e2e
KEY = "acme/acd.1"
ADDRESS = "127.0.77.11"


class End:
    """One bare end of the wire: the role it speaks as, and all it was told."""

    def __init__(self, role: Agent, system: System, loop: Loop) -> None:
        codec = Codec(system=system.name, role=role, node="a1", incarnation=11, nodes=system.nodes)
        self.board = Switchboard(Sockets(codec, common.boottime_ns, silence_ms=1_000), system, system.nodes["a1"])
        self.loop = loop
        self.heard: list[Received] = []

    def attach(self, answer: Callable[[Received], None]) -> None:
        def deliver(message: Received) -> None:
            self.heard.append(message)
            answer(message)

        for port in self.board.ports:
            self.loop.attach(port, deliver)

    def bodies(self, kind: type[Message]) -> list[Any]:
        bodies = [message.body for message in self.heard if isinstance(message.body, kind)]
        return [body for body in bodies if not getattr(body, "ahead", "")]

    def send(self, role: Agent, body: Message) -> None:
        self.board.send(role, "a1", body, now=self.loop.now())


class World:
    """One node with a real Monitor shell, turned by the test."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        node = Node(name="a1", addresses=(ADDRESS,), side="a")
        self.system = System(
            name="t", run_dir=str(tmp / "run"), data_dir=str(tmp / "data"), tenants_dir=str(tmp / "tenants"),
            node_file=str(tmp / "node.toml"), file=str(tmp / "system.toml"), ports=Ports(),
            sides={"a": ("a1",)}, nodes={"a1": node},
        )  # fmt: skip
        layout = common.layout_of(self.system, "a1")
        layout.make()
        self.layout = layout
        self.loop = Loop(common.boottime_ns)
        self.spawner = End(Agent.SPAWNER, self.system, self.loop)
        self.server = End(Agent.SERVER, self.system, self.loop)
        self.facts: dict[str, Fact] = {}
        self.seq = 0
        self.answers = True
        self.plan = ""
        self.spawner.board.listen(Channel.COMMAND, f"ipc://{layout.agents}/spawner.sock")
        self.spawner.attach(self._spawner_heard)
        self.server.board.listen(Channel.CONTROL)
        self.server.board.hear(Channel.STATE, Agent.MONITOR, ["a1"])
        self.server.attach(self._server_heard)
        self.agent = self._agent()
        self.shell = Shell(self.agent, NodeFile(policy=Policy(users=("root",))))
        self.until(lambda: self.server.bodies(Hello) and self.server.bodies(StateBeat) and self.spawner.bodies(Watch))

    def _agent(self) -> common.Running:
        codec = Codec(system="t", role=Agent.MONITOR, node="a1", incarnation=5, nodes=self.system.nodes)
        me = self.system.nodes["a1"]
        board = Switchboard(Sockets(codec, common.boottime_ns, silence_ms=1_000), self.system, me)
        table = ProgressTable.open(self.layout.agents + "/table")
        lock = hold_role(self.layout.run, Agent.MONITOR)
        return common.Running(
            Agent.MONITOR, self.system, me, self.layout, lock, table, None, {}, 0, 5, self.loop, board
        )  # fmt: skip

    def close(self) -> None:
        self.shell.close()
        self.spawner.board.sockets.close()
        self.server.board.sockets.close()
        self.agent.close()

    def _spawner_heard(self, message: Received) -> None:
        if isinstance(message.body, Watch) and message.body.seq != self.seq:
            self.say(full=True)

    def _server_heard(self, message: Received) -> None:
        if isinstance(message.body, Ask) and self.answers:
            told = Told(message.body.id, msgspec.json.encode({"exit": 0, "result": {"source": "server"}}))
            self.server.send(Agent.MONITOR, told)

    def say(self, *facts: Fact, full: bool = False) -> None:
        for fact in facts:
            self.facts[fact.copy] = fact
        self.seq += 1
        said = tuple(self.facts.values()) if full else facts
        self.spawner.send(Agent.MONITOR, Facts(self.seq, said, full, self.plan))

    def put_plan(self, *processes: Process) -> None:
        data = encode_plan((Tenant(name="acme", processes=processes),))
        Path(self.layout.data, "plan.mp").write_bytes(data)
        self.plan = digest_of(data)
        self.say(full=True)
        self.until(lambda: self.shell.driver.state.plan_digest == self.plan)

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        end = common.boottime_ns() + int(seconds * 1e9)
        while not condition():
            assert common.boottime_ns() < end, "the condition did not come true"
            self.loop.turn(20)

    def state(self, key: str = KEY) -> State | None:
        for delta in reversed(self.server.bodies(StateDelta)):
            for copy in delta.copies:
                if copy.copy == key:
                    return State(copy.state)
        return None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def running(tmp: Path, **more: Any) -> tuple[subprocess.Popen[bytes], Fact]:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    ticks = start_ticks(child.pid) or 0
    fields = {
        "pid": child.pid, "start_ticks": ticks, "started_ns": common.boottime_ns(), "wanted": Wanted.UP,
        "started_at": 1_700_000_000.5,
    }  # fmt: skip
    return child, Fact(KEY, State.UP, (1, 1, 1), 1, **(fields | more))


def process(**more: Any) -> Process:
    return Process(name="acd", command=("/bin/true",), **more)


def ask(world: World, path: str, **request: Any) -> list[Any]:
    """Return the answers to one request until a final one."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{world.layout.run}/{path}")
    sock.setblocking(False)
    sock.sendall(msgspec.json.encode({"v": 1, "id": "ab12", **request}) + b"\n")
    data = bytearray()

    def read() -> bool:
        try:
            data.extend(sock.recv(65536))
        except BlockingIOError:
            return False
        return data.endswith(b"\n") and msgspec.json.decode(data.splitlines()[-1])["final"]

    world.until(read)
    sock.close()
    return [msgspec.json.decode(line) for line in data.splitlines()]


def test_death_of_a_process_reaches_the_server_although_the_spawner_is_silent(world: World) -> None:
    world.put_plan(process())
    child, fact = running(world.tmp, on_death=OnDeath.REPORT)
    world.say(fact)
    world.until(lambda: world.state() is State.READY)
    child.kill()
    world.until(lambda: world.state() is State.DOWN)
    assert child.wait() == -signal.SIGKILL
    assert world.spawner.bodies(Revive) == []


def test_death_told_by_the_spawner_is_revived_at_once(world: World) -> None:
    world.put_plan(process())
    child, fact = running(world.tmp)
    world.say(fact)
    world.until(lambda: world.state() is State.READY)
    child.kill()
    child.wait()
    world.say(msgspec.structs.replace(fact, state=State.DOWN, exit=Exit(signal="SIGKILL")))
    world.until(lambda: world.spawner.bodies(Revive))
    assert world.spawner.bodies(Revive)[0] == Revive(KEY, (1, 1, 1), False, "ended by SIGKILL")


@pytest.mark.parametrize("kind", ["tcp", "http", "exec"])
def test_copy_becomes_ready_by_a_passing_probe_and_is_ended_when_it_fails(world: World, kind: str) -> None:
    flag = world.tmp / "healthy"
    flag.touch()
    listener = socket.create_server((ADDRESS, 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]

    def serve(_: int) -> None:
        sock, _address = listener.accept()
        if kind == "http":
            status = b"200 OK" if flag.exists() else b"503 Bad"
            sock.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
        sock.close()

    world.loop.add_fd(listener.fileno(), serve)
    world.put_plan(
        process(
            ready=Ready(by="probe"),
            probes=(
                Probe(
                    kind=kind, target=f"http://{{address}}:{port}/x" if kind == "http" else f"{{address}}:{port}",  # type: ignore[arg-type]
                    command=("/usr/bin/test", "-e", str(flag)) if kind == "exec" else (),
                    interval_ms=50, timeout_ms=5_000, failures=2,
                ),
            ),
        )
    )  # fmt: skip
    child, fact = running(world.tmp)
    world.say(fact)
    world.until(lambda: world.state() is State.READY)
    flag.unlink()
    world.loop.remove_fd(listener.fileno())
    if kind == "tcp":
        listener.close()
    else:
        world.loop.add_fd(listener.fileno(), serve)
    world.until(lambda: world.spawner.bodies(Revive))
    assert world.spawner.bodies(Revive)[0].kill
    assert f"{kind} probe 1 failed 2 times" in world.spawner.bodies(Revive)[0].reason
    world.loop.remove_fd(listener.fileno())
    listener.close()
    child.kill()
    child.wait()


def test_hung_exec_probe_is_killed_with_its_session(world: World) -> None:
    pids = world.tmp / "pids"
    script = f"echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; wait"
    world.put_plan(process(probes=(Probe(kind="exec", command=("/bin/sh", "-c", script), timeout_ms=300, failures=1),)))
    child, fact = running(world.tmp)
    world.say(fact)
    world.until(lambda: world.spawner.bodies(Revive))
    killed = [int(line) for line in pids.read_text().split()]
    assert len(killed) >= 2
    world.until(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in killed[:2]))
    child.kill()
    child.wait()


def test_output_goes_to_the_log_and_hactl_reads_it(world: World) -> None:
    directory = Path(world.layout.processes, "acme.acd.1")
    directory.mkdir(mode=0o700)
    make_fifo(str(directory / "out"))
    world.put_plan(process())
    child, fact = running(world.tmp)
    fd = os.open(directory / "out", os.O_RDWR)
    world.say(fact)
    os.write(fd, b"one\ntwo\nthree\n")
    log = Path(world.layout.data, "logs", "acme", "acd.1.log")
    world.until(lambda: log.exists() and log.read_bytes() == b"one\ntwo\nthree\n")
    answers = ask(world, "view.sock", verb="logs", args={"target": "acme/acd", "copy": 1, "lines": 2})
    assert answers[0]["result"] == {"copy": KEY, "node": "a1", "lines": ["two", "three"]}
    assert answers[-1]["final"]
    os.close(fd)
    child.kill()
    child.wait()


def test_status_comes_from_the_server_and_from_the_monitor_when_it_is_silent(world: World) -> None:
    world.put_plan(process())
    child, fact = running(world.tmp)
    world.say(fact)
    world.until(lambda: world.state() is State.READY)
    assert ask(world, "view.sock", verb="status")[-1]["result"] == {"source": "server"}
    world.answers = False
    status = ask(world, "view.sock", verb="status")[-1]["result"]
    assert (status["source"], status["complete"]) == ("monitor", False)
    copy = status["tenants"]["acme"]["processes"]["acd"]["copies"][0]
    assert (copy["state"], copy["pid"], copy["started_at"]) == ("ready", child.pid, "2023-11-14T22:13:20.500Z")
    child.kill()
    child.wait()


@pytest.mark.parametrize(
    ("path", "request_", "exit"),
    [
        ("view.sock", {"verb": "dance"}, 2),
        ("view.sock", {"verb": "switchover"}, 4),
        ("view.sock", {"verb": 7}, 2),
        ("view.sock", {"verb": "explain", "ttl_ms": 100}, 3),
        ("operate.sock", {"verb": "switchover", "ttl_ms": 100}, 124),
        ("view.sock", {"verb": "logs", "args": {"target": "no/such"}}, 3),
    ],
)
def test_exit_code_of_what_cannot_be_answered(world: World, path: str, request_: dict[str, Any], exit: int) -> None:
    world.answers = False
    answer = ask(world, path, **request_)[-1]
    assert answer["exit"] == exit
    assert answer["error"]


def test_events_are_kept_on_disk_said_to_servers_and_shown(world: World) -> None:
    world.put_plan(process(restart=Restart(policy="never")))
    child, fact = running(world.tmp)
    world.say(fact)
    world.until(lambda: world.server.bodies(EventsSaid))
    world.answers = False
    events = ask(world, "view.sock", verb="events")[0]["result"]
    assert [(e["kind"], e["subject"], e["from"], e["to"]) for e in events] == [("state", KEY, "down", "ready")]
    assert events[0]["id"] == "a1:5:1"
    lines = Path(world.layout.data, "events", "events.ndjson").read_text().splitlines()
    assert [msgspec.json.decode(line)["id"] for line in lines] == ["a1:5:1"]
    gap = ask(world, "view.sock", verb="events", args={"since": "a1:4:9"})[0]["result"]
    assert [event["kind"] for event in gap] == ["gap", "state"]
    child.kill()
    child.wait()


def test_sockets_for_hactl_are_for_their_owner_when_no_group_is_named(world: World) -> None:
    for name in ("view.sock", "operate.sock"):
        assert os.stat(f"{world.layout.run}/{name}").st_mode & 0o777 == 0o600


def test_line_that_is_too_long_ends_the_connection(world: World) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{world.layout.run}/view.sock")
    sock.setblocking(False)
    junk = b"x" * 80_000
    seen = bytearray()

    def dropped() -> bool:
        nonlocal junk
        try:
            junk = junk[sock.send(junk) :] if junk else junk
            data = sock.recv(4096)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        seen.extend(data)
        return not data

    world.until(dropped)
    sock.close()
