"""Restart policy: the tables of systemd and OTP, on a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha.core.restart import Act, Deaths, backoff_ns, ended, on_death, unit
from ha.model.plan import Restart
from ha.model.status import Exit
from ha.model.timing import MS

CLEAN, FAILED, KILLED, UNKNOWN = Exit(code=0), Exit(code=3), Exit(signal="SIGTERM"), Exit()
STABLE = 10_000 * MS


@pytest.mark.parametrize(
    ("policy", "exit", "act"),
    [
        ("always", CLEAN, Act.NOW),
        ("always", FAILED, Act.NOW),
        ("always", KILLED, Act.NOW),
        ("always", UNKNOWN, Act.NOW),
        ("always", None, Act.NOW),
        ("on-failure", CLEAN, Act.STAY),
        ("on-failure", FAILED, Act.NOW),
        ("on-failure", KILLED, Act.NOW),
        ("on-failure", UNKNOWN, Act.NOW),
        ("on-failure", None, Act.NOW),
        ("never", CLEAN, Act.STAY),
        ("never", FAILED, Act.STAY),
        ("never", KILLED, Act.STAY),
        ("never", UNKNOWN, Act.STAY),
    ],
)
def test_policy_table(policy: str, exit: Exit | None, act: Act) -> None:
    assert on_death(Deaths("c"), Restart(policy=policy), exit, STABLE, 5).act is act  # type: ignore[arg-type]


def test_clean_end_stays_down_and_says_why() -> None:
    decision = on_death(Deaths("c"), Restart(policy="on-failure"), CLEAN, 0, 0)
    assert decision == (Act.STAY, 0, "ended by itself")


def test_delays_double_from_the_second_restart_up_to_the_maximum() -> None:
    policy = Restart(backoff_ms=100, backoff_max_ms=500, jitter=0.0, intensity=100)
    deaths, now, delays = Deaths("c"), 0, []
    for _ in range(6):
        decision = on_death(deaths, policy, FAILED, 0, now)
        delays.append((decision.at - now) // MS)
        now = decision.at
    assert delays == [0, 100, 200, 400, 500, 500]


def test_stable_run_starts_the_row_over() -> None:
    policy, deaths = Restart(intensity=100), Deaths("c")
    on_death(deaths, policy, FAILED, 0, 0)
    assert on_death(deaths, policy, FAILED, STABLE - 1, MS).act is Act.LATER
    assert on_death(deaths, policy, FAILED, STABLE, 2 * MS).act is Act.NOW


@pytest.mark.parametrize("intensity", [0, 1, 5])
def test_one_death_more_than_intensity_gives_up(intensity: int) -> None:
    policy, deaths = Restart(intensity=intensity), Deaths("c")
    acts = [on_death(deaths, policy, FAILED, 0, n * MS).act for n in range(intensity + 1)]
    assert Act.GIVE_UP not in acts[:-1]
    assert acts[-1] is Act.GIVE_UP


def test_deaths_that_left_the_period_do_not_count() -> None:
    policy, deaths = Restart(intensity=1, period_ms=1_000), Deaths("c")
    acts = [on_death(deaths, policy, FAILED, 0, n * 1_001 * MS).act for n in range(20)]
    assert Act.GIVE_UP not in acts
    assert on_death(deaths, policy, FAILED, 0, 19 * 1_001 * MS + 1).act is Act.GIVE_UP


def test_window_stands_still_while_the_copy_is_frozen() -> None:
    policy, deaths = Restart(intensity=1, period_ms=1_000), Deaths("c")
    on_death(deaths, policy, FAILED, 0, 0)
    deaths.shift(5_000 * MS)
    assert on_death(deaths, policy, FAILED, 0, 5_500 * MS).act is Act.GIVE_UP


def test_reset_forgets_everything() -> None:
    policy, deaths = Restart(intensity=1), Deaths("c")
    for n in range(2):
        on_death(deaths, policy, FAILED, 0, n)
    deaths.forget()
    assert on_death(deaths, policy, FAILED, 0, 3).act is Act.NOW


@given(st.integers(1, 200), st.integers(1, 5_000), st.floats(0, 0.9), st.text(max_size=5))
def test_delay_stays_within_the_jitter(row: int, backoff: int, jitter: float, seed: str) -> None:
    policy = Restart(backoff_ms=backoff, backoff_max_ms=30_000, jitter=jitter)
    base = min(backoff * 2 ** min(row - 1, 40), 30_000) * MS
    delay = backoff_ns(policy, row, unit(seed, row))
    assert base * (1 - jitter) - 1 <= delay <= base * (1 + jitter) + 1


@given(st.lists(st.integers(0, 20_000), max_size=60), st.integers(0, 6))
def test_never_more_than_intensity_restarts_in_any_period(gaps: list[int], intensity: int) -> None:
    policy, deaths, now = Restart(intensity=intensity, period_ms=60_000), Deaths("c"), 0
    restarts: list[int] = []
    for gap in gaps:
        now += gap * MS
        if on_death(deaths, policy, FAILED, 0, now).act in (Act.NOW, Act.LATER):
            restarts.append(now)
        assert len(deaths.times) <= intensity + 1
        assert sum(1 for time in restarts if time >= now - 60_000 * MS) <= intensity


def test_jitter_is_spread_and_repeatable() -> None:
    numbers = [unit("acme/acd.1", n) for n in range(100)]
    assert numbers == [unit("acme/acd.1", n) for n in range(100)]
    assert min(numbers) < 0.1
    assert max(numbers) > 0.9


def test_end_in_words() -> None:
    assert [ended(e) for e in (None, UNKNOWN, FAILED, KILLED)] == [
        "ended, nobody saw how", "ended, nobody saw how", "ended with code 3", "ended by SIGTERM",
    ]  # fmt: skip
