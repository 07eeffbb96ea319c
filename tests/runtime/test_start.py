from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PLACES = {"a1": "127.7.0.11", "b1": "127.7.0.21", "w1": "127.7.0.50"}


class Host:
    """Three places on loopback, and the agents started there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        held = [socket.create_server((PLACES["a1"], 0)) for _ in range(5)]
        ports = zip(("state", "command", "vote", "control", "beat"), held, strict=True)
        text = "\n".join(f"{name} = {one.getsockname()[1]}" for name, one in ports)
        for one in held:
            one.close()
        (directory / "t.d").mkdir()
        self.config = directory / "system.toml"
        self.config.write_text(
            f"""
[system]
name = "demo"
run_dir = "{directory}/run"
data_dir = "{directory}/data"
tenants_dir = "t.d"
[ports]
{text}
[sides.a]
servers = ["a1"]
[sides.b]
servers = ["b1"]
[nodes.a1]
side = "a"
addresses = ["{PLACES["a1"]}"]
[nodes.b1]
side = "b"
addresses = ["{PLACES["b1"]}"]
[nodes.b2]
side = "b"
addresses = ["127.7.0.22"]
[witnesses.w1]
addresses = ["{PLACES["w1"]}"]
"""
        )

    def log(self, role: str, node: str) -> str:
        path = self.directory / f"{role}.{node}.log"
        return path.read_text() if path.exists() else ""

    def start(self, role: str, node: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{role}.{node}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", f"ha.agents.{role}", "--config", self.config, "--node", node], stderr=log
            )
        self.started.append(started)
        return started

    def refused(self, role: str, node: str) -> tuple[int, str]:
        ended = self.start(role, node).wait(20)
        return ended, self.log(role, node)

    def witnesses(self) -> None:
        for place in PLACES:
            self.start("witness", place)

    def until(self, claim: Callable[[], object], within_s: float = 20.0) -> None:
        end = time.monotonic() + within_s
        while not claim():
            assert time.monotonic() < end, "\n".join(p.read_text() for p in self.directory.glob("*.log"))
            time.sleep(0.01)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for one in made.started:
        if one.poll() is None:
            one.kill()
        one.wait(10)


def test_a_witness_starts_alone_counts_its_starts_and_ends_when_told(host: Host) -> None:
    for boots in (1, 2):
        one = host.start("witness", "w1")
        host.until(lambda boots=boots: f"boots={boots}" in host.log("witness", "w1"))  # type: ignore[misc]
        one.send_signal(signal.SIGTERM)
        assert one.wait(10) == 0
    run, data = host.directory / "run/w1", host.directory / "data/w1"
    assert [oct(path.stat().st_mode & 0o777) for path in (run, run / "agents", data)] == ["0o711", "0o700", "0o700"]


def test_a_second_one_of_the_same_role_is_refused(host: Host) -> None:
    host.start("witness", "w1")
    host.until(lambda: "agent.started" in host.log("witness", "w1"))
    code, text = host.refused("witness", "w1")
    assert code == 5
    assert "ha-witness: cannot run witness: pid" in text


@pytest.mark.parametrize(
    ("role", "node", "code", "text"),
    [
        ("witness", "c9", 3, "names no node or witness 'c9'"),
        ("witness", "b2", 3, "it is not among the voters a1, b1, w1"),
        ("server", "w1", 3, "it is not among the servers a1, b1"),
    ],
)
def test_a_place_where_the_role_does_not_belong_is_refused(
    host: Host, role: str, node: str, code: int, text: str
) -> None:
    ended, said = host.refused(role, node)
    assert ended == code
    assert text in said
    assert len(said.splitlines()) == 1


def test_an_invalid_system_file_is_refused_with_its_place(host: Host) -> None:
    host.config.write_text(host.config.read_text() + "\nbogus = 1\n")
    code, said = host.refused("witness", "w1")
    assert code == 2
    assert re.search(r"system\.toml:\d+:\d+: unknown-key", said)


def test_a_directory_that_is_not_one_of_ours_is_not_permitted(host: Host) -> None:
    (host.directory / "run").mkdir()
    (host.directory / "run/w1").symlink_to("/tmp")
    code, said = host.refused("witness", "w1")
    assert code == 4
    assert "cannot use" in said


def test_an_address_in_use_is_one_clear_line(host: Host) -> None:
    number = int(re.search(r"vote = (\d+)", host.config.read_text())[1])  # type: ignore[index]
    with socket.create_server((PLACES["w1"], number)):
        code, said = host.refused("witness", "w1")
    assert code == 1
    assert f"cannot bind tcp://{PLACES['w1']}:{number}" in said


def test_a_damaged_journal_is_not_overwritten(host: Host) -> None:
    journal = host.directory / "data/w1/witness.journal"
    journal.parent.mkdir(parents=True)
    journal.parent.chmod(0o700)
    journal.write_bytes(b"this is something else")
    code, said = host.refused("witness", "w1")
    assert code == 1
    assert "it is not a journal" in said


def test_a_server_wins_its_seat_keeps_it_over_kill_9_and_gives_it_back_when_told(host: Host) -> None:
    host.witnesses()
    server = host.start("server", "a1")
    host.until(lambda: "event=seat subject=a to=a1" in host.log("server", "a1"))
    for boots in (2, 3):
        server.kill()
        server.wait(10)
        server = host.start("server", "a1")
        host.until(lambda boots=boots: f"boots={boots}" in host.log("server", "a1"))  # type: ignore[misc]
    assert host.log("server", "a1").count("event=seat subject=a to=a1") == 1
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == 0


def test_sigusr1_ends_a_server_at_once(host: Host) -> None:
    host.witnesses()
    server = host.start("server", "a1")
    host.until(lambda: "event=seat subject=a to=a1" in host.log("server", "a1"))
    os.kill(server.pid, signal.SIGUSR1)
    assert server.wait(10) == 0
