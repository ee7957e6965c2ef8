"""The time axis: where round numbers of milliseconds stand."""

from __future__ import annotations

import math

_STEPS = (1.0, 2.0, 5.0)


def ticks(first_ms: float, last_ms: float, most: int) -> list[float]:
    """Round numbers within the range, evenly spaced, at most `most` + 1 of them."""
    span_ms = max(last_ms - first_ms, 1e-6)
    step = _round_up(span_ms / max(most, 1))
    begin, end = math.ceil(first_ms / step - 1e-9), math.floor(last_ms / step + 1e-9)
    return [round(i * step, 9) + 0.0 for i in range(begin, end + 1)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((s * power for s in _STEPS if s * power >= value - 1e-12), 10.0 * power)
