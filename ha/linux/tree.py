"""Tree: who belongs to a copy where there are no cgroups: its session, its cookie, its descendants.

A process is a member when its environment holds `HA_INSTANCE=<cookie>`, when its parent is a member, or when it is in
a session that a live member is in (a main process leads its own session, so no stranger is in it). Whoever was seen
once as a member stays one while he lives, even when he escaped to another parent and wiped his environment. A
session number whose members are all gone proves nothing: it may be another's by now.
Pids are only ever signalled by a pidfd whose start time was compared with the scan's.
Source: notes of peers' issues (circus #1044, supervisord #1101): leftovers are the first complaint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ha.linux.clocks import boot_id
from ha.linux.identity import Identity, Stat, open_verified, read_stat, send
from ha.linux.outcome import Outcome

COOKIE_VARIABLE = "HA_INSTANCE"
_PAUSE_S = 0.002  # between two passes that found something
_STOPPED = frozenset("TtZX")
_ENDED = frozenset("ZX")


@dataclass(slots=True)
class ProcessTree:
    """The tree of one copy. `spare`: pids that are never members, besides PID 1 and ourselves."""

    main: Identity | None
    cookie: str
    spare: frozenset[int] = frozenset()
    _known: dict[int, int] = field(default_factory=dict)  # pid -> start ticks

    def members(self) -> dict[int, Stat]:
        """Return the live members and their stat; zombies only hold a pid and are left out."""
        table = _process_table()
        spare = self.spare | {1, os.getpid()}
        members = {pid for pid, stat in table.items() if pid not in spare and self._seed(pid, stat)}
        foreign = {table[pid].session for pid in spare if pid in table} | {0}
        children: dict[int, list[int]] = {}
        sessions: dict[int, list[int]] = {}
        for pid, stat in table.items():
            children.setdefault(stat.ppid, []).append(pid)
            sessions.setdefault(stat.session, []).append(pid)
        todo = list(members)
        while todo:
            pid = todo.pop()
            near = list(children.get(pid, ()))
            if table[pid].session not in foreign:
                near += sessions[table[pid].session]
            for other in near:
                if other not in members and other not in spare:
                    members.add(other)
                    todo.append(other)
        live = {pid: table[pid] for pid in members if table[pid].state not in _ENDED}
        self._known = {pid: stat.start_ticks for pid, stat in live.items()}
        return live

    def freeze(self, wait_ms: int) -> Outcome:
        """SIGSTOP until two passes find nobody running."""
        return self._passes(wait_ms, lambda stat: stat.state not in _STOPPED, signal.SIGSTOP, empty_is_gone=True)

    def thaw(self) -> Outcome:
        """SIGCONT to all members."""
        members = self.members()
        for pid, stat in members.items():
            self._signal(pid, stat, signal.SIGCONT)
        return Outcome.DONE if members else Outcome.GONE

    def kill(self, wait_ms: int) -> Outcome:
        """SIGSTOP all, so that nobody forks away, then SIGKILL until two passes find nobody."""
        self.freeze(wait_ms // 2)
        return self._passes(wait_ms, lambda stat: True, signal.SIGKILL, empty_is_gone=False)

    def gone(self) -> bool:
        """Return whether no member lives, looked at twice."""
        return not self.members() and not self.members()

    def _seed(self, pid: int, stat: Stat) -> bool:
        main = self.main
        if main is not None and pid == main.pid:
            return stat.start_ticks == main.start_ticks and main.boot_id == boot_id()
        known = self._known.get(pid)
        return known == stat.start_ticks if known is not None else has_cookie(pid, self.cookie)

    def _passes(self, wait_ms: int, wanting: Callable[[Stat], bool], number: int, *, empty_is_gone: bool) -> Outcome:
        until = time.monotonic_ns() + wait_ms * 1_000_000
        quiet, anyone = 0, False
        while True:
            members = self.members()
            anyone = anyone or bool(members)
            left = {pid: stat for pid, stat in members.items() if wanting(stat)}
            for pid, stat in left.items():
                self._signal(pid, stat, number)
            quiet = 0 if left else quiet + 1
            if quiet == 2:
                return Outcome.DONE if members or anyone or not empty_is_gone else Outcome.GONE
            if time.monotonic_ns() >= until:
                return Outcome.LATE
            if left:
                time.sleep(_PAUSE_S)

    def _signal(self, pid: int, stat: Stat, number: int) -> None:
        pidfd = open_verified(Identity(pid, stat.start_ticks, boot_id()))
        if pidfd is None:
            return
        try:
            send(pidfd, number)
        except PermissionError:
            pass  # it stays a member, and the passes end as LATE
        finally:
            os.close(pidfd)


def has_cookie(pid: int, cookie: str) -> bool:
    """Return whether the process was started with `HA_INSTANCE=<cookie>`; False where we may not look."""
    return bool(cookie) and cookie_of(pid) == cookie


def cookie_of(pid: int) -> str:
    """Return the value of HA_INSTANCE in the process's initial environment, "" if there is none."""
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = b"\0" + b"".join(iter(lambda: os.read(fd, 65536), b""))
    except OSError:
        return ""
    finally:
        os.close(fd)
    key = b"\0" + COOKIE_VARIABLE.encode() + b"="
    at = data.find(key)
    if at < 0:
        return ""
    start = at + len(key)
    end = data.find(b"\0", start)
    return data[start : end if end >= 0 else len(data)].decode(errors="replace")


def find_cookies() -> dict[str, list[int]]:
    """Return cookie -> pids over all processes: what ran under a Spawner that died before it wrote the pid down."""
    found: dict[str, list[int]] = {}
    for pid in _process_table():
        cookie = cookie_of(pid)
        if cookie:
            found.setdefault(cookie, []).append(pid)
    return found


def _process_table() -> dict[int, Stat]:
    table: dict[int, Stat] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = read_stat(int(name))
            if stat is not None:
                table[int(name)] = stat
    return table
