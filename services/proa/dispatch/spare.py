"""Redundant work at work: it runs on spare workers only, and is dropped when nobody wants it."""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.actions import Cancel, SendParity, Source
from proa.dispatch.coding import Coding
from proa.dispatch.events import DEPLOYED, PARITY
from proa.dispatch.group import Group
from proa.dispatch.latency import LATE_MIN
from proa.dispatch.query import Attempt, Query
from proa.dispatch.redundancy import CopyWork, ParityWork, Work, redundant_limit
from proa.dispatch.state import State
from proa.dispatch.workers import SLOW_MEDIANS, Worker

# Redundant work this many late answers old gives way to a query that waits.
OVERDUE_LATES = 2.0


class SpareWork:
    """Runs the queue of redundant work of one engine."""

    def __init__(
        self,
        state: State,
        coding: Coding,
        *,
        send: Callable[[Query, Worker, Source, float], object],
        on_hopeless: Callable[[Query, float], None],
        queue_depth: Callable[[], int],
        thrifty: Callable[[Query], bool],
    ) -> None:
        self._state = state
        self._coding = coding
        self._send = send
        self._on_hopeless = on_hopeless
        self._queue_depth = queue_depth
        self._thrifty = thrifty

    def run(self, now: float) -> None:
        """Run queued redundant work where workers are idle, urgent work first; drop what is no
        longer wanted."""
        for work in list(self._state.redundant):
            if not self._wanted(work):
                self._state.redundant.take(work)
                self._unqueue(work)
        judged = [(self._urgent(work, now), work) for work in self._state.redundant]
        for urgent, work in sorted(judged, key=lambda one: not one[0]):
            waits = not urgent and self._waits(work, now)
            worker = None if waits else self._place(work, now, urgent=urgent)
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

    def give_way(self, now: float) -> Worker | None:
        """A worker freed of redundant work that is far overdue, for a query that finds none idle.

        Such work is stuck (a frozen encoder, a stalled worker); what it would save is less than
        what it holds up. The one overdue longest gives way; None: there is none.
        """
        limit = now - OVERDUE_LATES * self._state.latency.late_after_s()
        stuck = [
            attempt
            for attempt in self._state.attempts.values()
            if attempt.redundant and attempt.sent_at < limit and self._alone(attempt)
        ]
        if not stuck:
            return None
        attempt = min(stuck, key=lambda a: a.sent_at)
        worker = self._state.workers.get(attempt.worker)
        assert worker is not None
        worker.note(now - attempt.sent_at, now)
        self._state.forget(attempt)
        self._state.out.append(Cancel(attempt.id))
        self._lost(attempt, now)
        return worker

    def _alone(self, attempt: Attempt) -> bool:
        """Whether it is all that its worker runs, on a worker that may serve queries."""
        worker = self._state.workers.get(attempt.worker)
        return (
            worker is not None
            and worker.open
            and DEPLOYED in worker.roles
            and list(worker.running) == [attempt.id]
        )

    def _lost(self, attempt: Attempt, now: float) -> None:
        if attempt.group is not None:
            self._coding.row_ended(attempt.group, attempt.row, ok=False, now=now)
            return
        assert attempt.query is not None
        query = self._state.queries.get(attempt.query)
        if query is not None:
            self._coding.member_changed(query, now)
            self._on_hopeless(query, now)

    def _wanted(self, work: Work) -> bool:
        if isinstance(work, ParityWork):
            return work.group in self._coding.groups
        query = self._state.queries.get(work.query)
        return query is not None and not query.settled

    def _urgent(self, work: Work, now: float) -> bool:
        """Whether a query is late already, or likely to be: this work may use the reserve.

        A parity row is urgent when a member without an answer was sent more than a median ago, or
        runs on a worker that was slow lately, or is a drill. Simulated for the demo's 6 workers,
        one of them 40 ms slow: p99 49 ms instead of 61 ms for the same work, at a p50 of 24.6 ms.
        Parity that costs as much as copies waits a little longer: half of all answers would ask.
        """
        if isinstance(work, CopyWork):
            return work.source is Source.HEDGE
        state = self._state
        group = self._coding.groups[work.group]
        median, late_s = state.latency.quantile(0.5), self._late_s(group)
        for query in self._unanswered(group):
            if query.drill or not query.exact_may_come or now - query.sent_at >= late_s:
                return True
            if any(self._slow(state.attempts[one], median, now) for one in query.attempts):
                return True
        return False

    def _waits(self, work: Work, now: float) -> bool:
        """Whether `work` is parity that costs as much as copies of its few queries, and shall not
        be sent before one of them is at risk; they are looked at again then.

        More than a third of the demo's groups have only one query after `groupMsMax`. Simulated for
        its slow worker, there are 0.35 parity rows for each query instead of 0.53, and p99 is 44 ms
        instead of 42 (50 instead of 49 where the way to a worker takes 2.5 ms).
        """
        if isinstance(work, CopyWork):
            return False
        group = self._coding.groups[work.group]
        wanted_anyway = group.sampled or self._state.config.patience == "first"
        if wanted_anyway or not group.costs_copies:
            return False
        left = self._unanswered(group)
        if not all(map(self._thrifty, left)):
            return False
        for query in left:
            self._state.look_again(query, query.sent_at + self._late_s(group), now)
        return True

    def _late_s(self, group: Group) -> float:
        """How long after it was sent a member of `group` is at risk."""
        median = self._state.latency.quantile(0.5)
        return LATE_MIN * median if group.costs_copies else median

    def _unanswered(self, group: Group) -> list[Query]:
        queries = (self._state.queries[query] for query in group.real_members)
        return [query for query in queries if not query.known and not query.settled]

    def _slow(self, attempt: Attempt, median: float, now: float) -> bool:
        worker = self._state.workers.get(attempt.worker)
        return worker is not None and worker.score_s(now) > SLOW_MEDIANS * median

    def _unqueue(self, work: Work) -> None:
        if isinstance(work, CopyWork) and work.query in self._state.queries:
            self._state.queries[work.query].waiting -= 1

    def _place(self, work: Work, now: float, *, urgent: bool) -> Worker | None:
        """An idle worker that may run `work` now; None: not yet."""
        state = self._state
        reserve = 0 if urgent else state.config.idle_reserve
        if isinstance(work, CopyWork):
            if not self._spare(reserve, now):
                return None
            query = state.queries[work.query]
            return state.workers.pick(DEPLOYED, now, avoid=query.domains, idle_only=True)
        group = self._coding.groups[work.group]
        # A drill is asked for by hand: it takes a worker that seems idle, in turn or not.
        alone = any(state.queries[query].drill for query in group.members)
        if state.config.pool == "shared" and not self._spare(reserve, now, alone=alone):
            return None
        return state.workers.pick(
            PARITY, now, avoid=group.domains, package=group.package, idle_only=True
        )

    def _spare(self, reserve: int, now: float, *, alone: bool = False) -> bool:
        """Whether the budget and the reserve leave a shared worker for redundant work.

        Where several frontends share the workers, some that seem idle here compute for others, and
        as many queries wait at each of the others as here, for all that is known. This one takes
        its part of the workers that redundant work may have, and of those that are free for it.
        `alone`: as if there were no others.
        """
        state = self._state
        room = redundant_limit(
            ready=state.workers.ready(),
            idle_reserve=reserve,
            queue_depth=self._queue_depth() * state.share.count,
        )
        free = state.workers.idle() - reserve
        if not alone:
            room = state.share.of(room, now)
            free = state.share.of(self._free(reserve, now), now)
        shared = state.config.pool == "shared"
        running = sum(
            1 for a in state.attempts.values() if a.redundant and (shared or a.group is None)
        )
        return running < room and free > 0

    def _free(self, reserve: int, now: float) -> int:
        """How many workers beyond the reserve are idle, with those that compute for others where
        this frontend does not see it taken off."""
        workers = self._state.workers
        return max(0, round(workers.idle() - workers.foreign(now) - reserve))

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
        self._state.begin(attempt, worker)
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
