"""Cluster: a whole duplex system on loopback addresses of this machine, for benchmarks and end-to-end tests.

    with Cluster() as cluster:                       # a1 a2 b1 b2 and the witness place w1
        cluster.write_tenant("acme", TOML)
        cluster.start()
        cluster.wait(lambda status: status["tenants"]["acme"]["state"] == "ok", "acme is up")
        cluster.kill_node("a1")                      # all its agents and processes at once

Everything is below one short directory in /tmp (unix socket paths are limited to 107 bytes). What is ended is found by
the agents' lock files and by HA_SOCKET in the environment of managed processes, and signalled by pidfd: nothing that
this cluster did not start is ever touched.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Status = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
AGENT_ROLES = ("watcher", "master", "spawner", "monitor", "server", "witness")
LOOK_EVERY_S = 0.02
ASK_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 20.0
_COUNT = itertools.count()  # clusters of this process
NODE_FILE = '[policy]\nusers = ["root"]\n'  # test hosts are often root and nobody else


class Cluster:
    """`nodes`: name -> side; `timing`: keys of [timing] over the profile; `more`: TOML put behind the system file.

    `own_tenants`: each place has a tenants directory of its own, as on separate machines.
    """

    def __init__(
        self, *, nodes: dict[str, str] | None = None, witnesses: tuple[str, ...] = ("w1",), profile: str = "default",
        timing: dict[str, str] | None = None, more: str = "", node_file: str = NODE_FILE, keep: bool = False,
        own_tenants: bool = False,
    ) -> None:  # fmt: skip
        self.directory = Path(tempfile.mkdtemp(prefix="ha-c-"))
        self.nodes = nodes or {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
        self.witnesses = witnesses
        self.run_dir = self.directory / "run"
        self.tenants_dir = self.directory / "tenants.d"
        self.config = self.directory / "system.toml"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keep = keep
        places = [*self.nodes, *witnesses]
        network = f"127.{1 + os.getpid() % 200}.{os.getpid() // 200 % 250}"  # two clusters at once do not meet
        first = 11 + 40 * (next(_COUNT) % 6)
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(places, start=first)}
        self.tenants_dir.mkdir()
        (self.directory / "node.toml").write_text(node_file)
        (self.directory / "node.toml").chmod(0o600)
        self.config.write_text(self._system(profile, timing or {}) + more)
        if own_tenants:
            for name in places:
                self.tenants_of(name).mkdir()
                text = self.config.read_text().replace(f'"{self.tenants_dir}"', f'"{self.tenants_of(name)}"')
                self.directory.joinpath(f"system-{name}.toml").write_text(text)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- files ------------------------------------------------------------------------------------

    def tenants_of(self, node: str) -> Path:
        """Return the tenants directory of one place, with `own_tenants`."""
        return self.directory / f"tenants-{node}.d"

    def config_of(self, name: str) -> Path:
        """Return the system file that the agents of a place read."""
        own = self.directory / f"system-{name}.toml"
        return own if own.exists() else self.config

    def write_tenant(self, name: str, text: str, node: str = "") -> Path:
        """Drop a tenant file, whole at once, into the directory that all nodes of this machine read, or `node`'s."""
        path = (self.tenants_of(node) if node else self.tenants_dir) / f"{name}.toml"
        draft = self.directory / f"{name}.draft"
        draft.write_text(text)
        draft.rename(path)
        return path

    def remove_tenant(self, name: str) -> None:
        """Take a tenant file away."""
        (self.tenants_dir / f"{name}.toml").unlink()

    def output(self, name: str) -> str:
        """Return what ha-master or ha-witness of that place has printed."""
        path = self.directory / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    # --- agents -----------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start ha-master or ha-witness of these places, of all when none is named; returns at once."""
        for name in names or self.addresses:
            program, option = ("ha-witness", "--name") if name in self.witnesses else ("ha-master", "--node")
            command = [str(ROOT / "bin" / program), "--config", str(self.config_of(name)), option, name]
            with open(self.directory / f"{name}.out", "ab") as out:
                self.processes[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=launcher_environment(),
                    start_new_session=True,
                )

    def stop(self, name: str, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send ha-master or ha-witness the signal, wait for its end, return its exit code. Raises TimeoutExpired."""
        process = self.processes[name]
        process.send_signal(number)
        return process.wait(timeout_s)

    def agent(self, node: str, role: str) -> int | None:
        """Return the pid of a live agent, by its lock file, or None."""
        try:
            words = (self.run_dir / node / "agents" / f"{role}.lock").read_text().split()
            pid, ticks = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            return None
        return pid if _start_ticks(pid) == ticks else None

    def agents(self, node: str) -> dict[str, int]:
        """Return role -> pid of the live agents of a place."""
        found = {role: self.agent(node, role) for role in AGENT_ROLES}
        return {role: pid for role, pid in found.items() if pid is not None}

    def managed(self, node: str = "") -> dict[int, str]:
        """Return pid -> HA_SOCKET of every managed process (and its children) of a node, or of all."""
        prefix = f"HA_SOCKET={self.run_dir}/{node + '/' if node else ''}".encode()
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                value = next((word for word in _words(entry / "environ") if word.startswith(prefix)), None)
                if value is not None:
                    found[int(entry.name)] = value.partition(b"=")[2].decode()
        return found

    def _starting(self, node: str) -> list[int]:
        """Return agents of a place that have not yet taken their lock and their title: by their command line."""
        wanted = {os.fspath(self.config).encode(), node.encode()}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                words = _words(entry / "cmdline")
                if wanted <= set(words) and b"ha.cli.main" not in words:
                    found.append(int(entry.name))
        return found

    def kill_agent(self, node: str, role: str, number: int = signal.SIGKILL) -> int:
        """Signal one agent, return its pid. Raises LookupError when it does not run."""
        pid = self.agent(node, role)
        if pid is None:
            raise LookupError(f"no {role} runs on {node}")
        _signal(pid, number)
        return pid

    def kill_node(self, node: str, number: int = signal.SIGKILL) -> None:
        """Signal everything of a node: agents (guards first) and processes; again until nothing new is found."""
        done: set[int] = set()
        quiet = 0  # looks that found nothing new; between fork and exec a process cannot be told from its parent
        while quiet < 3:
            found = {*self.agents(node).values(), *self._starting(node), *self.managed(node)}
            for pid in found - done:
                _signal(pid, number)
            quiet = 0 if found - done else quiet + 1
            done |= found
            if quiet:
                time.sleep(0.005)
        if number == signal.SIGKILL and node in self.processes:
            self.processes[node].wait(STOP_TIMEOUT_S)

    # --- questions --------------------------------------------------------------------------------

    def ask(
        self, node: str, verb: str, args: dict[str, Any] | None = None, timeout_s: float = ASK_TIMEOUT_S
    ) -> dict[str, Any] | None:
        """Return the final answer {"exit", "error", "result", ...} of the node's Monitor, or None: nobody answers."""
        looks = verb in ("status", "events", "diff", "request")
        path = self.run_dir / node / ("view.sock" if looks else "operate.sock")
        request = {"v": 1, "id": os.urandom(8).hex(), "verb": verb, "args": args or {}, "ttl_ms": int(timeout_s * 1000)}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                stream.settimeout(timeout_s + 0.2)
                stream.connect(os.fspath(path))
                stream.sendall(json.dumps(request).encode() + b"\n")
                for line in stream.makefile("rb"):
                    answer: dict[str, Any] = json.loads(line)
                    if answer["final"]:
                        return answer
        except OSError:
            return None
        return None

    def status(self, node: str = "") -> Status | None:
        """Return the status as one node, or the first that answers, has it; None: none does."""
        for name in [node] if node else self.nodes:
            answer = self.ask(name, "status")
            if answer is not None and answer["exit"] == 0:
                status: Status = answer["result"]
                return status
        return None

    def hactl(self, *arguments: str, node: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run hactl with these arguments and return how it ended, with its output."""
        where = ["--node", node] if node else []
        command = [str(ROOT / "bin" / "hactl"), "--config", str(self.config), *where, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=launcher_environment(), check=False
        )

    def wait(self, condition: Callable[[Status], object], what: str, timeout_s: float = 30.0, node: str = "") -> Status:
        """Return the first status for which the condition holds. Raises TimeoutError with the last one."""
        ends = time.monotonic() + timeout_s
        last: Status | None = None
        while time.monotonic() < ends:
            last = self.status(node) or last
            try:
                if last is not None and condition(last):
                    return last
            except (KeyError, TypeError, IndexError):
                pass  # the status does not yet have what the condition looks at
            time.sleep(LOOK_EVERY_S)
        raise TimeoutError(f"not in {timeout_s} s: {what}; last status: {json.dumps(last)}\n{self._outputs()}")

    def wait_seated(self, timeout_s: float = 30.0) -> Status:
        """Return the first status in which both sides have a Server and every node is up."""
        return self.wait(
            lambda status: all(
                side["server"] and all(node["state"] == "up" for node in side["nodes"].values())
                for side in status["sides"].values()
            ),
            "both sides have a Server, all nodes are up", timeout_s,
        )  # fmt: skip

    def copies(self, status: Status, process: str) -> list[dict[str, Any]]:
        """Return the copies of "tenant/process" in a status."""
        tenant, _, name = process.partition("/")
        found: list[dict[str, Any]] = status["tenants"][tenant]["processes"][name]["copies"]
        return found

    # --- end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything of this cluster and remove its directory (unless `keep`)."""
        for name in self.addresses:  # a test may have left some stopped
            for pid in (*self.agents(name).values(), *self.managed(name)):
                _signal(pid, signal.SIGCONT)
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + STOP_TIMEOUT_S
        for process in self.processes.values():
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
        for name in self.addresses:
            self.kill_node(name)
        for tree in Path("/sys/fs/cgroup").glob(
            "**/ha-*-" + hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:6]
        ):
            for copy in (*tree.iterdir(), tree):
                if copy.is_dir():
                    copy.rmdir()  # a node that was killed could not do it
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _outputs(self) -> str:
        return "\n".join(f"--- {name}\n{self.output(name)[-2000:]}" for name in self.addresses)

    def _system(self, profile: str, timing: dict[str, str]) -> str:
        lines = [
            "[system]", 'name = "bench"', f'run_dir = "{self.run_dir}"', f'data_dir = "{self.directory / "data"}"',
            f'tenants_dir = "{self.tenants_dir}"', f'node_file = "{self.directory / "node.toml"}"',
            f'profile = "{profile}"', "", "[timing]", *(f'{key} = "{value}"' for key, value in timing.items()),
        ]  # fmt: skip
        for side in sorted(set(self.nodes.values())):
            servers = [name for name, of in self.nodes.items() if of == side]
            lines += ["", f"[sides.{side}]", f"servers = {json.dumps(servers)}"]
        for name, side in self.nodes.items():
            lines += ["", f"[nodes.{name}]", f'side = "{side}"', f'addresses = ["{self.addresses[name]}"]']
        for name in self.witnesses:
            lines += ["", f"[witnesses.{name}]", f'addresses = ["{self.addresses[name]}"]']
        return "\n".join(lines) + "\n"


def launcher_environment() -> dict[str, str]:
    """Return the environment in which the launchers of bin/ run with this interpreter."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**os.environ, "HA_PYTHON": sys.executable, "PATH": path}


def _words(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def _start_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _signal(pid: int, number: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
