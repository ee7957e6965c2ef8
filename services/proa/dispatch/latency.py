"""A window of latencies with exact quantiles, and what counts as late in it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from itertools import islice
from statistics import fmean, median

# Later than this share of the median is a straggler, not jitter (policies table, section 1 and 2:
# hedging at 1.15x to 1.3x of the median is best when service times are steady).
LATE_MIN, LATE_MAX = 1.15, 1.5
SAMPLES_MIN = 20
LATE_SAMPLES = 256
# What holds lately: few enough to notice a change of the workers' speed within a second.
LATELY_SAMPLES = 64


class LatencyWindow:
    """The last `size` latencies, in seconds."""

    def __init__(self, *, prior_s: float, size: int = 512) -> None:
        self._recent: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []
        self._prior_s = prior_s

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, latency_s: float) -> None:
        """Take in one latency; the oldest one leaves a full window."""
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(latency_s)
        insort(self._sorted, latency_s)

    def quantile(self, q: float) -> float:
        """The q-quantile (nearest rank), or the prior while there are too few samples."""
        if not self.known:
            return self._prior_s
        return self._sorted[min(len(self._sorted) - 1, int(q * len(self._sorted)))]

    @property
    def known(self) -> bool:
        """Whether there are enough samples; else the prior stands for everything."""
        return len(self._sorted) >= SAMPLES_MIN

    def typical_s(self) -> float:
        """The median lately."""
        return median(self._lately()) if self.known else self._prior_s

    def held_s(self) -> float:
        """How long an answer held its worker's place lately, on average; a few that were stuck
        count as late, and no more."""
        if not self.known:
            return self._prior_s
        lately = self._lately()
        return min(fmean(lately), LATE_MAX * median(lately))

    def _lately(self) -> list[float]:
        return list(islice(reversed(self._recent), LATELY_SAMPLES))

    def late_after_s(self) -> float:
        """How long after sending an answer is late: p95, but within 1.15x to 1.5x the median.

        Without the bounds, many stragglers would raise p95 until none of them counted as late.
        """
        if not self.known:
            return self._prior_s
        middle = self.quantile(0.5)
        return min(max(self.quantile(0.95), LATE_MIN * middle), LATE_MAX * middle)

    def late_share(self) -> float:
        """The share of the last 256 answers that were later than 1.5x the median.

        Half the window, so that the end of stragglers is noticed in half the time.
        """
        if not self.known:
            return 0.0
        limit_s = LATE_MAX * self.quantile(0.5)
        lately = list(islice(reversed(self._recent), LATE_SAMPLES))
        return sum(one > limit_s for one in lately) / len(lately)
