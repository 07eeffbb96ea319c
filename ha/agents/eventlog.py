"""Event log of a node: what its agents noted, in memory for `hactl events`, on disk as NDJSON.

data_dir/NODE/events/events.ndjson, size-rotated. An event's id is `node:incarnation:seq` of the agent that noted it;
the same id again (it was said twice) counts once. Wall-clock times are for display.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ha.core.machine import Note
from ha.linux.rotate import RotatingFile
from ha.model import limits
from ha.model.messages import EventRecord
from ha.runtime import log

FILE_BYTES = 16 * 1024 * 1024
FILES_KEEP = 5
SAY_BATCH = 32  # events in one EventsSaid: it stays below MAX_FRAME_BYTES

Json = dict[str, Any]
Follower = Callable[[EventRecord], None]


def iso(at: float) -> str:
    """Return wall-clock seconds as "2025-01-01T00:00:00.000Z"."""
    ms = round(at * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"


def to_json(event: EventRecord) -> Json:
    """Return the contract's form of an event (contract/status.json5)."""
    return {
        "id": event.id, "node": event.node, "seq": event.seq, "time": iso(event.at), "kind": event.kind,
        "subject": event.subject, "from": event.from_, "to": event.to, "reason": event.reason, "epoch": event.epoch,
        "request": event.request,
    }  # fmt: skip


class EventLog:
    """The last `limits.EVENTS_KEEP` events in memory, all on disk."""

    def __init__(self, data_dir: str, node: str, incarnation: int, wake: Callable[[], None]) -> None:
        """`data_dir`: that of the node; `wake`: called when there is something to `flush`. Raises OSError."""
        directory = f"{data_dir}/events"
        os.makedirs(directory, 0o700, exist_ok=True)
        self._file = RotatingFile(f"{directory}/events.ndjson", FILE_BYTES, FILES_KEEP, mode=0o600)
        self._node = node
        self._incarnation = incarnation
        self._wake = wake
        self._seq = 0
        self._events: deque[EventRecord] = deque(maxlen=limits.EVENTS_KEEP)
        self._ids: set[str] = set()
        self._unsaid: list[EventRecord] = []
        self._unwritten: list[bytes] = []
        self.followers: list[Follower] = []

    def note(self, note: Note) -> None:
        """Take in what this agent's machine noted."""
        self._seq += 1
        self._take(
            EventRecord(
                f"{self._node}:{self._incarnation}:{self._seq}", self._node, self._seq, time.time(), note.kind,
                note.subject, str(note.from_), str(note.to), note.reason[: limits.MAX_REASON_CHARS], note.epoch,
                note.request,
            )
        )  # fmt: skip

    def take(self, events: tuple[EventRecord, ...]) -> None:
        """Take in what another agent of this node noted."""
        for event in events:
            if event.id not in self._ids:
                self._take(event)

    def flush(self) -> list[tuple[EventRecord, ...]]:
        """Write what is new to disk with one call, and return it in batches to be said to the Servers."""
        if self._unwritten:
            data, self._unwritten = b"".join(self._unwritten), []
            try:
                self._file.write(data)
            except OSError as error:
                log.warning("events.lost", reason=error.strerror)
        unsaid, self._unsaid = self._unsaid, []
        return [tuple(unsaid[at : at + SAY_BATCH]) for at in range(0, len(unsaid), SAY_BATCH)]

    def since(self, id: str, limit: int = limits.EVENTS_KEEP) -> list[Json]:
        """Return the events after that id, oldest first; a gap comes first if the id is no longer known."""
        events = list(self._events)
        if not id:
            return [to_json(event) for event in events[-limit:]]
        for at, event in enumerate(events):
            if event.id == id:
                return [to_json(event) for event in events[at + 1 :][:limit]]
        return [{"kind": "gap", "subject": id, "reason": "events before these are no longer in memory"}] + [
            to_json(event) for event in events[-limit:]
        ]

    def recent(self, seconds: float) -> list[EventRecord]:
        """Return the events of the last seconds, oldest first."""
        since = time.time() - seconds
        return [event for event in self._events if event.at >= since]

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        self._file.close()

    def _take(self, event: EventRecord) -> None:
        if len(self._events) == limits.EVENTS_KEEP:
            self._ids.discard(self._events[0].id)
        self._events.append(event)
        self._ids.add(event.id)
        if not self._unsaid:
            self._wake()
        self._unsaid.append(event)
        self._unwritten.append(msgspec.json.encode(to_json(event)) + b"\n")
        log.line(
            f"{event.kind}", subject=event.subject, from_=event.from_, to=event.to, reason=event.reason,
            request=event.request,
        )  # fmt: skip
        for follower in list(self.followers):
            follower(event)
