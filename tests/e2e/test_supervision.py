"""Supervision on real nodes: each process's own interval, probes, readiness, output, watchdogs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tenant_bed import Bed

pytestmark = pytest.mark.e2e
LISTENER = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if os.path.exists(sys.argv[3]) else 200)
        self.end_headers()
    def log_message(self, *words): pass
server = HTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
def ill():
    while not os.path.exists(sys.argv[4]): threading.Event().wait(0.05)
    server.socket.close()
    threading.Event().wait()
threading.Thread(target=ill, daemon=True).start()
while True:
    try: server.handle_request()
    except (OSError, ValueError): threading.Event().wait()
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with Bed() as made:
        (made.directory / "listener.py").write_text(LISTENER)
        made.start()
        made.wait_seated()
        yield made


@pytest.fixture
def bed(running: Bed) -> Iterator[Bed]:
    """The module's system, without tenants at the start and the end of each test."""
    yield running
    for path in list(running.tenants_dir.glob("*.toml")):
        running.remove_tenant(path.stem)
        running.gone(path.stem)
    running.ledger.unlink(missing_ok=True)
    for path in [*running.directory.glob("flag*"), *running.directory.glob("*.hang")]:
        path.unlink()


def test_each_process_is_probed_at_its_own_interval(bed: Bed) -> None:
    probe = {
        name: f'{{ exec = {bed.shell(f"say {name}")}, interval = "{interval}" }}'
        for name, interval in (("fast", "200ms"), ("slow", "10s"))
    }
    bed.write_tenant(
        "pace", "".join(f"[process.{name}]\ncommand = {bed.plain()}\nprobe = [{probe[name]}]\n" for name in probe)
    )
    bed.ok("pace")
    begin = time.monotonic()
    bed.until(lambda: len(bed.said("slow")) >= 3 or time.monotonic() - begin > 25, "some 20 s", 40.0)
    passed, fast, slow = time.monotonic() - begin, len(bed.said("fast")), len(bed.said("slow"))
    print(f"in {passed:.1f} s: {fast} probes at 200 ms, {slow} at 10 s")
    assert slow == 3
    assert 0.8 * passed * 5 <= fast <= passed * 5 + 2


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_probe_that_fails_has_the_process_restarted(bed: Bed, kind: str) -> None:
    port, ill, closed = 18080, bed.directory / "flag-ill", bed.directory / "flag-closed"
    command = json.dumps(
        [sys.executable, str(bed.directory / "listener.py"), "{address}", str(port), str(ill), str(closed)]
    )
    probe = {"tcp": f'tcp = "{{address}}:{port}"', "http": f'http = "http://{{address}}:{port}/health"'}[kind]
    bed.write_tenant(
        kind,
        f"[process.web]\ncommand = {command}\n"
        f'probe = [{{ {probe}, interval = "100ms", timeout = "500ms", failures = 2 }}]\nready = {{ by = "probe" }}\n',
    )
    before = bed.active(f"{kind}/web", bed.ok(kind))
    {"tcp": closed, "http": ill}[kind].touch()
    bed.until(lambda: before["pid"] not in bed.managed(), "it was ended")
    ill.unlink(missing_ok=True)
    closed.unlink(missing_ok=True)
    status = bed.wait(lambda status: bed.active(f"{kind}/web", status)["pid"] != before["pid"], "ready again")
    now = bed.active(f"{kind}/web", status)
    assert now["node"] == before["node"]
    assert now["restarts"] >= 1
    told = [event for event in bed.json("events", "-n", "500") if event["kind"] == "probe"]
    assert any(kind in event["reason"] and event["subject"].startswith(f"{kind}/web") for event in told)


def test_copy_is_ready_when_an_unmodified_systemd_notify_says_so(bed: Bed) -> None:
    flag = bed.directory / "flag-ready"
    script = f"until test -e {flag}; do sleep 0.02; done; systemd-notify --ready --status=serving; rest"
    bed.write_tenant("notify", f'[process.sh]\ncommand = {bed.shell(script)}\nready = {{ by = "notify" }}\n')
    bed.wait(lambda status: bed.copies(status, "notify/sh")[0]["state"] == "up", "it is up, not ready")
    bed.wait(lambda status: status["tenants"]["notify"]["state"] == "starting", "its tenant is starting")
    flag.touch()
    bed.ok("notify")


def test_output_of_every_process_is_in_its_file_and_in_hactl_logs(bed: Bed) -> None:
    bed.write_tenant(
        "talk",
        f"[process.one]\ncommand = {bed.shell('echo to-out; echo to-err >&2; rest')}\n"
        f"[process.two]\ncommand = {bed.shell('echo second; rest')}\n",
    )
    node = bed.active("talk/one", bed.ok("talk"))["node"]
    file = bed.directory / "data" / node / "logs" / "talk" / "one.1.log"
    bed.until(lambda: file.exists() and len(file.read_text().splitlines()) == 2, "both lines are in the file")
    assert sorted(bed.done("logs", "talk/one", node=node).stdout.splitlines()) == ["to-err", "to-out"]
    two = bed.active("talk/two")["node"]
    assert bed.done("logs", "talk/two", node=two).stdout == "second\n"


