"""Files: the system and node file as the Master read them, kept for the other agents of its node.

Reading TOML with every check costs an agent 28 ms and 1.3 MiB at its start. The Master checks both files and keeps
what they became in run_dir/NODE/agents/system.mp; an agent takes it from there while both files are the ones it was
made from (path, inode, size, modes, times), else it reads them itself. HA_SYSTEM_CACHE names the kept file.
"""

from __future__ import annotations

import os

import msgspec

from ha import __version__
from ha.model.plan import NodeFile, System

VARIABLE = "HA_SYSTEM_CACHE"
NAME = "system.mp"

Stamp = tuple[int, int, int, int, int, int, int] | None  # of one file; None: it is not there


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What stands in the kept file."""

    version: str
    config: str
    stamps: tuple[Stamp, Stamp]  # system file, node file
    system: System
    node_file: NodeFile


def load_system(config: str) -> System:
    """Return the system file's plan. Raises ConfigError."""
    kept = _kept(config)
    if kept is not None:
        return kept.system
    from ha.config.system import load_system

    return load_system(config)


def load_node_file(config: str, system: System) -> NodeFile:
    """Return what this machine's own file says. Raises ConfigError."""
    kept = _kept(config)
    if kept is not None:
        return kept.node_file
    from ha.config.node import load_node_file

    return load_node_file(system.node_file)


def keep(config: str, agents_dir: str, system: System) -> None:
    """Write the kept file and tell the agents that are started from here on. Raises ConfigError, OSError."""
    from ha.config.node import load_node_file

    stamps = (_stamp(config), _stamp(system.node_file))
    kept = Kept(__version__, os.path.abspath(config), stamps, system, load_node_file(system.node_file))
    path = f"{agents_dir}/{NAME}"
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.msgpack.encode(kept))
    os.rename(f"{path}.new", path)
    os.environ[VARIABLE] = path


def _kept(config: str) -> Kept | None:
    path = os.environ.get(VARIABLE, "")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            kept = msgspec.msgpack.decode(file.read(), type=Kept)
    except (OSError, msgspec.DecodeError):
        return None
    if kept.version != __version__ or kept.config != os.path.abspath(config):
        return None
    return kept if kept.stamps == (_stamp(config), _stamp(kept.system.node_file)) else None


def _stamp(path: str) -> Stamp:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mode, seen.st_uid, seen.st_mtime_ns, seen.st_ctime_ns)
