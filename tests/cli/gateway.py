"""A stand-in for the Monitor's gateway: real unix sockets, scripted answers, a thread a socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Script = Callable[[Json], list[Json] | None]  # request -> answers without "id"; None: close without a word

SYSTEM = """
[system]
name = "demo"
run_dir = "run"
[nodes.a1]
side = "a"
addresses = ["127.0.0.11"]
[nodes.b1]
side = "b"
addresses = ["127.0.0.21"]
[witnesses.w1]
addresses = ["127.0.0.50"]
"""


class Gateway:
    """`scripts`: verb -> script; a verb without one is never answered. `seen`: (socket name, request)."""

    def __init__(self, directory: Path, scripts: dict[str, Script], node: str = "a1") -> None:
        self.config = directory / "system.toml"
        self.config.write_text(SYSTEM)
        self.seen: list[tuple[str, Json]] = []
        self._scripts = scripts
        self._open: list[socket.socket] = []
        base = directory / "run" / node
        base.mkdir(parents=True, exist_ok=True)
        for name in ("view.sock", "operate.sock"):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(os.fspath(base / name))
            listener.listen()
            self._open.append(listener)
            threading.Thread(target=self._serve, args=(listener, name), daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _serve(self, listener: socket.socket, name: str) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            self._open.append(stream)
            with stream.makefile("rb") as lines:
                self._answer(stream, name, json.loads(lines.readline()))

    def _answer(self, stream: socket.socket, name: str, request: Json) -> None:
        self.seen.append((name, request))
        script = self._scripts.get(request["verb"])
        if script is None:
            return
        answers = script(request)
        for answer in answers or []:
            whole = {"id": request["id"], "final": True, "exit": 0, "error": None, "result": None, **answer}
            stream.sendall(json.dumps(whole).encode() + b"\n")
        if answers is None:
            stream.shutdown(socket.SHUT_RDWR)


def always(*answers: Json) -> Script:
    return lambda request: list(answers)
