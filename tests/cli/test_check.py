from __future__ import annotations

import json
from pathlib import Path

import pytest

SYSTEM = """
[system]
name = "demo"
run_dir = "/tmp/ha-check"
data_dir = "/tmp/ha-check-data"
node_file = "node.toml"
[sides.a]
servers = ["a1"]
[sides.b]
servers = ["b1"]
[nodes.a1]
side = "a"
addresses = ["127.0.0.11"]
[nodes.b1]
side = "b"
addresses = ["127.0.0.21"]
[witnesses.w1]
addresses = ["127.0.0.50"]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "system.toml").write_text(SYSTEM)
    (tmp_path / "tenants.d").mkdir()
    (tmp_path / "tenants.d/acme.toml").write_text(
        '[tenant]\n[process.acd]\ncommand = ["/bin/sleep", "9"]\nuser = "acme"\n'
    )
    return tmp_path


def test_files_that_pass_are_0(files: Path, hactl):
    assert hactl("check") == (0, "the files pass\n", "")
    assert json.loads(hactl("--json", "check")[1]) == {"errors": []}


def test_files_that_do_not_pass_are_2_with_file_and_line(files: Path, hactl):
    bad = files / "globex.toml"
    bad.write_text('[tenant]\n[process.acd]\ncomand = ["/bin/sleep", "9"]\n')
    code, out, _ = hactl("check", str(bad))
    assert code == 2
    assert f"{bad}:3:1:" in out
    (first, *_) = json.loads(hactl("--json", "check", str(bad))[1])["errors"]
    assert first["file"] == str(bad)
    assert set(first) == {"file", "line", "column", "code", "text", "help"}


def test_a_system_file_that_is_not_there_is_2(tmp_path: Path, hactl):
    code, out, _ = hactl("check")
    assert code == 2
    assert "system.toml" in out
