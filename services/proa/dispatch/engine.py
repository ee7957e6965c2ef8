"""The redundancy engine of one model: events in, actions out, no I/O and no clock (DESIGN 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proa.dispatch import events as ev
from proa.dispatch.actions import Action, Cancel, Fail, Reply, Send, SetTimer, Source
from proa.dispatch.admission import Admission
from proa.dispatch.coding import Coding
from proa.dispatch.config import EngineConfig
from proa.dispatch.drills import Drills, wants_drill
from proa.dispatch.events import DEPLOYED, ErrorKind, Event
from proa.dispatch.fleet import Fleet
from proa.dispatch.group import Group
from proa.dispatch.hedging import Hedges
from proa.dispatch.policy import Plan, View, make_policies
from proa.dispatch.query import Attempt, Query, QueryState
from proa.dispatch.redundancy import CopyWork
from proa.dispatch.spare import SpareWork
from proa.dispatch.state import State
from proa.dispatch.stats import Utilisation
from proa.dispatch.tied import TiedSends
from proa.dispatch.timers import (
    CloseTimer,
    DeadlineTimer,
    DrillTimer,
    ExpiryTimer,
    HedgeTimer,
    LookTimer,
    PatienceTimer,
    Tick,
    TieTimer,
)
from proa.dispatch.turns import Turns
from proa.dispatch.workers import Worker


class Engine:
    """Moves ids, never tensors. `handle` is the only way in; it never blocks."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.state = State(config)
        self.coding = Coding(
            self.state, on_reconstructed=self._reconstructed, on_hopeless=self._hopeless
        )
        self._fleet = Fleet(self.state, self.coding, on_lost=self._attempt_failed)
        self._drills = Drills(self.state, reply=self._reply)
        self.utilisation = Utilisation()
        self._policies = make_policies()
        self._hedges = Hedges(self.state, self.coding)
        self._spare = SpareWork(
            self.state,
            self.coding,
            send=self._send,
            on_hopeless=self._hopeless,
            queue_depth=lambda: self.queue_depth,
            thrifty=lambda query: self._policies[query.policy].thrifty,
        )
        self._tied = TiedSends(
            self.state,
            may=lambda query: self._policies[query.policy].ties and not query.drill,
            send=self._send,
        )
        self._admission = Admission(self.state, queue_depth=lambda: self.queue_depth)
        self._queue: dict[int, None] = {}
        self._retries: dict[int, None] = {}
        self._ticking = False
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            ev.QueryArrived: self._arrived,
            ev.QueryCancelled: self._cancelled,
            ev.Answered: self._answered,
            ev.ParityAnswered: self._parity_answered,
            ev.Decoded: self.coding.decoded,
            ev.Assessed: self.coding.assessed,
            ev.TimerFired: self._timer,
            ev.WorkerJoined: self._fleet.joined,
            ev.WorkerDraining: self._fleet.draining,
            ev.WorkerMoved: self._fleet.moved,
            ev.WorkerLeft: self._fleet.left,
            ev.WorkerSuspected: self._fleet.suspected,
            ev.FrontendsChanged: self._fleet.frontends_changed,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event that happened at `now` (seconds); the actions it calls for."""
        self.utilisation.note(self._busy_share(now), now)
        self._handlers[type(event)](event, now)
        self._hedges.look(now)
        self._pump(now)
        out, self.state.out = self.state.out, []
        return out

    # --- what status and metrics read

    @property
    def queue_depth(self) -> int:
        """Queries that wait for a worker."""
        return len(self._queue) + len(self._retries)

    def in_force(self) -> Plan:
        """What the configured policy does for a query sent now, and why."""
        return self._policies[self.config.policy].plan(self._view())

    # --- queries

    def _arrived(self, event: ev.QueryArrived, now: float) -> None:
        state = self.state
        assert event.query not in state.queries
        state.stats.arrived += 1
        query = Query(
            id=event.query,
            key=event.key,
            deadline=event.deadline,
            size=event.size,
            exact=event.exact,
            policy=event.policy or self.config.policy,
            codable=event.codable,
            drill=wants_drill(event, self.config),
            arrived_at=now,
        )
        state.queries[query.id] = query
        if event.deadline <= now:
            self._fail(query, "DEADLINE_EXCEEDED", "the deadline had passed on arrival", now)
        elif refusal := self._admission.refusal(query, now):
            self._refuse(query, refusal, now)
        else:
            self._queue[query.id] = None
            state.out.append(SetTimer(DeadlineTimer(query.id), event.deadline))

    def _refuse(self, query: Query, why: str, now: float) -> None:
        self._fail(query, "RESOURCE_EXHAUSTED", why, now, retry_after_s=self._admission.wait_s())

    def _cancelled(self, event: ev.QueryCancelled, now: float) -> None:
        query = self.state.queries.get(event.query)
        if query is not None and not query.settled:
            self._settle(query, QueryState.FAILED, now)
            self.state.stats.failed["CANCELLED"] += 1

    def _deadline(self, query_id: int, now: float) -> None:
        query = self.state.queries.get(query_id)
        if query is None or query.settled:
            return
        if query.held is not None:
            self._reply(query, query.held, now)
        elif not query.attempts and self.state.workers.ready() == 0:
            self._fail(query, "UNAVAILABLE", "no worker is ready", now)
        else:
            self._fail(query, "DEADLINE_EXCEEDED", "the deadline has passed", now)

    def _reply(self, query: Query, reply: Reply, now: float) -> None:
        self.state.out.append(reply)
        self.state.stats.answers[reply.source.value] += 1
        self._settle(query, QueryState.REPLIED, now)

    def _fail(
        self,
        query: Query,
        status: str,
        message: str,
        now: float,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        self.state.out.append(Fail(query.id, status, message, retry_after_s))
        self.state.stats.failed[status] += 1
        self._settle(query, QueryState.FAILED, now)

    def _settle(self, query: Query, new: QueryState, now: float) -> None:
        """The client has its answer: drop what is queued, cancel what has not begun."""
        assert not query.settled
        query.state = new
        self._learn(query)
        self._queue.pop(query.id, None)
        self._tied.untie(query)
        if self._retries.pop(query.id, "absent") is None:
            query.waiting -= 1
        for attempt in sorted(query.attempts):
            self._cancel_unless_begun(self.state.attempts[attempt])
        self.coding.member_changed(query, now)
        self.state.let_go(query)

    def _cancel_unless_begun(self, attempt: Attempt) -> None:
        """Cancel an attempt that waits behind another at its worker. One that computes cannot be
        interrupted there: cancelling it would only hide that the worker is busy, and how late it
        was (ARCHITECTURE.md, cancellation)."""
        worker = self.state.workers.get(attempt.worker)
        if worker is None or next(iter(worker.running)) == attempt.id:
            return
        self.state.forget(attempt)
        self.state.out.append(Cancel(attempt.id))

    # --- attempts

    def _answered(self, event: ev.Answered, now: float) -> None:
        attempt = self.state.attempts.get(event.attempt)
        if attempt is None:
            return
        assert attempt.query is not None
        query = self.state.queries.get(attempt.query)
        if query is not None and (host := self._tied.overtook(query)):
            self._sent(query, host, now)
        worker = self._fleet.ended(attempt, event, now)
        if query is None:
            return
        if not event.ok:
            self._attempt_failed(query, event.error_kind, event.message, now)
            return
        query.computed |= worker is None or worker.package == query.package
        if query.settled:
            self._learn(query)
            self.coding.member_changed(query, now)
            return
        source, where, would_be = attempt.source, attempt.worker, query.would_be_s
        reply = Reply(query.id, source, attempt.id, where, query.group, would_be)
        if query.drill:
            query.held = query.held or reply
            self.coding.member_changed(query, now)
            self._hopeless(query, now)
        else:
            self._reply(query, reply, now)

    def _learn(self, query: Query) -> None:
        """The exact prediction of a settled query may serve its group, and later ones."""
        if query.computed and not query.known:
            query.known = True
            if query.codable and self.config.parity_possible:
                self.coding.remember(query)

    def _attempt_failed(
        self, query: Query, kind: ErrorKind | None, message: str, now: float
    ) -> None:
        if query.settled:
            self.coding.member_changed(query, now)
            return
        if self._tied.untie(query):
            return  # it still waits in our queue
        query.error = ((kind or ErrorKind.INTERNAL).value, message or "the worker failed")
        if kind is ErrorKind.INVALID:
            self._fail(query, *query.error, now)
            return
        may_retry = query.retries < query.retries_max and query.id not in self._retries
        if may_retry and kind is not ErrorKind.OVERLOADED:
            query.retries += 1
            query.waiting += 1
            self._retries[query.id] = None
        self.coding.member_changed(query, now)
        self._hopeless(query, now)

    def _hopeless(self, query: Query, now: float) -> None:
        """Fail `query` unless an exact answer or a reconstruction may still come, or is held."""
        if query.settled or query.exact_may_come or self.coding.may_recover(query):
            return
        if query.held is not None:
            self._reply(query, query.held, now)
            return
        status, message = query.error
        retry = 0.1 if status == ErrorKind.OVERLOADED.value else None
        self._fail(query, status, message, now, retry_after_s=retry)

    def _reconstructed(self, query: Query, group: Group, now: float) -> None:
        self._reply(query, Reply(query.id, Source.RECONSTRUCTED, group=group.id), now)

    def _parity_answered(self, event: ev.ParityAnswered, now: float) -> None:
        attempt = self.state.attempts.get(event.attempt)
        if attempt is None:
            return
        assert attempt.group is not None
        self._fleet.ended(attempt, event, now)
        self.coding.row_ended(attempt.group, attempt.row, ok=event.ok, now=now)

    # --- timers

    def _timer(self, event: ev.TimerFired, now: float) -> None:
        match event.timer:
            case DeadlineTimer(query):
                self._deadline(query, now)
            case HedgeTimer(query):
                self._hedges.late(query, now)
            case CloseTimer(group):
                self.coding.close_timer(group, now)
            case PatienceTimer(group):
                self.coding.patience_over(group, now)
            case ExpiryTimer(group):
                self.coding.expired(group, now)
            case DrillTimer(query):
                self._drills.over(query, now)
            case TieTimer(query):
                self._tied.watch(query, now)  # taking back comes after each event: `_send_queries`
            case LookTimer():
                pass  # what waits is looked at after each event: `_pump`
            case Tick():
                self._ticking = False
                self._fleet.suspect_overdue(now)
            case _:
                raise AssertionError(f"unknown timer {event.timer}")

    # --- sending

    def _view(self) -> View:
        state = self.state
        possible = (
            self.config.parity_possible
            and state.workers.has_parity()
            and len(state.workers.domains()) > 1
        )
        return View(
            utilisation=self.utilisation.value,
            late_share=state.stragglers.share(),
            parity_possible=possible,
            agreement_low=state.quality.low,
            r=self.config.r,
            retry_max=self.config.retry_max,
        )

    def _busy_share(self, now: float) -> float:
        """The share of the workers that computes for queries. Own redundant work does not count; in
        that of others it cannot be told from queries, and counts."""
        workers = self.state.workers
        ready = workers.ready()
        busy = sum(1 for attempt in self.state.attempts.values() if not attempt.redundant)
        return min(1.0, (busy + workers.foreign(now)) / ready) if ready else 1.0

    def _pump(self, now: float) -> None:
        self._send_queries(now)
        self._spare.run(now)
        if self.state.attempts and not self._ticking:
            self._ticking = True
            self.state.out.append(SetTimer(Tick(), now + self.config.tick_s))

    def _send_queries(self, now: float) -> None:
        """Retries first, each elsewhere if there is an elsewhere; one that waits for that does not
        hold up the others."""
        workers = self.state.workers
        for query_id in list(self._retries):
            query = self.state.queries[query_id]
            avoid = query.domains if workers.domains(DEPLOYED) - query.domains else ()
            worker = workers.pick(DEPLOYED, now, avoid=avoid)
            if worker is not None:
                del self._retries[query_id]
                query.waiting -= 1
                self._send(query, worker, Source.RETRY, now)
        for query, host in self._tied.begun(now):
            self._sent(query, host, now)
        turns = Turns(self.state, self._tied, now)
        for due in self._tied.due(self._queue, now):
            if self._admission.in_vain(due, now):
                # Not DEADLINE_EXCEEDED: it has not passed yet, and the client shall back off.
                self._refuse(due, "overloaded: waited too long to be answered in time", now)
                continue
            worker = workers.pick(DEPLOYED, now) or self._spare.give_way(now)
            if worker is None:
                break
            if self.queue_depth <= self.config.queue_max and turns.waits(due, worker):
                continue
            self._tied.take_back(due)
            self._send(due, worker, Source.WORKER, now)
            self._sent(due, worker, now)
        self._tied.send(self._queue, now)

    def _sent(self, query: Query, worker: Worker, now: float) -> None:
        """The first attempt at `query` begins at `worker`."""
        del self._queue[query.id]
        query.state = QueryState.SENT
        query.sent_at = now
        query.package = worker.package
        query.domains.add(worker.domain)
        self.state.stats.sent += 1
        self._hedges.earn()
        plan = self._policies[query.policy].plan(self._view())
        query.retries_max = plan.retries
        if query.drill:
            self.coding.join(query, worker, now)
            self._drills.begin(query, now)
            return
        for index in range(plan.copies):
            query.waiting += 1
            self.state.redundant.add(CopyWork(query.id, Source.REPLICA, index))
        if plan.hedge:
            self._hedges.watch(query, now)
        if (plan.parity or plan.measure) and query.codable:
            self.coding.join(query, worker, now)

    def _send(self, query: Query, worker: Worker, source: Source, now: float) -> Attempt:
        attempt = Attempt(self.state.next_attempt(), worker.id, now, query.id, source)
        self.state.begin(attempt, worker)
        query.attempts.add(attempt.id)
        if source is not Source.WORKER:
            query.domains.add(worker.domain)
            self.state.stats.redundant[source.value] += 1
        if source is Source.RETRY:
            self.coding.moved(query, worker)
        self.state.out.append(Send(attempt.id, query.id, worker.id, source))
        return attempt
