from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ha.cli.commands.events import line_of
from ha.cli.draw_status import draw
from ha.cli.main import COMMANDS
from ha.cli.table import plain, show_blocks
from ha.cli.values import as_text
from tests.cli.gateway import always

GOLDEN = Path(__file__).parent / "golden"
STATUS = json.loads((GOLDEN / "status.json").read_text())
EVENT = {
    "id": "a1:7:3", "node": "a1", "seq": 3, "time": "2025-01-01T00:00:00.000Z", "kind": "state",
    "subject": "acme/acd.1", "from": "up", "to": "ready", "reason": "", "epoch": 7, "request": "",
}  # fmt: skip


def test_status_for_people_is_the_golden_text():
    assert plain(draw(STATUS)) + "\n" == (GOLDEN / "status.txt").read_text()


def test_status_on_a_terminal_has_the_same_words_in_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    show_blocks(draw(STATUS), colours=True)
    out = capsys.readouterr().out
    assert "\x1b[" in out
    for word in ("acme", "frozen", "critical: node/b1"):
        assert word in out


def test_json_status_is_the_answer_unchanged(gateway, hactl):
    gateway(status=always({"result": STATUS}))
    code, out, _ = hactl("--json", "status")
    assert code == 0
    assert json.loads(out) == STATUS


def test_status_of_an_older_agent_lacks_keys_and_is_drawn():
    assert "system -" in plain(draw({}))


def test_events_are_one_line_each(gateway, hactl):
    gateway(events=always({"result": [{"kind": "gap", "since": "x"}, EVENT]}))
    _, out, _ = hactl("events")
    gap, line = out.splitlines()
    assert "gap" in gap
    assert line == "2025-01-01T00:00:00.000Z  a1  state acme/acd.1  up -> ready  epoch 7  [a1:7:3]"
    assert line_of(EVENT) == line


def test_followed_events_go_on_where_a_restarted_agent_broke_off(gateway, hactl):
    served = []

    def script(request):
        served.append(request["args"]["since"])
        if len(served) == 1:
            return [{"final": False, "result": [EVENT]}, {"result": []}]  # the subscription has run out
        return [{"exit": 4, "error": "end of the test"}]

    fake = gateway(events=script)
    code, out, _ = hactl("--json", "events", "--follow")
    assert (code, served) == (4, [None, EVENT["id"]])
    assert [json.loads(line) for line in out.splitlines()] == [EVENT]
    assert fake.seen[0][1]["ttl_ms"] == 3_600_000


@pytest.mark.parametrize("result", [["one", "two"], {"lines": ["one", "two"]}, "one\ntwo\n"])
def test_logs_are_printed_as_they_are(gateway, hactl, result):
    gateway(logs=always({"result": result}))
    assert hactl("logs", "acme/acd")[1] == "one\ntwo\n"


def test_any_answer_can_be_read():
    text = as_text({"tenant": "acme", "dry_run": True, "steps": ["freeze", "release"], "none": [], "deep": {"a": None}})
    assert text == "tenant: acme\ndry_run: yes\nsteps:\n  freeze\n  release\nnone: none\ndeep:\n  a: -"


def test_help_lists_only_what_is_there(hactl):
    _, out, _ = hactl("--help")
    for name in COMMANDS:
        assert f"  {name} " in out
    for name in ("takeover", "keys", "top", "explain"):
        assert f"  {name} " not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(hactl, name):
    code, out, _ = hactl(name, "--help")
    assert code == 0
    assert "Usage: hactl" in out


def test_status_imports_neither_zmq_nor_rich(gateway, tmp_path: Path):
    fake = gateway(status=always({"result": STATUS}))
    code = (
        "import sys; from ha.cli.main import run; assert run(sys.argv[1:]) == 0;"
        "bad = {'zmq', 'rich', 'msgspec', 'msgpack', 'psutil'} & set(sys.modules); assert not bad, bad"
    )
    arguments = ["--config", str(fake.config), "--json", "status"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=20)


def test_the_launcher_runs_from_anywhere(gateway, tmp_path: Path):
    fake = gateway(status=always({"result": STATUS}))
    launcher = Path(__file__).parents[2] / "bin/hactl"
    environment = {**os.environ, "HA_CONFIG": str(fake.config), "HA_NODE": "a1", "HA_PYTHON": sys.executable}
    done = subprocess.run(
        [launcher, "--json", "status"], cwd="/", env=environment, capture_output=True, timeout=20, check=True
    )
    assert json.loads(done.stdout) == STATUS
