"""Workers come, go, and fall under suspicion."""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.actions import Cancel, Probe
from proa.dispatch.coding import Coding
from proa.dispatch.events import ErrorKind, WorkerJoined, WorkerLeft, WorkerSuspected
from proa.dispatch.query import Query
from proa.dispatch.state import State
from proa.dispatch.workers import Worker

# How a query hears that an attempt of it was lost: (query, kind, message, now).
OnLost = Callable[[Query, ErrorKind, str, float], None]


class Fleet:
    """Keeps the worker table of one engine in step with the world."""

    def __init__(self, state: State, coding: Coding, *, on_lost: OnLost) -> None:
        self._state = state
        self._coding = coding
        self._on_lost = on_lost

    def joined(self, event: WorkerJoined, now: float) -> None:
        """A worker passed its canary; if it was known, what ran there is lost."""
        if self._state.workers.get(event.worker) is not None:
            self._lose_attempts(event.worker, now)
        self._state.workers.join(
            Worker(event.worker, event.domain, event.package, event.roles, scored_at=now)
        )

    def left(self, event: WorkerLeft, now: float) -> None:
        """A worker is gone for good."""
        if self._state.workers.remove(event.worker) is not None:
            self._lose_attempts(event.worker, now)

    def suspected(self, event: WorkerSuspected, now: float) -> None:
        """Someone outside saw a worker fail."""
        worker = self._state.workers.get(event.worker)
        if worker is not None and worker.trusted:
            self.suspect(worker, now)

    def suspect(self, worker: Worker, now: float) -> None:
        """Trust `worker` no more until a probe succeeds."""
        worker.trusted = False
        self._state.out.append(Probe(worker.id))
        self._lose_attempts(worker.id, now)

    def suspect_overdue(self, now: float) -> None:
        """Suspect workers whose oldest attempt is overdue, unless no other worker is left."""
        config = self._state.config
        overdue_s = max(
            config.overdue_s_min, config.overdue_factor * self._state.latency.quantile(0.99)
        )
        for worker in list(self._state.workers):
            oldest = next(iter(worker.running.values()), now)
            if worker.trusted and now - oldest > overdue_s and self._state.workers.ready() > 1:
                self.suspect(worker, now)

    def _lose_attempts(self, worker_id: str, now: float) -> None:
        """All that ran on this worker is lost; late answers of it will be ignored.

        A query loses its attempt only when its turn comes: before that, a neighbour in its group
        must not give it up, because it may still be sent again.
        """
        lost = [a for a in self._state.attempts.values() if a.worker == worker_id]
        worker = self._state.workers.get(worker_id)
        if worker is not None:
            worker.running.clear()
        for attempt in lost:
            del self._state.attempts[attempt.id]
            self._state.out.append(Cancel(attempt.id))
        for attempt in lost:
            if attempt.group is not None:
                self._coding.row_ended(attempt.group, attempt.row, ok=False, now=now)
                continue
            assert attempt.query is not None
            query = self._state.queries.get(attempt.query)
            if query is not None:
                query.attempts.discard(attempt.id)
                self._on_lost(query, ErrorKind.UNAVAILABLE, f"worker {worker_id} is gone", now)
