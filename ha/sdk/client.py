"""`Agent`: how a managed program learns its role, says that it is ready, and asks whether it may still act.

    from ha.sdk import connect

    agent = connect(on_active=serve, on_standby=follow)   # a background thread calls these
    agent.ready()

or without a thread, in a program's own loop:

    agent = Agent()
    selector.register(agent, EVENT_READ)                  # agent.fileno() stays the same
    for change in agent.poll():
        take(change.role, change.epoch)
        change.done()

Laws. The role at the start is `HA_ROLE` at `HA_EPOCH`. A role is taken when its callback has returned (or `done()`
was called), never before. A lower epoch than one already seen never makes this program active. Losing the agent
changes no role: its Spawner freezes what lost its right, and a restarted one says the role again. Without `HA_SOCKET`
the program stands alone: `HA_ROLE` (default active) for good. Standard library only.
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping

from ha import __version__
from ha.sdk import protocol
from ha.sdk.link import Link
from ha.sdk.protocol import Role
from ha.sdk.sdnotify import notify

Taker = Callable[[int], object]

_KEEP_ANSWERS = 64


class RoleChange:
    """A role to take. Call `done()` once it is taken, or `failed(reason)`."""

    __slots__ = ("_agent", "_answered", "_id", "epoch", "role")

    def __init__(self, agent: Agent, number: int, role: Role, epoch: int) -> None:
        self._agent = agent
        self._id = number  # of the TakeRole; the same change may be said again under another one
        self._answered = False
        self.role = role
        self.epoch = epoch

    def done(self) -> None:
        """Say that the role is taken."""
        self._agent._answer(self, None)

    def failed(self, reason: str) -> None:
        """Say why the role cannot be taken; the node's agents decide what follows."""
        self._agent._answer(self, reason)


