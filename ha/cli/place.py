"""Place: which node's sockets hactl talks to.

Only `run_dir` and the names of nodes are read from the system file, without judging the rest: an operator must be able
to look at a system whose file has an error (`hactl check` judges).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from ha.cli.failure import ExitCode, Failure

DEFAULT_CONFIG = "/etc/ha/system.toml"
DEFAULT_RUN_DIR = "/run/ha"
VIEW_SOCKET = "view.sock"
OPERATE_SOCKET = "operate.sock"


@dataclass(frozen=True, slots=True)
class Place:
    """What hactl needs of the system file. `run_dir` is absolute."""

    file: str
    run_dir: str
    nodes: tuple[str, ...]
    witnesses: tuple[str, ...]


def read_place(file: str) -> Place:
    """Return the place named by the system file. Raises Failure (2: does not pass, 4: not readable)."""
    import tomli

    try:
        with open(file, "rb") as stream:
            document = tomli.load(stream)
    except FileNotFoundError as error:
        raise Failure(
            ExitCode.USAGE,
            f"cannot read the system file {file}: it is not there",
            help="give --config or set HA_CONFIG",
        ) from error
    except PermissionError as error:
        raise Failure(ExitCode.NOT_PERMITTED, f"cannot read the system file {file}: {error.strerror}") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(ExitCode.USAGE, f"cannot read the system file {file}: {error}", help="correct it") from error
    except OSError as error:
        raise Failure(ExitCode.USAGE, f"cannot read the system file {file}: {error.strerror}") from error
    system = _table(document, "system")
    run_dir = system.get("run_dir", DEFAULT_RUN_DIR)
    if not isinstance(run_dir, str):
        raise Failure(ExitCode.USAGE, f"cannot use the system file {file}: run_dir is not a string")
    whole = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(file)), run_dir))
    return Place(file, whole, tuple(_table(document, "nodes")), tuple(_table(document, "witnesses")))


def connect(place: Place, node: str | None, name: str, timeout: float) -> tuple[str, socket.socket]:
    """Return (node, connected socket) of `node`, or of the first of this machine's nodes that takes the call.

    `name`: VIEW_SOCKET or OPERATE_SOCKET. Raises Failure (3: nobody there or unknown, 4: not permitted).
    """
    candidates = tuple(_candidates(place, node))
    denied = ""
    for candidate in candidates:
        path = os.path.join(place.run_dir, candidate, name)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(timeout)
        try:
            stream.connect(path)
        except PermissionError:
            denied = path
        except OSError:  # nobody listens: a file left by an agent that is gone, or none
            pass
        else:
            return candidate, stream
        stream.close()
    if denied:
        group = "view_group" if name == VIEW_SOCKET else "operate_group"
        raise Failure(
            ExitCode.NOT_PERMITTED, f"cannot open {denied}: permission denied",
            help=f"be root, or a member of the {group} of the node file",
        )  # fmt: skip
    raise _nobody(place, node, candidates)


def _candidates(place: Place, node: str | None) -> Iterator[str]:
    if node is None:
        yield from (name for name in place.nodes if _exists(os.path.join(place.run_dir, name, VIEW_SOCKET)))
    elif node in place.witnesses:
        raise Failure(
            ExitCode.NO_ANSWER, f"cannot ask {node}: it only votes and has no Monitor",
            help=f"ask a node: {', '.join(place.nodes)}",
        )  # fmt: skip
    elif node not in place.nodes:
        raise Failure(
            ExitCode.NO_ANSWER, f"cannot ask {node}: {place.file} names no such node",
            help=f"its nodes are {', '.join(place.nodes) or 'none'}",
        )  # fmt: skip
    else:
        yield node


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:  # it may be there: connecting will say so
        return True
    except OSError:
        return False
    return True


def _nobody(place: Place, node: str | None, tried: tuple[str, ...]) -> Failure:
    name = node or (tried[0] if tried else "NAME")
    where = f"on node {node}" if node else f"below {place.run_dir}"
    return Failure(
        ExitCode.NO_ANSWER, f"no agent answers {where}",
        help=f"start it: ha-master --config {place.file} --node {name}; `hactl doctor` looks at this machine",
    )  # fmt: skip


def _table(document: dict[str, object], key: str) -> dict[str, object]:
    value = document.get(key, {})
    return value if isinstance(value, dict) else {}
