"""Tied requests: a query that finds all workers busy is sent ahead, to the one that is free next.

It waits there, so that the way to the worker and back is hidden behind the computation before it.
It keeps its place in our queue all the same: if another worker is free clearly sooner, the query is
taken back and goes there (Dean and Barroso, The Tail at Scale: one request in two queues, and who
begins it cancels the other). Without a way back the bet is not worth it: a query is bound to a
worker that may be slow, or die, while others are idle.

With several frontends a worker that is busy here may run the queries of others next, and most
queries find a worker that seems idle: simulated, ties change nothing there, so there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from proa.dispatch.actions import Cancel, SetTimer, Source
from proa.dispatch.latency import LATE_MAX
from proa.dispatch.query import Attempt, Query
from proa.dispatch.state import State
from proa.dispatch.timers import TieTimer
from proa.dispatch.workers import SLOW_MEDIANS, Worker

# A worker is about to begin what waits there while its answer is due within so many ways, or was. A
# hidden way is time that the worker gains, so it is worth more than itself. Simulated, p50 and p99:
# 18 workers at 78 %, 8 of them slow, 27 and 73 ms for a way of 4 ms (without ties 35 and 102), 24
# and 63 for none at all (24 and 63); 6 healthy ones at 80 %, 25 and 41 for 5 ms (27 and 71).
WAYS = 3.0
# While the way is not known.
SOON_MEDIANS = 0.5


class TiedSends:
    """The queries of one engine that wait at a worker and in the queue."""

    def __init__(
        self,
        state: State,
        *,
        may: Callable[[Query], bool],
        send: Callable[[Query, Worker, Source, float], Attempt],
    ) -> None:
        self._state = state
        self._may = may
        self._send = send
        self._ties: dict[int, int] = {}

    def send(self, queue: Iterable[int], now: float) -> None:
        """Send queries of `queue` ahead, in order, up to the first that may not be or finds no
        worker: a worker with one waiting is never idle, and who may only wait here would starve."""
        state = self._state
        if state.config.mode != "enforce" or state.share.count > 1:
            return
        for query in map(state.queries.__getitem__, queue):
            if query.id in self._ties:
                continue
            worker = self._host(now) if self._may(query) else None
            if worker is None:
                return
            self._ties[query.id] = self._send(query, worker, Source.WORKER, now).id
            state.stats.tied["sent"] += 1
            self.watch(query.id, now)

    def watch(self, query: int, now: float) -> None:
        """See that a tied query is looked at when its worker is stuck: another may be idle then."""
        if query in self._ties:
            stuck_at = self._worker(query).since + self._about_to_begin()[1]
            if stuck_at > now:
                self._state.out.append(SetTimer(TieTimer(query), stuck_at))

    def _host(self, now: float) -> Worker | None:
        """The worker that is likely to be done first with a query; None: each is late, or was slow
        lately, or does redundant work, which may have to give way, or has a query waiting."""
        state = self._state
        late_s, median_s = state.latency.late_after_s(), state.latency.quantile(0.5)
        fits = [
            worker
            for worker in state.workers.full()
            if now < worker.since + late_s
            and worker.score_s(now) < SLOW_MEDIANS * median_s
            and not state.attempts[next(iter(worker.running))].redundant
        ]
        return min(fits, key=lambda worker: worker.since, default=None)

    def begun(self, now: float) -> Iterator[tuple[Query, Worker]]:
        """Untie each query whose turn has come at its worker, and yield both."""
        for query, attempt in list(self._ties.items()):
            worker = self._worker(query)
            if self._state.workers.has_begun(worker, attempt):
                self._state.restart(self._state.attempts[attempt], worker, now)
                del self._ties[query]
                yield self._state.queries[query], worker

    def overtook(self, query: Query) -> Worker | None:
        """`query` is answered; untie it. The worker, if it was tied: it has computed `query` before
        what it seemed to run."""
        worker = self._worker(query.id) if query.id in self._ties else None
        self.untie(query)
        return worker

    def host(self, query: Query) -> Worker | None:
        """The worker that `query` is tied to, if it is."""
        return self._worker(query.id) if query.id in self._ties else None

    def due(self, queue: Iterable[int], now: float) -> Iterator[Query]:
        """The queries of `queue` that are not about to begin where they are tied, in order."""
        soon_s, stuck_s = self._about_to_begin() if self._ties else (0.0, 0.0)
        for query in list(queue):
            since = self._worker(query).since if query in self._ties else None
            if since is None or not since + soon_s <= now < since + stuck_s:
                yield self._state.queries[query]

    def _about_to_begin(self) -> tuple[float, float]:
        """From when to when a worker that runs something is about to begin what waits there.

        An answer that is a little late says nothing yet: the worker has begun by then, most often,
        and who takes the query back has it computed in vain.
        """
        state = self._state
        typical_s = state.latency.typical_s()
        ways_s = WAYS * state.way.time_s() if state.way.known else SOON_MEDIANS * typical_s
        return typical_s - ways_s, min(typical_s + ways_s, LATE_MAX * typical_s)

    def _worker(self, query: int) -> Worker:
        worker = self._state.workers.get(self._state.attempts[self._ties[query]].worker)
        assert worker is not None
        return worker

    def untie(self, query: Query) -> bool:
        """Whatever it was tied to no longer matters; whether it was tied."""
        return self._ties.pop(query.id, None) is not None

    def take_back(self, query: Query) -> None:
        """`query`, if it is tied, waits in our queue alone again."""
        if query.id in self._ties:
            attempt = self._state.attempts[self._ties.pop(query.id)]
            self._state.forget(attempt)
            self._state.stats.tied["taken_back"] += 1
            self._state.out.append(Cancel(attempt.id))
