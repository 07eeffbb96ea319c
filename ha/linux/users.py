"""Users: names to numbers before any fork, file modes that must not be wider, and acting with a user's own rights.

`as_user` sets fsuid and fsgid of this thread only: inside a directory that belongs to a managed process's user, root
creates, opens and unlinks with that user's rights, so that a symbolic link planted there leads nowhere new.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ha.linux.syscalls import libc
from ha.model.errors import HaError, NotPermitted


class UnknownAccount(HaError):
    """No such user or group on this node."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved user: numbers only; `groups` are the supplementary ones, `gid` included."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"


def valid_id(number: int) -> bool:
    """Return whether it is a uid or gid: 2**32 - 1 means "leave as it is" to setresuid, that is root to us."""
    return 0 <= number < 2**32 - 1


def resolve(user: str, group: str = "") -> Account:
    """Return the account of a user name or number; empty: ours. `group` replaces its primary group.

    Raises UnknownAccount.
    """
    try:
        if not user:
            uid, gid, name, home = os.geteuid(), os.getegid(), "", "/"
            groups = tuple(os.getgroups())
        elif user.isdigit() and not _known(int(user)):
            uid, gid, name, home, groups = int(user), int(user), "", "/", (int(user),)
        else:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            uid, gid, name, home = entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir
            groups = tuple(os.getgrouplist(name, gid))
    except KeyError:
        raise UnknownAccount(f"cannot resolve user {user!r}: not known on this node") from None
    if not valid_id(uid):
        raise UnknownAccount(f"cannot resolve user {user!r}: no valid uid")
    if group:
        gid = resolve_group(group)
        groups = (gid, *(number for number in groups if number != gid))
    return Account(uid=uid, gid=gid, groups=groups, name=name, home=home)


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def resolve_group(group: str) -> int:
    """Return the gid of a group name or number. Raises UnknownAccount."""
    if group.isdigit() and valid_id(int(group)):
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UnknownAccount(f"cannot resolve group {group!r}: not known on this node") from None


@contextmanager
def as_user(account: Account | None) -> Iterator[None]:
    """Do file system work of this thread with that user's rights; nothing changes for None, for us, or without root."""
    if account is None or os.geteuid() != 0 or (account.uid == 0 and account.gid == os.getegid()):
        yield
        return
    libc.setfsgid(account.gid)
    libc.setfsuid(account.uid)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())


def check_modes(path: str, *, at_most: int, owners: tuple[int, ...] = ()) -> None:
    """Check that `path` has no mode bit outside `at_most` and belongs to one of `owners` (default: root or us).

    A symbolic link never passes. Raises NotPermitted with what to do, and OSError where `path` is missing.
    """
    seen = os.lstat(path)
    if stat.S_ISLNK(seen.st_mode):
        raise NotPermitted(f"cannot trust {path}: it is a symbolic link")
    mode = stat.S_IMODE(seen.st_mode)
    if mode & ~at_most:
        raise NotPermitted(f"cannot trust {path}: its mode is {mode:04o}; chmod {mode & at_most:04o} {path}")
    if seen.st_uid not in (owners or (0, os.geteuid())):
        raise NotPermitted(f"cannot trust {path}: it belongs to uid {seen.st_uid}")


def ensure_directory(path: str, mode: int, account: Account | None = None) -> None:
    """Make a directory with exactly that mode and owner, or correct it; its parent must be ours.

    Raises OSError, and NotPermitted where something else stands there.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise NotPermitted(f"cannot use {path}: it is no directory") from None
    try:
        if account is not None and os.geteuid() == 0:
            os.fchown(fd, account.uid, account.gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
