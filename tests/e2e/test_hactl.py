"""hactl against real agents: every command, its JSON and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from benchmarks.cluster import ROOT, launcher_environment

from tests.e2e.tenant_bed import Bed

pytestmark = pytest.mark.e2e
STATUS_KEYS = "schema system node source complete plan arbitration sides tenants alarms"
COMMANDS = (
    "status start stop restart reset switchover drain undrain hold unhold events check diff apply logs request doctor"
)
DONE, FAILED, USAGE, NO_ANSWER, NOT_PERMITTED, REFUSED, TIMED_OUT = 0, 1, 2, 3, 4, 5, 124


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    """One system for the module, with one warm tenant `acme` and one load-sharing `shared`."""
    with Bed() as made:
        made.start()
        made.wait_seated()
        made.write_tenant(
            "acme",
            f'[process.acd]\ncommand = {made.sdk()}\nrun_status = "warm"\nready = {{ by = "notify" }}\n'
            f'[process.rec]\ncommand = {made.shell("echo hello; rest")}\ndepends_on = ["acd"]\n',
        )
        made.write_tenant("shared", f'[process.ivr]\ncommand = {made.plain()}\nrun_status = "load_sharing"\n')
        made.ok("acme", "shared")
        yield made


@pytest.fixture(autouse=True)
def well(bed: Bed) -> Iterator[None]:
    """Each test leaves the tenants well."""
    yield
    bed.ok("acme", "shared")


@contextlib.contextmanager
def stopped_servers(bed: Bed) -> Iterator[None]:
    """No Server answers while this lasts; shorter than the Masters' patience with a stuck agent."""
    pids = [bed.kill_agent(node, "server", signal.SIGSTOP) for node in bed.nodes]
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_status_is_answered_by_every_node_and_agrees(bed: Bed) -> None:
    found = [bed.json("status", node=node) for node in bed.nodes]
    for status in found:
        assert {
            "schema",
            "system",
            "node",
            "source",
            "complete",
            "plan",
            "arbitration",
            "sides",
            "tenants",
            "alarms",
        } <= set(status)
        assert (status["source"], status["complete"], status["alarms"]) == ("server", True, [])
        assert bed.pids(status) == bed.pids(found[0])
        assert {side: one["server"] for side, one in status["sides"].items()} == {"a": "a1", "b": "b1"}
        assert status["tenants"]["acme"]["active_side"] == "a"
        roles = {role for one in status["sides"].values() for node in one["nodes"].values() for role in node["agents"]}
        assert roles == {"server", "monitor", "spawner", "master", "watcher", "witness"}
    text = bed.hactl("status", node="b2").stdout
    assert "tenant acme: ok, active on side a" in text


def test_status_comes_from_the_local_monitor_when_no_server_is_up(bed: Bed) -> None:
    with stopped_servers(bed):
        answer = bed.ask("b1", "status")
    assert answer is not None
    assert answer["exit"] == DONE
    status = answer["result"]
    assert (status["source"], status["node"], status["complete"]) == ("monitor", "b1", False)
    assert [copy["role"] for copy in bed.copies(status, "acme/acd")] == ["standby"]
    bed.wait_seated()


def test_every_command_is_listed_and_has_help(bed: Bed) -> None:
    text = bed.hactl("--help").stdout
    for name in COMMANDS.split():
        assert f"  {name} " in text
        assert bed.hactl(name, "--help").returncode == DONE


