from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.gateway import SYSTEM, always


def test_done_is_0_and_the_request_is_as_agreed(gateway, hactl):
    fake = gateway(start=always({"result": None}))
    code, out, err = hactl("start", "acme/acd", "--wait")
    assert (code, out, err) == (0, "start acme/acd: done\n", "")
    socket_name, request = fake.seen[0]
    assert socket_name == "operate.sock"
    assert request["args"] == {"target": "acme/acd", "wait": True}
    assert (request["v"], request["verb"], request["ttl_ms"]) == (1, "start", 10_000)
    assert int(request["id"], 16) >= 0


@pytest.mark.parametrize(
    ("arguments", "verb", "args"),
    [
        (["stop", "acme"], "stop", {"target": "acme", "wait": False}),
        (["restart", "acme", "--rolling"], "restart", {"target": "acme", "rolling": True, "wait": False}),
        (["reset", "acme/db"], "reset", {"target": "acme/db", "wait": False}),
        (["switchover", "acme"], "switchover", {"tenant": "acme", "to": None, "dry_run": False, "wait": False}),
        (
            ["switchover", "acme", "--to", "b", "--dry-run"],
            "switchover",
            {"tenant": "acme", "to": "b", "dry_run": True, "wait": False},
        ),
        (["drain", "a1"], "drain", {"target": "a1", "wait": False}),
        (["undrain", "b"], "undrain", {"target": "b", "wait": False}),
        (["hold"], "hold", {"tenant": None, "wait": False}),
        (["unhold", "acme"], "unhold", {"tenant": "acme", "wait": False}),
        (["apply", "--confirm"], "apply", {"confirm": True, "wait": False}),
        (["diff"], "diff", {"wait": False}),
        (["request", "ab12"], "request", {"id": "ab12", "wait": False}),
        (
            ["logs", "acme/acd", "-n", "5", "--copy", "2"],
            "logs",
            {"target": "acme/acd", "copy": 2, "lines": 5, "follow": False, "wait": False},
        ),
        (["events", "--since", "x"], "events", {"since": "x", "follow": False, "limit": None, "wait": False}),
    ],
)
def test_each_command_sends_its_arguments(gateway, hactl, arguments, verb, args):
    fake = gateway(**{verb: always({"result": []})})
    assert hactl(*arguments)[0] == 0
    socket_name, request = fake.seen[0]
    assert request["args"] == args
    assert socket_name == ("view.sock" if verb in ("diff", "request", "logs", "events") else "operate.sock")


def test_diff_that_differs_is_1_and_no_error(gateway, hactl):
    gateway(diff=always({"exit": 1, "result": [{"tenant": "acme", "change": "added"}]}))
    assert hactl("diff") == (1, "TENANT  CHANGE\nacme    added\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["start"], ["start", "Acme"], ["start", "a/b/c"], ["--timeout", "3x", "status"], ["logs", "acme"]],
)
def test_wrong_usage_is_2(gateway, hactl, arguments):
    gateway()
    code, out, err = hactl(*arguments)
    assert (code, out) == (2, "")
    assert err


def test_a_system_file_that_is_not_toml_is_2_and_says_where(tmp_path: Path, hactl):
    (tmp_path / "system.toml").write_text("[system\n")
    code, _, err = hactl("status")
    assert code == 2
    assert "line 1" in err


def test_no_agent_is_3_and_says_how_to_start_it(tmp_path: Path, hactl):
    (tmp_path / "system.toml").write_text(SYSTEM)
    code, _, err = hactl("--node", "a1", "status")
    assert code == 3
    assert f"ha-master --config {tmp_path / 'system.toml'} --node a1" in err


@pytest.mark.parametrize(("node", "words"), [("zz", "a1, b1"), ("w1", "only votes")])
def test_an_unknown_node_is_3_and_the_known_ones_are_named(gateway, hactl, node, words):
    gateway()
    code, _, err = hactl("--node", node, "status")
    assert code == 3
    assert words in err


@pytest.mark.parametrize(("answer", "text"), [(3, "unknown tenant 'x'"), (4, "not permitted"), (5, "no ready standby")])
def test_the_answer_decides_the_code_and_the_reason_is_printed(gateway, hactl, answer, text):
    gateway(switchover=always({"exit": answer, "error": text}))
    code, out, err = hactl("switchover", "x")
    assert (code, out) == (answer, "")
    assert err.startswith(f"hactl: {text}\n  ")  # and a next step


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_socket_that_is_not_ours_is_4(gateway, hactl, tmp_path: Path):
    gateway(status=always({"result": {}}))
    for path in (tmp_path / "run/a1/view.sock", tmp_path / "run/a1/operate.sock"):
        path.chmod(0o600)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    os.seteuid(65534)
    try:
        code, _, err = hactl("status")
    finally:
        os.seteuid(0)
    assert code == 4
    assert "view_group" in err


def test_no_answer_in_time_is_124_with_the_request_id(gateway, hactl):
    fake = gateway()
    code, _, err = hactl("--timeout", "50ms", "stop", "acme")
    assert code == 124
    assert f"ask later: hactl request {fake.seen[0][1]['id']}" in err


def test_an_agent_that_dies_before_its_answer_is_124(gateway, hactl):
    gateway(stop=lambda request: None)
    code, _, err = hactl("stop", "acme")
    assert code == 124
    assert "went away" in err


def test_an_error_under_json_is_json_on_stderr(gateway, hactl):
    fake = gateway(hold=always({"exit": 5, "error": "busy"}))
    code, out, err = hactl("--json", "hold")
    assert (code, out) == (5, "")
    said = json.loads(err)
    assert (said["exit"], said["error"], said["request"]) == (5, "busy", fake.seen[0][1]["id"])


def test_an_answer_with_another_id_is_passed_over(gateway, hactl):
    gateway(hold=always({"id": "other", "exit": 5, "error": "not ours"}, {"final": False}, {"result": None}))
    assert hactl("hold")[0] == 0


def test_words_that_are_not_the_protocol_are_1(gateway, hactl):
    gateway(hold=always({"exit": "many"}))
    assert hactl("hold")[0] == 1


def test_the_first_node_that_answers_is_asked(gateway, hactl, tmp_path: Path):
    dead = tmp_path / "run/a1"
    dead.mkdir(parents=True)
    (dead / "view.sock").touch()  # left by an agent that is gone
    fake = gateway("b1", status=always({"result": {"node": "b1"}}))
    code, out, _ = hactl("--json", "status")
    assert (code, json.loads(out)) == (0, {"node": "b1"})
    assert len(fake.seen) == 1
