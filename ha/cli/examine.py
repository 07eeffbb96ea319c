"""Examine this machine for `hactl doctor`: kernel features, file modes, ports, clocks.

Every look is a function from what it needs to a list of `Found`; none changes anything, none raises.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ha.cli.failure import Failure
from ha.cli.place import VIEW_SOCKET, Place, read_place

PORTS = {"state": 7701, "command": 7702, "vote": 7703, "control": 7704, "beat": 7705}
DEFAULT_DRIFT = 0.001
EPOCH_2024 = 1_704_067_200  # a wall clock before this was never set


class Verdict(StrEnum):
    """How a look came out."""

    OK = "ok"
    NOTE = "note"  # works, with less
    BAD = "bad"  # must be mended


@dataclass(frozen=True, slots=True)
class Found:
    """One look. `help`: what to do, empty when there is nothing to do."""

    area: str
    verdict: Verdict
    text: str
    help: str = ""


def examine(config: str, node: str | None) -> list[Found]:
    """Return all that was found; `node` None: the nodes whose addresses this machine has."""
    found = [*kernel(), *clocks()]
    try:
        place = read_place(config)
        document = _document(config)
    except Failure as failure:
        return [*found, Found("system file", Verdict.BAD, failure.message, failure.help)]
    names = [node] if node is not None else [name for name in place.nodes if _is_here(document, name)]
    if not names:
        found.append(
            Found("nodes", Verdict.NOTE, "no node of the system file has an address of this machine", "give --node")
        )
    found += file_mode(config, others_may_read=True)
    found += _node_file(document, config)
    for name in names:
        found += directories(place, name) + ports(place, document, name)
    return found


def kernel() -> list[Found]:
    """Return what ha.linux says that this host can do."""
    from ha.linux.host import Verdict as Seen
    from ha.linux.host import features

    found = []
    for feature in features():
        worst = Verdict.BAD if feature.required else Verdict.NOTE
        verdict = {Seen.GOOD: Verdict.OK, Seen.WEAK: Verdict.NOTE}.get(feature.state, worst)
        text = f"{feature.value}: {feature.follows}" if feature.value and feature.follows else feature.value
        found.append(Found(feature.name, verdict, text or feature.follows, feature.mend))
    return found


def clocks() -> list[Found]:
    """Return what is wrong with the clocks: leases count in CLOCK_BOOTTIME, which runs at the rate that NTP steers."""
    from ha.linux.clocks import slew

    found = []
    if (rate := slew()) > DEFAULT_DRIFT:
        text = f"being slewed by {rate * 1e6:.0f} ppm: an agent here gets no lease"
        found.append(Found("clock", Verdict.BAD, text, "wait until it is in step, or step it with the agents stopped"))
    if time.time() < EPOCH_2024:
        found.append(Found("clock", Verdict.NOTE, "the wall clock was never set", "set the time"))
    return found


def file_mode(path: str, *, others_may_read: bool) -> list[Found]:
    """Return whether only its owner (and root) may write the file, and, if so wanted, read it."""
    try:
        status = os.stat(path)
    except OSError as error:
        return [Found("files", Verdict.NOTE, f"{path}: {error.strerror}")]
    wrong = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH | (0 if others_may_read else stat.S_IRGRP | stat.S_IROTH))
    if wrong:
        help_ = f"chmod {'go-w' if others_may_read else 'go-rwx'} {path}"
        return [Found("files", Verdict.BAD, f"{path} has mode {stat.S_IMODE(status.st_mode):04o}", help_)]
    if status.st_uid not in (0, os.geteuid()):
        return [Found("files", Verdict.BAD, f"{path} belongs to uid {status.st_uid}", f"chown root {path}")]
    return [Found("files", Verdict.OK, f"{path} is written by its owner only")]


def directories(place: Place, node: str) -> list[Found]:
    """Return whether the node's directories below run_dir have the modes the agents gave them."""
    base = os.path.join(place.run_dir, node)
    if not os.path.isdir(base):
        return [Found("files", Verdict.NOTE, f"{base} is not there: ha-master has not run here since the boot")]
    return [found for path, mode in ((base, 0o711), (f"{base}/agents", 0o700)) for found in _directory(path, mode)]


def _directory(path: str, wanted: int) -> list[Found]:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        return [Found("files", Verdict.NOTE, f"{path}: {error.strerror}")]
    if mode & ~wanted:
        return [Found("files", Verdict.BAD, f"{path} has mode {mode:04o}", f"chmod {wanted:04o} {path}")]
    return [Found("files", Verdict.OK, f"{path} has mode {mode:04o}")]


def ports(place: Place, document: dict[str, Any], node: str) -> list[Found]:
    """Return whether the ports of the node are free, or used by its own agents."""
    numbers = {**PORTS, **{key: value for key, value in document.get("ports", {}).items() if isinstance(value, int)}}
    runs = answers(os.path.join(place.run_dir, node, VIEW_SOCKET))
    found = []
    for address in _addresses(document, node):
        used = sorted(number for number in numbers.values() if not port_free(address, number))
        words = f"{node}: ports {', '.join(map(str, used))} of {address} are used"
        if used and not runs:
            help_ = (
                f"`ss -tlnp` names the program; another port can be set in [ports], or: ha-master --node {node} hangs"
            )
            found.append(Found("ports", Verdict.BAD, f"{words}, and no agent of {node} answers", help_))
        elif used:
            found.append(Found("ports", Verdict.OK, f"{words}; the agents of {node} run"))
        else:
            found.append(Found("ports", Verdict.OK, f"{node}: all ports of {address} are free"))
    return found


def port_free(address: str, number: int) -> bool:
    """Return whether an agent could bind there; an address that is not here at all counts as used."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, number))
        except OSError:
            return False
    return True


def answers(path: str) -> bool:
    """Return whether somebody listens on that unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except PermissionError:
            return True
        except OSError:
            return False
    return True


def _node_file(document: dict[str, Any], config: str) -> list[Found]:
    name = document.get("system", {}).get("node_file", "/etc/ha/node.toml")
    path = os.path.join(os.path.dirname(os.path.abspath(config)), str(name))
    if not os.path.exists(path):
        return [Found("files", Verdict.OK, f"{path} is not there: its defaults hold")]
    return file_mode(path, others_may_read=False)


def _is_here(document: dict[str, Any], node: str) -> bool:
    return any(_address_here(address) for address in _addresses(document, node))


def _address_here(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL)
    return True


def _addresses(document: dict[str, Any], node: str) -> tuple[str, ...]:
    found = document.get("nodes", {}).get(node, {}).get("addresses", ())
    return tuple(address for address in found if isinstance(address, str))


def _document(config: str) -> dict[str, Any]:
    import tomli

    with open(config, "rb") as stream:
        return tomli.load(stream)
