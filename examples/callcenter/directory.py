"""Directory: which skill an extension belongs to. The others depend on it (`system/directory`).

    it says first    ROLE active|standby EPOCH      and again at each change
    GET KEY          VALUE KEY VALUE EPOCH  |  NONE KEY EPOCH  |  STANDBY KEY EPOCH
    anything else    ERROR why EPOCH

The entries come from a JSON file of {"extension": "skill"}, read at the start; without one, a few that the demo uses.
"""

from __future__ import annotations

import json
from pathlib import Path

from lines import Connection, RoleServer
from program import Loop, arguments, fail, log

ENTRIES = {"100": "support", "101": "support", "200": "sales", "201": "sales", "service": "support"}


class Directory:
    """One copy."""

    def __init__(self, loop: Loop, bind: str, port: int, entries: dict[str, str]) -> None:
        self._entries = entries
        self._server = RoleServer(loop, bind, port, self._said)
        self._server.seat.ready()

    def _said(self, connection: Connection, line: str) -> None:
        connection.send(f"{self._answer(line.split())} {self._server.seat.epoch}")

    def _answer(self, words: list[str]) -> str:
        match words:
            case ["GET", key] if not self._server.seat.active:
                return f"STANDBY {key}"
            case ["GET", key] if key in self._entries:
                return f"VALUE {key} {self._entries[key]}"
            case ["GET", key]:
                return f"NONE {key}"
            case _:
                return "ERROR expected GET KEY"


def main() -> None:
    """Run until SIGTERM."""
    parser = arguments("directory of extensions", 5010)
    parser.add_argument("--entries", type=Path, metavar="FILE", help="JSON object of extension to skill")
    args = parser.parse_args()
    entries = ENTRIES
    if args.entries:
        try:
            entries = {str(key): str(value) for key, value in json.loads(args.entries.read_text()).items()}
        except (OSError, ValueError, AttributeError) as error:
            fail(f"cannot read {args.entries}: {error}")
    loop = Loop()
    Directory(loop, args.bind, args.port, entries)
    loop.run()
    log("stopped")


if __name__ == "__main__":
    main()
