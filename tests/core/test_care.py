"""Care of one watched agent: dead, stuck, and when it may start again."""

from __future__ import annotations

import pytest

from ha.core.care import MS, Health, Ward
from ha.model import limits
from ha.model.status import AgentState

S = 1_000 * MS


def up(now: int = 0, pid: int = 7) -> Ward:
    ward = Ward("monitor")
    ward.begin(now)
    assert ward.seen(pid, now)
    assert ward.turned(pid, now + 1, now)
    return ward


def test_its_states_are_those_of_the_model() -> None:
    assert {health.value for health in Health} == {state.value for state in AgentState}


def test_one_that_ran_for_long_is_started_again_at_once() -> None:
    ward = up()
    assert ward.died(7, 60 * S)
    assert ward.may_start(60 * S)


def test_one_that_dies_at_once_waits_longer_each_time_and_at_most_the_limit() -> None:
    ward, now, waits = Ward("monitor"), 0, []
    for pid in range(1, 9):
        ward.begin(now)
        ward.seen(pid, now)
        ward.died(pid, now)
        assert ward.wake_at() is not None
        waits.append((ward.next_start_at - now) // MS)
        assert ward.may_start(ward.next_start_at)
        assert not ward.may_start(ward.next_start_at - 1)
        now = ward.next_start_at
    assert waits == [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]
    assert ward.restarts == 7
    ward.begin(now)
    ward.seen(99, now)
    ward.died(99, now + 60 * S)
    assert ward.may_start(now + 60 * S)


def test_one_that_dies_some_seconds_after_its_start_needs_no_further_delay() -> None:
    ward = up()
    ward.died(7, 3 * S)
    assert ward.may_start(3 * S)


def test_a_late_or_doubled_death_changes_nothing() -> None:
    ward = up()
    assert not ward.died(6, S)
    assert ward.died(7, S)
    assert not ward.died(7, 2 * S)
    assert not ward.died(0, 2 * S)
    assert ward.next_start_at == S


def test_one_whose_loop_does_not_turn_is_stuck_once() -> None:
    ward = up()
    limit = limits.STUCK_AFTER_MS * MS
    assert not ward.stuck(limit)
    assert ward.stuck(limit + 1)
    assert ward.health is Health.STUCK
    assert not ward.stuck(limit + 2)  # it is killed once
    assert ward.died(7, limit + 3)


def test_one_whose_loop_turns_is_never_stuck() -> None:
    ward = up()
    for second in range(1, 60):
        ward.turned(7, second * S, second * S)
        assert not ward.stuck(second * S)


def test_the_progress_of_a_stranger_does_not_count() -> None:
    ward = up()
    assert not ward.turned(8, 5 * S, 5 * S)
    assert ward.stuck(5 * S)


def test_time_that_the_watcher_missed_blames_nobody() -> None:
    ward = up()
    ward.excuse(10 * S)
    assert not ward.stuck(11 * S)
    assert ward.stuck(13 * S)


@pytest.mark.parametrize("seen", [True, False])
def test_a_start_that_brings_nothing_is_given_up(seen: bool) -> None:
    ward = Ward("server")
    ward.begin(0)
    if seen:
        ward.seen(7, 0)
    before, after = limits.AGENT_START_TIMEOUT_MS * MS, limits.AGENT_START_TIMEOUT_MS * MS + 1
    assert not ward.stuck(before)
    assert not ward.vanished(before)
    assert (ward.stuck(after), ward.vanished(after)) == (seen, not seen)


def test_one_found_running_is_adopted_and_no_restart() -> None:
    ward = Ward("spawner")
    assert ward.seen(7, S)
    assert not ward.seen(7, S)
    assert (ward.restarts, ward.pid, ward.health) == (0, 7, Health.STARTING)
    assert ward.seen(8, 2 * S)  # somebody else started another one
    assert ward.restarts == 1


def test_a_failed_start_is_tried_again_later() -> None:
    ward = Ward("watcher")
    ward.begin(0)
    ward.not_started(0)
    assert not ward.may_start(0)
    assert ward.may_start(limits.AGENT_RESTART_FLOOR_MS * MS)
