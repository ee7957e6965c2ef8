"""The small parts of the engine on their own: windows, budgets, queues, the group's table."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.dispatch import latency
from proa.dispatch.actions import Source
from proa.dispatch.group import (
    TRANSITIONS,
    Group,
    GroupEvent,
    GroupState,
    IllegalTransition,
    RowState,
)
from proa.dispatch.hedging import HEDGE_BURST, HedgeBudget
from proa.dispatch.latency import (
    CLEAR_SAMPLES,
    LATE_MAX,
    LATE_MIN,
    LATE_SAMPLES,
    LatencyWindow,
    Stragglers,
    Way,
)
from proa.dispatch.quality import SAMPLES_MIN, Quality
from proa.dispatch.redundancy import (
    CopyWork,
    ParityWork,
    RedundantQueue,
    Work,
    redundant_limit,
)
from proa.dispatch.reservoir import PER_KEY_MAX, Reservoir
from proa.dispatch.stats import Utilisation

SECONDS = st.floats(1e-4, 10.0)


# --- latency


@given(st.lists(SECONDS, min_size=latency.SAMPLES_MIN, max_size=200), st.floats(0.0, 1.0))
def test_quantiles_are_those_of_the_last_values(values: list[float], q: float):
    window = LatencyWindow(prior_s=1.0, size=50)
    for value in values:
        window.add(value)
    kept = np.sort(values[-50:])
    assert len(window) == len(kept)
    assert window.quantile(q) == kept[min(len(kept) - 1, int(q * len(kept)))]
    low, high = np.quantile(kept, [max(0, q - 1 / len(kept)), min(1, q + 1 / len(kept))])
    assert low - 1e-9 <= window.quantile(q) <= high + 1e-9


@given(st.lists(SECONDS, min_size=latency.SAMPLES_MIN, max_size=200))
def test_late_lies_between_its_bounds(values: list[float]):
    window = LatencyWindow(prior_s=1.0)
    for value in values:
        window.add(value)
    median = window.quantile(0.5)
    assert LATE_MIN * median <= window.late_after_s() <= LATE_MAX * median


def test_too_few_samples_say_nothing():
    window = LatencyWindow(prior_s=0.05)
    for _ in range(latency.SAMPLES_MIN - 1):
        window.add(9.0)
    assert window.quantile(0.5) == window.late_after_s() == 0.05


def answered(stragglers: Stragglers, *latencies_ms: float, at_ms: float = 0.0) -> float:
    """Queries sent 10 ms apart, answered in the order of their answers; the median is 20 ms. When
    the last one was sent."""
    sent = [at_ms + 10.0 * i for i in range(len(latencies_ms))]
    for at, latency_ms in sorted(zip(sent, latencies_ms, strict=True), key=sum):
        stragglers.add(at / 1e3, latency_ms / 1e3, 0.020)
    return sent[-1]


def test_an_answer_that_later_ones_overtook_was_late():
    stragglers = Stragglers()
    at_ms = answered(stragglers, *[20.0] * 95)
    assert stragglers.share() == 0.0
    answered(stragglers, 60.0, 20.0, 25.0, 60.0, 20.0, at_ms=at_ms)
    assert stragglers.share() == pytest.approx(2 / LATE_SAMPLES)


@pytest.mark.parametrize("latency_ms", [29.0, 25.0, 20.0])
def test_an_answer_is_not_late_only_because_it_was_overtaken(latency_ms: float):
    stragglers = Stragglers()
    answered(stragglers, *[20.0] * 20, latency_ms, 10.0)
    assert stragglers.share() == 0.0


def test_a_stall_of_everything_is_no_straggler():
    stragglers = Stragglers()
    at_ms = answered(stragglers, *[20.0] * 20)
    answered(stragglers, 220.0, 211.0, 202.0, 193.0, 184.0, at_ms=at_ms)
    assert stragglers.share() == 0.0


def test_the_share_is_that_of_the_last_answers_and_ends_with_the_stragglers():
    stragglers = Stragglers()
    at_ms = 0.0
    for _ in range(LATE_SAMPLES):
        at_ms = answered(stragglers, 60.0, 20.0, 20.0, 20.0, at_ms=at_ms)
    assert stragglers.share() == pytest.approx(0.25, abs=0.01)
    answered(stragglers, *[20.0] * (CLEAR_SAMPLES - 4), at_ms=at_ms)
    assert 0.1 < stragglers.share() < 0.15
    answered(stragglers, *[20.0] * 4, at_ms=at_ms)
    assert stragglers.share() == 0.0
    answered(stragglers, 60.0, 20.0, 20.0, 20.0, at_ms=at_ms + 1e4)
    assert stragglers.share() == pytest.approx(1 / LATE_SAMPLES)


def test_the_share_begins_anew_when_a_worker_is_lost():
    stragglers = Stragglers()
    at_ms = answered(stragglers, *[60.0, 20.0, 20.0] * 20)
    assert stragglers.share() == pytest.approx(20 / LATE_SAMPLES)
    stragglers.forget()
    assert stragglers.share() == 0.0
    answered(stragglers, 60.0, 20.0, 20.0, 20.0, at_ms=at_ms)
    assert stragglers.share() == pytest.approx(1 / LATE_SAMPLES)


def test_the_way_is_what_those_are_spared_that_wait_at_the_worker():
    way = Way()
    for i in range(latency.SAMPLES_MIN):
        assert not way.known
        assert way.time_s() == 0.0
        way.add(0.025 + 0.1 * (i % 2), hidden=False)  # every other worker is slow
        way.add(0.020, hidden=True)
    assert way.known
    assert way.time_s() == pytest.approx(0.005)
    for _ in range(latency.WAY_SAMPLES):
        way.add(0.030, hidden=True)
    assert way.time_s() == 0.0


# --- utilisation


def test_utilisation_forgets_in_a_few_seconds():
    busy = Utilisation()
    assert busy.value == 0.0
    for step in range(200):
        busy.note(1.0, step * 0.1)
    assert busy.value == pytest.approx(1.0, abs=1e-3)
    for step in range(200, 220):
        busy.note(0.0, step * 0.1)
    assert busy.value == pytest.approx(np.exp(-1.0), rel=0.05)
    busy.note(0.5, 1000.0)
    assert busy.value == 0.5


# --- group


def group_in(state: GroupState) -> Group:
    return Group(1, "m", "p", 2, [RowState.WAITING], sampled=False, state=state, members=[1, 2])


@pytest.mark.parametrize("state", GroupState)
@pytest.mark.parametrize("event", GroupEvent)
def test_a_group_follows_the_table_and_nothing_else(state: GroupState, event: GroupEvent):
    group = group_in(state)
    before = deepcopy(group)
    if (state, event) in TRANSITIONS:
        group.move(event)
        assert group.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{event.value} while {state.value}"):
            group.move(event)
        assert group == before


def test_the_ends_of_a_group_are_final():
    left = {state for state, _ in TRANSITIONS}
    assert set(GroupState) - left == {GroupState.DONE, GroupState.ABANDONED}


# --- reservoir


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=100),
    st.integers(0, 100),
)
def test_the_reservoir_keeps_its_bounds_and_loses_no_id(adds: list[tuple[str, int]], limit: int):
    reservoir = Reservoir(bytes_max=limit)
    kept: dict[int, int] = {}
    for query, (key, size) in enumerate(adds):
        kept[query] = size
        for left in reservoir.add(key, query, size):
            del kept[left]
        assert reservoir.bytes == sum(kept.values()) <= limit
        assert len(reservoir) == len(kept)


def test_the_reservoir_gives_the_newest_of_the_same_key_or_none():
    reservoir = Reservoir(bytes_max=1000)
    for query in range(5):
        reservoir.add("even" if query % 2 == 0 else "odd", query, 1)
    assert reservoir.take("even", 2) == (4, 2)
    assert reservoir.take("even", 2, exclude=[4]) == (2, 0)
    assert reservoir.take("even", 4) == reservoir.take("other", 1) == ()


def test_one_key_cannot_fill_the_reservoir():
    reservoir = Reservoir(bytes_max=1 << 30)
    left = [gone for query in range(100) for gone in reservoir.add("m", query, 1)]
    assert left == list(range(100 - PER_KEY_MAX))


def test_the_key_that_was_unused_longest_leaves_first():
    reservoir = Reservoir(bytes_max=3)
    for query, key in enumerate("abab"):
        left = reservoir.add(key, query, 1)
    assert left == [0]


def test_what_is_too_large_is_not_kept():
    reservoir = Reservoir(bytes_max=10)
    reservoir.add("m", 1, 5)
    assert reservoir.add("m", 2, 11) == [2]
    assert reservoir.take("m", 1) == (1,)


# --- budgets and the queue of redundant work


def test_redundancy_shrinks_to_nothing_as_the_queue_grows():
    limits = [redundant_limit(ready=10, idle_reserve=2, queue_depth=d) for d in (0, 5, 9, 10, 50)]
    assert limits == [8, 4, 0, 0, 0]
    assert redundant_limit(ready=0, idle_reserve=0, queue_depth=0) == 0
    assert redundant_limit(ready=1, idle_reserve=3, queue_depth=0) == 0


@given(st.floats(0.0, 1.0), st.lists(st.booleans(), max_size=300))
def test_hedges_never_exceed_their_share_and_a_burst(share: float, earns: list[bool]):
    budget = HedgeBudget(share)
    spent = earned = 0
    for earn in earns:
        if earn:
            budget.earn()
            earned += 1
        else:
            spent += budget.spend()
        assert spent <= HEDGE_BURST + share * earned + 1e-9


def queue_of(limit: int) -> tuple[RedundantQueue, list[Work]]:
    dropped: list[Work] = []
    return RedundantQueue(limit=limit, on_drop=dropped.append), dropped


def test_hedges_come_before_the_rest_and_the_rest_by_age():
    queue, _ = queue_of(10)
    works = [ParityWork(1, 0), CopyWork(7, Source.REPLICA), CopyWork(8, Source.HEDGE)]
    for work in works:
        queue.add(work)
    assert list(queue) == [works[2], works[0], works[1]]
    queue.take(works[0])
    assert list(queue) == [works[2], works[1]]


def test_a_full_queue_drops_the_oldest_of_the_lowest_order():
    queue, dropped = queue_of(2)
    hedge = CopyWork(8, Source.HEDGE)
    for work in (ParityWork(1, 0), hedge, ParityWork(2, 0)):
        queue.add(work)
    assert dropped == [ParityWork(1, 0)]
    queue.add(CopyWork(9, Source.HEDGE))
    queue.add(CopyWork(10, Source.HEDGE))
    assert dropped[1:] == [ParityWork(2, 0), hedge]
    assert len(queue) == 2


# --- quality


def test_every_twentieth_group_is_measured():
    quality = Quality(agreement_min=0.9, sample=0.05)
    assert [quality.sample_next() for _ in range(40)].count(True) == 2
    assert not any(Quality(agreement_min=0.9, sample=0.0).sample_next() for _ in range(100))


def test_agreement_must_be_known_before_it_counts():
    quality = Quality(agreement_min=0.9, sample=1.0)
    assert quality.agreement is None
    for _ in range(SAMPLES_MIN - 1):
        quality.note(0.0)
    assert not quality.low
    quality.note(0.0)
    assert quality.low
    assert quality.samples == SAMPLES_MIN


@pytest.mark.parametrize("agreement_min", [0.9, 0.99, 1.0])
def test_agreement_recovers_with_hysteresis(agreement_min: float):
    quality = Quality(agreement_min=agreement_min, sample=1.0, size=100)
    for _ in range(100):
        quality.note(agreement_min - 0.01)
    assert quality.low
    for _ in range(100):
        quality.note(agreement_min)
    assert quality.low == (agreement_min < 1.0)
    for _ in range(100):
        quality.note(1.0)
    assert not quality.low