@pytest.mark.parametrize(
    "words",
    [
        "status", "start shared", "start shared/ivr --wait", "restart shared --rolling --wait",
        "restart shared/ivr --wait",
        "reset acme", "reset acme/acd --wait", "switchover acme --dry-run", "hold acme", "unhold acme", "hold",
        "unhold", "drain a2", "undrain a2", "events", "events -n 3", "check", "diff", "apply", "apply --confirm",
        "logs shared/ivr",
    ],
)  # fmt: skip
def test_command_is_done_with_0_and_prints_json_only(bed: Bed, words: str) -> None:
    bed.ok("acme", "shared")
    ended = bed.hactl("--timeout", "30s", "--json", *words.split())
    assert (ended.returncode, ended.stderr) == (DONE, "")
    if words.partition(" ")[0] != "logs":
        for line in ended.stdout.splitlines():
            json.loads(line)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (USAGE, "no-such-command"), (USAGE, "start"), (USAGE, "start Not/A/Name"), (USAGE, "switchover acme --to c"),
        (USAGE, "--timeout 5 status"), (USAGE, "logs acme"),
        (NO_ANSWER, "start nobody"), (NO_ANSWER, "stop acme/nobody"), (NO_ANSWER, "drain nowhere"),
        (NO_ANSWER, "hold nobody"), (NO_ANSWER, "request 0123456789abcdef"), (NO_ANSWER, "logs acme/nobody"),
        (NO_ANSWER, "--node nowhere status"), (NO_ANSWER, "--node w1 status"),
        (REFUSED, "switchover acme --to a"), (REFUSED, "switchover shared"),
    ],
)  # fmt: skip
def test_wrong_words_end_with_their_code_and_say_what_to_do(bed: Bed, code: int, words: str) -> None:
    ended = bed.hactl("--json", *words.split())
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ""
    if "exit" in ended.stderr:
        error = json.loads(ended.stderr)
        assert error["exit"] == code
        assert error["error"]
        assert error["help"]
    text = bed.hactl(*words.split())
    assert text.returncode == code
    assert text.stderr
    assert "Traceback" not in text.stderr


def test_configuration_that_does_not_pass_ends_with_2(bed: Bed) -> None:
    path = bed.directory / "wrong.toml"
    path.write_text("[process.x]\ncommand = 5\n")
    ended = bed.hactl("--json", "check", str(path))
    assert ended.returncode == USAGE
    errors = json.loads(ended.stdout)["errors"]
    assert {"file", "line", "column", "code", "text", "help"} == set(errors[0])
    assert errors[0]["line"] == 2
    gone = subprocess.run(
        [str(ROOT / "bin" / "hactl"), "--config", "/nowhere/system.toml", "status"],
        capture_output=True, text=True, env=launcher_environment(), check=False, timeout=30,
    )  # fmt: skip
    assert gone.returncode == USAGE


