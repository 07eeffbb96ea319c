"""Cgroups: one cgroup v2 per copy, with its freezer, its kill and its events; no controller is needed.

    <v2 mount>[/<our own cgroup>]/ha-<system>-<node>/<tenant>.<process>.<n>

The root of the mount comes first, so that agents started from another session or unit find the same tree again; our
own cgroup is for those who were only delegated that. A tree that exists already is taken before one is made.
`cgroup.events` is watched by EPOLLPRI. Source: kernel Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ha.linux.outcome import Outcome
from ha.model.names import split_copy

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
REMOVE_DEPTH = 16  # a program's own cgroups below its copy's


@dataclass(frozen=True, slots=True)
class CgroupEvents:
    """cgroup.events: whether any process is in it or below, and whether all are frozen."""

    populated: bool
    frozen: bool


Reached = Callable[[CgroupEvents], bool]


class Cgroup:
    """The cgroup of one copy. `path` is absolute. Everything takes "gone" as an answer, not as an error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fresh = False  # made by us, and neither killed nor frozen since

    def create(self) -> int:
        """Make it anew unless something is in it; return its directory's descriptor, for SpawnRequest. Raises OSError.

        What is cloned into a cgroup that was killed before dies at once on Linux 6.18 (its kill count is compared with
        that of the parent's cgroup), and one that was left frozen starts frozen: so an empty one is used again only
        if it is `fresh` (removing one takes 2 ms).
        """
        if not (self.fresh and self.exists()):
            self.remove()
            try:
                os.mkdir(self.path, 0o755)
                self.fresh = True
            except FileExistsError:
                pass
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def exists(self) -> bool:
        """Return whether the directory is there."""
        return os.path.isdir(self.path)

    def open_events(self) -> int | None:
        """Return a descriptor of cgroup.events to poll for EPOLLPRI and give to `read_events`; None: gone."""
        try:
            return os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def events(self) -> CgroupEvents:
        """Return the present events; (False, False) when it is gone."""
        fd = self.open_events()
        if fd is None:
            return CgroupEvents(False, False)
        try:
            return read_events(fd)
        finally:
            os.close(fd)

    def populated(self) -> bool:
        """Return whether a process is in it or below it; a zombie does not count."""
        return self.events().populated

    def pids(self) -> tuple[int, ...]:
        """Return the pids in it and below it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            found += [int(word) for word in _read(f"{directory}/cgroup.procs").split()]
        return tuple(found)

    def freeze(self, wait_ms: int) -> Outcome:
        """Freeze all processes, and wait up to `wait_ms` until all are."""
        self.fresh = False
        return self._write_and_wait("cgroup.freeze", b"1", wait_ms, lambda seen: seen.frozen)

    def thaw(self) -> Outcome:
        """Let all processes go on."""
        return self._write_and_wait("cgroup.freeze", b"0", 0, lambda seen: True)

    def kill(self, wait_ms: int = 0) -> Outcome:
        """Kill all processes, frozen ones too, and wait up to `wait_ms` until nothing is left."""
        self.fresh = False
        return self._write_and_wait("cgroup.kill", b"1", wait_ms, lambda seen: not seen.populated)

    def remove(self) -> bool:
        """Remove it and what a program made below it; return whether it is gone. It must be empty."""
        self.fresh = False
        for _ in range(REMOVE_DEPTH):
            if _rmdir(self.path):
                return True
            below = [directory for directory, children, _ in os.walk(self.path, topdown=False) if not children]
            if self.path in below or [directory for directory in below if not _rmdir(directory)]:
                return False
        return False

    def _write_and_wait(self, name: str, data: bytes, wait_ms: int, reached: Reached) -> Outcome:
        fd = self.open_events()
        if fd is None:
            return Outcome.GONE
        try:
            with open(f"{self.path}/{name}", "wb", buffering=0) as file:
                file.write(data)
            return _wait(fd, reached, wait_ms)
        except FileNotFoundError:
            return Outcome.GONE if not self.exists() else Outcome.REFUSED
        except OSError:
            return Outcome.REFUSED
        finally:
            os.close(fd)


class CgroupTree:
    """The cgroups of one node's copies; `find` says where they can be. `reason`: why not, when it cannot."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._cgroups: dict[str, Cgroup] = {}

    @classmethod
    def find(cls, name: str) -> tuple[CgroupTree | None, str]:
        """Return (tree, "") for `name` (`ha-<system>-<node>`), made if missing, or (None, why it cannot be used)."""
        parents = list(_parents())
        parents.sort(key=lambda parent: not os.path.isdir(f"{parent}/{name}"))
        reasons: list[str] = []
        for parent in parents:
            root = f"{parent}/{name}"
            reason = _usable(root)
            if not reason:
                return cls(root), ""
            reasons.append(reason)
        return None, "; ".join(reasons) or "no cgroup v2 is mounted"

    def cgroup(self, copy: str) -> Cgroup:
        """Return the cgroup of a copy key, which may not exist yet. Raises ValueError for anything else."""
        known = self._cgroups.get(copy)
        if known is None:
            tenant, process, number = split_copy(copy)
            known = self._cgroups[copy] = Cgroup(f"{self.root}/{tenant}.{process}.{number}")
        return known

    def copies(self) -> tuple[str, ...]:
        """Return the copy keys that have a cgroup, sorted."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        except OSError:
            return ()
        keys = [name.replace(".", "/", 1) for name in names if name.count(".") == 2]
        return tuple(key for key in keys if key.rpartition(".")[2].isdigit())

    def remove(self) -> bool:
        """Remove the empty tree; return whether it is gone."""
        for copy in self.copies():
            self.cgroup(copy).remove()
        return _rmdir(self.root)


def read_events(fd: int) -> CgroupEvents:
    """Return what an open cgroup.events says now, and re-arm EPOLLPRI; a removed cgroup is (False, False)."""
    try:
        words = os.pread(fd, 256, 0).split()
    except OSError:  # ENODEV
        return CgroupEvents(False, False)
    values = dict(zip(words[::2], words[1::2], strict=False))
    return CgroupEvents(values.get(b"populated") == b"1", values.get(b"frozen") == b"1")


def _wait(fd: int, reached: Reached, wait_ms: int) -> Outcome:
    poller = select.poll()
    poller.register(fd, select.POLLPRI)
    until = time.monotonic_ns() + wait_ms * 1_000_000
    while not reached(read_events(fd)):
        left_ms = (until - time.monotonic_ns()) // 1_000_000
        if left_ms <= 0:
            return Outcome.LATE
        poller.poll(left_ms)
    return Outcome.DONE


def _parents() -> Iterator[str]:
    """Yield directories under which a tree may be made, the best first."""
    for mount in MOUNTS:
        if not os.path.exists(f"{mount}/cgroup.procs"):  # a v1 or hybrid mount point has none at its top
            continue
        yield mount
        for line in _read("/proc/self/cgroup").splitlines():
            if line.startswith("0::/") and line != "0::/" and os.path.isdir(mount + line[3:]):
                yield mount + line[3:]


def _usable(root: str) -> str:
    """Return why `root` cannot hold our cgroups, "" if it can. The freezer is there from 5.2, kill from 5.14."""
    try:
        os.makedirs(root, mode=0o755, exist_ok=True)
        probe = f"{root}/probe-{os.getpid()}"  # others may be looking at the same time
        os.makedirs(probe, exist_ok=True)
    except OSError as error:
        return f"cannot make {root}: {error.strerror}"
    try:
        for name in ("cgroup.procs", "cgroup.freeze", "cgroup.kill", "cgroup.events"):
            if not os.path.exists(f"{probe}/{name}"):
                return f"{root}: this kernel has no {name}"
            if name != "cgroup.events" and not os.access(f"{probe}/{name}", os.W_OK):
                return f"{root}: {name} may not be written"
        # Processes can come in only if we may also write where they come from: the kernel checks the common ancestor.
        if os.geteuid() != 0 and not os.access(f"{os.path.dirname(root)}/cgroup.procs", os.W_OK):
            return f"{root}: its parent is not delegated to uid {os.geteuid()}"
        return ""
    finally:
        _rmdir(probe)


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