class Agent:
    """A program's end of the control socket. All methods may be called from any thread.

    `on_active`, `on_standby`: called with the epoch by the thread that `start()` begins. `on_active` is called again
    when the epoch of an active copy grows. One that raises answers "failed"; its traceback goes to stderr.
    """

    def __init__(
        self,
        on_active: Taker | None = None,
        on_standby: Taker | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._takers = {Role.ACTIVE: on_active, Role.STANDBY: on_standby}
        self._lock = threading.RLock()
        self._heard = threading.Condition(self._lock)
        self._role = Role.STANDBY if self._environ.get("HA_ROLE") == "standby" else Role.ACTIVE
        epoch = self._environ.get("HA_EPOCH", "")
        self._epoch = self._highest = int(epoch) if epoch.isdigit() else 0
        self._queue: deque[RoleChange] = deque()
        self._open: RoleChange | None = None  # handed to the program, not answered yet
        self._asked = 0
        self._answers: dict[int, protocol.EpochNow] = {}
        self._ready = False
        self._status = ""
        self._watchdog_ms = 0
        self._pinged_ns = 0
        self._thread: threading.Thread | None = None
        self._wake = -1
        path = self._environ.get("HA_SOCKET", "")
        self._link = Link(path) if path else None
        self._idle = select.epoll() if not path else None  # what fileno() gives a program that stands alone
        if self._link is not None:
            with self._lock:
                if self._link.connect():
                    self._introduce(self._link)

    # --- what the program is ---------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """The role last taken."""
        return self._role

    @property
    def active(self) -> bool:
        """Whether the role last taken is active."""
        return self._role is Role.ACTIVE

    @property
    def epoch(self) -> int:
        """The fencing number of the role last taken: send it with every effect (0: none is needed)."""
        return self._epoch

    @property
    def standalone(self) -> bool:
        """Whether there is no agent at all (no `HA_SOCKET`)."""
        return self._link is None

    @property
    def connected(self) -> bool:
        """Whether the control socket is connected now, as far as is known."""
        return self._link is not None and self._link.connected

    def check_epoch(self, timeout: float = 0.5) -> bool:
        """Return whether the role and epoch hold right now, by the agent's word; False when it says nothing in time.

        `timeout` in seconds. It narrows the window before an effect, it does not close it: a process may be frozen
        right after the answer. Where that matters, the resource must refuse lower epochs (`Fence`).
        """
        if self._link is None:
            return True
        deadline = time.monotonic() + timeout
        with self._lock:
            self._asked += 1
            question, sent = self._asked, False
            while True:
                answer = self._answers.pop(question, None)
                if answer is not None:
                    held = answer.valid_ms is None or answer.valid_ms > 0
                    return held and answer.role == self._role and answer.epoch == self._epoch
                sent = sent or self._link.send(protocol.AskEpoch(id=question))
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._thread is None or self._thread is threading.current_thread():
                    _wait(left, self._link.fileno())
                    self._pump()
                else:
                    self._heard.wait(left)

    # --- what the program says -------------------------------------------------------------------

    def ready(self) -> None:
        """Say that this copy is ready; said again after every reconnection. By sd_notify without `HA_SOCKET`."""
        self._ready = True
        self._say(protocol.Ready(), "READY=1")

    def status(self, text: str) -> None:
        """Show one line in `hactl status`; cut to `protocol.MAX_TEXT_CHARS`."""
        self._status = text
        self._say(protocol.Status(text=text), "STATUS=" + text.replace("\n", " "))

    def watchdog(self, interval: float) -> None:
        """Declare a watchdog: without `ping()` for `interval` seconds this process is hung and is restarted. 0: none.

        Raises ValueError for an interval outside of 0.02 s to a day.
        """
        interval_ms = round(interval * 1_000)
        if interval_ms and not protocol.MIN_WATCHDOG_MS <= interval_ms <= protocol.MAX_WATCHDOG_MS:
            raise ValueError(f"cannot arm a watchdog of {interval} s: expected 0, or 0.02 to 86400")
        self._watchdog_ms = interval_ms
        self._pinged_ns = time.monotonic_ns()
        self._say(protocol.Watchdog(interval_ms=interval_ms), f"WATCHDOG_USEC={interval_ms * 1_000}")

    def ping(self) -> None:
        """Feed the watchdog, from the loop that would hang. Cheap: at most four lines an interval are sent."""
        now = time.monotonic_ns()
        if now - self._pinged_ns < self._watchdog_ms * 250_000:
            return
        self._pinged_ns = now
        self._say(protocol.Ping(), "WATCHDOG=1")

    # --- roles by callback -----------------------------------------------------------------------

    def start(self) -> None:
        """Take the role of the start by its callback, here and now, then begin the thread that follows changes.

        What the callback raises is raised here. Raises RuntimeError when called twice.
        """
        if self._thread is not None:
            raise RuntimeError("cannot start: this agent was started already")
        taker = self._takers[self._role]
        if taker is not None:
            taker(self._epoch)
        if self._link is not None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._follow, name="ha-sdk", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread and close the connection. The agent keeps the role it gave."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            if thread is not threading.current_thread():
                thread.join()
        if self._link is not None:
            self._link.close()
        if self._idle is not None:
            self._idle.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self) -> None:
        assert self._link is not None
        try:
            while self._thread is threading.current_thread():
                _wait(None, self._link.fileno(), self._wake)
                for change in self.poll():
                    self._take(change)
        finally:
            os.close(self._wake)

    def _take(self, change: RoleChange) -> None:
        taker = self._takers[change.role]
        try:
            if taker is not None:
                taker(change.epoch)
        except Exception as error:  # noqa: BLE001 - the program's own code: its failure is an answer, not our end
            traceback.print_exc()
            change.failed(f"{type(error).__name__}: {error}")
        else:
            change.done()

    # --- roles by selecting ----------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor to select on for reading; it stays the same for the life of this object."""
        if self._link is not None:
            return self._link.fileno()
        assert self._idle is not None
        return self._idle.fileno()

    def poll(self) -> list[RoleChange]:
        """Return the role changes that came in, oldest first, without waiting; answer each by done() or failed()."""
        with self._lock:
            if self._link is None:
                return []
            self._pump()
            changes = list(self._queue)
            self._queue.clear()
            if changes:
                self._open = changes[-1]
            return changes

    # --- the inside ------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Read what came in. The lock is held."""
        assert self._link is not None
        fresh, lines = self._link.pump()
        if fresh:
            self._introduce(self._link)
        for line in lines:
            match line:
                case protocol.Welcome():
                    pass  # what the agent knew last; our Hello says what we are, and TakeRole what we should be
                case protocol.TakeRole():
                    self._told(self._link, line)
                case protocol.EpochNow():
                    self._answers[line.id] = line
                    while len(self._answers) > _KEEP_ANSWERS:
                        self._answers.pop(next(iter(self._answers)))
                case protocol.Refused():
                    pass  # an older agent: what it does not know it does without
        self._heard.notify_all()

    def _told(self, link: Link, line: protocol.TakeRole) -> None:
        if line.role is Role.ACTIVE and line.epoch < self._highest:
            link.send(protocol.Failed(id=line.id, reason=f"stale epoch {line.epoch}, {self._highest} was seen"))
        elif self._has(line.role, line.epoch) and self._open is None and not self._queue:
            link.send(protocol.Done(id=line.id))
        else:
            self._enqueue(line.id, line.role, line.epoch)

    def _enqueue(self, number: int, role: Role, epoch: int) -> None:
        latest = self._queue[-1] if self._queue else self._open
        if latest is not None and (latest.role, latest.epoch) == (role, epoch):
            latest._id = number  # said again on a new connection
            return
        self._highest = max(self._highest, epoch)
        self._queue.append(RoleChange(self, number, role, epoch))

    def _has(self, role: Role, epoch: int) -> bool:
        return (self._role, self._epoch) == (role, epoch)

    def _answer(self, change: RoleChange, reason: str | None) -> None:
        with self._lock:
            if change._answered:
                return
            change._answered = True
            if self._open is change:
                self._open = None
            if reason is None:
                self._role, self._epoch = change.role, change.epoch
            if self._link is not None:
                answer = (
                    protocol.Done(id=change._id) if reason is None else protocol.Failed(id=change._id, reason=reason)
                )
                self._link.send(answer)

    def _introduce(self, link: Link) -> None:
        """Say on a new connection all that matters: the agent may be a new one. The lock is held."""
        link.send(protocol.Hello(sdk=f"ha.sdk/{__version__}", role=self._role, epoch=self._epoch))
        if self._watchdog_ms:
            link.send(protocol.Watchdog(interval_ms=self._watchdog_ms))
        if self._status:
            link.send(protocol.Status(text=self._status))
        if self._ready:
            link.send(protocol.Ready())

    def _say(self, line: protocol.ToAgent, sd_notify: str) -> None:
        if self._link is None:
            notify(sd_notify, self._environ)
            return
        with self._lock:
            self._link.send(line)


def connect(
    on_active: Taker | None = None, on_standby: Taker | None = None, *, environ: Mapping[str, str] | None = None
) -> Agent:
    """Return a started `Agent`: the role of the start is taken when this returns, changes follow in a thread."""
    agent = Agent(on_active, on_standby, environ=environ)
    agent.start()
    return agent


def _wait(seconds: float | None, *descriptors: int) -> None:
    """Wait until one of them is readable (poll, not select: a program may have thousands of descriptors)."""
    waiter = select.poll()
    for descriptor in descriptors:
        waiter.register(descriptor, select.POLLIN)
    waiter.poll(None if seconds is None else max(0, seconds * 1_000))
