"""Calls by SIPp, a caller that is not ours: used beside our own where CI=true and `sipp` is installed.

SIPp calls one address and counts a call as failed when any message of it is missing or late, so its exit code 0 means
that not a single call had a flaw. Our own caller goes on meanwhile: it is the one that follows a failover.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile

from examples.callcenter.demo_system import System

RATE = 20  # calls a second
HOLD_MS = 200
TIMEOUT_S = 30


def wanted() -> str:
    """Return the path of sipp if it is to be used, or an empty string."""
    return (shutil.which("sipp") or "") if os.environ.get("CI") == "true" else ""


class SippCalls:
    """`count` calls to one IVR, started now."""

    def __init__(self, system: System, program: str, address: str, port: int, count: int) -> None:
        own = f"{system.net}.1"
        self.count = count
        self._directory = tempfile.mkdtemp(prefix="sipp-", dir=system.logs)
        self._process = subprocess.Popen(
            [
                program, "-sn", "uac", f"{address}:{port}", "-s", "100", "-i", own, "-p", str(_free_port(own)),
                "-cp", str(_free_port(own)), "-mp", str(_free_port(own)), "-m", str(count), "-r", str(RATE),
                "-d", str(HOLD_MS), "-timeout", str(TIMEOUT_S), "-timeout_error", "-nostdin",
                "-trace_err", "-error_file", f"{self._directory}/errors",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._directory,
            env=system.environment("outside"),
        )  # fmt: skip

    def wait(self) -> str:
        """Wait for its end; return what was wrong, or an empty string. Raises subprocess.TimeoutExpired."""
        code = self._process.wait(TIMEOUT_S + 10)
        return f"sipp ended with code {code}, see {self._directory}" if code else ""


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
