"""What a random schedule draws first: how nasty its world is, and how its engine is configured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from proa.dispatch import EngineConfig
from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED, PARITY, QueryArrived


@dataclass
class World:
    """How nasty a schedule is: probabilities per answer, and how workers behave. `drills`: share of
    the queries; `frontends`: probability that their number changes; `crowd`: so many queries more,
    in a rush."""

    late: float = 0.15
    lost: float = 0.05
    duplicated: float = 0.1
    failed: float = 0.1
    cancelled: float = 0.05
    decode_failed: float = 0.1
    churn: float = 0.3
    exact: float = 0.1
    drills: float = 0.05
    frontends: float = 0.2
    between_s: float = 0.008
    crowd: int = 0


def random_world(rng: random.Random) -> World:
    """From almost well behaved to very nasty."""
    return World(
        late=rng.choice([0.05, 0.15, 0.5]),
        failed=rng.choice([0.0, 0.1, 0.3]),
        exact=rng.choice([0.0, 0.1, 0.5]),
        drills=rng.choice([0.0, 0.0, 0.1, 0.5]),
        between_s=rng.choice([0.004, 0.008, 0.020]),
        crowd=rng.choice([0] * 19 + [70]),
    )


def random_config(rng: random.Random) -> EngineConfig:
    """Any combination of policy, code, pool, patience and tight limits."""
    return EngineConfig(
        policy=rng.choice(["none", "retry", "replicate", "hedge", "parity", "parity", "auto"]),
        k=rng.choice([1, 2, 2, 3, 4]),
        r=rng.choice([1, 1, 2, 3]),
        pool=rng.choice(["shared", "shared", "dedicated"]),
        mode=rng.choice(["enforce", "enforce", "observe"]),
        patience=rng.choice(["first", "tail"]),
        parity_possible=rng.random() < 0.9,
        group_s_max=rng.choice([0.0, 0.005, 0.05]),
        idle_reserve=rng.choice([0, 1, 2]),
        inflight_max=rng.choice([1, 1, 2, 3]),
        hedge_delay_s=rng.choice([None, 0.02]),
        hedge_budget=rng.choice([0.0, 0.1, 1.0]),
        retry_max=rng.choice([0, 1, 2]),
        quality_sample=rng.choice([0.0, 0.05, 1.0]),
        agreement_min=rng.choice([0.0, 0.9, 1.0]),
        queue_max=rng.choice([2, 8, 1024]),
        redundant_queue_max=rng.choice([1, 4, 256]),
        groups_open_max=rng.choice([1, 4, 256]),
        reservoir_bytes_max=rng.choice([0, 500, 1 << 20]),
        latency_prior_s=0.03,
    )


def random_query(rng: random.Random, query: int, at: float, world: World) -> QueryArrived:
    """A query that arrives `at`, of one of two tenants."""
    return QueryArrived(
        query=query,
        key=("m", rng.choice("aab")),
        deadline=at + rng.choice([0.001, 0.2, 0.5, 1.0]),
        size=rng.choice([10, 100]),
        exact=rng.random() < world.exact,
        policy=rng.choice(["none", "hedge", "parity"]) if rng.random() < 0.1 else None,
        codable=rng.random() < 0.95,
        reconstruct=rng.random() < world.drills,
    )


def random_lives(
    rng: random.Random, moves: random.Random, config: EngineConfig, world: World
) -> Iterator[tuple[float, ev.Event]]:
    """When workers join, and maybe leave, drain, fall under suspicion, come back, move."""
    for i in range(rng.randint(1, 9)):
        domain = f"d{rng.randint(0, 5)}" if rng.random() < 0.2 else f"d{i}"
        roles = frozenset((DEPLOYED, PARITY))
        if config.pool == "dedicated" and i:
            roles = frozenset((PARITY,)) if i % 3 == 0 else frozenset((DEPLOYED,))
        package = "new" if rng.random() < 0.1 else "p"
        joined = ev.WorkerJoined(f"w{i}", domain, package, roles)
        yield 0.0 if rng.random() < 0.8 else rng.random() * 0.2, joined
        if rng.random() < world.churn:
            kinds = [ev.WorkerLeft, ev.WorkerSuspected, ev.WorkerDraining, ev.WorkerDraining]
            yield rng.random() * 0.5, rng.choice(kinds)(joined.worker)
            back = rng.choice([joined, joined, ev.WorkerLeft(joined.worker)])
            yield 0.1 + rng.random() * 0.5, back
        if moves.random() < world.churn:
            yield moves.random() * 0.5, ev.WorkerMoved(joined.worker, f"moved-{i}")
