"""Redundant work at work: it runs on spare workers only, and is dropped when nobody wants it."""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.actions import SendParity, Source
from proa.dispatch.coding import Coding
from proa.dispatch.events import DEPLOYED, PARITY
from proa.dispatch.query import Attempt, Query
from proa.dispatch.redundancy import CopyWork, ParityWork, Work, redundant_limit
from proa.dispatch.state import State
from proa.dispatch.workers import Worker


class SpareWork:
    """Runs the queue of redundant work of one engine."""

    def __init__(
        self,
        state: State,
        coding: Coding,
        *,
        send: Callable[[Query, Worker, Source, float], None],
        on_hopeless: Callable[[Query, float], None],
        queue_depth: Callable[[], int],
    ) -> None:
        self._state = state
        self._coding = coding
        self._send = send
        self._on_hopeless = on_hopeless
        self._queue_depth = queue_depth

    def run(self, now: float) -> None:
        """Run queued redundant work where workers are idle; drop what is no longer wanted."""
        for work in self._state.redundant:
            if not self._wanted(work):
                self._state.redundant.take(work)
                self._unqueue(work)
                continue
            worker = self._place(work, now)
            if worker is None:
                continue
            self._state.redundant.take(work)
            if isinstance(work, CopyWork):
                self._unqueue(work)
                self._send(self._state.queries[work.query], worker, work.source, now)
            else:
                self._send_parity(work, worker, now)
        while self._state.dropped:
            self._dropped(self._state.dropped.pop(), now)

    def _wanted(self, work: Work) -> bool:
        if isinstance(work, ParityWork):
            return work.group in self._coding.groups
        query = self._state.queries.get(work.query)
        return query is not None and not query.settled

    def _unqueue(self, work: Work) -> None:
        if isinstance(work, CopyWork) and work.query in self._state.queries:
            self._state.queries[work.query].waiting -= 1

    def _place(self, work: Work, now: float) -> Worker | None:
        """An idle worker that may run `work` now; None: not yet."""
        state = self._state
        if isinstance(work, CopyWork):
            if not self._spare():
                return None
            query = state.queries[work.query]
            return state.workers.pick(DEPLOYED, now, avoid=query.domains, idle_only=True)
        group = self._coding.groups[work.group]
        if state.config.pool == "shared" and not self._spare():
            return None
        return state.workers.pick(
            PARITY, now, avoid=group.domains, package=group.package, idle_only=True
        )

    def _spare(self) -> bool:
        """Whether the budget and the reserve leave a shared worker for redundant work."""
        state = self._state
        limit = redundant_limit(
            ready=state.workers.ready(),
            idle_reserve=state.config.idle_reserve,
            queue_depth=self._queue_depth(),
        )
        shared = state.config.pool == "shared"
        running = sum(
            1 for a in state.attempts.values() if a.redundant and (shared or a.group is None)
        )
        return running < limit and state.workers.idle() > state.config.idle_reserve

    def _send_parity(self, work: ParityWork, worker: Worker, now: float) -> None:
        group = self._coding.groups[work.group]
        attempt = Attempt(
            self._state.next_attempt(),
            worker.id,
            now,
            source=Source.RECONSTRUCTED,
            group=group.id,
            row=work.row,
        )
        self._state.attempts[attempt.id] = attempt
        self._state.workers.start(worker, attempt.id, now)
        self._state.stats.redundant["parity"] += 1
        self._coding.row_sent(group, work.row, worker, now)
        self._state.out.append(
            SendParity(
                attempt.id, group.id, work.row, tuple(group.members), group.fillers, worker.id
            )
        )

    def _dropped(self, work: Work, now: float) -> None:
        """Redundant work fell out of the full queue."""
        self._unqueue(work)
        if isinstance(work, ParityWork):
            self._coding.row_ended(work.group, work.row, ok=False, now=now)
        elif work.query in self._state.queries:
            self._on_hopeless(self._state.queries[work.query], now)
