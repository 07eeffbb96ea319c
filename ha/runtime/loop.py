"""The event loop of every agent: one thread, one zmq.Poller, one epoll for plain fds, timers, signals.

Order within a turn: plain fds (deaths first), zmq sockets (at most `BURST` messages each, so that a flood on one
starves nobody; what is left is there at the next turn, which comes at once), due timers, the machine's tick, then
`on_turn`, from which the progress counter that the other agents watch is moved. ZMQ_FD is edge-triggered and has lost
wakes for years, so zmq's own poll does the waiting, and the epoll is one fd in it.

Time is that of the clock passed in, int nanoseconds; it never goes back. A wait ends at the next whole millisecond at
or after the instant asked for, which also lets timers of the same millisecond share a wake.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq

from ha.core.machine import Received
from ha.model.limits import LOOP_IDLE_MS
from ha.model.timing import MS

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
BURST = 64  # messages of one socket, and plain fds, in one turn

Clock = Callable[[], int]
FdHandler = Callable[[int], None]  # called with the epoll event mask
Deliver = Callable[[Received], None]


class WirePort(Protocol):
    """What `Loop.attach` needs of a port (`ha.wire.sockets.Port` is one)."""

    sockets: list[zmq.Socket[bytes]]

    def accept(self, index: int, frames: list[bytes]) -> Received | None:
        """Return what came in on socket `index`; None: nothing to deliver."""


class Timer:
    """A call at an instant; `cancel` may come at any time."""

    __slots__ = ("call", "when")

    def __init__(self, when: int, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never call; harmless when it was called already."""
        self.call = None


