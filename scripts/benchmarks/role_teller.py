"""A warm program for the benchmarks: says to a FIFO when it becomes active. `role_teller.py FIFO`."""

from __future__ import annotations

import os
import select
import sys

from ha import sdk


def main(fifo: str) -> None:
    """Follow the roles until it is ended."""
    out = os.open(fifo, os.O_WRONLY)
    agent = sdk.Agent()
    agent.ready()
    _tell(out, agent.active)
    poller = select.poll()
    poller.register(agent.fileno(), select.POLLIN)
    while True:
        poller.poll(1000)
        for change in agent.poll():
            _tell(out, change.role == "active")
            change.done()


def _tell(out: int, active: bool) -> None:
    role = "active" if active else "standby"
    os.write(out, f"{os.environ['HA_TENANT']}-{os.environ['HA_NODE']}-{role} {os.getpid()}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1])
