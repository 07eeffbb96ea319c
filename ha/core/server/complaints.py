"""Complaints: what lies in a node's own tenants directory and is not in force, told to all Servers.

A directory is read by the Server of its own node alone, seated or not; an operator asks any. So each Server keeps what
it would not take as a register, `dir/NODE`, which goes to the others as intents do.
"""

from __future__ import annotations

import msgspec

from ha.core.server.registers import set_register
from ha.core.server.state import State, register
from ha.model import limits
from ha.model.errors import Finding

KEY = "dir/"
MOST = 20  # findings and refused edits that are told; the node itself knows all


class Complaint(msgspec.Struct, frozen=True):
    """Findings of files, why removals wait (or empty), and file -> why its edit was refused."""

    findings: tuple[Finding, ...] = ()
    waits: str = ""
    refused: dict[str, str] = {}


def say(state: State, now: int) -> None:
    """Tell the other Servers if something has changed."""
    found = _own(state)
    found = Complaint(
        tuple(
            msgspec.structs.replace(
                one, text=one.text[: limits.MAX_REASON_CHARS], help=one.help[: limits.MAX_REASON_CHARS]
            )
            for one in found.findings[:MOST]
        ),
        found.waits[: limits.MAX_REASON_CHARS],
        dict(list(found.refused.items())[:MOST]),
    )
    value = "" if found == Complaint() else msgspec.json.encode(found).decode()
    if register(state, KEY + state.node) != value:
        set_register(state, KEY + state.node, value, now)


def everywhere(state: State) -> list[tuple[str, Complaint]]:
    """Return (node, complaint) of every directory, this node's first."""
    found = [(state.node, _own(state))]
    for key in sorted(state.registers):
        node, value = key.removeprefix(KEY), state.registers[key].value
        if key.startswith(KEY) and value and node != state.node and node in state.system.nodes:
            try:
                found.append((node, msgspec.json.decode(value, type=Complaint)))
            except msgspec.DecodeError:  # of a later version
                continue
    return found


def findings(state: State) -> tuple[Finding, ...]:
    """Return the findings of all directories, each once."""
    return tuple(dict.fromkeys(one for _, complaint in everywhere(state) for one in complaint.findings))


def _own(state: State) -> Complaint:
    return Complaint(state.findings, state.pending_removal, dict(sorted(state.catalog.refused.items())))
