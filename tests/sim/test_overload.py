"""Overload: what cannot be answered in time is refused at once, and the rest is answered in time.

The demo's world: 6 workers of 20 ms, 300 answers a second, and deadlines of 500 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest

from fakes.simulation import Conditions, Frontends, Outcome, Simulation
from proa.dispatch import EngineConfig

# One seed at each `make test`, all of them in `make test-long`.
SEEDS = (1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3)))
DEADLINE_S, CAPACITY_HZ = 0.5, 300.0
DEMO = Conditions(100.0, queries=2000, workers=6, slow_pairs=0, deadline_s=DEADLINE_S)
POLICIES = ("none", "parity", "auto")


@dataclass(frozen=True)
class Verdict:
    """`goodput`: answers in time while queries arrived, as a share of the capacity; `refused`:
    queries refused on arrival; `broken`: others that were let in and not answered."""

    outcome: Outcome
    goodput: float
    refused: int
    broken: int

    @property
    def told_s_max(self) -> float:
        """How long a query that was refused waited to hear of it."""
        refusals = (
            after for status, after in self.outcome.failures if status != "DEADLINE_EXCEEDED"
        )
        return max(refusals, default=0.0)


def judge(
    world: Conditions,
    *,
    seed: int,
    policy: str = "auto",
    frontends: int = 1,
    admission: bool = True,
    inflight_max: int = 1,
) -> Verdict:
    config = EngineConfig(policy=policy, queue_max=100_000, inflight_max=inflight_max)
    run = Simulation(config, world, seed=seed, frontends=Frontends(frontends))
    for one in run.frontends if not admission else ():
        one.engine._admission.refusal = lambda query, now: ""
        one.engine._admission.in_vain = lambda query, now: False
    outcome = run.run()
    end = max(run._arrived_s.values())
    in_time = zip(outcome.replied_s, outcome.latencies_s, strict=True)
    good = sum(at <= end and took_s <= world.deadline_s for at, took_s in in_time)
    refused = sum(after == 0.0 for _, after in outcome.failures)
    assert len(outcome.latencies_s) + outcome.failed == world.queries
    goodput = good / end / CAPACITY_HZ
    return Verdict(outcome, goodput, refused, outcome.failed - refused)


@cache
def overload(times: float, seed: int, policy: str = "auto", *, admission: bool = True) -> Verdict:
    rate_hz = times * CAPACITY_HZ
    world = replace(DEMO, rate_hz=rate_hz, queries=int(5 * rate_hz))
    return judge(world, seed=seed, policy=policy, admission=admission)


@pytest.mark.parametrize("policy", ["none", "auto"])
@pytest.mark.parametrize("times", [1.5, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_let_in_is_answered_in_time_and_the_workers_lose_no_time(
    times: float, seed: int, policy: str
):
    found = overload(times, seed, policy)
    let_in = len(found.outcome.latencies_s) + found.broken
    assert found.goodput > 0.85
    assert found.broken < 0.01 * let_in
    assert found.outcome.quantile_ms(0.99) < 1000 * DEADLINE_S
    assert {status for status, _ in found.outcome.failures} == {"RESOURCE_EXHAUSTED"}
    assert found.told_s_max < 0.005


@pytest.mark.parametrize("times", [1.5, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_without_admission_goodput_collapses(times: float, seed: int):
    blind = overload(times, seed, admission=False)
    assert blind.goodput < 0.5 * overload(times, seed).goodput
    assert {status for status, _ in blind.outcome.failures} == {"DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("frontends", [2, 3])
def test_frontends_that_share_the_workers_need_not_know_of_each_other(frontends: int, seed: int):
    world = replace(DEMO, rate_hz=1.5 * CAPACITY_HZ, queries=2250)
    found = judge(world, seed=seed, frontends=frontends)
    assert found.goodput > 0.85
    assert found.broken < 0.02 * len(found.outcome.latencies_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_that_wait_at_the_workers_count(seed: int):
    world = replace(DEMO, rate_hz=1.5 * CAPACITY_HZ, queries=2250)
    found = judge(world, seed=seed, policy="none", inflight_max=3)
    assert found.goodput > 0.85
    assert found.broken < 0.01 * len(found.outcome.latencies_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_uneven_workers_under_overload_still_answer_what_they_can(seed: int):
    world = replace(DEMO, rate_hz=3 * CAPACITY_HZ, queries=4500, slow=1, extra_s=0.040)
    found = judge(world, seed=seed)
    assert found.goodput > 0.85 * (5 + 1 / 3) / 6
    assert found.broken < 0.05 * len(found.outcome.latencies_s)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "world",
    [
        DEMO,
        replace(DEMO, slow=1, extra_s=0.040),
        replace(DEMO, slow=1, extra_s=0.300),
        replace(DEMO, killed_at=5.0),
        replace(DEMO, slow_pairs=1, extra_s=0.040),
        replace(DEMO, rate_hz=250.0),
    ],
    ids=["calm", "slow", "very-slow", "killed", "moving-slowness", "busy"],
)
def test_a_system_that_is_not_overloaded_refuses_nothing(world: Conditions, seed: int, policy: str):
    found = judge(world, seed=seed, policy=policy)
    # A worker that is 300 ms late for the unlucky may break a deadline; that is not a refusal.
    assert found.refused == 0
    assert {status for status, _ in found.outcome.failures} <= {"DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("seed", SEEDS)
def test_several_frontends_below_capacity_refuse_nothing(seed: int):
    found = judge(replace(DEMO, rate_hz=240.0, slow=1, extra_s=0.020), seed=seed, frontends=3)
    assert found.outcome.failed == 0
