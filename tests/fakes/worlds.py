"""What a random schedule draws first: how nasty its world is, and how its engine is configured."""

from __future__ import annotations

import random
from dataclasses import dataclass

from proa.dispatch import EngineConfig


@dataclass
class World:
    """How nasty a schedule is: probabilities per answer, and how workers behave."""

    late: float = 0.15
    lost: float = 0.05
    duplicated: float = 0.1
    failed: float = 0.1
    cancelled: float = 0.05
    decode_failed: float = 0.1
    churn: float = 0.3
    exact: float = 0.1
    between_s: float = 0.008


def random_world(rng: random.Random) -> World:
    """From almost well behaved to very nasty."""
    return World(
        late=rng.choice([0.05, 0.15, 0.5]),
        failed=rng.choice([0.0, 0.1, 0.3]),
        exact=rng.choice([0.0, 0.1, 0.5]),
        between_s=rng.choice([0.004, 0.008, 0.020]),
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
