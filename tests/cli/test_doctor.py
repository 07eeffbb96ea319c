from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from ha.cli.examine import Verdict, directories, file_mode, port_free
from ha.cli.place import Place
from tests.cli.gateway import SYSTEM


def test_doctor_looks_at_kernel_clock_files_and_ports(hactl, tmp_path: Path):
    (tmp_path / "system.toml").write_text(SYSTEM.replace("[nodes.a1]", "[ports]\nstate = 47701\n[nodes.a1]"))
    code, out, _ = hactl("--json", "doctor")
    checks = json.loads(out)["checks"]
    assert {"kernel", "clock rate", "files", "ports"} <= {check["area"] for check in checks}
    assert code == int(any(check["verdict"] == "bad" for check in checks))
    for check in checks:
        assert check["text"]
        assert check["help"] or check["verdict"] != "bad"


def test_a_file_that_others_may_write_must_be_mended(tmp_path: Path):
    path = tmp_path / "node.toml"
    path.touch()
    path.chmod(0o622)
    (found,) = file_mode(str(path), others_may_read=True)
    assert (found.verdict, found.help) == (Verdict.BAD, f"chmod go-w {path}")
    path.chmod(0o644)
    assert file_mode(str(path), others_may_read=True)[0].verdict is Verdict.OK
    assert file_mode(str(path), others_may_read=False)[0].verdict is Verdict.BAD


def test_a_node_directory_that_is_open_must_be_mended(tmp_path: Path):
    (tmp_path / "a1/agents").mkdir(parents=True)
    os.chmod(tmp_path / "a1", 0o711)
    os.chmod(tmp_path / "a1/agents", 0o755)
    verdicts = [found.verdict for found in directories(Place("f", str(tmp_path), ("a1",), ()), "a1")]
    assert verdicts == [Verdict.OK, Verdict.BAD]


def test_a_port_in_use_is_not_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        assert not port_free("127.0.0.1", number)
    assert port_free("127.0.0.1", number)
