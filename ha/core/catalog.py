"""Catalogue: the tenant files of the whole system as versions, and what a node's own directory changes in them.

Laws (design section 7):
- an edit carries a serial, one more than what it was based on, and the digest it was based on; a removal leaves a
  tombstone; of two versions the one with the higher (serial, removal, digest) stands everywhere, so that all Servers
  converge whatever the order of what they hear, and of two edits on two sides one is refused, with its reason;
- a file that does not pass changes nothing: the last good version stays;
- a missing directory, or the removal of more than one file at once, changes nothing until it is confirmed;
- the file belongs to the nodes where it lies (`origin`); that it is missing elsewhere means nothing there.

Written for `ha.core.server.plans`; pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ha.model.messages import CatalogEntry
from ha.model.plan import digest_of


@dataclass(slots=True)
class State:
    """`entries`: by file name. `own`: digest of each file of this node's directory when last seen."""

    entries: dict[str, CatalogEntry] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # file -> why its edit was not taken


@dataclass(slots=True, frozen=True)
class Look:
    """What a look at the directory brought: entries that changed, and what waits for a confirmation."""

    changed: tuple[CatalogEntry, ...] = ()
    waiting: tuple[str, ...] = ()  # files whose removal waits
    why: str = ""


def look(
    state: State, node: str, files: dict[str, bytes] | None, broken: frozenset[str], *, confirmed: bool = False
) -> Look:
    """Compare the node's directory with what was seen there last. `broken`: files that did not pass the check."""
    if files is None and not confirmed:
        known = tuple(sorted(state.own))
        why = f"the tenants directory of {node} is missing; {len(known)} tenants of it are kept" if known else ""
        return Look(waiting=known, why=why)
    present = files or {}
    changed = [
        entry
        for name in sorted(present)
        if name not in broken and (entry := _seen(state, node, name, present[name])) is not None
    ]
    gone = tuple(sorted(name for name in state.own if name not in present))
    if len(gone) > 1 and not confirmed:
        return Look(tuple(changed), gone, f"{len(gone)} tenant files are gone from {node} at once: {', '.join(gone)}")
    for name in gone:
        entry = _removed(state, name)
        if entry is not None:
            changed.append(entry)
    return Look(tuple(changed))


def merge(state: State, incoming: tuple[CatalogEntry, ...]) -> tuple[CatalogEntry, ...]:
    """Take the versions of another Server that stand against ours; return what changed here."""
    changed = []
    for other in incoming:
        mine = state.entries.get(other.name)
        stands = other if mine is None else join(mine, other)
        if stands == mine:
            continue
        if mine is not None and mine.base == other.base and mine.digest != other.digest and mine.serial == other.serial:
            where = ", ".join(other.origin)
            state.refused[other.name] = (
                f"edited on {', '.join(mine.origin)} and on {where} at once; that of {where} stands"
            )
        state.entries[other.name] = stands
        changed.append(stands)
    return tuple(changed)


def join(one: CatalogEntry, two: CatalogEntry) -> CatalogEntry:
    """Return which of two versions of a file stands; the same edit seen twice is one edit with both origins."""
    low, high = sorted((one, two), key=_rank)
    if _rank(low)[:3] == _rank(high)[:3]:
        return msgspec.structs.replace(high, origin=tuple(sorted({*low.origin, *high.origin})))
    return high


def alive(state: State) -> dict[str, bytes]:
    """Return the content of every file that stands."""
    return {name: entry.content for name, entry in sorted(state.entries.items()) if not entry.tombstone}


def digest(state: State) -> str:
    """Return a digest that is equal where the same versions stand."""
    text = repr([(e.name, e.serial, e.digest, e.tombstone, e.origin) for _, e in sorted(state.entries.items())])
    return digest_of(text.encode())


def _rank(entry: CatalogEntry) -> tuple[int, bool, str, str]:
    return entry.serial, entry.tombstone, entry.digest, entry.base


def _seen(state: State, node: str, name: str, content: bytes) -> CatalogEntry | None:
    """Return the entry that a file in the directory changes or makes; None: nothing new."""
    now = digest_of(content)
    before = state.own.get(name)
    state.own[name] = now
    entry = state.entries.get(name)
    standing = entry is not None and not entry.tombstone
    if entry is not None and standing and entry.digest == now:
        state.refused.pop(name, None)
        if node in entry.origin:
            return None
        new = msgspec.structs.replace(entry, origin=tuple(sorted({*entry.origin, node})))
    elif before == now and entry is not None:
        return None  # the file is as it was; what stands is newer and came from elsewhere
    elif entry is not None and standing and before is None and node not in entry.origin:
        state.refused[name] = (
            f"{name}.toml on {node} differs from the version of {', '.join(entry.origin)}; edit it there"
        )
        return None
    else:
        serial, base = (entry.serial + 1, entry.digest) if entry is not None else (1, "")
        new = CatalogEntry(name, serial, now, base, (node,), content)
    state.entries[name] = new
    state.refused.pop(name, None)
    return new


def _removed(state: State, name: str) -> CatalogEntry | None:
    state.own.pop(name, None)
    state.refused.pop(name, None)
    entry = state.entries.get(name)
    if entry is None or entry.tombstone:
        return None
    stone = CatalogEntry(name, entry.serial + 1, entry.digest, entry.digest, entry.origin, b"", True)
    state.entries[name] = stone
    return stone
