"""Statistics worker: as active, asks the distributor once an interval and writes a summary file; as standby, waits.

The file is replaced as a whole (write, fsync, rename), and a summary of a higher epoch is never replaced by a lower.
The port only says the role (`ROLE active|standby EPOCH`), for probes and for people.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from lines import Finder, RoleServer
from program import Loop, addresses, arguments, log


class Worker:
    """One copy."""

    def __init__(self, loop: Loop, bind: str, port: int, where: tuple[tuple[str, int], ...], file: Path) -> None:
        self._file = file
        self._finder = Finder(loop, where, self._said)
        self._server = RoleServer(loop, bind, port, lambda connection, _: connection.send("ERROR says nothing"))
        self._server.seat.ready()

    def ask(self) -> None:
        """Ask the distributor, if this copy is active."""
        if self._server.seat.may_act():
            self._finder.send("STATS")

    def _said(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        text, _, epoch = rest.rpartition(" ")
        if word != "STATS" or not self._server.seat.may_act():
            return
        seat = self._server.seat
        if _epoch_in(self._file) > seat.epoch:
            return
        summary = {"time": round(time.time(), 3), "epoch": seat.epoch, "acd_epoch": int(epoch), "acd": json.loads(text),
                   "node": os.environ.get("HA_NODE", "")}  # fmt: skip
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as out:
            json.dump(summary, out)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._file)


def _epoch_in(file: Path) -> int:
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def main() -> None:
    """Run until SIGTERM."""
    parser = arguments("statistics worker", 5130)
    parser.add_argument(
        "--acd", type=addresses, required=True, metavar="HOST:PORT,...", help="every distributor's address"
    )
    parser.add_argument("--file", type=Path, required=True, help="where the summary is written")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    args = parser.parse_args()
    loop = Loop()
    worker = Worker(loop, args.bind, args.port, args.acd, args.file)
    loop.every(args.interval, worker.ask)
    loop.run()
    log("stopped")


if __name__ == "__main__":
    main()
