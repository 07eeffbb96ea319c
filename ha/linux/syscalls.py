"""libc by ctypes, and system call numbers: what the standard library does not reach.

`libc` is a PyDLL: it keeps the GIL, so a child made by a raw clone returns into an interpreter that holds it.
Numbers are those of x86-64 and of the generic table (aarch64, riscv64, loongarch64).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

libc: Final = ctypes.PyDLL(None, use_errno=True)
raw: Final = ctypes.PyDLL(None)  # leaves errno where the C library put it: `raw.syscall`
raw.syscall.restype = ctypes.c_long

_X86_64 = {
    "write": 1, "close": 3, "rt_sigaction": 13, "rt_sigprocmask": 14, "execve": 59, "chdir": 80, "umask": 95,
    "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119, "setpriority": 141, "exit_group": 231,
    "openat": 257, "dup3": 292, "prlimit64": 302, "clone3": 435, "close_range": 436,
}  # fmt: skip
_GENERIC = {
    "write": 64, "close": 57, "rt_sigaction": 134, "rt_sigprocmask": 135, "execve": 221, "chdir": 49, "umask": 166,
    "setsid": 157, "setgroups": 159, "setresuid": 147, "setresgid": 149, "setpriority": 140, "exit_group": 94,
    "openat": 56, "dup3": 24, "prlimit64": 261, "clone3": 435, "close_range": 436,
}  # fmt: skip
MACHINE: Final = os.uname().machine
NUMBERS: Final[dict[str, int]] = (
    _X86_64 if MACHINE == "x86_64" else _GENERIC if MACHINE in ("aarch64", "riscv64", "loongarch64") else {}
)

PR_SET_CHILD_SUBREAPER = 36
_SIG_SETMASK = 2


def check(result: int, what: str) -> int:
    """Return `result` unless it is negative. Raises OSError with errno and `what`."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
    return result


_EVERY_SIGNAL = ctypes.c_uint64(0xFFFFFFFFFFFFFFFF)


def block_signals() -> int:
    """Block all signals of this thread and return the mask before; signal.pthread_sigmask takes 70 us for its enums."""
    before = ctypes.c_uint64(0)
    raw.syscall(NUMBERS["rt_sigprocmask"], _SIG_SETMASK, ctypes.byref(_EVERY_SIGNAL), ctypes.byref(before), 8)
    return before.value


def restore_signals(mask: int) -> None:
    """Set the mask that `block_signals` returned."""
    raw.syscall(NUMBERS["rt_sigprocmask"], _SIG_SETMASK, ctypes.byref(ctypes.c_uint64(mask)), None, 8)
