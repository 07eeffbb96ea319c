"""Spawn: one OS process with everything set, or a SpawnError that names the step which failed.

All is resolved before the fork; between fork and exec the child makes only system calls, from a list of numbers and
pointers that the parent built (`ha.linux.steps`). It touches no malloc: a ZeroMQ I/O thread may have held a malloc
lock at that instant. Signals are blocked and the collector is off from before the clone until after it.
Measured here (22 MB Python with ZeroMQ's threads, 2 cores, Linux 6.18; call to exec done, p50 / p99 of 200):
clone3 into the cgroup 1.2-1.6 / 1.4-2.1 ms, os.fork and a write to cgroup.procs 2.3-2.6 / 2.9-5.2 ms (os.fork alone
2.1 / 3.1: what Python does after a fork in the child costs page faults). With two on their way at once 810-890 starts
a second instead of 540-720.
With pymalloc out of the way (PYTHONMALLOC, dev mode, no GIL), or without clone3, `os.fork` is used, whose C library
side takes the malloc locks first; the child then writes itself into its cgroup.

Two phases, so that many starts overlap: `begin` clones, `finish` waits for exec (its `error_fd` is readable when it
will not block). `spawn` is both.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import struct
import sys
import warnings
from dataclasses import dataclass

import msgspec

from ha.linux.identity import read_stat
from ha.linux.steps import Stage, Steps
from ha.linux.syscalls import NUMBERS, block_signals, restore_signals
from ha.linux.users import Account, as_user, valid_id
from ha.model.errors import HaError

EXEC_TIMEOUT_MS = 2_000  # a child that has not reached exec by then is killed
CLONE_PIDFD = 0x1000
CLONE_INTO_CGROUP = 0x200000000


class SpawnError(HaError):
    """A process could not be started; nothing of it is left. `errno` 0: none."""

    def __init__(self, program: str, stage: Stage, number: int, text: str = "") -> None:
        super().__init__(f"cannot start {program}: {stage}: {text or os.strerror(number)}")
        self.stage = stage
        self.errno = number


class SpawnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. None of `limits` and `account`: as the caller has it.

    `output`: a FIFO's path (opened read-write, so that it always has a reader), or a descriptor, or None: inherited.
    `cgroup`: descriptor of the cgroup's directory. `append`: `output` is a plain file, created if missing, appended to.
    """

    argv: tuple[str, ...]  # argv[0] is an absolute path
    environment: dict[str, str]
    directory: str = "/"
    account: Account | None = None
    umask: int = 0o027
    nofile: int | None = None
    core_bytes: int | None = None
    nice: int | None = None
    output: str | int | None = None
    append: bool = False
    cgroup: int | None = None
    oom_score_adj: int = 0


class Spawned(msgspec.Struct, frozen=True):
    """A started process. `pidfd` is the caller's to close (CLOEXEC)."""

    pid: int
    pidfd: int
    start_ticks: int


@dataclass(slots=True)
class Pending:
    """A child between clone and exec; `finish` takes it over."""

    program: str
    pid: int
    pidfd: int
    start_ticks: int
    error_fd: int
    steps: Steps


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


def clone_usable() -> bool:
    """Return whether raw clone3 is safe in this interpreter; the kernel may still refuse it."""
    gil = getattr(sys, "_is_gil_enabled", None)
    pymalloc = os.environ.get("PYTHONMALLOC", "pymalloc") == "pymalloc" and not sys.flags.dev_mode
    return pymalloc and (gil is None or bool(gil())) and "clone3" in NUMBERS


_clone_works = clone_usable()


def uses_clone3() -> bool:
    """Return whether clone3 is in use: usable, and the kernel has not refused it so far."""
    return _clone_works


def spawn(request: SpawnRequest) -> Spawned:
    """Start a process and return once it has exec'd. Raises SpawnError."""
    return finish(begin(request))


def begin(request: SpawnRequest) -> Pending:
    """Clone the child and return before it has exec'd. Raises SpawnError."""
    program = request.argv[0] if request.argv else ""
    if not program.startswith("/"):
        raise SpawnError(program or "nothing", Stage.REQUEST, 0, "the program is no absolute path")
    if not NUMBERS:
        raise SpawnError(program, Stage.REQUEST, errno.ENOSYS, f"machine {os.uname().machine} is not supported")
    account = request.account
    if account is not None and not all(valid_id(number) for number in (account.uid, account.gid, *account.groups)):
        raise SpawnError(program, Stage.REQUEST, errno.EINVAL, f"uid or gid out of range: {account.uid}:{account.gid}")
    output, opened = _open_output(request)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        write_fd = _above_stdio(write_fd)
        steps = Steps(request.argv, request.environment, write_fd)
        _fill(steps, request, output)
        pid, pidfd = _clone(steps, request.cgroup, program)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
        if opened:
            os.close(output)
    stat = read_stat(pid)  # a zombie too has one: only we can reap it
    return Pending(program, pid, pidfd, stat.start_ticks if stat else 0, read_fd, steps)


