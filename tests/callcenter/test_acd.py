"""The distributor: its protocol, its role, and what it refuses."""

import json
import socket
import threading

import pytest

from ha.sdk import protocol


class Control:
    """A control socket as an agent offers it, for one program at a time; `valid_ms` answers the epoch question."""

    def __init__(self, path, role, epoch):
        self.role, self.epoch, self.valid_ms = role, epoch, 500
        self.said = []
        self._heard = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def take(self, role, epoch):
        """Order a role and wait until it is confirmed."""
        self.role, self.epoch = role, epoch
        self._connection.sendall(protocol.encode(protocol.TakeRole(id=epoch, role=role, epoch=epoch)))
        self.wait(protocol.Done(id=epoch))

    def wait(self, line):
        with self._heard:
            assert self._heard.wait_for(lambda: line in self.said, timeout=5), f"{line} not in {self.said}"

    def _serve(self):
        self._connection, _ = self._listener.accept()
        self._connection.sendall(protocol.encode(protocol.Welcome(role=self.role, epoch=self.epoch)))
        buffer = protocol.LineBuffer()
        while data := self._connection.recv(4096):
            for text in buffer.feed(data):
                line = protocol.decode_to_agent(text)
                if isinstance(line, protocol.AskEpoch):
                    now = protocol.EpochNow(id=line.id, role=self.role, epoch=self.epoch, valid_ms=self.valid_ms)
                    self._connection.sendall(protocol.encode(now))
                with self._heard:
                    self.said.append(line)
                    self._heard.notify_all()

    def close(self):
        self._connection.close()
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def seated(tmp_path, start, free_port):
    """A distributor under a control socket; returns (control, port)."""
    made = []

    def begin(role, epoch):
        port = free_port()
        control = Control(tmp_path / "control.sock", role, epoch)
        made.append(control)
        environment = {"HA_SOCKET": str(tmp_path / "control.sock"), "HA_ROLE": role, "HA_EPOCH": str(epoch)}
        acd = start("acd.py", "--port", port, environment=environment)
        made.append(acd)
        return control, port

    yield begin
    for one in reversed(made):
        one.end() if hasattr(one, "end") else one.close()


@pytest.fixture
def acd(start, free_port):
    port = free_port()
    start("acd.py", "--port", port, environment={"HA_EPOCH": "65536"})
    return port


def test_an_agent_gets_the_call_and_hears_its_end(acd, talk):
    desk, ivr = talk(acd), talk(acd)
    assert desk.greeting == "ROLE active 65536"
    assert desk.ask("LOGIN eva support") == "OK 65536"
    assert desk.ask("READY") == "OK 65536"
    assert ivr.ask("ROUTE support c1") == "AGENT eva c1 65536"
    assert desk.read() == "CALL c1 65536"
    assert ivr.ask("ROUTE support c2") == "NONE c2 65536"
    assert ivr.ask("ROUTE support c1") == "AGENT eva c1 65536", "asked again, the same answer"
    assert ivr.ask("BYE c1") == "OK 65536"
    assert desk.read() == "END c1 65536"
    assert ivr.ask("ROUTE support c2") == "NONE c2 65536", "not ready again yet"
    assert desk.ask("READY") == "OK 65536"
    assert ivr.ask("ROUTE support c2") == "AGENT eva c2 65536"


def test_who_waited_longest_is_next_and_skills_are_kept_apart(acd, talk):
    desks = {}
    for name, skill in (("eva", "support"), ("ben", "sales"), ("ida", "support")):
        desks[name] = talk(acd)
        desks[name].ask(f"LOGIN {name} {skill}")
        desks[name].ask("READY")
    ivr = talk(acd)
    assert [ivr.ask(f"ROUTE support c{n}").split()[1] for n in (1, 2)] == ["eva", "ida"]
    assert ivr.ask("ROUTE sales c3") == "AGENT ben c3 65536"


@pytest.mark.parametrize("leave", ["PAUSE", "LOGOUT", None])
def test_who_is_away_gets_no_call(acd, talk, leave):
    desk, ivr = talk(acd), talk(acd)
    desk.ask("LOGIN eva support")
    desk.ask("READY")
    if leave:
        assert desk.ask(leave) == "OK 65536"
    else:
        desk.close()
        while json.loads(ivr.ask("STATS").split()[1])["agents"]:
            pass
    assert ivr.ask("ROUTE support c1") == "NONE c1 65536"


@pytest.mark.parametrize(
    "line",
    ["", "DANCE", "ROUTE support", "ROUTE a b c", "READY", "READY now", "LOGIN eva", "\x00\xff", "route support c1"],
)
def test_what_is_not_understood_is_an_error_and_changes_nothing(acd, talk, line):
    one = talk(acd)
    assert one.ask(line).startswith("ERROR ")
    assert one.ask("STATS").startswith("STATS ")


def test_a_line_without_end_is_cut_off(acd, talk):
    one = talk(acd)
    one.send("A" * 10_000)
    assert one.read() in ("", "ERROR unknown command 'AAAAAAAAAAAAAAAAAAAA' 65536")
    assert talk(acd).ask("STATS").startswith("STATS ")


def test_a_standby_routes_nothing_until_it_is_active(seated, talk):
    control, port = seated("standby", 0)
    control.wait(protocol.Ready())
    one = talk(port)
    assert one.greeting == "ROLE standby 0"
    assert one.ask("ROUTE support c1") == "STANDBY c1 0"
    assert one.ask("LOGIN eva support") == "STANDBY 0"
    control.take("active", 131072)
    assert one.read() == "ROLE active 131072"
    assert one.ask("LOGIN eva support") == "OK 131072"
    assert one.ask("READY") == "OK 131072"
    one.send("ROUTE support c1")
    assert {one.read(), one.read()} == {"CALL c1 131072", "AGENT eva c1 131072"}


def test_a_demoted_distributor_forgets_its_agents(seated, talk):
    control, port = seated("active", 65536)
    one = talk(port)
    one.ask("LOGIN eva support")
    one.ask("READY")
    control.take("standby", 65536)
    assert one.read() == "ROLE standby 65536"
    assert json.loads(one.ask("STATS").split()[1])["agents"] == 0
    assert one.ask("ROUTE support c1") == "STANDBY c1 65536"


def test_work_is_refused_when_the_epoch_no_longer_holds(seated, talk):
    control, port = seated("active", 65536)
    control.valid_ms = 0
    one = talk(port)
    assert one.ask("ROUTE support c1") == "STALE c1 65536"
    control.valid_ms = 500
    assert one.ask("ROUTE support c1") == "NONE c1 65536"


def test_a_distributor_without_its_agent_goes_on(seated, talk):
    """The node's guards freeze what lost its right; a lost connection alone takes nothing away."""
    control, port = seated("active", 65536)
    control.valid_ms = 0
    one = talk(port)
    assert one.ask("ROUTE support c1") == "STALE c1 65536"
    control._listener.close()
    control._connection.shutdown(socket.SHUT_RDWR)
    while one.ask("ROUTE support c1") == "STALE c1 65536":
        pass
    assert one.ask("ROUTE support c1") == "NONE c1 65536"
