"""Recorder: writes call events, each once it came in, to a file named after its epoch; cold, so one writer at most.

    EVENT SOURCE SEQ {json}    OK SOURCE SEQ EPOCH     written and flushed to the kernel
                               STALE SOURCE SEQ EPOCH  the right to write does not hold now: say it again
                               ERROR why EPOCH

SEQ grows per SOURCE. An event that is said again is answered OK and not written again while this copy lives; over a
change of copies it may stand in two files, under the same SOURCE and SEQ (at least once, never lost).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

from lines import Connection, RoleServer
from program import Loop, arguments, fail, log


class Recorder:
    """One copy and its file."""

    def __init__(self, loop: Loop, bind: str, port: int, data: Path) -> None:
        self._data = data
        self._file: TextIO | None = None
        self._seen: dict[str, int] = {}
        self.written = 0
        self._server = RoleServer(loop, bind, port, self._said)
        self._seat = self._server.seat
        try:
            data.mkdir(parents=True, exist_ok=True)
            name = f"calls-{self._seat.epoch}-{os.environ.get('HA_NODE', 'alone')}.jsonl"
            self._file = (data / name).open("a", encoding="utf-8")
        except OSError as error:
            fail(f"cannot write in {data}: {error.strerror}")
        self._seat.ready()

    def close(self) -> None:
        """Write all to the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _said(self, connection: Connection, line: str) -> None:
        connection.send(f"{self._answer(line)} {self._seat.epoch}")

    def _answer(self, line: str) -> str:
        words = line.split(" ", 3)
        if len(words) != 4 or words[0] != "EVENT" or not words[2].isdigit():
            return "ERROR expected EVENT SOURCE SEQ {json}"
        _, source, seq, text = words
        if not self._seat.may_act():
            return f"STALE {source} {seq}"
        if int(seq) > self._seen.get(source, -1):
            try:
                event = json.loads(text)
            except ValueError:
                return "ERROR not JSON"
            assert self._file is not None
            record = {"epoch": self._seat.epoch, "source": source, "seq": int(seq), "event": event}
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
            self._file.flush()
            self._seen[source] = int(seq)
            self.written += 1
        return f"OK {source} {seq}"


def main() -> None:
    """Run until SIGTERM."""
    parser = arguments("call recorder", 5120)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the files are written")
    args = parser.parse_args()
    loop = Loop()
    recorder = Recorder(loop, args.bind, args.port, args.data)
    loop.run()
    recorder.close()
    log("stopped", written=recorder.written)


if __name__ == "__main__":
    main()
