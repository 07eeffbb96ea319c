"""The floor: a loop of pidfds, epoll and posix_spawn that restarts what dies, and nothing else.

Run as `python bare.py SCRIPT...`; SIGTERM ends it and what it started.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def main(scripts: list[str]) -> None:
    """Keep each script running."""
    poller = select.epoll()
    running: dict[int, tuple[int, str]] = {}  # pidfd -> pid, script

    def start(script: str) -> None:
        pid = os.posix_spawn("/bin/sh", ["sh", script], os.environ)
        fd = os.pidfd_open(pid)
        running[fd] = pid, script
        poller.register(fd, select.EPOLLIN)

    def end(*_: object) -> None:
        for pid, _script in running.values():
            os.kill(pid, signal.SIGKILL)  # our own child, not reaped: the pid is still its
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    for script in scripts:
        start(script)
    while True:
        for fd, _ in poller.poll():
            _pid, script = running.pop(fd)
            os.waitid(os.P_PIDFD, fd, os.WEXITED)
            os.close(fd)
            start(script)


if __name__ == "__main__":
    main(sys.argv[1:])
