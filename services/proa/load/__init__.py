"""Open-loop load: requests leave when the schedule says so, whatever became of the earlier ones.

    schedule = poisson_schedule(rate_hz=100, duration_s=20, seed=7)
    records = await run_open_loop(send, schedule, inflight_max=500)
    print(quantiles(records, failed_as_s=0.5).p99_s)

Latency counts from the *intended* send time, so that a stall of the generator or of the server
shows in every request that it delayed (no coordinated omission).
"""

from __future__ import annotations

from proa.load.generator import Clock, LoopClock, Send, run_open_loop
from proa.load.quantiles import Quantiles, late_count, latencies, quantile, quantiles
from proa.load.records import DROPPED, Outcome, Record
from proa.load.schedule import poisson_schedule

__all__ = [
    "DROPPED",
    "Clock",
    "LoopClock",
    "Outcome",
    "Quantiles",
    "Record",
    "Send",
    "late_count",
    "latencies",
    "poisson_schedule",
    "quantile",
    "quantiles",
    "run_open_loop",
]
