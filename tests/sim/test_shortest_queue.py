"""What is left of the tail when a worker is gone is its queue, and how short a queue can be.

The demo's `killed` phase: 100 queries a second, computations of 20 ms, five workers. With one FIFO
whose workers take the next query the moment they are free, p99 - p50 is what nobody can improve on
who computes each query once. A real worker stands still for the way there and back.
"""

from __future__ import annotations

import heapq
import random
from statistics import fmean

import numpy as np
import pytest

from fakes.simulation import Conditions, Simulation
from proa.dispatch import EngineConfig

WORKERS, SERVICE_S, JITTER, QUERIES = 5, 0.020, 0.02, 1000
# There and back: what a worker of the demo stands still between two computations without ties.
WAY_S = 0.0022
PROMISE = 0.8


def gap_ms(latencies_s: list[float]) -> float:
    low, high = np.quantile(latencies_s, (0.5, 0.99))
    return float(1000.0 * (high - low))


def queue_gap_ms(seed: int, way_s: float) -> float:
    """Of one FIFO in front of workers that stand still for `way_s` before a query that waited."""
    rng = random.Random(seed)
    free = [0.0] * WORKERS
    latencies, at = [], 0.0
    for _ in range(QUERIES):
        at += rng.expovariate(100.0)
        free_at = heapq.heappop(free)
        begin = at if free_at <= at else free_at + way_s
        end = begin + SERVICE_S * rng.gauss(1.0, JITTER)
        heapq.heappush(free, end)
        latencies.append(end - at)
    return gap_ms(latencies)


def engine_gap_ms(seed: int, policy: str) -> float:
    world = Conditions(
        100.0, QUERIES, workers=WORKERS, service_s=SERVICE_S, jitter=JITTER, slow_pairs=0,
        wire_s=WAY_S / 2,
    )  # fmt: skip
    return gap_ms(Simulation(EngineConfig(policy=policy), world, seed=seed).run().latencies_s)


def test_none_has_the_way_in_its_queue_and_auto_has_not() -> None:
    """Within the noise of eight runs of a thousand queries."""
    none, auto = (fmean(engine_gap_ms(s, p) for s in range(8)) for p in ("none", "auto"))
    shortest, usual = (fmean(queue_gap_ms(s, way) for s in range(300)) for way in (0.0, WAY_S))
    assert abs(none / usual - 1.0) < 0.15, (none, usual)
    assert abs(auto / shortest - 1.0) < 0.15, (auto, shortest)


@pytest.mark.parametrize(
    ("way_s", "ratio", "kept_min", "kept_max"),
    [(0.0018, 0.78, 0.5, 0.75), (WAY_S, 0.74, 0.8, 0.97), (0.0030, 0.68, 0.97, 1.0)],
)
def test_the_shortest_queue_itself_keeps_four_fifths_only_where_the_way_is_long(
    way_s: float, ratio: float, kept_min: float, kept_max: float
) -> None:
    """The shorter the way, the less there is to hide: in some runs nobody could keep it."""
    ratios = [queue_gap_ms(seed, 0.0) / queue_gap_ms(seed, way_s) for seed in range(200)]
    assert abs(fmean(ratios) - ratio) < 0.02, fmean(ratios)
    assert kept_min <= fmean(one <= PROMISE for one in ratios) <= kept_max
