"""Latency quantiles that say how many samples they stand on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest
from proa.load.records import Record


@dataclass(frozen=True)
class Quantiles:
    """Nearest-rank quantiles of `count` latencies, in seconds; NaN when there are none.

    With fewer than 1,000 samples p999_s is simply the largest: show `count` beside it.
    """

    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    p999_s: float

    @property
    def gap_s(self) -> float:
        """p99 - p50: what a tail-tolerance policy is there to close."""
        return self.p99_s - self.p50_s


def quantile(values: Sequence[float] | NDArray[np.float64], q: float) -> float:
    """Nearest rank: the smallest value that at least the share `q` of `values` does not exceed.

    0 < q <= 1. Always one of the values, never an interpolation. NaN when there are none.
    """
    if not 0 < q <= 1:
        raise InvalidRequest(f"quantile {q} must be in (0, 1]")
    if len(values) == 0:
        return math.nan
    # In floats 0.07 * 100 is 7.000000000000001, whose ceiling would be one rank too high.
    rank = math.ceil(q * len(values) - 1e-9)
    return float(np.sort(np.asarray(values, np.float64))[max(rank, 1) - 1])


def latencies(records: Iterable[Record], failed_as_s: float) -> NDArray[np.float64]:
    """Latencies in seconds; a failed request counts as `failed_as_s` (its deadline)."""
    return np.array([r.latency_s if r.ok else failed_as_s for r in records], np.float64)


def quantiles(records: Iterable[Record], failed_as_s: float) -> Quantiles:
    """Quantiles over all requests, the failed ones counted as `failed_as_s` (their deadline)."""
    values = latencies(records, failed_as_s)
    return Quantiles(len(values), *(quantile(values, share) for share in (0.50, 0.95, 0.99, 0.999)))


def late_count(records: Iterable[Record], late_s_max: float = 0.005) -> int:
    """How many requests left more than `late_s_max` after their time: the generator's own fault."""
    return sum(record.late_s > late_s_max for record in records)
