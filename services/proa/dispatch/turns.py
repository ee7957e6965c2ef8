"""Whose turn is next: a slow worker that is idle may be worse than a fast one that is busy.

This is the slow server problem (Lin and Kumar, IEEE Transactions on Automatic Control, 1984): who
would be sent to a worker that has lately been slow waits instead while another worker is expected
to be free sooner than the slow one's lag is long. Of the queries that met the demo's slow worker
two in three had been sent there although it was known to be slow, because it alone was idle.
"""

from __future__ import annotations

from functools import cached_property

from proa.dispatch.latency import LATE_MIN
from proa.dispatch.query import Query
from proa.dispatch.state import State
from proa.dispatch.tied import TiedSends
from proa.dispatch.workers import Worker

# Who was less than this share of the median slower than it is not slow, but jitters.
JITTER_MEDIANS = LATE_MIN - 1.0


class Turns:
    """The turns at busy workers, as one look at the queue hands them out: soonest first, each once.

    A worker counts while its answer is not late, and if its own last answer was not that of a
    straggler. A query that is tied waits for its host, any other for one where nobody waits yet.
    """

    def __init__(self, state: State, tied: TiedSends, now: float) -> None:
        self._state = state
        self._tied = tied
        self._now = now

    def waits(self, query: Query, idle: Worker) -> bool:
        """Whether `query` is better off waiting for a turn than at `idle`; it takes the turn then,
        and is looked at again when that worker may be stuck."""
        latency = self._state.latency
        lag_s, jitter_s = idle.score_s(self._now), JITTER_MEDIANS * latency.quantile(0.5)
        if not idle.straggled or lag_s < jitter_s:
            return False
        if self._state.workers.fastest_free(self._now) is not idle:
            return False  # the picker had another reason to prefer it
        host = self._tied.host(query)
        wait_s = next(iter(self._free_in), None) if host is None else self._left_s(host)
        if wait_s is None or wait_s >= lag_s:
            return False
        if host is None:
            del self._free_in[0]
        if not idle.avoided:
            idle.avoided = True
            self._state.stragglers.avoided()
        self._state.look_again(query, self._now + latency.late_after_s(), self._now)
        return True

    @cached_property
    def _free_in(self) -> list[float]:
        """How long those are busy where nobody waits and whose turn is not taken, in order."""
        found = map(self._left_s, self._state.workers.full())
        return sorted(left for left in found if left is not None)

    @cached_property
    def _typical_s(self) -> float:
        return self._state.latency.typical_s()

    def _left_s(self, worker: Worker) -> float | None:
        """How long `worker`, which is busy, will be; None: nobody knows."""
        taken_s = self._now - worker.since
        if worker.straggled or taken_s >= self._state.latency.late_after_s():
            return None
        return max(0.0, self._typical_s - taken_s)
