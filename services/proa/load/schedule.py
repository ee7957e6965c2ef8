"""When requests are meant to leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest

REQUESTS_MAX = 10_000_000


def poisson_schedule(rate_hz: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Ascending send times in [0, duration_s), a Poisson process of `rate_hz` per second.

    float64 seconds; the same seed gives the same schedule. Errors: InvalidRequest.
    """
    if not (rate_hz > 0 and duration_s > 0 and rate_hz * duration_s <= REQUESTS_MAX):
        raise InvalidRequest(
            f"rate_hz {rate_hz} and duration_s {duration_s} must be positive and make"
            f" at most {REQUESTS_MAX} requests"
        )
    random = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are uniform over the interval.
    count = random.poisson(rate_hz * duration_s)
    return np.sort(random.uniform(0.0, duration_s, count))
