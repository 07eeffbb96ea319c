"""The demo's system: a temporary directory with its files, the agents' processes, hactl, and what is left of them.

Processes that belong to the system are found by what only they can have: agents hold a lock below our directory or were
started with `HA_DEMO=token:place`, managed ones carry an `HA_SOCKET` below it. Nothing else is ever signalled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parents[1]
NODES = {"a1": 11, "a2": 12, "b1": 21, "b2": 22}
WITNESS = {"w1": 50}
AGENT_PORTS = range(7701, 7706)
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


class Hactl(Exception):
    """hactl ended with another code than 0; `code`, and what it said."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class System:
    """One duplex system on loopback addresses. `places`: the agents' first processes by node or witness name."""

    def __init__(self, kept: Path | None = None) -> None:
        """Make a new one, or (`kept`: its directory) take over one that was left running."""
        self.root = kept or Path(tempfile.mkdtemp(prefix="ha-demo-"))
        self.token = self.root.name
        self.net = _net_of(self.root / "system.toml") if kept else _free_net()
        self.tenants_dir = self.root / "tenants.d"
        self.logs = self.root / "logs"
        self.config = self.root / "system.toml"
        self.places: dict[str, subprocess.Popen[bytes]] = {}
        if not kept:
            self._write_files()

    def address(self, place: str) -> str:
        """Return the address of a node."""
        return f"{self.net}.{(NODES | WITNESS)[place]}"

    def addresses(self, port: int) -> str:
        """Return "address:port,..." of all nodes."""
        return ",".join(f"{self.address(node)}:{port}" for node in NODES)

    # --- files ----------------------------------------------------------------------------------------

    def render(self, template: Path) -> str:
        """Return a template with what this machine has filled in."""
        python = Path(sys.executable)
        directories = sorted({str(python.parent), str(python.resolve().parent), str(EXAMPLES)})
        return string.Template(template.read_text()).substitute(
            root=self.root, net=self.net, python=python, examples=EXAMPLES, data=self.root / "calls",
            user=pwd.getpwuid(os.geteuid()).pw_name, commands=json.dumps(directories),
        )  # fmt: skip

    def drop(self, template: Path) -> Path:
        """Drop a tenant file into the directory, whole, as an editor would; return where it is."""
        target = self.tenants_dir / template.name
        fresh = self.root / f".{template.name}.new"
        fresh.write_text(self.render(template))
        fresh.replace(target)
        return target

    def _write_files(self) -> None:
        for directory in (self.tenants_dir, self.logs, self.root / "calls"):
            directory.mkdir()
        for name in ("system.toml", "node.toml"):
            (self.root / name).write_text(self.render(EXAMPLES / name))
        (self.root / "node.toml").chmod(0o600)
        for template in sorted((EXAMPLES / "tenants.d").glob("*.toml")):
            self.drop(template)

    # --- processes ------------------------------------------------------------------------------------

    def start(self, place: str) -> None:
        """Start `ha-master` of a node, or `ha-witness` of the third place."""
        program, name = ("ha-witness", "--name") if place in WITNESS else ("ha-master", "--node")
        with (self.logs / f"{place}.log").open("ab") as log:
            self.places[place] = subprocess.Popen(
                [*_command(program), "--config", str(self.config), name, place], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=self.environment(place), start_new_session=True,
            )  # fmt: skip

    def run(self, program: str, *arguments: object, log: str) -> subprocess.Popen[bytes]:
        """Start a program beside the system (callers, human agents); its lines go to logs/LOG.jsonl."""
        with (self.logs / f"{log}.jsonl").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, str(EXAMPLES / program), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, env=self.environment("outside"), start_new_session=True,
            )  # fmt: skip

    def members(self, place: str | None = None) -> set[int]:
        """Return the pids of this system's processes, or of one place's, zombies left out."""
        found = self._lock_holders(place)
        mark = f"\0HA_DEMO={self.token}:{place + chr(0) if place else ''}".encode()
        managed = f"\0HA_SOCKET={self.root}/run/{place + '/' if place else ''}".encode()
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            environment = b"\0" + _proc(pid, "environ") + b"\0"
            if pid != os.getpid() and (mark in environment or managed in environment):
                found.add(pid)
        return found

    def _lock_holders(self, place: str | None, role: str = "*") -> set[int]:
        """Return the agents that hold a lock; a process that has set its title shows no environment."""
        found = set()
        for lock in (self.root / "run").glob(f"{place or '*'}/agents/{role}.lock"):
            pid, ticks, *_ = [*lock.read_text().split(), "", ""]
            stat = _proc(int(pid), "stat").rpartition(b") ")[2].split() if pid.isdigit() else []
            if len(stat) > 19 and stat[19].decode() == ticks and stat[0] not in (b"Z", b"X"):
                found.add(int(pid))
        return found

    def signal_masters(self, number: int) -> None:
        """Signal ha-master of every node."""
        for node in NODES:
            _signal(self._lock_holders(node, "master"), number)

    def lose(self, node: str) -> tuple[float, int]:
        """Lose a node as a power cut would: all its processes at once. Return (when, how many)."""
        for _ in range(2):  # stopped first, so that none starts another; the second pass finds what was being started
            victims = self.members(node)
            _signal(victims, signal.SIGSTOP)
        at = time.monotonic()
        _signal(victims, signal.SIGKILL)
        while left := self.members(node):
            victims |= left
            _signal(left, signal.SIGKILL)
            self.places[node].poll()
        self.places[node].wait()
        return at, len(victims)

    def leftovers(self) -> list[str]:
        """Return what is still there of a stopped system: processes, listening sockets."""
        found = [
            f"process {pid}: {_proc(pid, 'cmdline').replace(bytes(1), b' ').decode(errors='replace').strip()}"
            for pid in sorted(self.members())
        ]
        ours = {socket.inet_aton(f"{self.net}.{last}")[::-1].hex().upper() for last in (NODES | WITNESS).values()}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            host, _, port = line.split()[1].partition(":")
            if line.split()[3] == "0A" and host in ours:
                found.append(f"listening at {socket.inet_ntoa(bytes.fromhex(host)[::-1])}:{int(port, 16)}")
        for line in Path("/proc/net/unix").read_text().splitlines():
            if f" {self.root}/" in line:
                found.append(f"unix socket {line.split()[-1]}")
        found += [f"cgroup {tree}" for tree in self._cgroups()]
        return found

    def _cgroups(self) -> list[Path]:
        """Return the nodes' cgroup trees; the Spawner marks them with a digest of run_dir."""
        mark = hashlib.sha256(str(self.root / "run").encode()).hexdigest()[:6]
        return [tree for mount in CGROUPS for tree in sorted(Path(mount).glob(f"ha-callcenter-*-{mark}"))]

    def ended(self) -> list[str]:
        """Return the nodes and witnesses whose first process has ended, each with how."""
        return [f"{place} ended with code {code}: {self._last_words(place)}" for place, process in self.places.items()
                if (code := process.poll()) is not None]  # fmt: skip

    def _last_words(self, place: str) -> str:
        lines = (self.logs / f"{place}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def end(self) -> None:
        """Kill whatever is left. For the end of a demo that failed; a good one finds nothing."""
        while left := self.members():
            _signal(left, signal.SIGKILL)
            for process in self.places.values():
                process.poll()
            time.sleep(0.01)
        for tree in self._cgroups():
            for one in (*(entry for entry in tree.iterdir() if entry.is_dir()), tree):
                with contextlib.suppress(OSError):  # something of it is not gone yet, or it has gone by itself
                    one.rmdir()

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.root)

    # --- hactl ----------------------------------------------------------------------------------------

    def hactl(self, *arguments: str, node: str = "", timeout: float = 30.0) -> str:
        """Return what hactl prints. Raises Hactl."""
        running = self.hactl_start(*arguments, node=node)
        try:
            out, errors = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            raise Hactl(-1, f"hactl {' '.join(arguments)} did not end within {timeout} s") from None
        if running.returncode:
            raise Hactl(running.returncode, (out + errors).strip())
        return out

    def hactl_start(self, *arguments: str, node: str = "") -> subprocess.Popen[str]:
        """Start hactl and leave it to the caller to wait for it."""
        environment = self.environment("hactl") | {"HA_CONFIG": str(self.config)}
        environment |= {"HA_NODE": node} if node else {}
        return subprocess.Popen(
            [*_command("hactl"), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def status(self, node: str = "") -> dict[str, Any]:
        """Return `hactl --json status`, as contract/status.json5 says, or {} while nobody answers."""
        try:
            found: dict[str, Any] = json.loads(self.hactl("--json", "status", node=node))
        except (Hactl, ValueError):
            return {}
        return found

    def environment(self, place: str) -> dict[str, str]:
        """Return the environment of what is started for a place: by it `members` finds it again."""
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("HA_", "NOTIFY_"))}
        keep["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), keep.get("PYTHONPATH", ""))))
        return keep | {"HA_DEMO": f"{self.token}:{place}", "HA_PYTHON": sys.executable}


def _command(program: str) -> list[str]:
    """Return how to run one of the checkout's launchers; `_environment` says with which interpreter."""
    return [str(ROOT / "bin" / program)]


def _net_of(file: Path) -> str:
    """Return the network that a system file was rendered with."""
    found = re.search(r'addresses = \["(127\.\d+\.\d+)\.', file.read_text())
    if found is None:
        sys.exit(f"demo: cannot use {file}: it was not made by the demo")
    return found[1]


def _free_net() -> str:
    """Return the first of 127.0.0, 127.0.1, ... whose addresses nobody uses, so that two demos do not meet."""
    for number in range(200):
        net = f"127.0.{number}"
        if all(_free(f"{net}.{last}", port) for last in (NODES | WITNESS).values() for port in AGENT_PORTS):
            return net
    sys.exit("demo: cannot find free loopback addresses: 127.0.N.11 is in use for every N below 200")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _proc(pid: int, name: str) -> bytes:
    """Return a file of /proc/PID, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
