"""The engine's settings: what the spec says, in seconds, and the limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one model's engine. Every count has a limit; times are seconds."""

    policy: str = "auto"
    k: int = 2
    r: int = 1
    pool: str = "shared"
    mode: str = "enforce"
    patience: str = "tail"
    parity_possible: bool = True
    group_s_max: float = 0.005
    idle_reserve: int = 1
    inflight_max: int = 1
    hedge_delay_s: float | None = None
    hedge_budget: float = 0.10
    retry_max: int = 1
    quality_sample: float = 0.05
    agreement_min: float = 0.9
    latency_prior_s: float = 0.05
    queue_max: int = 1024
    redundant_queue_max: int = 256
    groups_open_max: int = 256
    reservoir_bytes_max: int = 64 << 20
    # An attempt this much later than p99 (and at least a second) makes its worker suspect.
    overdue_factor: float = 10.0
    overdue_s_min: float = 1.0
    tick_s: float = 0.25
