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
CLEAR_SAMPLES = 128
# A query sent so many medians after another was sent clearly later.
OVERTAKEN_MEDIANS = 0.25
# What holds lately: few enough to notice a change of the workers' speed within a second.
LATELY_SAMPLES = 64
WAY_SAMPLES = 64


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


class Stragglers:
    """The share of answers that were late although others were not.

    An answer counts if it took more than 1.5x the median and a query that was sent clearly later
    was answered before it: only then would redundancy have helped. When everything stands still at
    once (a stall of the machine, of the network, of this process), answers are late in the order
    in which their queries were sent. On a shared machine of two cores with no slow worker nine in
    ten late answers were of that kind; with one slow worker of six, one in twenty.
    """

    def __init__(self) -> None:
        self._late: deque[bool] = deque(maxlen=LATE_SAMPLES)
        self._since_late = 0
        self._newest_at = 0.0

    def add(self, sent_at: float, latency_s: float, median_s: float) -> bool:
        """An exact answer came after `latency_s`; times in seconds. Whether it counts as late."""
        late = self.overtook(sent_at, median_s) and latency_s > LATE_MAX * median_s
        self._count(late)
        self._newest_at = max(self._newest_at, sent_at)
        return late

    def avoided(self) -> None:
        """Queries wait rather than go to a straggler: the first would have been late there."""
        self._count(late=True)

    def _count(self, late: bool) -> None:
        self._late.append(late)
        self._since_late = 0 if late else self._since_late + 1
        if self._since_late >= CLEAR_SAMPLES:
            self.forget()

    def overtook(self, sent_at: float, median_s: float) -> bool:
        """Whether a query that was sent clearly after `sent_at` was answered."""
        return self._newest_at >= sent_at + OVERTAKEN_MEDIANS * median_s

    def forget(self) -> None:
        """Count anew. When a worker is lost, those that are left have more to do, and redundancy
        has to show again that it pays."""
        self._late.clear()

    def share(self) -> float:
        """Of 256 answers; those that are still to come count as in time, for one late answer among
        the first few says little. The count begins anew after 128 without a late one, so that the
        end of stragglers is noticed in half the time."""
        return sum(self._late) / LATE_SAMPLES


class Way:
    """The time from a worker's answer until its next query begins, learned from queries whose way
    was hidden: they waited at the worker, and their time counts from the answer before."""

    def __init__(self) -> None:
        self._seen = LatencyWindow(prior_s=0.0, size=WAY_SAMPLES)
        self._hidden = LatencyWindow(prior_s=0.0, size=WAY_SAMPLES)

    def add(self, latency_s: float, *, hidden: bool) -> None:
        """An exact answer came after `latency_s`."""
        (self._hidden if hidden else self._seen).add(latency_s)

    @property
    def known(self) -> bool:
        """Whether there are enough samples of both kinds."""
        return self._seen.known and self._hidden.known

    def time_s(self) -> float:
        """There and back; 0 while it is not known. Of the lower quartiles: nobody waits at slow
        workers, and the upper ones would show that instead."""
        if not self.known:
            return 0.0
        return max(0.0, self._seen.quantile(0.25) - self._hidden.quantile(0.25))
