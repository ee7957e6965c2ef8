"""One row for each second of the last ten minutes of a model: what the console draws.

A row is made once, as JSON, when its second is over; who asks for many gets them joined. So a
second costs the event loop a fraction of a millisecond, whether anybody looks or not. The request
path leaves its latencies in `Recent`, and does nothing for the rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from proa.dispatch.stats import Stats
from proa.dispatch.workers import Worker
from proa.frontend.models import Model

ROWS_MAX = 600
NEAR_S, MINUTE_S = 10, 60
WORKERS_MAX = 64
NAMES_MAX = 256  # of workers, those that are gone included
ALL = "all"
QUANTILES = (0.5, 0.99, 0.999)
# How a worker did in a second, as rows say it: the index.
STATES = ("up", "slow", "suspected", "starting", "draining", "quarantined")
# A worker is slow where an attempt took more than so many medians.
SLOW_MEDIANS = 2.0
_BIN_S, _BIN_RATIO = 1e-4, 1.03
_BINS_PER_E = 1.0 / math.log(_BIN_RATIO)

# Latencies in bins: bin -> count.
Bins = Counter[int]


class Sliding:
    """Latencies of the last `seconds` seconds by source, to within 2 %."""

    def __init__(self, seconds: int) -> None:
        self._seconds: deque[Mapping[str, Bins]] = deque()
        self._kept = seconds
        self._sums: dict[str, Bins] = {}

    def push(self, second: Mapping[str, Bins]) -> None:
        """One second more; the oldest one leaves."""
        second = {source: bins for source, bins in second.items() if bins}
        self._seconds.append(second)
        for source, bins in second.items():
            self._sums.setdefault(source, Counter()).update(bins)
        if len(self._seconds) > self._kept:
            for source, bins in self._seconds.popleft().items():
                self._sums[source] -= bins  # drops what is zero
                if not self._sums[source]:
                    del self._sums[source]

    def counts(self) -> dict[str, int]:
        """Answers by source, ALL included."""
        return {source: bins.total() for source, bins in self._sums.items()}

    def quantiles_ms(self) -> dict[str, list[float]]:
        """QUANTILES by source, ALL included (nearest rank)."""
        return {source: _quantiles_ms(bins) for source, bins in self._sums.items()}


def _quantiles_ms(bins: Bins) -> list[float]:
    ranks = [min(bins.total() - 1, int(q * bins.total())) for q in QUANTILES]
    found: list[float] = []
    seen = 0
    for index in sorted(bins):
        seen += bins[index]
        while len(found) < len(ranks) and seen > ranks[len(found)]:
            found.append(round(1000.0 * _BIN_S * _BIN_RATIO ** (index + 0.5), 2))
    return found


def _bin(latency_s: float) -> int:
    return int(math.log(latency_s / _BIN_S) * _BINS_PER_E) if latency_s > _BIN_S else 0


@dataclass(slots=True)
class _Seen:
    """A worker as it was last looked at; `id`: its number in the rows; `worst_s`: of the second;
    `kept_until`: the row that is the last to know of it."""

    id: int
    answered: int = 0
    answered_before: int = 0
    worst_s: float | None = None
    kept_until: int = 0


class History:
    """The rows of one model, oldest first; it starts at `now` (time.monotonic)."""

    def __init__(self, model: Model, now: float) -> None:
        self.minute = Sliding(MINUTE_S)
        self.late = 0
        self._near = Sliding(NEAR_S)
        self._late: deque[int] = deque(maxlen=MINUTE_S)
        self._rows: deque[tuple[int, bytes]] = deque(maxlen=ROWS_MAX)
        self._workers: dict[str, _Seen] = {}
        self._ids = 0
        self._until = now
        self._counts = _counts_of(model.shell.engine.state.stats)

    @property
    def rows(self) -> tuple[tuple[int, bytes], ...]:
        """(second since 1970, JSON), oldest first."""
        return tuple(self._rows)

    @property
    def workers(self) -> dict[str, int]:
        """The numbers of the workers that any row knows of."""
        return {name: seen.id for name, seen in self._workers.items()}

    def sample(self, model: Model, now: float) -> None:
        """Look at the workers: a few times a second, so that no slow answer hides."""
        engine = model.shell.engine
        late_s = engine.state.latency.late_after_s()
        for name in list(model.pool.members)[:WORKERS_MAX]:
            seen = self._workers.get(name)
            if seen is None:
                if len(self._workers) >= NAMES_MAX:
                    continue
                self._ids += 1
                seen = self._workers[name] = _Seen(self._ids)
            worker = engine.state.workers.get(name)
            if worker is not None:
                _look(seen, worker, late_s, now)

    def close(self, model: Model, at: int, now: float) -> None:
        """The second `at` (since 1970) is over: make its row."""
        engine = model.shell.engine
        limit_s = model.spec.slo.latency_ms / 1000.0
        seen = list(model.recent.between(self._until, now))
        late = sum(latency_s > limit_s for latency_s, _ in seen)
        second = {ALL: Counter(_bin(latency_s) for latency_s, _ in seen)}
        for source in {source for _, source in seen}:
            second[source] = Counter(_bin(latency_s) for latency_s, its in seen if its == source)
        self._until = now
        self._near.push(second)
        self.minute.push(second)
        self._late.append(late)
        self.late = sum(self._late)
        counts = _counts_of(engine.state.stats)
        row = {
            "t": at,
            "by": {source: bins.total() for source, bins in second.items() if source != ALL},
            "late": late,
            **{name: max(0, count - self._counts.get(name, 0)) for name, count in counts.items()},
            "queue": engine.queue_depth,
            "busy": round(engine.utilisation.value, 3),
            "agreement": engine.state.quality.agreement,
            "policy": in_force(model),
            "q": self._near.quantiles_ms(),
            "workers": self._cells(model, at),
        }
        self._counts = counts
        self._rows.append((at, json.dumps(row, separators=(",", ":")).encode()))

    def _cells(self, model: Model, at: int) -> list[list[float | int | None]]:
        """For each worker: number, slowest attempt (ms), index of STATES, answers."""
        median_s = model.shell.engine.state.latency.quantile(0.5)
        cells: list[list[float | int | None]] = []
        for name, seen in list(self._workers.items()):
            member = model.pool.members.get(name)
            if member is None:
                if at > seen.kept_until:
                    del self._workers[name]
                continue
            worst_s = seen.worst_s
            state = member.state
            if state == "up" and worst_s is not None and worst_s > SLOW_MEDIANS * median_s:
                state = "slow"
            answered = max(0, seen.answered - seen.answered_before)
            worst_ms = None if worst_s is None else round(1000.0 * worst_s, 1)
            cells.append([seen.id, worst_ms, STATES.index(state), answered])
            seen.worst_s, seen.answered_before = None, seen.answered
            seen.kept_until = at + ROWS_MAX
        return cells


def _look(seen: _Seen, worker: Worker, late_s: float, now: float) -> None:
    worst_s = seen.worst_s or 0.0
    if worker.answered != seen.answered:
        worst_s = max(worst_s, worker.latency_s)
        seen.answered = worker.answered
        if worker.answered < seen.answered_before:  # it came anew
            seen.answered_before = 0
    # What has not been answered counts once it is late.
    oldest_s = now - next(iter(worker.running.values()), now)
    if oldest_s > late_s:
        worst_s = max(worst_s, oldest_s)
    seen.worst_s = worst_s or None


def _counts_of(stats: Stats) -> dict[str, int]:
    return {
        "failed": sum(stats.failed.values()),
        "sent": stats.sent,
        "extra": sum(stats.redundant.values()),
        "done": stats.groups["done"],
        "abandoned": stats.groups["abandoned"],
    }


def in_force(model: Model) -> str:
    """What is done for a query now, in words: `parity+hedge+retry`, or `none`."""
    plan = model.shell.engine.in_force()
    parts = {
        "parity": plan.parity,
        "hedge": plan.hedge,
        "replicate": plan.copies > 0,
        "retry": plan.retries > 0,
    }
    return "+".join(name for name, on in parts.items() if on) or "none"
