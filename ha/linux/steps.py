"""Steps: the system calls a child makes between clone and exec, built beforehand, run without allocation.

The child shares nothing with its parent but a copy of its memory, in which another thread may have held a lock of
malloc: `run` therefore only loops over ready-made tuples of ctypes numbers. What it allocates are small objects of
Python's own allocator, which never asks malloc for them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from ha.linux.syscalls import NUMBERS, raw

_AT_FDCWD = -100
_CLOSE_RANGE_CLOEXEC = 4
_PRIO_PROCESS = 0
_SIGSET_BYTES = 8
_MAYBE_IGNORED = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_OF_LIBC = (32, 33)  # not for us to ask about, but GNU make starts its children with both ignored

Syscall = Callable[..., int]


class Stage(StrEnum):
    """Where a start failed."""

    REQUEST = "request"
    OUTPUT = "output"
    FORK = "fork"
    CGROUP = "cgroup"
    SESSION = "session"
    OOM_SCORE = "oom score"
    LIMITS = "limits"
    NICE = "nice"
    UMASK = "umask"
    STDIO = "stdio"
    GROUPS = "groups"
    USER = "user"
    DIRECTORY = "working directory"
    DESCRIPTORS = "descriptors"
    SIGNALS = "signals"
    EXEC = "exec"


class _Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]


class _KernelSigaction(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64 * 5)]  # handler SIG_DFL, no flags, no restorer, empty mask


class Steps:
    """A list of system calls, each with the stage it stands for; it keeps alive what their pointers point to."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], error_fd: int) -> None:
        self._keep: list[Any] = []
        self._stages: list[Stage] = []
        self._steps: list[tuple[bool, int, tuple[ctypes.c_long, ...]]] = []
        self._syscall: Syscall = raw.syscall
        self._errno = ctypes.c_int.from_address(_errno_address())
        self._said = (ctypes.c_int * 2)()
        self._program = self._text(argv[0])
        self._argv = self._texts([os.fsencode(word) for word in argv])
        self._environment = self._texts([os.fsencode(f"{key}={value}") for key, value in environment.items()])
        said = ctypes.addressof(self._said)
        self._write = tuple(ctypes.c_long(n) for n in (NUMBERS["write"], error_fd, said, ctypes.sizeof(self._said)))
        self._exit = tuple(ctypes.c_long(n) for n in (NUMBERS["exit_group"], 127))

    # --- building, in the parent ---

    def session(self) -> None:
        """Lead a new session."""
        self._add(Stage.SESSION, "setsid")

    def join_cgroup(self, procs_fd: int) -> None:
        """Move into the cgroup whose cgroup.procs is open; goes first."""
        self._add(Stage.CGROUP, "write", procs_fd, self._text("0"), 1)
        self._stages.insert(0, self._stages.pop())
        self._steps.insert(0, self._steps.pop())

    def oom_score_adj(self, score: int) -> None:
        """Set the OOM score adjustment."""
        text = str(score)
        self._add(Stage.OOM_SCORE, "openat", _AT_FDCWD, self._text("/proc/self/oom_score_adj"), os.O_WRONLY)
        # The descriptor is what the call before returned.
        self._add(Stage.OOM_SCORE, "write", 0, self._text(text), len(text), last=True)

    def limit_nofile(self, count: int) -> None:
        """Set the soft and hard limit of open files."""
        self._limit(resource.RLIMIT_NOFILE, count)

    def limit_core(self, size: int) -> None:
        """Set the soft and hard limit of core files, bytes."""
        self._limit(resource.RLIMIT_CORE, size)

    def nice(self, value: int) -> None:
        """Set the nice value, -20..19."""
        self._add(Stage.NICE, "setpriority", _PRIO_PROCESS, 0, value)

    def umask(self, mask: int) -> None:
        """Set the file mode creation mask."""
        self._add(Stage.UMASK, "umask", mask)

    def stdio(self, null: int, output: int) -> None:
        """Read from `null`, write stdout and stderr to `output` (-1: as they are); mark all others close-on-exec."""
        self._add(Stage.STDIO, "dup3", null, 0, 0)
        for target in (1, 2):
            if output >= 0 and output != target:
                self._add(Stage.STDIO, "dup3", output, target, 0)
        self._add(Stage.DESCRIPTORS, "close_range", 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)

    def user(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Become that user for good: supplementary groups, real, effective and saved ids."""
        array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
        self._keep.append(array)
        self._add(Stage.GROUPS, "setgroups", len(groups), ctypes.addressof(array))
        self._add(Stage.GROUPS, "setresgid", gid, gid, gid)
        self._add(Stage.USER, "setresuid", uid, uid, uid)

    def directory(self, path: str) -> None:
        """Change the working directory."""
        self._add(Stage.DIRECTORY, "chdir", self._text(path))

    def signals(self) -> None:
        """Reset ignored signals to their default and unblock all; handlers vanish with exec."""
        action = _KernelSigaction()
        self._keep.append(action)
        ignored = [number for number in _MAYBE_IGNORED if signal.getsignal(number) is signal.SIG_IGN]
        for number in (*ignored, *_OF_LIBC):
            self._add(Stage.SIGNALS, "rt_sigaction", number, ctypes.addressof(action), 0, _SIGSET_BYTES)
        empty = ctypes.c_uint64(0)
        self._keep.append(empty)
        how = int(signal.SIG_SETMASK)
        self._add(Stage.SIGNALS, "rt_sigprocmask", how, ctypes.addressof(empty), 0, _SIGSET_BYTES)

    def execute(self) -> None:
        """Become the program."""
        self._add(Stage.EXEC, "execve", self._program, self._argv, self._environment)

    def stage(self, index: int) -> Stage:
        """Return the stage of the step that the child named."""
        return self._stages[index] if 0 <= index < len(self._stages) else Stage.EXEC

    def prepare(self) -> Syscall:
        """Touch what the child will use, so that nothing is created there; return `syscall`."""
        self._errno.value = 0
        self._said[0] = self._said[1] = 0
        return self._syscall

    def errno(self) -> int:
        """Return errno of the last system call of this thread."""
        return self._errno.value

    # --- running, in the child ---

    def run(self) -> None:
        """Make the calls; end with exec, or report (index, errno) and exit 127. Never returns."""
        call, last, index = self._syscall, 0, 0
        try:
            for use_last, optional, words in self._steps:
                last = call(words[0], ctypes.c_long(last), words[2], words[3]) if use_last else call(*words)
                if last < 0 and not (optional and self._errno.value == optional):
                    break
                index += 1
            self._said[0] = index
            self._said[1] = self._errno.value
            call(*self._write)
        finally:
            call(*self._exit)

    # --- helpers ---

    def _add(self, stage: Stage, name: str, *words: int, last: bool = False) -> None:
        # Kernels before 5.11 have no close_range(CLOEXEC); ours are all close-on-exec anyway.
        optional = {"close_range": errno.ENOSYS}.get(name, 0)
        self._stages.append(stage)
        self._steps.append((last, optional, tuple(ctypes.c_long(word) for word in (NUMBERS[name], *words))))

    def _limit(self, which: int, value: int) -> None:
        limit = _Limit(value, value)
        self._keep.append(limit)
        self._add(Stage.LIMITS, "prlimit64", 0, which, ctypes.addressof(limit), 0)

    def _text(self, text: str) -> int:
        buffer = ctypes.create_string_buffer(os.fsencode(text))
        self._keep.append(buffer)
        return ctypes.addressof(buffer)

    def _texts(self, texts: Sequence[bytes]) -> int:
        array = (ctypes.c_char_p * (len(texts) + 1))(*texts)
        self._keep.append(array)
        return ctypes.addressof(array)


def _errno_address() -> int:
    location = raw.__errno_location
    location.restype = ctypes.c_void_p
    return int(location())
