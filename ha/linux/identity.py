"""Identity: which OS process a pid means, and how it ended; nothing is ever signalled by a bare pid.

The pidfd is opened first and compared after: a pid that was given to another process in between gives another start
time, another boot id or another pidfd inode (pidfs, Linux 6.9; the start time only counts in 10 ms). An exit that
nobody can tell is `Exit()`, never a code: field 52 of /proc/PID/stat reads 0 for those who may not look, so a 0 counts
only where the right to look is proven. Source: design section 6; pidfd_open(2); fs/proc/array.c; fs/pidfs.c.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct

import msgspec

from ha.linux.clocks import boot_id
from ha.model.status import Exit

PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct of 64 bytes)
PIDFD_INFO_EXIT = 1 << 3
_FIRST_FIELD_AFTER_NAME = 3  # numbering of proc(5)


class Stat(msgspec.Struct, frozen=True):
    """What /proc/PID/stat says; `exit_status` is a wait status, 0 also for those who may not look."""

    state: str
    ppid: int
    session: int
    start_ticks: int
    exit_status: int


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """One OS process for good; MessagePack-able, so that a journal can hold it. `inode` 0: not known."""

    pid: int
    start_ticks: int  # clock ticks (10 ms) since boot
    boot_id: str
    inode: int = 0

    @classmethod
    def of(cls, pid: int, pidfd: int = -1) -> Identity | None:
        """Return the identity of a live or zombie process, None if there is none. `pidfd` adds the inode."""
        stat = read_stat(pid)
        if stat is None:
            return None
        return cls(pid, stat.start_ticks, boot_id(), inode_of(pidfd) if pidfd >= 0 else 0)


def read_stat(pid: int) -> Stat | None:
    """Return the parsed /proc/PID/stat, None if the process is gone or hidden."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 4096)
    except OSError:  # ESRCH: it ended in between
        return None
    finally:
        os.close(fd)
    # The name may hold spaces and brackets; what follows the last bracket does not.
    fields = data[data.rfind(b")") + 2 :].split()
    if len(fields) <= 52 - _FIRST_FIELD_AFTER_NAME:
        return None
    return Stat(
        fields[0].decode(), int(fields[1]), int(fields[3]),
        int(fields[22 - _FIRST_FIELD_AFTER_NAME]), int(fields[52 - _FIRST_FIELD_AFTER_NAME]),
    )  # fmt: skip


def start_ticks(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, None if the process is gone."""
    stat = read_stat(pid)
    return None if stat is None else stat.start_ticks


_ANONYMOUS: list[int] = []  # st_dev of the kernel's anonymous inodes, where pidfds lived before pidfs


def inode_of(pidfd: int) -> int:
    """Return the pidfd's inode, unique in this boot; 0 where the kernel has no pidfs."""
    if not _ANONYMOUS:
        other = select.epoll()
        _ANONYMOUS.append(os.fstat(other.fileno()).st_dev)
        other.close()
    seen = os.fstat(pidfd)
    return 0 if seen.st_dev == _ANONYMOUS[0] else seen.st_ino


def open_verified(identity: Identity) -> int | None:
    """Return a pidfd (CLOEXEC) of exactly that process, alive or zombie; None if it is gone or the pid is another's."""
    if identity.pid <= 0 or identity.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError:
        return None
    same = start_ticks(identity.pid) == identity.start_ticks
    if same and identity.inode:
        same = inode_of(pidfd) in (0, identity.inode)
    if same:
        return pidfd
    os.close(pidfd)
    return None


def alive(identity: Identity) -> bool:
    """Return whether that very process exists and has not ended (a zombie has)."""
    pidfd = open_verified(identity)
    if pidfd is None:
        return False
    try:
        return not ended(pidfd)
    finally:
        os.close(pidfd)


def ended(pidfd: int) -> bool:
    """Return whether the process has ended, reaped or not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def send(pidfd: int, number: int) -> bool:
    """Signal the process; False if it is gone. Raises PermissionError."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def exit_of_status(status: int) -> Exit:
    """Return the Exit of a wait status."""
    if os.WIFEXITED(status):
        return Exit(code=os.WEXITSTATUS(status))
    if os.WIFSIGNALED(status):
        return Exit(signal=signal_name(os.WTERMSIG(status)))
    return Exit()


def signal_name(number: int) -> str:
    """Return "SIGKILL" for 9, "SIG<number>" for those without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def exit_of_zombie(pid: int, ticks: int | None = None) -> Exit | None:
    """Return how a not yet reaped process ended; None if it is no zombie, or it may not be read.

    `ticks`: the start time it must have, so that a stranger's exit is never taken.
    """
    stat = read_stat(pid)
    if stat is None or stat.state != "Z" or (ticks is not None and stat.start_ticks != ticks):
        return None
    if stat.exit_status == 0 and not _may_look(pid):
        return None
    return exit_of_status(stat.exit_status)


def _may_look(pid: int) -> bool:
    """A zombie has no exe: ENOENT once the right to look was granted, EACCES without it."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}/stat")  # else it was reaped just now, and this proved nothing
    except OSError:
        return False
    return True


def exit_by_info(pidfd: int) -> Exit | None:
    """Return how a reaped process ended by PIDFD_GET_INFO (Linux 6.15); None where that is not known."""
    buffer = bytearray(64)
    struct.pack_into("=Q", buffer, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer, True)
    except OSError:
        return None
    mask: int = struct.unpack_from("=Q", buffer, 0)[0]
    return exit_of_status(struct.unpack_from("=i", buffer, 60)[0]) if mask & PIDFD_INFO_EXIT else None


def reap(pidfd: int, identity: Identity | None = None) -> Exit | None:
    """Return how the process ended, and reap it if it is our child; None while it runs.

    For others' children the zombie's status needs `identity`; what nobody can tell is `Exit()`.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return _exit_of_other(pidfd, identity) if ended(pidfd) else None
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return Exit(code=result.si_status)
    return Exit(signal=signal_name(result.si_status))


def _exit_of_other(pidfd: int, identity: Identity | None) -> Exit:
    """Its parent may reap it between any two looks, hence info, zombie, info."""
    known = exit_by_info(pidfd)
    if known is None and identity is not None:
        known = exit_of_zombie(identity.pid, identity.start_ticks)
    return known or exit_by_info(pidfd) or Exit()