def finish(pending: Pending, timeout_ms: int = EXEC_TIMEOUT_MS) -> Spawned:
    """Wait until the child has exec'd. Raises SpawnError; the child is gone then."""
    poller = select.poll()
    poller.register(pending.error_fd, select.POLLIN)
    try:
        said = os.read(pending.error_fd, 8) if poller.poll(timeout_ms) else None
    finally:
        os.close(pending.error_fd)
    if said == b"":
        return Spawned(pending.pid, pending.pidfd, pending.start_ticks)
    if said is None:
        signal.pidfd_send_signal(pending.pidfd, signal.SIGKILL)
        # A child in an uninterruptible call dies later; whoever watches its pid reaps it then.
        poller.unregister(pending.error_fd)
        poller.register(pending.pidfd, select.POLLIN)
        if poller.poll(timeout_ms):
            os.waitid(os.P_PIDFD, pending.pidfd, os.WEXITED)
        os.close(pending.pidfd)
        raise SpawnError(pending.program, Stage.EXEC, errno.ETIMEDOUT, f"no exec within {timeout_ms} ms")
    os.waitid(os.P_PIDFD, pending.pidfd, os.WEXITED)
    os.close(pending.pidfd)
    index, number = struct.unpack("=ii", said.ljust(8, b"\0"))
    raise SpawnError(pending.program, pending.steps.stage(index), number)


def spawn_agent(
    argv: tuple[str, ...],
    environment: dict[str, str],
    *,
    oom_score_adj: int | None = None,
    output: str | None = None,
) -> Spawned:
    """Start one of our own agents: own session, our user and limits, no cgroup of its own.

    `output`: a file that stdout and stderr are appended to; None: ours. `oom_score_adj` None: as ours.
    Raises SpawnError.
    """
    score = own_oom_score_adj() if oom_score_adj is None else oom_score_adj
    return spawn(
        SpawnRequest(argv=argv, environment=environment, umask=0o077, output=output, append=True, oom_score_adj=score)
    )


def own_oom_score_adj() -> int:
    """Return our OOM score adjustment, -1000..1000."""
    global _oom_fd
    if _oom_fd[0] != os.getpid():
        _oom_fd = (os.getpid(), os.open("/proc/self/oom_score_adj", os.O_RDONLY | os.O_CLOEXEC))
    return int(os.pread(_oom_fd[1], 16, 0))


_oom_fd = (0, -1)
_null_fd = -1


def _null() -> int:
    global _null_fd
    if _null_fd < 0:
        _null_fd = _above_stdio(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    return _null_fd


def _above_stdio(fd: int) -> int:
    """Return `fd`, or a copy of it above 2, so that dup3 onto 0..2 overwrites no source."""
    if fd > 2:
        return fd
    import fcntl

    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return copy


def _open_output(request: SpawnRequest) -> tuple[int, bool]:
    """Return (descriptor or -1, whether to close it)."""
    if request.output is None or isinstance(request.output, int):
        return (-1 if request.output is None else request.output), False
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
    flags |= (os.O_WRONLY | os.O_APPEND | os.O_CREAT) if request.append else os.O_RDWR
    try:
        with as_user(request.account):  # its directory is that user's: no link there may lead us further than him
            return _above_stdio(os.open(request.output, flags, 0o600)), True
    except OSError as error:
        raise SpawnError(
            request.argv[0], Stage.OUTPUT, error.errno or 0, f"{request.output}: {error.strerror}"
        ) from None


def _fill(steps: Steps, request: SpawnRequest, output: int) -> None:
    """Order matters: limits and scores while still root, then the user, then the directory with that user's rights."""
    steps.session()
    if request.oom_score_adj != own_oom_score_adj():
        steps.oom_score_adj(request.oom_score_adj)
    if request.nofile is not None:
        steps.limit_nofile(request.nofile)
    if request.core_bytes is not None:
        steps.limit_core(request.core_bytes)
    if request.nice is not None:
        steps.nice(request.nice)
    steps.umask(request.umask)
    steps.stdio(_null(), output)
    account = request.account
    if account is not None and (account.uid, account.gid) != (os.geteuid(), os.getegid()):
        steps.user(account.uid, account.gid, account.groups)
    steps.directory(request.directory)
    steps.signals()
    steps.execute()


def _clone(steps: Steps, cgroup: int | None, program: str) -> tuple[int, int]:
    """Return (pid, pidfd) of the child, which runs `steps`. Raises SpawnError."""
    global _clone_works
    if _clone_works:
        try:
            return _by_clone3(steps, cgroup)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                joining = cgroup is not None and error.errno not in (errno.EAGAIN, errno.ENOMEM)
                stage = Stage.CGROUP if joining else Stage.FORK
                raise SpawnError(program, stage, error.errno or 0) from None
            _clone_works = False
    try:
        return _by_fork(steps, cgroup)
    except OSError as error:
        raise SpawnError(program, Stage.FORK, error.errno or 0) from None


def _by_clone3(steps: Steps, cgroup: int | None) -> tuple[int, int]:
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(
        flags=CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup is not None else 0),
        pidfd=ctypes.addressof(pidfd), exit_signal=int(signal.SIGCHLD), cgroup=cgroup or 0,
    )  # fmt: skip
    call = steps.prepare()
    number, pointer, size = ctypes.c_long(NUMBERS["clone3"]), ctypes.byref(args), ctypes.c_long(ctypes.sizeof(args))
    collecting = gc.isenabled()
    gc.disable()
    mask = block_signals()
    try:
        pid: int = call(number, pointer, size)
        if pid == 0:
            steps.run()  # never returns
    finally:
        restore_signals(mask)
        if collecting:
            gc.enable()
    if pid < 0:
        raise OSError(steps.errno(), "clone3")
    return pid, pidfd.value


def _by_fork(steps: Steps, cgroup: int | None) -> tuple[int, int]:
    joined = -1
    if cgroup is not None:
        joined = _above_stdio(os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup))
        steps.join_cgroup(joined)
    steps.prepare()
    mask = block_signals()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "multi-threaded"; only ZeroMQ's C threads
            pid = os.fork()
        if pid == 0:
            steps.run()  # never returns
    finally:
        restore_signals(mask)
        if joined >= 0:
            os.close(joined)
    return pid, os.pidfd_open(pid)
