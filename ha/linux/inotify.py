"""Inotify: one directory's changes as a descriptor to poll; names only, the reader looks for itself."""

from __future__ import annotations

import ctypes
import os
import struct

import msgspec

from ha.linux.syscalls import check, libc

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400, 0x800
_UNMOUNT, _Q_OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR = 0x0100_0000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_EVENT = struct.Struct("iIII")


class Changes(msgspec.Struct, frozen=True):
    """What changed. `lost`: the directory itself went away, watch anew; `overflow`: read the whole directory."""

    names: frozenset[str] = frozenset()
    lost: bool = False
    overflow: bool = False


class DirectoryWatch:
    """Watches files that were closed after writing, moved in or out, or deleted."""

    def __init__(self, path: str) -> None:
        """Start watching. Raises OSError (also for a missing directory)."""
        self.path = path
        self._fd = check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "start inotify")
        try:
            check(libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(_MASK)), f"watch {path}")
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def drain(self) -> Changes:
        """Return all that changed since the last call."""
        names: set[str] = set()
        lost = overflow = False
        while True:
            try:
                data = os.read(self._fd, 64 * 1024)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                lost = lost or bool(mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED))
                overflow = overflow or bool(mask & _Q_OVERFLOW)
                if name:
                    names.add(os.fsdecode(name))
        return Changes(frozenset(names), lost, overflow)
