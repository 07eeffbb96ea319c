"""Catalogue: the tenant files of the whole system as versions, and what a node's own directory changes in them.

Laws (design section 7):
- an edit carries a serial, one more than what it was based on, and the digest it was based on; a removal leaves a
  tombstone; of two versions the one with the higher (serial, removal, digest) stands everywhere, so that all Servers
  converge whatever the order of what they hear; of two edits on two sides one is refused, with its reason, and so is
  an edit of a file that is not the version that stands;
- a file that does not pass changes nothing: the last good version stays; nor does one that passes, but with which
  another that stands and was not touched does not;
- a missing directory, or the removal of more than one file at once, changes nothing until it is confirmed;
- the file belongs to the nodes where it lies (`origin`); that it is missing elsewhere means nothing there.

Pure; `ha.core.server.plans` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ha.model.digest import digest_of
from ha.model.messages import CatalogEntry


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
    """Compare the node's directory with what was seen there last. `broken`: files that did not pass the check.

    `confirmed`: removals need not wait, and edits refused before are taken.
    """
    gone = tuple(sorted(name for name in state.own if name not in (files or {})))
    mine = tuple(name for name in gone if _is_removal(state, name))
    if files is None and not confirmed:
        why = f"the tenants directory of {node} is missing; {len(mine)} tenants of it are kept" if mine else ""
        return Look((), mine, why)
    present = files or {}
    victims = () if confirmed else _victims(state, present, broken)
    changed = [
        entry
        for name in sorted(present)
        if name not in broken and (entry := _seen(state, node, name, present[name], victims, confirmed)) is not None
    ]
    if len(mine) > 1 and not confirmed:
        return Look(tuple(changed), mine, f"{len(mine)} tenant files are gone from {node} at once: {', '.join(mine)}")
    for name in gone:
        state.own.pop(name)
        state.refused.pop(name, None)
    changed += [_removed(state, name) for name in mine]
    return Look(tuple(changed))


def merge(state: State, incoming: tuple[CatalogEntry, ...]) -> tuple[CatalogEntry, ...]:
    """Take the versions of another Server that stand against ours; return what changed here."""
    changed = []
    for other in incoming:
        mine = state.entries.get(other.name)
        stands = other if mine is None else join(mine, other)
        if stands == mine:
            continue
        own = state.own.get(other.name)
        if own == stands.digest and not stands.tombstone:
            state.refused.pop(other.name, None)
        elif mine is not None and mine.serial == stands.serial and own is not None and _key(mine) != _key(stands):
            where = ", ".join(other.origin)
            what = "removed" if stands.tombstone else "edited"
            state.refused[other.name] = (
                f"edited on {', '.join(mine.origin)} and {what} on {where} at once; what was done on {where} stands"
            )
        state.entries[other.name] = stands
        changed.append(stands)
    return tuple(changed)


def join(one: CatalogEntry, two: CatalogEntry) -> CatalogEntry:
    """Return which of two versions of a file stands; the same edit seen twice is one edit with both origins.

    Commutative, associative and idempotent: the greater of a total order, and a union where it does not tell.
    """
    low, high = sorted((one, two), key=lambda entry: (*_key(entry), entry.base))
    if _key(low) == _key(high):
        return msgspec.structs.replace(high, origin=tuple(sorted({*low.origin, *high.origin})))
    return high


def alive(state: State) -> dict[str, bytes]:
    """Return the content of every file that stands."""
    return {name: entry.content for name, entry in sorted(state.entries.items()) if not entry.tombstone}


def digest(state: State) -> str:
    """Return a digest that is equal where the same versions stand."""
    text = repr([(e.name, e.serial, e.digest, e.tombstone, e.origin) for _, e in sorted(state.entries.items())])
    return digest_of(text.encode())


def _key(entry: CatalogEntry) -> tuple[int, bool, str]:
    return entry.serial, entry.tombstone, entry.digest


def _victims(state: State, present: dict[str, bytes], broken: frozenset[str]) -> tuple[str, ...]:
    """Return the files that stand, were not touched, and do not pass with what the directory holds now."""
    return tuple(
        name
        for name in sorted(broken)
        if (entry := state.entries.get(name)) is not None
        and not entry.tombstone
        and (name not in present or digest_of(present[name]) == entry.digest)
    )


def _seen(
    state: State, node: str, name: str, content: bytes, victims: tuple[str, ...], confirmed: bool
) -> CatalogEntry | None:
    """Return the entry that a file in the directory changes or makes; None: nothing new."""
    now, before, entry = digest_of(content), state.own.get(name), state.entries.get(name)
    standing = entry is not None and not entry.tombstone
    if entry is not None and standing and entry.digest == now:
        state.own[name] = now
        state.refused.pop(name, None)
        if node in entry.origin:
            return None
        new = msgspec.structs.replace(entry, origin=tuple(sorted({*entry.origin, node})))
        state.entries[name] = new
        return new
    forced = confirmed and name in state.refused
    if before == now and entry is not None and not forced:
        return None  # the file is as it was; what stands is newer and came from elsewhere
    if victims:  # not remembered in `own`: looked at again as soon as the others pass
        state.refused[name] = f"{', '.join(victims)} would not pass with it"
        return None
    state.own[name] = now
    if entry is not None and standing and not forced and not _based_on(entry, node, before):
        where = ", ".join(entry.origin)
        state.refused[name] = (
            f"not based on the version of {where}, which stands: edit it there, or bring this file to it first; "
            "hactl apply --confirm takes it as it is"
        )
        return None
    serial, base = (entry.serial + 1, entry.digest) if entry is not None else (1, "")
    new = CatalogEntry(name, serial, now, base, (node,), content)
    state.entries[name] = new
    state.refused.pop(name, None)
    return new


def _based_on(entry: CatalogEntry, node: str, before: str | None) -> bool:
    """Return whether an edit follows what stands. `before`: what the node's file was; None: it had none, or forgot."""
    return before == entry.digest or (before is None and node in entry.origin)


def _is_removal(state: State, name: str) -> bool:
    """Return whether the file that is gone is what stands; an older one that stood no longer may go."""
    entry = state.entries.get(name)
    return entry is not None and not entry.tombstone and state.own[name] == entry.digest


def _removed(state: State, name: str) -> CatalogEntry:
    entry = state.entries[name]
    stone = CatalogEntry(name, entry.serial + 1, entry.digest, entry.digest, entry.origin, b"", True)
    state.entries[name] = stone
    return stone
