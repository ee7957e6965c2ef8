"""Counters and gauges of one engine, read by metrics and status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Monotonic counts since the engine started. `redundant`: computations beyond one a query,
    by source value (retries too), parity rows as `parity`; `redundancy_lost`: parity rows that
    could not be run; `tied`: queries sent ahead to wait at a busy worker (`sent`), and taken back
    from there (`taken_back`)."""

    arrived: int = 0
    sent: int = 0
    redundant: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    fillers: int = 0
    redundancy_lost: int = 0
    tied: Counter[str] = field(default_factory=Counter)


class Utilisation:
    """The share of workers busy with queries, exponentially averaged over about 2 s."""

    TAU_S = 2.0

    def __init__(self) -> None:
        self._value = 0.0
        self._at: float | None = None

    def note(self, busy_share: float, now: float) -> None:
        """`busy_share` held since the last call."""
        if self._at is not None:
            weight = min(1.0, max(0.0, now - self._at) / self.TAU_S)
            self._value += weight * (busy_share - self._value)
        self._at = now

    @property
    def value(self) -> float:
        """0 to 1."""
        return self._value
