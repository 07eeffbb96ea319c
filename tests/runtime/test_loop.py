from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator

import pytest
import zmq

from ha.core.machine import Received
from ha.model.timing import MS
from ha.runtime.loop import BURST, Loop, hold_signals


def boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(boottime)
    yield made
    made.close()


def turn_until(loop: Loop, claim: object, within_s: float = 5.0) -> None:
    assert callable(claim)
    end = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < end, "did not come true in time"
        loop.turn(50)


def test_timers_fire_in_order_never_early_and_cancelled_ones_not_at_all(loop: Loop) -> None:
    fired: list[tuple[str, int]] = []
    start = loop.now()
    for name, after_ms in (("c", 30), ("a", 5), ("b", 10), ("never", 7)):
        timer = loop.call_at(start + after_ms * MS, lambda name=name: fired.append((name, loop.now())))  # type: ignore[misc]
        if name == "never":
            timer.cancel()
    turn_until(loop, lambda: len(fired) == 3)
    assert [name for name, _ in fired] == ["a", "b", "c"]
    assert all(at >= start + ms * MS for (_, at), ms in zip(fired, (5, 10, 30), strict=True))


def test_the_machine_is_ticked_when_its_instant_comes(loop: Loop) -> None:
    wake: list[int | None] = [loop.now() + 5 * MS]
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(loop.now())
        wake[0] = None

    due = wake[0]
    loop.set_machine(lambda: wake[0], tick)
    turn_until(loop, lambda: ticks)
    assert due is not None
    assert ticks[0] >= due
    loop.turn(5)
    assert len(ticks) == 1


def test_a_machine_that_never_moves_its_instant_does_not_spin(loop: Loop) -> None:
    ticks: list[int] = []
    past = loop.now()
    loop.set_machine(lambda: past, lambda: ticks.append(1))
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        loop.turn(50)
    assert len(ticks) <= 55


def test_every_turn_is_told_and_an_idle_loop_turns_all_the_same() -> None:
    turns: list[int] = []
    loop = Loop(boottime, turns.append)
    loop.turn(1)
    loop.turn(1)
    loop.close()
    assert len(turns) == 2
    assert turns[0] <= turns[1]


def test_time_never_goes_back() -> None:
    readings = iter([50, 100, 40, 120])
    loop = Loop(lambda: next(readings))
    assert [loop.now(), loop.now(), loop.now()] == [100, 100, 120]
    loop.close()


def test_a_plain_fd_is_heard_until_it_is_removed(loop: Loop) -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    got: list[bytes] = []
    loop.add_fd(read, lambda _: got.append(os.read(read, 100)))
    os.write(write, b"x")
    turn_until(loop, lambda: got)
    loop.remove_fd(read)
    loop.remove_fd(read)
    os.write(write, b"y")
    loop.turn(5)
    assert got == [b"x"]
    os.close(read)
    os.close(write)


def test_a_handler_may_remove_another_fd_of_the_same_turn(loop: Loop) -> None:
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    called: list[int] = []

    def handler(index: int) -> None:
        called.append(index)
        for read, _ in pipes:
            loop.remove_fd(read)

    for index, (read, write) in enumerate(pipes):
        loop.add_fd(read, lambda _, index=index: handler(index))  # type: ignore[misc]
        os.write(write, b"x")
    turn_until(loop, lambda: called)
    loop.turn(5)
    assert len(called) == 1
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def test_the_death_of_a_child_is_heard_by_its_pidfd(loop: Loop) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    fd = os.pidfd_open(pid)
    dead: list[int] = []

    def died(events: int) -> None:
        dead.append(events)
        loop.remove_fd(fd)

    loop.add_fd(fd, died)
    os.kill(pid, signal.SIGKILL)
    turn_until(loop, lambda: dead)
    assert dead[0] & select.EPOLLIN
    os.close(fd)
    os.waitpid(pid, 0)


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context = zmq.Context()
    one, two = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    one.bind("inproc://x")
    two.connect("inproc://x")
    yield one, two
    context.destroy(0)


def test_a_flood_on_one_socket_does_not_keep_others_from_their_turn(
    loop: Loop, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    one, two = pair
    got: list[list[bytes]] = []
    fired: list[int] = []
    for number in range(3 * BURST):
        one.send(str(number).encode())
    loop.add_socket(two, got.append)
    loop.call_at(loop.now(), lambda: fired.append(len(got)))
    loop.turn()
    assert (len(got), fired) == (BURST, [BURST])
    turn_until(loop, lambda: len(got) == 3 * BURST)
    loop.remove_socket(two)
    one.send(b"more")
    loop.turn(5)
    assert len(got) == 3 * BURST


def test_an_attached_port_delivers_only_what_it_accepts(
    loop: Loop, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    one, two = pair
    from ha.model.messages import Hello
    from ha.model.names import Agent

    class Port:
        sockets = [two]

        def accept(self, index: int, frames: list[bytes]) -> Received | None:
            return Received(Agent.MONITOR, "a1", index, 1, 0, Hello()) if frames == [b"good"] else None

    got: list[Received] = []
    loop.attach(Port(), got.append)
    for frame in (b"bad", b"good"):
        one.send(frame)
    turn_until(loop, lambda: got)
    assert len(got) == 1


def test_a_signal_is_handled_in_a_turn_and_ends_a_wait_at_once(loop: Loop) -> None:
    got: list[int] = []
    loop.on_signal(signal.SIGUSR1, lambda: got.append(1))
    loop.on_signal(signal.SIGTERM, loop.stop)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    start = time.monotonic()
    loop.run()
    assert time.monotonic() - start < 0.4
    assert got == [1]


def test_a_signal_that_came_before_its_handler_stood_is_obeyed_by_it(loop: Loop) -> None:
    got: list[int] = []
    hold_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    loop.on_signal(signal.SIGTERM, lambda: got.append(1) or loop.stop())  # type: ignore[func-returns-value]
    loop.run()
    assert got == [1]


def test_what_a_handler_raises_ends_the_loop(loop: Loop) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    loop.call_at(loop.now(), fail)
    with pytest.raises(RuntimeError, match="boom"):
        loop.run()


def test_a_repeated_call_is_made_again_and_again(loop: Loop) -> None:
    calls: list[int] = []
    loop.call_every(1, lambda: calls.append(1))
    turn_until(loop, lambda: len(calls) >= 3)
