"""50 shell scripts that depend on each other, each ready by `systemd-notify --ready`: seconds until all are ready.

The floor is a loop that starts what its parent's readiness allows, with the same scripts and one notify socket each.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.cluster import Cluster
from benchmarks.measure import Figure
from benchmarks.report import FLOOR, OURS

SCRIPT = "systemd-notify --ready; exec sleep 100000"
TIMEOUT_S = 60.0


def parents(shape: str, count: int) -> dict[int, int | None]:
    """Return number -> number it depends on: "tree" (binary) or "chain"."""
    return {n: None if n == 0 else (n - 1) // 2 if shape == "tree" else n - 1 for n in range(count)}


def floor(shape: str, count: int = 50) -> Figure:
    """Measure the bare loop, in ms."""
    directory = Path(tempfile.mkdtemp(prefix="ha-bench-"))
    above = parents(shape, count)
    sockets: dict[int, socket.socket] = {}
    processes: list[subprocess.Popen[bytes]] = []

    def start(number: int) -> None:
        sockets[number] = notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(directory / str(number))
        notify.bind(path)
        processes.append(subprocess.Popen(["/bin/sh", "-c", SCRIPT], env={**os.environ, "NOTIFY_SOCKET": path}))

    began = time.monotonic()
    try:
        start(0)
        ready: set[int] = set()
        while len(ready) < count:
            waiting = {sockets[n]: n for n in sockets if n not in ready}
            readable = select.select(list(waiting), [], [], TIMEOUT_S)[0]
            if not readable:
                raise TimeoutError(f"only {len(ready)} of {count} became ready")
            for one in readable:
                if b"READY=1" in one.recv(4096):
                    ready.add(waiting[one])
                    for child in (n for n, parent in above.items() if parent == waiting[one]):
                        start(child)
        return Figure(f"{count} programs, {shape}", FLOOR, "ms", ((time.monotonic() - began) * 1000,))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for one in sockets.values():
            one.close()
        shutil.rmtree(directory, ignore_errors=True)


def ours(shape: str, count: int = 50) -> Figure:
    """Measure our agents, in ms from `hactl start` being sent until the last copy's readiness, by the events."""
    above = parents(shape, count)
    text = '[tenant]\nname = "bench"\nhome = "a"\n'
    for number, parent in above.items():
        needs = [] if parent is None else [f"p{parent}"]
        text += (
            f'[process.p{number}]\ncommand = {json.dumps(["/bin/sh", "-c", SCRIPT])}\nuser = "root"\n'
            f'ready = {{ by = "notify", timeout = "60s" }}\ndepends_on = {json.dumps(needs)}\n'
        )
    with Cluster(nodes={"a1": "a", "b1": "b"}) as cluster:
        cluster.start()
        cluster.wait_seated()
        cluster.write_tenant("bench", text)
        cluster.wait(lambda status: status["tenants"]["bench"]["state"] == "ok", "all are ready", TIMEOUT_S)
        stopped = cluster.ask("a1", "stop", {"target": "bench", "wait": True}, TIMEOUT_S)
        if stopped is None or stopped["exit"]:
            raise TimeoutError(f"the tenant did not stop: {stopped}")
        began = time.monotonic()
        started = cluster.ask("a1", "start", {"target": "bench", "wait": True}, TIMEOUT_S)
        if started is None or started["exit"]:
            raise TimeoutError(f"the tenant did not start: {started}")
        return Figure(f"{count} programs, {shape}", OURS, "ms", ((time.monotonic() - began) * 1000,))
