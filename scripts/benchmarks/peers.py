"""Peers: supervisord, circus, s6 and runit, and the bare loop, each running the same shell scripts."""

# ruff: noqa: D102 - what each method does stands in Peer

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import children, kill

BIN = Path(sys.executable).parent
STOP_S = 30.0


class Peer:
    """One contestant. `scripts`: name -> path of an executable shell script that runs in the foreground."""

    name = ""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    def missing(self) -> str:
        """Return why it cannot run here, or an empty string."""
        raise NotImplementedError

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        """Write its configuration."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return what runs it in the foreground."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it; again after it was killed."""
        with open(self.directory / "out.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.directory,
            )

    def pids(self) -> list[int]:
        """Return the pids of the supervisor itself, without what it manages."""
        return [self.process.pid] if self.process is not None else []

    def kill(self) -> None:
        """Kill -9 the supervisor."""
        assert self.process is not None
        for pid in self.pids():
            kill(pid)
        self.process.wait(STOP_S)

    def stop_program(self, name: str) -> None:
        """Stop one program the way its manual says."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it in its orderly way, kill what of it is left."""
        assert self.process is not None
        family = [self.process.pid, *children(self.process.pid)]
        kill(self.process.pid, self.stop_signal)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for pid in family:
                kill(pid)
            self.process.wait(STOP_S)

    stop_signal = signal.SIGTERM


class Bare(Peer):
    """The floor."""

    name = "bare loop"

    def missing(self) -> str:
        return ""

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        self.directory, self._scripts = directory, scripts

    def command(self) -> list[str]:
        return [sys.executable, "-I", str(Path(__file__).with_name("bare.py")), *map(str, self._scripts.values())]


class Supervisord(Peer):
    """supervisord with its defaults; output thrown away."""

    name = "supervisord"

    def missing(self) -> str:
        return "" if (BIN / "supervisord").exists() else "pip install supervisor"

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        self.directory = directory
        text = (
            f"[supervisord]\nnodaemon=true\nlogfile={directory}/s.log\npidfile={directory}/s.pid\nminfds=8192\nuser=root\n"
            f"[unix_http_server]\nfile={directory}/s.sock\n[supervisorctl]\nserverurl=unix://{directory}/s.sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
        )
        for name, path in scripts.items():
            text += (
                f"[program:{name}]\ncommand=/bin/sh {path}\nautorestart=true\n"
                "stdout_logfile=NONE\nstderr_logfile=NONE\nstopasgroup=true\nkillasgroup=true\n"
            )
        (directory / "supervisord.conf").write_text(text)

    def command(self) -> list[str]:
        return [str(BIN / "supervisord"), "-c", str(self.directory / "supervisord.conf")]

    def stop_program(self, name: str) -> None:
        control = [str(BIN / "supervisorctl"), "-c", str(self.directory / "supervisord.conf"), "stop", name]
        subprocess.run(control, check=True, capture_output=True, timeout=STOP_S)


class Circus(Peer):
    """circus; its default check_delay is 1 s."""

    def __init__(self, check_delay: float = 1.0) -> None:
        super().__init__()
        self._delay = check_delay
        self.name = "circus" if check_delay == 1.0 else f"circus, {check_delay * 1000:.0f} ms poll"

    def missing(self) -> str:
        return "" if (BIN / "circusd").exists() else "pip install circus"

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        self.directory = directory
        text = (
            f"[circus]\ncheck_delay = {self._delay}\nendpoint = ipc://{directory}/e\n"
            f"pubsub_endpoint = ipc://{directory}/p\nstatsd = false\n"
        )
        for name, path in scripts.items():
            text += f"[watcher:{name}]\ncmd = /bin/sh {path}\nnumprocesses = 1\nstop_children = true\n"
        (directory / "circus.ini").write_text(text)

    def command(self) -> list[str]:
        return [str(BIN / "circusd"), str(self.directory / "circus.ini")]

    def stop_program(self, name: str) -> None:
        control = [str(BIN / "circusctl"), "--endpoint", f"ipc://{self.directory}/e", "stop", name, "--waiting"]
        subprocess.run(control, check=True, capture_output=True, timeout=STOP_S)


class ScanDirectory(Peer):
    """What s6 and runit share: a directory of service directories with `run` scripts."""

    scanner = ""
    supervisor = ""

    def missing(self) -> str:
        return "" if shutil.which(self.scanner) else f"apt-get install {self.name}"

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        self.directory = directory
        self._services = directory / "services"
        for name, path in scripts.items():
            service = self._services / name
            service.mkdir(parents=True)
            (service / "run").write_text(path.read_text())
            (service / "run").chmod(0o755)

    def command(self) -> list[str]:
        return [self.scanner, str(self._services)]

    def pids(self) -> list[int]:
        """Return the scanner and its supervisors."""
        assert self.process is not None
        return [
            pid
            for pid in [self.process.pid, *children(self.process.pid)]
            if _comm(pid) in (self.scanner, self.supervisor)
        ]


class S6(ScanDirectory):
    """s6-svscan and its s6-supervise."""

    name, scanner, supervisor = "s6", "s6-svscan", "s6-supervise"

    def prepare(self, directory: Path, scripts: dict[str, Path]) -> None:
        super().prepare(directory, scripts)
        for name, path in scripts.items():  # s6 restarts at once only what has said that it was ready, a second before
            service = self._services / name
            (service / "notification-fd").write_text("3\n")
            first, birth, rest = path.read_text().split("\n", 2)
            (service / "run").write_text(f"{first}\n{birth}\necho >&3\n{rest}")

    def stop_program(self, name: str) -> None:
        subprocess.run(["s6-svc", "-wd", "-d", str(self._services / name)], check=True, timeout=STOP_S)


class Runit(ScanDirectory):
    """runsvdir and its runsv."""

    name, scanner, supervisor, stop_signal = "runit", "runsvdir", "runsv", signal.SIGHUP

    def stop_program(self, name: str) -> None:
        subprocess.run(
            ["sv", "force-stop", str(self._services / name)], check=True, capture_output=True, timeout=STOP_S
        )

    def stop(self) -> None:
        """Stop runsvdir, which tells each runsv, and wait for those."""
        family = children(self.process.pid) if self.process is not None else []
        super().stop()
        ends = time.monotonic() + STOP_S
        while any(_comm(pid) == "runsv" for pid in family) and time.monotonic() < ends:
            time.sleep(0.02)


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def write_scripts(directory: Path, texts: dict[str, str]) -> dict[str, Path]:
    """Write the scripts and return their paths."""
    paths = {}
    for name, text in texts.items():
        paths[name] = directory / f"{name}.sh"
        paths[name].write_text(text)
        os.chmod(paths[name], 0o755)
    return paths
