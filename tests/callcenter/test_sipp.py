"""The IVR against the real sipp of the Debian package sip-tester."""

import json
import shutil
import subprocess
import urllib.request

import pytest

SIPP = shutil.which("sipp")
pytestmark = pytest.mark.skipif(SIPP is None, reason="sipp is not installed (Debian: apt-get install sip-tester)")


def test_fifty_calls_of_sipp_are_answered_and_ended(start, free_port, tmp_path):
    port, own, control, media = (free_port() for _ in range(4))
    start("ivr.py", "--port", port)
    command = [
        SIPP, "-sn", "uac", f"127.0.0.1:{port}", "-i", "127.0.0.1", "-p", str(own), "-cp", str(control),
        "-mp", str(media),
        "-m", "50", "-r", "50", "-d", "200", "-timeout", "30", "-timeout_error", "-nostdin", "-trace_err",
        "-error_file", str(tmp_path / "errors"),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr
    assert not (tmp_path / "errors").exists()
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/health", timeout=5) as answer:
        health = json.load(answer)
    assert health["calls"] == 0
    assert {name: health["counters"][name] for name in ("INVITE", "ACK", "BYE", "ended_bye")} == dict.fromkeys(
        ("INVITE", "ACK", "BYE", "ended_bye"), 50
    )
