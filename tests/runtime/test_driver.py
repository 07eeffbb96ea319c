from __future__ import annotations

from collections.abc import Sequence

import pytest

from ha.core.machine import Effect, Event, Note, Persist, Send, Step, Tick
from ha.model.errors import PersistError
from ha.model.messages import Hello
from ha.model.names import Agent
from ha.runtime.agent import Driver


class Say(Event, frozen=True):
    effects: tuple[Effect, ...]


class Echo:
    """A machine that wants what it is told to want."""

    def step(self, state: int, event: Event, now: int) -> Step[int]:
        return Step(state + 1, list(event.effects) if isinstance(event, Say) else [])

    def wake_at(self, state: int) -> int | None:
        return state * 10


class World:
    def __init__(self) -> None:
        self.done: list[object] = []
        self.driver: Driver[int] | None = None
        self.answer: Event | None = None
        self.full = False

    def now(self) -> int:
        return 5

    def persist(self, effects: Sequence[Persist]) -> None:
        if self.full:
            raise PersistError("cannot write j: No space left on device")
        self.done.append([effect.key for effect in effects])

    def carry_out(self, effect: Effect) -> None:
        self.done.append(effect)
        if self.answer is not None and self.driver is not None:
            answer, self.answer = self.answer, None
            self.driver.feed(answer)


SEND = Send(Agent.SERVER, "a1", Hello())
NOTE = Note("x", "y")


def driver(world: World) -> Driver[int]:
    made = Driver(Echo(), 0, world)
    world.driver = made
    return made


def test_effects_are_done_in_order_and_neighbouring_writes_together() -> None:
    world = World()
    driver(world).feed(Say((Persist("a", 1), Persist("b", 2), SEND, Persist("c", 3))))
    assert world.done == [["a", "b"], SEND, ["c"]]


def test_nothing_is_said_after_a_write_that_failed() -> None:
    world = World()
    world.full = True
    with pytest.raises(PersistError):
        driver(world).feed(Say((SEND, NOTE, Persist("a", 1), SEND)))
    assert world.done == [SEND]


def test_notes_are_told_after_everything_else_of_their_step() -> None:
    world = World()
    driver(world).feed(Say((NOTE, SEND, Persist("a", 1))))
    assert world.done == [SEND, ["a"], NOTE]


def test_an_event_that_an_effect_brings_waits_for_the_other_effects() -> None:
    world = World()
    world.answer = Say((Note("later", ""),))
    made = driver(world)
    made.feed(Say((SEND, NOTE)))
    assert world.done == [SEND, NOTE, Note("later", "")]
    assert made.state == 2


def test_wake_at_is_that_of_the_present_state() -> None:
    made = driver(World())
    made.tick()
    made.feed(Tick())
    assert made.wake_at() == 20
