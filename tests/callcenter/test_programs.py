"""The programs together: calls by the demo's own caller, agents, recorder, statistics, directory."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from examples.callcenter.demo_system import EXAMPLES


def call(*arguments):
    """Run caller.py to its end; return (exit code, final report)."""
    command = [sys.executable, str(EXAMPLES / "caller.py"), *map(str, arguments), "--every", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1])


def until(found, timeout=5.0):
    """Return the first true result."""
    deadline = time.monotonic() + timeout
    while not (result := found()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return result


def test_every_call_is_answered_by_an_agent_recorded_and_counted(start, free_port, tmp_path):
    directory, acd, recorder, stats, ivr = (free_port() for _ in range(5))
    start("directory.py", "--port", directory)
    start("acd.py", "--port", acd)
    tape = start(
        "recorder.py", "--port", recorder, "--data", tmp_path, environment={"HA_EPOCH": "65537", "HA_NODE": "a1"}
    )
    summary = tmp_path / "stats.json"
    start("stats.py", "--port", stats, "--acd", f"127.0.0.1:{acd}", "--file", summary, "--interval", "0.05")
    crew = start("agents.py", "--acd", f"127.0.0.1:{acd}", "--count", 30, ready=False)
    crew.line("distributor", at=f"127.0.0.1:{acd}")
    until(lambda: summary.exists() and json.loads(summary.read_text())["acd"]["waiting"] == 30)
    services = [
        f"--{name}=127.0.0.1:{port}" for name, port in (("acd", acd), ("directory", directory), ("recorder", recorder))
    ]
    start("ivr.py", "--port", ivr, *services)
    # The first call may come before the IVR has found the others, and be queued: it is answered all the same.
    call("--to", f"127.0.0.1:{ivr}", "--count", 1, "--hold", 0.3)
    code, report = call("--to", f"127.0.0.1:{ivr}", "--count", 40, "--rate", 50, "--hold", 0.1, "--user", 200)
    assert code == 0
    assert (report["attempted"], report["answered"], report["failed"], report["dropped"]) == (40, 40, 0, 0)
    assert report["queued"] == 0
    assert 0 < report["setup_p50_ms"] <= report["setup_p95_ms"] < 1000
    assert until(lambda: json.loads(summary.read_text())["acd"]["routed"] == 41)
    assert tape.end() == 0
    records = [json.loads(line) for line in (tmp_path / "calls-65537-a1.jsonl").read_text().splitlines()]
    assert {record["epoch"] for record in records} == {65537}
    what = [record["event"]["what"] for record in records]
    assert (what.count("offered"), what.count("connected"), what.count("ended")) == (41, 41, 41)
    sellers = {record["event"]["agent"] for record in records if record["event"]["what"] == "connected"}
    assert len(sellers) > 1


def test_a_queued_call_gets_an_agent_when_the_distributor_comes(start, free_port):
    acd, port = free_port(), free_port()
    ivr = start("ivr.py", "--port", port, "--acd", f"127.0.0.1:{acd}")
    caller = start("caller.py", "--to", f"127.0.0.1:{port}", "--count", 1, "--hold", 60, "--every", "0.05", ready=False)
    caller.line(answered=1, queued=1)
    start("acd.py", "--port", acd)
    start("agents.py", "--acd", f"127.0.0.1:{acd}", ready=False)
    assert ivr.line("connected")["agent"] == "agent0"
    caller.process.terminate()
    assert caller.line(final=True)["dropped"] == 0
    assert caller.process.wait(10) == 0


def test_agents_follow_the_active_distributor(start, free_port, talk):
    first, second = free_port(), free_port()
    one = start("acd.py", "--port", first, environment={"HA_EPOCH": "65536"})
    crew = start("agents.py", "--acd", f"127.0.0.1:{first},127.0.0.1:{second}", "--count", 3, ready=False)
    crew.line("distributor", at=f"127.0.0.1:{first}")
    one.process.send_signal(signal.SIGKILL)
    one.process.wait()
    one.process.stdout.close()
    start("acd.py", "--port", second, environment={"HA_EPOCH": "131072"})
    crew.line("distributor", at=f"127.0.0.1:{second}", epoch=131072)
    ivr = talk(second)
    until(lambda: json.loads(ivr.ask("STATS").split()[1])["waiting"] == 3)


def test_a_lower_epoch_is_not_believed(start, free_port):
    old, new = free_port(), free_port()
    crew = start("agents.py", "--acd", f"127.0.0.1:{new},127.0.0.1:{old}", ready=False)
    newer = start("acd.py", "--port", new, environment={"HA_EPOCH": "131072"})
    crew.line("distributor", at=f"127.0.0.1:{new}")
    newer.end()
    crew.line("distributor", at=None)
    start("acd.py", "--port", old, environment={"HA_EPOCH": "65536"})
    with pytest.raises(TimeoutError):
        crew.line("distributor", at=f"127.0.0.1:{old}", timeout=1.0)


def test_a_call_goes_to_the_next_address_when_one_is_gone_or_silent(start, free_port):
    gone, port = free_port(), free_port()
    start("ivr.py", "--port", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        to = f"127.0.0.1:{gone},127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{port}"
        code, report = call("--to", to, "--count", 12, "--rate", 20, "--hold", 0.1, "--answer-timeout", 0.4)
    assert code == 0
    assert (report["answered"], report["failed"], report["dropped"]) == (12, 0, 0)
    assert report["retried"] >= 2
    assert report["addresses"][f"127.0.0.1:{port}"] == 12


def test_a_call_nobody_answers_has_failed(free_port):
    code, report = call("--to", f"127.0.0.1:{free_port()}", "--count", 2, "--tries", 2)
    assert code == 1
    assert (report["answered"], report["failed"], report["retried"]) == (0, 2, 2)
    assert report["setup_p50_ms"] is None
    assert report["why"] == {"refused by the network": 4}


def test_calls_cut_by_a_dead_ivr_are_dropped_not_hidden(start, free_port):
    port = free_port()
    ivr = start("ivr.py", "--port", port)
    caller = start(
        "caller.py",
        "--to",
        f"127.0.0.1:{port}",
        "--rate",
        50,
        "--count",
        5,
        "--hold",
        2,
        "--every",
        "0.05",
        ready=False,
    )
    caller.line(answered=5)
    ivr.process.kill()
    ivr.process.wait()
    ivr.process.stdout.close()
    report = caller.line(final=True)
    assert (report["answered"], report["dropped"], report["failed"]) == (5, 5, 0)
    assert caller.process.wait(10) == 1
    caller.process.stdout.close()


def test_a_running_caller_reports_when_it_is_told_to_stop(start, free_port):
    port = free_port()
    start("ivr.py", "--port", port)
    caller = start("caller.py", "--to", f"127.0.0.1:{port}", "--rate", 40, "--every", "0.1", ready=False)
    caller.line(final=False, failed=0)
    until(lambda: caller.line(final=False)["answered"] >= 5)
    caller.process.terminate()
    report = caller.line(final=True)
    assert report["attempted"] == report["answered"] >= 5
    assert caller.process.wait(10) == 0
    assert report["in_progress"] == report["failed"] == report["dropped"] == 0


def test_a_recorder_writes_an_event_once(start, free_port, talk, tmp_path):
    port = free_port()
    recorder = start("recorder.py", "--port", port, "--data", tmp_path)
    one = talk(port)
    for _ in range(2):
        assert one.ask('EVENT a1-7 1 {"what":"offered"}') == "OK a1-7 1 0"
    assert one.ask("EVENT a1-7 2 not-json") == "ERROR not JSON 0"
    assert one.ask("EVENT a1-7 x {}").startswith("ERROR ")
    assert recorder.end() == 0
    (file,) = tmp_path.glob("calls-0-*.jsonl")
    assert len(file.read_text().splitlines()) == 1


def test_a_standby_writes_no_statistics_and_looks_nothing_up(start, free_port, talk, tmp_path):
    acd, port, directory = free_port(), free_port(), free_port()
    start("acd.py", "--port", acd)
    standby = {"HA_ROLE": "standby"}
    worker = (
        "stats.py",
        "--port",
        port,
        "--acd",
        f"127.0.0.1:{acd}",
        "--interval",
        "0.02",
        "--file",
        tmp_path / "s.json",
    )
    start(*worker, environment=standby)
    start("directory.py", "--port", directory, environment=standby)
    assert talk(port).greeting == "ROLE standby 0"
    one = talk(directory)
    assert one.ask("GET 100") == "STANDBY 100 0"
    other = free_port()
    start("stats.py", "--port", other, *worker[3:-1], tmp_path / "t.json")
    until((tmp_path / "t.json").exists)
    assert not (tmp_path / "s.json").exists()


def test_the_directory_answers(start, free_port, talk, tmp_path):
    port = free_port()
    (tmp_path / "entries.json").write_text('{"42": "sales"}')
    start("directory.py", "--port", port, "--entries", tmp_path / "entries.json", environment={"HA_EPOCH": "65536"})
    one = talk(port)
    assert one.ask("GET 42") == "VALUE 42 sales 65536"
    assert one.ask("GET 100") == "NONE 100 65536"
    assert one.ask("PUT 100 x").startswith("ERROR ")


def test_a_port_in_use_is_said_in_one_line(free_port):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        ended = subprocess.run(
            [sys.executable, str(EXAMPLES / "acd.py"), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    assert ended.returncode == 1
    assert ended.stderr == f"acd.py: cannot listen at 127.0.0.1:{port}: Address already in use\n"
