"""Policy: what this node lets a plan do. Pure checks; each returns the reason for a refusal, or None.

The Spawner takes no command line from a message: a command names a process and a plan version, and the plan has
passed these checks on this node. Checks that need the disk (owner and mode of a file, the uid behind a name, names
in an environment file) are the shell's, with `allows_root` and `environment_refusal` of this module.
Source: design section 7, contract/node.toml.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from posixpath import basename, normpath

from ha.model.plan import Policy, Process, Tenant

ROOT_NAMES = ("root", "0")
# Programs that run a file named in their arguments: the file has to lie in an allowed directory too.
INTERPRETERS = (
    "python*",
    "perl*",
    "ruby*",
    "node",
    "sh",
    "bash",
    "dash",
    "zsh",
    "ksh",
    "env",
    "php*",
    "lua*",
    "tclsh*",
)


def allows_root(policy: Policy, agent_user: str) -> bool:
    """Return whether a copy may run as uid 0. An agent that is not root cannot give what it has not."""
    return agent_user not in ROOT_NAMES or any(name in ROOT_NAMES for name in policy.users)


def refusal(policy: Policy, tenant: Tenant, process: Process, agent_user: str) -> str | None:
    """Return why this node does not run the process, or None. `agent_user`: the name this agent runs as."""
    return (
        _user_refusal(policy, process, agent_user)
        or _commands_refusal(policy, process)
        or environment_refusal(policy, tenant.environment)
        or environment_refusal(policy, process.environment)
        or _directory_refusal(process)
    )


def environment_refusal(policy: Policy, names: Iterable[str]) -> str | None:
    """Return why these environment names are not allowed, or None; HA_* and NOTIFY_SOCKET are the agent's."""
    for name in names:
        if not name or "=" in name or "\0" in name:
            return f"policy: {name!r} is not a name of the environment"
        if any(fnmatchcase(name, pattern) for pattern in policy.environment_deny):
            return f"policy: environment {name} is denied on this node"
    return None


def _user_refusal(policy: Policy, process: Process, agent_user: str) -> str | None:
    user = process.user or agent_user
    if (user in ROOT_NAMES or process.group in ROOT_NAMES) and not allows_root(policy, agent_user):
        return "policy: root is not named in users of this node, set user to another one"
    if user in ROOT_NAMES and agent_user in ROOT_NAMES:
        return None  # named, as allows_root has said
    if policy.users and user not in policy.users:
        return f"policy: user {user} is not named in users of this node"
    return None


def _commands_refusal(policy: Policy, process: Process) -> str | None:
    changes = [change.command for change in (process.promote, process.demote) if change]
    probes = [probe.command for probe in process.probes]
    for command in (process.command, process.stop.command, *changes, *probes):
        if command and (reason := command_refusal(policy, command)):
            return reason
    return None if process.command else "policy: no command"


def command_refusal(policy: Policy, command: tuple[str, ...]) -> str | None:
    """Return why this node does not run the command, or None."""
    if any("\0" in word for word in command):
        return f"policy: {command[0]!r} has an argument with a null byte"
    program = command[0]
    if not program.startswith("/"):
        return f"policy: command {program} is not an absolute path"
    if not _inside(policy, program):
        return f"policy: command {program} is not below commands of this node"
    if not policy.commands or not any(fnmatchcase(basename(program), pattern) for pattern in INTERPRETERS):
        return None
    script = next((word for word in command[1:] if not word.startswith("-")), None)
    if script is None or any(word.startswith(("-c", "-e", "-m")) for word in command[1 : command.index(script) + 1]):
        return f"policy: {program} runs code that is not a file below commands of this node"
    if not script.startswith("/") or not _inside(policy, script):
        return f"policy: {script} is not below commands of this node"
    return None


def _inside(policy: Policy, path: str) -> bool:
    whole = normpath(path)
    return not policy.commands or any(whole.startswith(normpath(root).rstrip("/") + "/") for root in policy.commands)


def _directory_refusal(process: Process) -> str | None:
    for path in (process.working_directory, process.environment_file):
        if path and (not path.startswith("/") or "\0" in path):
            return f"policy: {path} is not an absolute path"
    return None