def test_no_line_of_output_is_lost_when_the_monitor_is_killed(bed: Bed) -> None:
    count = 3000
    script = (
        f"i=0; while test $i -lt {count}; do echo line $i; i=$((i+1)); test $((i%20)) -gt 0 || sleep 0.01; done; rest"
    )
    bed.write_tenant("flood", f"[process.w]\ncommand = {bed.shell(script)}\n")
    copy = bed.active("flood/w", bed.ok("flood"))
    file = bed.directory / "data" / copy["node"] / "logs" / "flood" / "w.1.log"
    for _ in range(2):
        _more_lines(bed, file)
        _kill_monitor(bed, copy["node"])
    bed.until(lambda: file.read_text().endswith(f"line {count - 1}\n"), "the last line")
    assert file.read_text().splitlines() == [f"line {number}" for number in range(count)]
    assert bed.active("flood/w", bed.ok("flood"))["pid"] == copy["pid"]


def _more_lines(bed: Bed, file: Path) -> None:
    lines = len(file.read_text().splitlines()) if file.exists() else 0
    bed.until(lambda: file.exists() and len(file.read_text().splitlines()) > lines + 100, "it writes")


def _kill_monitor(bed: Bed, node: str) -> None:
    old = bed.kill_agent(node, "monitor")
    bed.until(lambda: bed.agent(node, "monitor") not in (None, old), "another Monitor")


def test_program_that_hangs_is_restarted_by_the_watchdog_it_declared(bed: Bed) -> None:
    bed.write_tenant("dog", f'[process.w]\ncommand = {bed.sdk("0.5")}\nready = {{ by = "notify" }}\n')
    before = bed.active("dog/w", bed.ok("dog"))
    hang = Path(f"{bed.ledger}.hang")
    hang.touch()
    bed.until(lambda: bed.said("hung"), "it hangs")
    hang.unlink()
    status = bed.wait(lambda status: bed.active("dog/w", status)["pid"] != before["pid"], "another one is ready")
    assert before["pid"] not in bed.managed()
    assert bed.active("dog/w", status)["restarts"] == 1


def test_program_that_pings_is_left_alone_over_a_restart_of_the_spawner(bed: Bed) -> None:
    bed.write_tenant(
        "calm",
        f'[process.w]\ncommand = {bed.sdk("0.5")}\nready = {{ by = "notify" }}\nrun_status = "load_sharing"\n',
    )
    before = next(iter(bed.ready("calm/w", bed.ok("calm")).values()))
    old = bed.kill_agent(before["node"], "spawner")
    bed.until(lambda: bed.agent(before["node"], "spawner") not in (None, old), "another Spawner")
    begin = time.monotonic()
    bed.until(lambda: time.monotonic() - begin > 1.5, "three intervals")
    assert bed.ready("calm/w", bed.ok("calm"))[before["node"]]["pid"] == before["pid"]


def test_logs_follow_shows_lines_as_they_come(bed: Bed) -> None:
    flag = bed.directory / "flag-talk"
    script = f"echo first; until test -e {flag}; do sleep 0.02; done; echo later; rest"
    bed.write_tenant("tail", f"[process.w]\ncommand = {bed.shell(script)}\n")
    node = bed.active("tail/w", bed.ok("tail"))["node"]
    lines: list[str] = []
    with _request(bed, node, {"verb": "logs", "args": {"target": "tail/w", "lines": 10, "follow": True}}) as stream:
        reader = threading.Thread(target=_collect, args=(stream, lines))
        reader.start()
        bed.until(lambda: any("first" in line for line in lines), "the first line")
        flag.touch()
        bed.until(lambda: any("later" in line for line in lines), "the later line")
        stream.shutdown(socket.SHUT_RDWR)
        reader.join()


@contextlib.contextmanager
def _request(bed: Bed, node: str, body: dict[str, object]) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.fspath(bed.run_dir / node / "view.sock"))
        stream.sendall(json.dumps({"v": 1, "id": "follow", "ttl_ms": 60_000, **body}).encode() + b"\n")
        yield stream


def _collect(stream: socket.socket, lines: list[str]) -> None:
    with contextlib.suppress(OSError), stream.makefile() as file:
        lines.extend(iter(file.readline, ""))


def test_escaped_child_is_gone_after_a_stop(bed: Bed) -> None:
    script = "setsid sleep 54321 & rest"
    bed.write_tenant("escape", f'[process.w]\ncommand = {bed.shell(script)}\nstop = {{ grace = "1s" }}\n')
    bed.ok("escape")
    assert len(bed.running("escape")) >= 2
    bed.done("stop", "escape", "--wait")
    assert not bed.running("escape")
