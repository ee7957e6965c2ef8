"""Workers come, go, and fall under suspicion."""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.actions import Cancel, Probe, Source
from proa.dispatch.coding import Coding
from proa.dispatch.events import (
    Answered,
    ErrorKind,
    FrontendsChanged,
    ParityAnswered,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerMoved,
    WorkerSuspected,
)
from proa.dispatch.query import Attempt, Query
from proa.dispatch.state import State
from proa.dispatch.workers import ERRORS_IN_ROW_MAX, Worker

_EXACT = {Source.WORKER, Source.RETRY, Source.REPLICA, Source.HEDGE}

# How a query hears that an attempt of it was lost: (query, kind, message, now).
OnLost = Callable[[Query, ErrorKind, str, float], None]


class Fleet:
    """Keeps the worker table of one engine in step with the world."""

    def __init__(self, state: State, coding: Coding, *, on_lost: OnLost) -> None:
        self._state = state
        self._coding = coding
        self._on_lost = on_lost

    def joined(self, event: WorkerJoined, now: float) -> None:
        """A worker passed its canary; if it was known, what ran there is lost, unless it only
        drained and stays after all."""
        known = self._state.workers.get(event.worker)
        if known is not None and known.trusted and known.draining and _is_same(known, event):
            known.draining = False
            return
        if known is not None:
            self._lose_attempts(event.worker, now)
        self._state.workers.join(
            Worker(event.worker, event.domain, event.package, event.roles, scored_at=now)
        )

    def draining(self, event: WorkerDraining, _now: float) -> None:
        """A worker is about to leave: what runs there may finish."""
        worker = self._state.workers.get(event.worker)
        if worker is not None:
            worker.draining = True

    def moved(self, event: WorkerMoved, _now: float) -> None:
        """A worker counts to another failure domain."""
        worker = self._state.workers.get(event.worker)
        if worker is not None:
            worker.domain = event.domain

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
        """Trust `worker` no more until a probe succeeds; one that is leaving needs no probe."""
        worker.trusted = False
        if not worker.draining:
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
            others = self._state.workers.ready() - worker.open
            if worker.trusted and now - oldest > overdue_s and others > 0:
                self.suspect(worker, now)

    def frontends_changed(self, event: FrontendsChanged, now: float) -> None:
        """Others came or went that use the same workers."""
        if self._state.share.change(event.count, event.index, now):
            self._state.workers.rotate(event.count, event.index)

    def ended(
        self, attempt: Attempt, event: Answered | ParityAnswered, now: float
    ) -> Worker | None:
        """Free the worker's place and keep its record; the worker, if it is still known."""
        state = self._state
        state.forget(attempt)
        worker = state.workers.get(attempt.worker)
        if worker is None:
            return None
        latency = state.latency
        took_s = now - attempt.sent_at
        if event.ok and attempt.source in _EXACT:
            state.way.add(took_s, hidden=attempt.tied)
        if attempt.tied:
            took_s += state.way.time_s()
        if event.ok:
            worker.note_answer(took_s, latency.quantile(0.5), now)
            if attempt.source in _EXACT:
                latency.add(took_s)
                late = state.stragglers.add(attempt.sent_at, took_s, latency.quantile(0.5))
                worker.straggled, worker.avoided = late, False
            if isinstance(event, Answered):
                worker.note_load(event.load, now)
        elif self._blames_worker(event.error_kind, took_s):
            worker.note_error(latency.quantile(0.5), now)
            # A refused connection is certain; other errors may be the query's own fault. One that
            # is leaving refuses what came too late, and goes on with the rest.
            certain = event.error_kind is ErrorKind.UNAVAILABLE
            if worker.open and (certain or worker.errors_in_row >= ERRORS_IN_ROW_MAX):
                self.suspect(worker, now)
        return worker

    def _blames_worker(self, kind: ErrorKind | None, took_s: float) -> bool:
        if kind is ErrorKind.DEADLINE:
            return took_s > 2 * self._state.latency.late_after_s()
        return kind in (ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL)

    def _lose_attempts(self, worker_id: str, now: float) -> None:
        """All that ran on this worker is lost; late answers of it will be ignored.

        A query loses its attempt only when its turn comes: before that, a neighbour in its group
        must not give it up, because it may still be sent again.
        """
        self._state.stragglers.forget()
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


def _is_same(worker: Worker, event: WorkerJoined) -> bool:
    """Whether the one that joins is what is known, unchanged."""
    known = (worker.domain, worker.package, worker.roles)
    return known == (event.domain, event.package, event.roles)
