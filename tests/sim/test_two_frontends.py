"""Two frontends over the same workers: as good as one, within stated margins, because they share.

18 workers of which up to 8 are slow at any time, half of whose time goes to queries at RATE; three
seeds. The groups may wait for 20 ms, so that half the traffic fills them too.
"""

from __future__ import annotations

from functools import cache

from fakes.simulation import Conditions, Frontends, Outcome, Simulation
from proa.dispatch import EngineConfig

SEEDS, QUERIES, RATE = (1, 2, 3), 2000, 350.0


@cache
def outcomes(count: int, *, divided: bool = True, reports: bool = True) -> list[Outcome]:
    config = EngineConfig(policy="parity", queue_max=100_000, group_s_max=0.020)
    shared = Frontends(count, divided, reports)
    world = Conditions(RATE, queries=QUERIES)
    found = [Simulation(config, world, seed=seed, frontends=shared).run() for seed in SEEDS]
    assert all(one.failed == 0 and len(one.latencies_s) == QUERIES for one in found)
    return found


def quantile_ms(q: float, found: list[Outcome]) -> float:
    return sum(one.quantile_ms(q) for one in found) / len(found)


def redundant(found: list[Outcome]) -> float:
    """Computations beyond one a query, as a share of the queries."""
    return sum(one.work - 1.0 for one in found) / len(found)


def test_two_are_as_good_as_one_within_a_margin():
    one, two = outcomes(1), outcomes(2)
    assert quantile_ms(0.5, two) < 1.05 * quantile_ms(0.5, one)
    # One alone knows who is slow, and waits for others; two know half of it, and are no worse than
    # 1.25x of what one was without that (42.8 ms).
    assert quantile_ms(0.99, two) < 1.25 * 42.8
    assert quantile_ms(0.99, two) < 1.5 * quantile_ms(0.99, one)


def test_two_do_no_more_redundant_work_than_one():
    assert redundant(outcomes(2)) < 1.02 * redundant(outcomes(1))
    assert {source for one in outcomes(2) for source in one.sources} == {"worker", "reconstructed"}


def test_without_sharing_the_median_pays():
    one = outcomes(1)
    blind = outcomes(2, divided=False, reports=False)
    undivided = outcomes(2, divided=False)
    assert quantile_ms(0.5, blind) > 1.25 * quantile_ms(0.5, one)
    assert quantile_ms(0.5, undivided) > 1.1 * quantile_ms(0.5, one)


def test_without_load_reports_small_fleets_do_more_redundant_work():
    def run(shared: Frontends) -> Outcome:
        config = EngineConfig(policy="parity", queue_max=100_000)
        world = Conditions(180.0, queries=QUERIES, workers=8, slow_pairs=2)
        return Simulation(config, world, seed=1, frontends=shared).run()

    one, two, blind = run(Frontends(1)), run(Frontends(2)), run(Frontends(2, reports=False))
    assert redundant([two]) < 1.05 * redundant([one])
    assert redundant([blind]) > 1.15 * redundant([one])
    assert two.quantile_ms(0.5) < 0.85 * blind.quantile_ms(0.5)


def test_the_same_seed_gives_the_same_run():
    config, world = EngineConfig(policy="auto"), Conditions(RATE, queries=300)
    first, second = (
        Simulation(config, world, seed=7, frontends=Frontends(2)).run() for _ in range(2)
    )
    assert first.latencies_s == second.latencies_s
