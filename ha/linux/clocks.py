"""Clocks: CLOCK_BOOTTIME for leases, the boot id it belongs to, and whether the clock is being slewed.

CLOCK_BOOTTIME runs at the rate that NTP steers, so a clock that is being slewed fast breaks the drift that the
lease inequalities count on (design section 3, rule 2). Source: adjtimex(2), kernel/time/ntp.c.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache

from ha.linux.syscalls import libc

NOMINAL_TICK_US = 10_000  # USER_HZ is 100
SHIFT_PLL = 2  # the kernel works off offset / 2**(SHIFT_PLL + constant) each second
ADJTIME_RATE = 500e-6  # adjtime(3) slews by 500 us per second while something is left
STA_NANO = 0x2000
ADJ_OFFSET_SS_READ = 0xA001
_CLOCK_BOOTTIME = time.CLOCK_BOOTTIME


class _Timex(ctypes.Structure):
    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("constant", ctypes.c_long),
        ("precision", ctypes.c_long), ("tolerance", ctypes.c_long), ("time_s", ctypes.c_long),
        ("time_us", ctypes.c_long), ("tick", ctypes.c_long), ("rest", ctypes.c_char * 128),
    ]  # fmt: skip


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME in ns: monotonic, and it counts suspend."""
    return time.clock_gettime_ns(_CLOCK_BOOTTIME)


def wall() -> float:
    """Return wall-clock seconds, for display only."""
    return time.time()


@cache
def boot_id() -> str:
    """Return this boot's id, 36 characters."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def rate_error(*, freq: int, tick_us: int, offset_s: float, constant: int, adjtime_left: bool) -> float:
    """Return how far from nominal the clock is being steered, relative, never negative.

    `freq`: 2**-16 ppm as in struct timex; `offset_s`: what the PLL still has to work off.
    """
    steady = freq / 65536 * 1e-6 + (tick_us - NOMINAL_TICK_US) / NOMINAL_TICK_US
    working_off: float = offset_s / (1 << (SHIFT_PLL + constant))
    return abs(steady + working_off) + (ADJTIME_RATE if adjtime_left else 0.0)


def slew() -> float:
    """Return the present relative rate error by adjtimex; 0.0 where the kernel does not say."""
    timex, single = _Timex(), _Timex(modes=ADJ_OFFSET_SS_READ)
    if libc.adjtimex(ctypes.byref(timex)) < 0:
        return 0.0
    left = libc.adjtimex(ctypes.byref(single)) >= 0 and single.offset != 0
    unit = 1e-9 if timex.status & STA_NANO else 1e-6
    return rate_error(
        freq=timex.freq, tick_us=timex.tick, offset_s=timex.offset * unit,
        constant=max(0, timex.constant), adjtime_left=left,
    )  # fmt: skip


def slewed(drift: float) -> bool:
    """Return whether the clock is being slewed beyond `drift` (relative, as in Timing.drift)."""
    return slew() > drift
