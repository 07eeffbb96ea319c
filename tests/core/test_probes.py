"""Probe schedule and verdicts, on a virtual clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ha.core.probes import Probes, Run, Told, Verdict
from ha.model.plan import Probe
from ha.model.timing import MS

C = "acme/acd.1"


def probe(interval: int = 1_000, timeout: int = 300, failures: int = 3, successes: int = 1, delay: int = 0) -> Probe:
    return Probe(
        kind="tcp", target="127.0.0.1:1", interval_ms=interval, timeout_ms=timeout, failures=failures,
        successes=successes, initial_delay_ms=delay,
    )  # fmt: skip


class Clock:
    """Drives a Probes from wake to wake; each run ends after `takes_ms` (None: never) with `ok`."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self.now = 0
        self.started: list[tuple[int, Run]] = []
        self.cancelled: list[tuple[int, Run]] = []
        self.told: list[Told] = []
        self.ends: list[tuple[int, Run]] = []

    def until(self, ms: int, takes_ms: int | None = 1, ok: bool = True) -> None:
        end = ms * MS
        while True:
            wakes = [at for at, _ in self.ends]
            if (wake := self.probes.wake_at()) is not None:
                wakes.append(wake)
            if not wakes or min(wakes) > end:
                self.now = end
                return
            self.now = max(self.now, min(wakes))
            for at, run in [e for e in self.ends if e[0] <= self.now]:
                self.ends.remove((at, run))
                if (told := self.probes.done(run, ok, "" if ok else "refused", self.now)) is not None:
                    self.told.append(told)
            turn = self.probes.turn(self.now)
            self.told += turn.told
            self.cancelled += [(self.now // MS, run) for run in turn.cancel]
            for run in turn.start:
                self.started.append((self.now // MS, run))
                if takes_ms is not None:
                    self.ends.append((self.now + takes_ms * MS, run))

    def starts(self, copy: str = C) -> list[int]:
        return [at for at, run in self.started if run.copy == copy]


def test_first_run_waits_for_the_initial_delay_then_the_interval() -> None:
    clock = begun(probe(delay=500))
    clock.until(2_600)
    assert clock.starts() == [500, 1_500, 2_500]


def test_verdict_passes_is_told_once_after_successes() -> None:
    clock = begun(probe(successes=2))
    clock.until(5_500)
    assert clock.told == [Told(C, 0, Verdict.PASSES, "")]
    assert clock.probes.passes(C)


def test_verdict_fails_after_failures_in_a_row_with_the_reason() -> None:
    clock = begun(probe())
    clock.until(900)
    clock.until(10_000, ok=False)
    assert clock.told == [Told(C, 0, Verdict.PASSES, ""), Told(C, 0, Verdict.FAILS, "refused")]
    assert not clock.probes.passes(C)


def test_one_pass_between_failures_starts_the_count_over() -> None:
    clock = begun(probe(failures=2))
    clock.until(900)
    for second in (1, 2, 3, 4, 5, 6):
        clock.until(second * 1_000 + 900, ok=second % 2 == 0)
    assert [told.verdict for told in clock.told] == [Verdict.PASSES]


def test_hung_probe_times_out_and_delays_no_other() -> None:
    probes = Probes()
    clock = Clock(probes)
    probes.add("a/hung.1", (probe(failures=1),), False, 0)
    clock.until(0, takes_ms=None)
    probes.add(C, (probe(interval=100),), False, 0)
    clock.until(1_000)
    assert (300, Run("a/hung.1", 0, 1)) in clock.cancelled
    assert clock.told[-1] != Told(C, 0, Verdict.FAILS, "")
    assert Told("a/hung.1", 0, Verdict.FAILS, "no answer within 300ms") in clock.told
    assert clock.starts() == list(range(0, 1_001, 100))


def test_end_after_the_timeout_changes_nothing() -> None:
    clock = begun(probe(failures=1))
    clock.until(400, takes_ms=None)
    assert clock.probes.done(Run(C, 0, 1), True, "", clock.now) is None
    assert not clock.probes.passes(C)


def test_end_of_a_run_of_an_earlier_life_changes_nothing() -> None:
    clock = begun(probe())
    clock.until(0, takes_ms=None)
    old = clock.started[0][1]
    assert clock.probes.add(C, (probe(),), False, clock.now) == (old,)
    clock.until(0, takes_ms=None)
    assert clock.probes.done(old, True, "", clock.now) is None


def test_probe_never_runs_twice_at_the_same_time() -> None:
    clock = begun(probe(interval=100, timeout=5_000))
    clock.until(3_000, takes_ms=250)
    assert clock.starts() == list(range(0, 3_001, 250))


def test_no_more_than_the_bound_run_at_once_and_all_get_their_turn() -> None:
    probes = Probes(at_once=4)
    clock = Clock(probes)
    for n in range(10):
        probes.add(f"acme/p.{n}", (probe(timeout=200),), False, 0)
    clock.until(0, takes_ms=100)
    assert len(clock.started) == 4
    clock.until(300, takes_ms=100)
    assert sorted({run.copy for _, run in clock.started}) == sorted(f"acme/p.{n}" for n in range(10))


def test_suspended_time_does_not_count() -> None:
    clock = begun(probe())
    clock.until(1_400)
    assert clock.probes.suspend(C, clock.now) == ()
    assert clock.probes.suspend(C, clock.now) == ()
    clock.until(9_000)
    clock.probes.resume(C, clock.now)
    clock.probes.resume(C, clock.now)
    clock.until(10_700)
    assert clock.starts() == [0, 1_000, 9_600, 10_600]


def test_suspending_cancels_a_run_without_a_verdict() -> None:
    clock = begun(probe(failures=1))
    clock.until(100, takes_ms=None)
    assert clock.probes.suspend(C, clock.now) == (Run(C, 0, 1),)
    clock.until(5_000)
    assert clock.told == []


def test_late_agent_gives_overdue_runs_more_time() -> None:
    clock = begun(probe(failures=1))
    clock.until(0, takes_ms=None)
    assert clock.probes.turn(2_000 * MS, grace_ns=200 * MS).cancel == ()
    assert clock.probes.turn(2_100 * MS).cancel == ()
    assert clock.probes.turn(2_200 * MS).cancel == (Run(C, 0, 1),)


def test_eager_probe_is_repeated_soon_until_it_passes_then_at_its_interval() -> None:
    probes = Probes()
    clock = Clock(probes)
    probes.add(C, (probe(failures=100),), True, 0)
    clock.until(60, takes_ms=0, ok=False)
    clock.until(2_200, takes_ms=0)
    assert clock.starts() == [0, 10, 30, 70, 1_070, 2_070]


def test_removed_copy_is_not_probed_and_has_no_verdict() -> None:
    clock = begun(probe())
    clock.until(10)
    clock.probes.remove(C)
    clock.until(5_000)
    assert clock.starts() == [0]
    assert clock.probes.wake_at() is None
    assert not clock.probes.passes(C)
    assert clock.probes.specs(C) is None
    clock.probes.resume(C, 0)
    assert clock.probes.suspend(C, 0) == ()


def test_heap_does_not_grow_with_restarts() -> None:
    probes = Probes()
    for n in range(5_000):
        probes.add(C, (probe(delay=10_000),), False, n)
        probes.wake_at()
    assert len(probes._heap) < 500


@given(st.integers(20, 2_000), st.integers(0, 60_000))
def test_probe_runs_as_often_as_its_interval_fits(interval: int, length: int) -> None:
    clock = begun(probe(interval=interval, timeout=10_000))
    clock.until(length, takes_ms=1)
    assert abs(len(clock.starts()) - length // interval) <= 1


@given(st.lists(st.tuples(st.integers(1, 3_000), st.booleans()), max_size=12))
def test_probe_runs_as_often_as_its_unfrozen_time_allows(spans: list[tuple[int, bool]]) -> None:
    clock = begun(probe(interval=250, timeout=10_000))
    at = counted = 0
    for span, frozen in spans:
        if frozen:
            clock.probes.suspend(C, clock.now)
        at += span
        clock.until(at, takes_ms=0)
        if frozen:
            clock.probes.resume(C, clock.now)
        else:
            counted += span
    assert abs(len(clock.starts()) - counted // 250) <= 1


def begun(spec: Probe) -> Clock:
    probes = Probes()
    probes.add(C, (spec,), False, 0)
    return Clock(probes)
