"""StateTable: what the Monitors of all nodes say runs there, kept in step by sequence and digest.

A Monitor counts its deltas (`StateDelta.seq`, from 1 by 1 per incarnation); its beats carry the last count and
a digest of the whole table, so that a lost tail and a silent divergence show too. A receiver subscribes first,
then asks for a snapshot, keeps the deltas that come meanwhile, and applies only what follows the snapshot.
Anything else, a gap, a new incarnation, another digest, leads to a snapshot and never to a guess: until it comes
the last known copies stay as they are and `synced` is False.
Source: design section 4; zguide, Clone pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from ha.model import limits
from ha.model.digest import number_of
from ha.model.messages import CopyState, Snapshot, StateBeat, StateDelta

StateBody = StateDelta | StateBeat | Snapshot

PENDING_DELTAS = 1_024  # kept while a snapshot is on its way; older ones are dropped, the gap shows then
ASSEMBLING = 4  # snapshots whose parts are collected at the same time, the newest stay
RETIRED = 8  # incarnations of a node that are over; what still arrives of them changes nothing
DIGEST_MASK = (1 << 64) - 1


class SyncResult(NamedTuple):
    """`changed`: keys of copies that are new, other or gone. `need_snapshot`: ask (again, at the caller's pace)."""

    changed: tuple[str, ...]
    need_snapshot: bool


NOTHING: Mapping[str, CopyState] = MappingProxyType({})


def copy_digest(copy: CopyState) -> int:
    """Return 64 bits that stand for one copy.

    The fields are listed, not taken from the struct: a field appended to CopyState in a later version must
    not make N and N-1 disagree for ever.
    """
    told = (
        copy.copy, copy.state, copy.generation, copy.serial, copy.role, copy.fencing, copy.pid, copy.started_at,
        copy.restarts, (copy.exit.code, copy.exit.signal) if copy.exit else None, copy.reason, copy.restart,
        copy.reset, copy.status,
    )  # fmt: skip
    return number_of(msgspec.msgpack.encode(told))


class Digest:
    """Order-independent digest of a table: the sum of its copies' digests; a change costs O(1)."""

    __slots__ = ("_each", "_sum")

    def __init__(self) -> None:
        self._each: dict[str, int] = {}
        self._sum = 0

    def put(self, copy: CopyState) -> None:
        """Add a copy, or replace what stood for it."""
        new = copy_digest(copy)
        self._sum = (self._sum - self._each.get(copy.copy, 0) + new) & DIGEST_MASK
        self._each[copy.copy] = new

    def drop(self, key: str) -> None:
        """Take a copy out; nothing if it is not in."""
        self._sum = (self._sum - self._each.pop(key, 0)) & DIGEST_MASK

    @property
    def text(self) -> str:
        """16 hex digits and the number of copies, as `StateBeat.digest` carries it."""
        return f"{self._sum:016x}.{len(self._each)}"


def table_digest(copies: Iterable[CopyState]) -> str:
    """Return the digest of a whole table; equal to that of a `Digest` that was kept along the way."""
    digest = Digest()
    for copy in copies:
        digest.put(copy)
    return digest.text


@dataclass(slots=True)
class _Node:
    """One Monitor's table. `high`: the highest sequence known to exist; `trusted`: a snapshot was taken."""

    incarnation: int
    copies: dict[str, CopyState] = field(default_factory=dict)
    digest: Digest = field(default_factory=Digest)
    seq: int = 0
    high: int = 0
    trusted: bool = False
    pending: dict[int, StateDelta] = field(default_factory=dict)
    parts: dict[int, dict[int, Snapshot]] = field(default_factory=dict)
    retired: list[int] = field(default_factory=list)

    @property
    def synced(self) -> bool:
        return self.trusted and self.seq >= self.high


class StateTable:
    """The copies of every node, as its Monitor tells them."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def apply(self, node: str, incarnation: int, body: StateBody) -> SyncResult:
        """Take in one message of a node's Monitor and return what changed and whether a snapshot is needed.

        `incarnation` is the header's. `need_snapshot` stays True with every message until the snapshot is
        complete; the caller paces its requests.
        """
        table = self._nodes.get(node)
        if table is None:
            table = self._nodes[node] = _Node(incarnation)
        elif incarnation != table.incarnation:
            if incarnation in table.retired:
                return SyncResult((), not table.synced)
            _begin(table, incarnation)
        match body:
            case StateDelta():
                changed = _take_delta(table, body)
            case Snapshot():
                changed = _take_part(table, body)
            case StateBeat():
                changed = _take_beat(table, body)
        return SyncResult(changed, not table.synced)

    def copies(self, node: str) -> Mapping[str, CopyState]:
        """Return the last known copies of a node by key; empty if nothing was ever heard."""
        table = self._nodes.get(node)
        return MappingProxyType(table.copies) if table else NOTHING

    def get(self, node: str, key: str) -> CopyState | None:
        """Return one copy as last known, or None."""
        table = self._nodes.get(node)
        return table.copies.get(key) if table else None

    def synced(self, node: str) -> bool:
        """Return whether the table of the node is whole and has no gap."""
        table = self._nodes.get(node)
        return table is not None and table.synced

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes heard of, sorted."""
        return tuple(sorted(self._nodes))

    def forget(self, node: str) -> None:
        """Drop a node that has left the plan."""
        self._nodes.pop(node, None)


def _begin(table: _Node, incarnation: int) -> None:
    """A new Monitor: its counts start over. What the old one said stays until the snapshot replaces it."""
    table.retired = [*table.retired[-(RETIRED - 1) :], table.incarnation]
    table.incarnation = incarnation
    table.seq = table.high = 0
    table.trusted = False
    table.pending.clear()
    table.parts.clear()


def _take_delta(table: _Node, delta: StateDelta) -> tuple[str, ...]:
    if delta.seq <= table.seq and table.trusted:
        return ()
    table.high = max(table.high, delta.seq)
    table.pending[delta.seq] = delta
    if len(table.pending) > PENDING_DELTAS:
        del table.pending[min(table.pending)]
    return _catch_up(table, {})


def _catch_up(table: _Node, changed: dict[str, None]) -> tuple[str, ...]:
    """Apply the pending deltas that follow without a gap."""
    while table.trusted and (delta := table.pending.pop(table.seq + 1, None)) is not None:
        table.seq = delta.seq
        for copy in delta.copies:
            _put(table, copy, changed)
        for key in delta.gone:
            _drop(table, key, changed)
    return tuple(changed)


def _take_beat(table: _Node, beat: StateBeat) -> tuple[str, ...]:
    table.high = max(table.high, beat.last_seq)
    if table.synced and beat.last_seq == table.seq and beat.digest != table.digest.text:
        table.trusted = False  # a divergence nobody noticed: only the whole table heals it
    return ()


def _take_part(table: _Node, part: Snapshot) -> tuple[str, ...]:
    if not 0 <= part.part < part.parts <= limits.MAX_BATCH:
        return ()
    if part.seq < table.seq:
        return ()  # older than what is known: the table never goes back
    collected = table.parts.setdefault(part.seq, {})
    collected[part.part] = part
    if len(table.parts) > ASSEMBLING:
        del table.parts[min(table.parts)]
    if len(collected) < part.parts or part.seq not in table.parts:
        return ()
    return _take_whole(table, part.seq, [copy for n in sorted(collected) for copy in collected[n].copies])


def _take_whole(table: _Node, seq: int, copies: list[CopyState]) -> tuple[str, ...]:
    changed: dict[str, None] = {}
    there = {copy.copy for copy in copies}
    for key in [key for key in table.copies if key not in there]:
        _drop(table, key, changed)
    for copy in copies:
        _put(table, copy, changed)
    table.seq = seq
    table.high = max(table.high, seq)
    table.trusted = True
    table.parts = {other: parts for other, parts in table.parts.items() if other > seq}
    table.pending = {other: delta for other, delta in table.pending.items() if other > seq}
    return _catch_up(table, changed)


def _put(table: _Node, copy: CopyState, changed: dict[str, None]) -> None:
    if table.copies.get(copy.copy) == copy:
        return
    table.copies[copy.copy] = copy
    table.digest.put(copy)
    changed[copy.copy] = None


def _drop(table: _Node, key: str, changed: dict[str, None]) -> None:
    if table.copies.pop(key, None) is not None:
        table.digest.drop(key)
        changed[key] = None
