"""A set of simulated human agents: they log in at the active distributor, take calls, and follow it when it moves.

They stand for people, so they are not managed: they run beside the system, as their phones would.
"""

from __future__ import annotations

import argparse
from functools import partial

from lines import Finder, LineClient
from program import Loop, addresses, log


class Desk:
    """One person: a connection to one distributor, logged in and ready."""

    def __init__(self, loop: Loop, address: tuple[str, int], name: str, skill: str) -> None:
        self._name, self._skill = name, skill
        self.calls = 0
        self._client = LineClient(loop, address, self._said, self._opened)

    def close(self) -> None:
        """Leave."""
        self._client.close()

    def _opened(self, client: LineClient) -> None:
        client.send(f"LOGIN {self._name} {self._skill}\nREADY")

    def _said(self, client: LineClient, line: str) -> None:
        if line.startswith("CALL "):
            self.calls += 1
        elif line.startswith("END "):
            client.send("READY")


class Floor:
    """All desks; they follow the active distributor."""

    def __init__(self, loop: Loop, where: tuple[tuple[str, int], ...], count: int, skills: list[str]) -> None:
        self._loop, self._count, self._skills = loop, count, skills
        self._desks: list[Desk] = []
        self._finder = Finder(loop, where, lambda _: None, self._moved)

    def _moved(self) -> None:
        for desk in self._desks:
            desk.close()
        active = self._finder.active
        self._desks = [
            Desk(self._loop, active.address, f"agent{number}", self._skills[number % len(self._skills)])
            for number in range(self._count)
            if active
        ]
        log("distributor", at=f"{active.address[0]}:{active.address[1]}" if active else None, epoch=self._finder.epoch)


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="simulated human agents")
    parser.add_argument(
        "--acd", type=addresses, required=True, metavar="HOST:PORT,...", help="every distributor's address"
    )
    parser.add_argument("--count", type=int, default=20, help="how many people (%(default)s)")
    parser.add_argument("--skills", type=partial(str.split, sep=","), default=["support", "sales"], metavar="NAME,...")
    args = parser.parse_args()
    loop = Loop()
    Floor(loop, args.acd, args.count, args.skills)
    loop.run()


if __name__ == "__main__":
    main()
