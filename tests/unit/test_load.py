"""The open-loop generator on a fake clock: every time in these tests is exact."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math

import numpy as np
import pytest

from proa.errors import InvalidRequest, Unavailable
from proa.load import (
    DROPPED,
    Clock,
    LoopClock,
    Outcome,
    Record,
    Send,
    late_count,
    latencies,
    poisson_schedule,
    quantile,
    quantiles,
    run_open_loop,
)


class FakeClock:
    """Time that moves only when every task waits on it; `stall` moves it at once, as a busy CPU."""

    def __init__(self, start_s: float = 100.0) -> None:
        self.time_s = start_s
        self.waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self.order = itertools.count()

    def now(self) -> float:
        return self.time_s

    def stall(self, duration_s: float) -> None:
        self.time_s += duration_s

    async def sleep_until(self, at_s: float) -> None:
        if at_s <= self.time_s:
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self.waiting, (at_s, next(self.order), wake))
        await wake

    async def drive(self) -> None:
        """Let tasks run until all wait, then jump to the earliest wake-up; for ever."""
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self.waiting:
                at_s, _, wake = heapq.heappop(self.waiting)
                self.time_s = max(self.time_s, at_s)
                if not wake.done():
                    wake.set_result(None)


async def run(
    clock: FakeClock, send: Send, schedule: list[float], inflight_max: int = 100
) -> list[Record]:
    driver = asyncio.create_task(clock.drive())
    try:
        return await run_open_loop(send, schedule, inflight_max=inflight_max, clock=clock)
    finally:
        driver.cancel()


def constant(clock: Clock, service_s: float) -> Send:
    async def send(index: int) -> Outcome:
        await clock.sleep_until(clock.now() + service_s)
        return Outcome(source="worker", value=index)

    return send


def test_schedule_is_seeded_ascending_and_has_the_rate() -> None:
    schedule = poisson_schedule(100, 200, seed=3)
    assert np.array_equal(schedule, poisson_schedule(100, 200, seed=3))
    assert not np.array_equal(schedule, poisson_schedule(100, 200, seed=4))
    assert schedule.dtype == np.float64
    assert np.all(np.diff(schedule) >= 0)
    assert schedule[0] >= 0
    assert schedule[-1] < 200
    # 20,000 expected with a standard deviation of 141; gaps are exponential (mean = deviation).
    assert abs(len(schedule) - 20_000) < 5 * 141
    gaps = np.diff(schedule)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (-1, 1), (1, 0), (1e9, 1e9), (math.nan, 1)])
def test_schedule_refuses_what_makes_no_run(rate: float, duration: float) -> None:
    with pytest.raises(InvalidRequest, match="rate_hz"):
        poisson_schedule(rate, duration, seed=0)


async def test_requests_leave_on_schedule_whatever_the_earlier_ones_do() -> None:
    clock = FakeClock()
    records = await run(clock, constant(clock, 10.0), [0.0, 1.0, 2.0])
    assert [r.sent_s for r in records] == [0.0, 1.0, 2.0]
    assert [r.latency_s for r in records] == [10.0, 10.0, 10.0]
    assert [r.value for r in records] == [0, 1, 2]
    assert all(r.ok and r.source == "worker" for r in records)
    assert late_count(records) == 0


async def test_latency_counts_from_the_intended_time_when_the_generator_stalls() -> None:
    clock = FakeClock()

    async def send(index: int) -> Outcome:
        if index == 0:
            clock.stall(5.0)  # holds the process: requests 1 and 2 cannot leave in time
        await clock.sleep_until(clock.now() + 0.5)
        return Outcome()

    records = await run(clock, send, [0.0, 1.0, 2.0, 20.0])
    assert [r.sent_s for r in records] == [0.0, 5.0, 5.0, 20.0]
    assert [r.latency_s for r in records] == [5.5, 4.5, 3.5, 0.5]
    assert late_count(records) == 2
    assert late_count(records, late_s_max=3.5) == 1


async def test_requests_beyond_the_limit_are_recorded_as_failed_not_delayed() -> None:
    clock = FakeClock()
    records = await run(clock, constant(clock, 10.0), [0.0, 1.0, 2.0, 10.5], inflight_max=2)
    assert [r.ok for r in records] == [True, True, False, True]
    assert (records[2].error, records[2].sent_s, records[2].late_s) == (DROPPED, None, 0.0)
    assert records[3].latency_s == 10.0


async def test_an_error_of_ours_is_a_failed_request_and_a_bug_ends_the_run() -> None:
    clock = FakeClock()

    async def fails(index: int) -> Outcome:
        if index == 1:
            raise Unavailable("no worker")
        return Outcome()

    records = await run(clock, fails, [0.0, 1.0, 2.0])
    assert [r.ok for r in records] == [True, False, True]
    assert records[1].error == "Unavailable: no worker"

    async def bug(index: int) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await run(clock, bug, [0.0])
    assert caught.group_contains(ZeroDivisionError)


async def test_the_real_clock_keeps_order_and_never_sends_early() -> None:
    schedule = [0.0, 0.004, 0.004, 0.01]
    records = await run_open_loop(constant(LoopClock(), 0.001), schedule, inflight_max=10)
    assert [r.index for r in records] == [0, 1, 2, 3]
    assert all(r.late_s >= -1e-3 for r in records)  # the event loop's timers have 1 ms steps
    assert all(r.latency_s >= r.late_s for r in records)


async def test_a_run_needs_room_for_one_request_and_an_empty_schedule_is_a_run() -> None:
    with pytest.raises(InvalidRequest, match="inflight_max 0"):
        await run_open_loop(constant(LoopClock(), 0.0), [0.0], inflight_max=0)
    assert await run_open_loop(constant(LoopClock(), 0.0), [], inflight_max=1) == []


def record(latency_s: float, ok: bool = True) -> Record:
    return Record(0, 1.0, 1.0, 1.0 + latency_s, ok=ok)


def test_quantiles_by_hand() -> None:
    # 1..1000 ms: by nearest rank p50 is the 500th, p99 the 990th, p99.9 the 999th.
    found = quantiles([record(i / 1000) for i in range(1, 1001)], failed_as_s=9.0)
    assert found.count == 1000
    assert np.allclose(
        [found.p50_s, found.p95_s, found.p99_s, found.p999_s, found.gap_s],
        [0.500, 0.950, 0.990, 0.999, 0.490],
    )


def test_few_samples_make_the_highest_quantile_the_largest() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.999) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([7.0], 0.001) == 7.0
    assert math.isnan(quantile([], 0.5))
    with pytest.raises(InvalidRequest, match="quantile 0"):
        quantile([1.0], 0)


def test_failed_requests_count_with_their_deadline_however_fast_they_failed() -> None:
    records = [record(0.02), record(0.001, ok=False), record(0.03)]
    assert np.allclose(latencies(records, 0.5), [0.02, 0.5, 0.03])
    assert quantiles(records, 0.5).p99_s == 0.5
    assert math.isnan(quantiles([], 0.5).p50_s)
    assert quantiles([], 0.5).count == 0
