"""Surroundings of a copy on this node: its environment with the local secrets, its user by name, its directory."""

from __future__ import annotations

import os
import pwd

from ha.core.policy import allows_root, environment_refusal
from ha.linux.users import Account, resolve
from ha.model.plan import Policy, Process

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ENVIRONMENT_FILE_BYTES = 256 * 1024


def environment_of_copy(
    policy: Policy, planned: dict[str, str], identity: dict[str, str], process: Process, account: Account
) -> dict[str, str]:
    """Return the whole environment: nothing of ours is inherited. Raises OSError, ValueError for its file."""
    base = {"PATH": PATH, "HOME": account.home, "USER": account.name, "LOGNAME": account.name, "LANG": "C.UTF-8"}
    secret: dict[str, str] = {}
    if process.environment_file:
        secret = read_environment_file(process.environment_file)
        reason = environment_refusal(policy, secret)
        if reason:
            raise ValueError(f"{process.environment_file}: {reason}")
    return {**base, **planned, **secret, **identity}


def read_environment_file(path: str) -> dict[str, str]:
    """Return NAME=VALUE lines; blank lines and those that begin with # are left out. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        text = file.read(MAX_ENVIRONMENT_FILE_BYTES + 1)
    if len(text) > MAX_ENVIRONMENT_FILE_BYTES:
        raise ValueError(f"cannot use {path}: longer than {MAX_ENVIRONMENT_FILE_BYTES} bytes")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip() or "\0" in line:
            raise ValueError(f"cannot use {path}: line {number} is no NAME=VALUE")  # its text may be a secret
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def remove_directory(path: str) -> None:
    """Remove a copy's directory, as far as it holds nothing but what stands there by our doing."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name in os.listdir(directory):
            try:
                os.unlink(name, dir_fd=directory)
            except OSError:
                continue  # a directory the program made: it stays, and so does ours
    finally:
        os.close(directory)
    try:
        os.rmdir(path)
    except OSError:
        return


def account_of(policy: Policy, process: Process, agent_user: str) -> Account:
    """Return the account a process runs as, with name and home. Raises HaError, ValueError if it is an unnamed root."""
    account = resolve(process.user, process.group)
    if account.uid == 0 and not allows_root(policy, agent_user):
        raise ValueError(f"user {process.user or 'root'} is uid 0, which users of this node does not name")
    if account.name:
        return account
    try:
        entry = pwd.getpwuid(account.uid)
    except KeyError:
        return account
    return Account(uid=account.uid, gid=account.gid, groups=account.groups, name=entry.pw_name, home=entry.pw_dir)