class Loop:
    """See the module. `clock`: CLOCK_BOOTTIME in ns. `on_turn(now)`: called at every turn."""

    def __init__(self, clock: Clock, on_turn: Callable[[int], None] | None = None) -> None:
        self._clock = clock
        self._now = clock()
        self._on_turn = on_turn
        self._poller = zmq.Poller()
        self._epoll = select.epoll()
        self._poller.register(self._epoll.fileno(), zmq.POLLIN)
        self._fds: dict[int, FdHandler] = {}
        self._sockets: dict[zmq.Socket[bytes], Callable[[list[bytes]], None]] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._timer_count = 0
        self._wake_at: Callable[[], int | None] | None = None
        self._tick: Callable[[], None] | None = None
        self._ticked_at = 0
        self._signals: dict[int, Callable[[], None]] = {}
        self._signal_pipe: tuple[int, int] | None = None
        self._running = False
        self.late_ns = 0  # how much later than asked for the last timed wake came

    def now(self) -> int:
        """Return the time in ns, never earlier than what was returned before."""
        self._now = max(self._now, self._clock())
        return self._now

    def add_socket(self, socket: zmq.Socket[bytes], handler: Callable[[list[bytes]], None]) -> None:
        """Call `handler(frames)` for each message that comes in on `socket`."""
        self._sockets[socket] = handler
        self._poller.register(socket, zmq.POLLIN)

    def remove_socket(self, socket: zmq.Socket[bytes]) -> None:
        """Forget the socket; it is not closed."""
        if self._sockets.pop(socket, None) is not None:
            self._poller.unregister(socket)

    def attach(self, port: WirePort, deliver: Deliver) -> None:
        """Call `deliver` for each valid message that comes in on any socket of `port`."""
        for index, socket in enumerate(port.sockets):
            self.add_socket(socket, _handler(port, index, deliver))

    def add_fd(self, fd: int, handler: FdHandler, events: int = select.EPOLLIN) -> None:
        """Call `handler(events)` while `fd` (a pidfd, FIFO, unix socket, inotify) is ready; level-triggered."""
        self._fds[fd] = handler
        self._epoll.register(fd, events)

    def modify_fd(self, fd: int, events: int) -> None:
        """Wait for other events on `fd`; 0: only for hang-up and error."""
        self._epoll.modify(fd, events)

    def remove_fd(self, fd: int) -> None:
        """Forget `fd`; call it before closing; harmless when it is not there."""
        if self._fds.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except (FileNotFoundError, OSError):
                return  # closed already, and the kernel took it out

    def call_at(self, when: int, call: Callable[[], None]) -> Timer:
        """Call once at `when` (ns of the clock) or soon after."""
        timer = Timer(when, call)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def call_every(self, interval_ms: int, call: Callable[[], None]) -> None:
        """Call every `interval_ms` until the loop ends; missed calls are not made up for."""

        def again() -> None:
            call()
            self.call_at(self.now() + interval_ms * MS, again)

        self.call_at(self.now() + interval_ms * MS, again)

    def set_machine(self, wake_at: Callable[[], int | None], tick: Callable[[], None]) -> None:
        """Call `tick` whenever the instant that `wake_at` names has come."""
        self._wake_at = wake_at
        self._tick = tick

    def on_signal(self, number: int, handler: Callable[[], None]) -> None:
        """Call `handler` in a turn after the signal came, never in the middle of anything. Main thread only."""
        if self._signal_pipe is None:
            read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._signal_pipe = (read, write)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            self.add_fd(read, self._signalled)
        self._signals[number] = handler
        signal.signal(number, _nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

    def run(self) -> None:
        """Turn until `stop`. What a handler raises ends the loop and comes out here."""
        self._running = True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while self._running:
            self.turn()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False

    def turn(self, at_most_ms: int = LOOP_IDLE_MS) -> None:
        """Wait for something to do, at most so long, and do it."""
        due = self._next_due()
        wait_ms = at_most_ms
        if due is not None:
            wait_ms = min(wait_ms, max(0, -((self.now() - due) // MS)))
        ready = dict(self._poller.poll(wait_ms))
        now = self.now()
        self.late_ns = max(0, now - due) if due is not None and now >= due else 0
        if self._epoll.fileno() in ready:
            self._turn_fds()
        for socket in ready:
            if not isinstance(socket, int):
                self._drain(socket)
        self._turn_timers()
        if self._on_turn is not None:
            self._on_turn(self.now())

    def close(self) -> None:
        """Give back the fds of the loop itself; those added stay open."""
        if self._signal_pipe is not None:
            signal.set_wakeup_fd(-1)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)
            for fd in self._signal_pipe:
                os.close(fd)
            self._signal_pipe = None
        self._epoll.close()

    def _next_due(self) -> int | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        timer = self._timers[0][0] if self._timers else None
        machine = self._wake_at() if self._wake_at is not None else None
        if machine is not None:
            # A machine that still names the instant just served would spin; once a millisecond must do for it.
            machine = max(machine, self._ticked_at + MS)
        if timer is None or machine is None:
            return timer if machine is None else machine
        return min(timer, machine)

    def _turn_fds(self) -> None:
        for fd, events in self._epoll.poll(0, BURST):
            handler = self._fds.get(fd)  # an earlier handler of this turn may have removed it
            if handler is not None:
                handler(events)

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(BURST):
            handler = self._sockets.get(socket)
            if handler is None:
                return
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            handler(frames)

    def _turn_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()
        if self._wake_at is not None and self._tick is not None:
            wake = self._wake_at()
            if wake is not None and wake <= self.now():
                self._ticked_at = self.now()
                self._tick()

    def _signalled(self, _events: int) -> None:
        assert self._signal_pipe is not None
        try:
            numbers: Sequence[int] = os.read(self._signal_pipe[0], 64)
        except BlockingIOError:
            return
        for number in dict.fromkeys(numbers):
            handler = self._signals.get(number)
            if handler is not None:
                handler()


def hold_signals() -> None:
    """Keep an agent's signals waiting until its handlers stand, or `Loop.run` begins: one that comes in the middle of
    a start is then obeyed by the agent, not by the kernel's default."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _handler(port: WirePort, index: int, deliver: Deliver) -> Callable[[list[bytes]], None]:
    def handle(frames: list[bytes]) -> None:
        message = port.accept(index, frames)
        if message is not None:
            deliver(message)

    return handle


def _nothing(_number: int, _frame: object) -> None:
    """Let the wake-up fd tell the loop; the handler itself must not do anything."""