NOBODY = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import tomli, ha.cli.commands.control, ha.cli.client, ha.cli.values
from ha.cli.main import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main()
"""  # imports first: nobody may not read where this interpreter lies


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_who_may_not_is_told_with_4(bed: Bed) -> None:
    bed.directory.chmod(0o755)
    words = ["--json", "--config", str(bed.config), "--node", "a1", "stop", "acme"]
    ended = subprocess.run(
        [sys.executable, "-c", NOBODY, str(ROOT), *words], capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == NOT_PERMITTED, ended.stderr
    error = json.loads(ended.stderr)
    assert (error["exit"], "operate_group" in error["help"]) == (NOT_PERMITTED, True)


def test_view_socket_takes_no_operating_request(bed: Bed) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(os.fspath(bed.run_dir / "a1" / "view.sock"))
        stream.sendall(b'{"v": 1, "id": "x", "verb": "stop", "args": {"target": "acme"}, "ttl_ms": 1000}\n')
        answer = json.loads(stream.makefile().readline())
    assert answer["exit"] == NOT_PERMITTED


def test_request_that_times_out_can_be_asked_for_later(bed: Bed) -> None:
    slow = f'[process.w]\ncommand = {bed.shell("trap : TERM; rest")}\nstop = {{ grace = "2s" }}\n'
    bed.write_tenant("slow", slow)
    bed.ok("slow")
    error = json.loads(bed.hactl("--json", "--timeout", "300ms", "stop", "slow", "--wait").stderr)
    assert error["exit"] == TIMED_OUT
    assert error["request"]
    assert "unknown" in error["error"]
    told = bed.json("request", error["request"])
    assert (told["verb"], told["state"]) == ("stop", "unknown")
    bed.wait(lambda status: status["tenants"]["slow"]["state"] == "stopped", "it was stopped all the same")
    bed.remove_tenant("slow")
    bed.gone("slow")


def test_request_that_no_server_answered_in_time_is_known_when_one_is_back(bed: Bed) -> None:
    with stopped_servers(bed):
        ended = bed.hactl("--json", "--timeout", "600ms", "hold", "acme", node="a1")
    assert ended.returncode == TIMED_OUT
    request = json.loads(ended.stderr)["request"]
    bed.wait(lambda status: status["tenants"]["acme"]["held"], "it was done after all")
    bed.until(lambda: bed.hactl("--json", "request", request, node="a1").returncode == DONE, "its outcome is known")
    bed.done("unhold", "acme")
    bed.wait_seated()


def test_a_waiting_request_is_done_once_however_long_it_takes(bed: Bed) -> None:
    slow = f"[process.w]\ncommand = {bed.shell('say start; sleep 1; systemd-notify --ready; rest')}\n"
    bed.write_tenant("late", slow + 'ready = { by = "notify" }\n')
    bed.ok("late")
    bed.done("restart", "late", "--wait")
    bed.ok("late")
    assert len(bed.said("start", "late/w")) == 2
    bed.remove_tenant("late")
    bed.gone("late")


def test_events_follow_since_and_gap(bed: Bed) -> None:
    seen = bed.json("events", "-n", "5")
    keys = {"id", "node", "seq", "time", "kind", "subject", "from", "to", "reason", "epoch", "request"}
    assert all(set(event) == keys for event in seen)
    last = seen[-1]["id"]
    command = [
        str(ROOT / "bin" / "hactl"),
        "--config",
        str(bed.config),
        "--json",
        "events",
        "--follow",
        "--since",
        last,
    ]
    out = bed.directory / "followed"
    with out.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, env=launcher_environment())
    try:
        bed.done("restart", "shared", "--wait")
        bed.until(lambda: "shared/ivr.1" in out.read_text(), "the restart is followed")
        old = bed.kill_agent("a1", "monitor")
        bed.until(lambda: bed.agent("a1", "monitor") not in (None, old), "another Monitor")
        bed.wait_seated()
        length = len(out.read_text())
        bed.done("restart", "shared", "--wait")
        bed.until(lambda: "shared/ivr.1" in out.read_text()[length:], "it follows on after a restart of the Monitor")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == DONE
    followed = [json.loads(line) for line in out.read_text().splitlines()]
    ids = [event["id"] for event in followed if "id" in event]
    assert last not in ids
    assert len(ids) == len(set(ids))
    assert [event["id"] for event in bed.json("events", "--since", ids[0], "-n", "3")]
    gap = bed.json("events", "--since", "a1:1:999999")
    assert gap[0]["kind"] == "gap"
    assert "gap" in bed.hactl("events", "--since", "a1:1:999999").stdout.splitlines()[0]


def test_doctor_finds_nothing_bad_but_what_this_host_lacks(bed: Bed) -> None:
    ended = bed.hactl("--json", "doctor", node="a1")
    checks = json.loads(ended.stdout)["checks"]
    assert all(set(check) == {"area", "verdict", "text", "help"} for check in checks)
    bad = [check for check in checks if check["verdict"] == "bad"]
    assert ended.returncode == (FAILED if bad else DONE)
    assert not [check for check in bad if check["area"] in ("files", "ports", "nodes", "system file")]
    bed.directory.joinpath("node.toml").chmod(0o666)
    try:
        assert bed.hactl("doctor", node="a1").returncode == FAILED
    finally:
        bed.directory.joinpath("node.toml").chmod(0o600)


def test_logs_are_shown_by_the_node_that_has_them(bed: Bed) -> None:
    node = bed.active("acme/rec")["node"]
    assert "hello" in bed.done("logs", "acme/rec", node=node).stdout
