"""An oracle that judges every action of the redundancy engine.

It keeps books of its own (what was sent where, what answered, who waits) and shares no code with
the engine but its events, actions and configuration.
"""

from __future__ import annotations

from dataclasses import replace

from fakes.books import ANSWERS_MIN, Seen
from proa.dispatch import Engine, EngineConfig
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED, PARITY, ErrorKind
from proa.dispatch.timers import Tick

HEDGE_BURST = 5.0
# A computation takes 18 to 22 ms. The picker forgets with a time constant of 0.5 s.
SLOW_S, WAITED_S, FORGOTTEN_S = 0.022, 0.015, 4.0
# An answer this much later than the slowest of them is late by any count.
LATE = 1.5


class Oracle:
    """Raises AssertionError at the first action of `engine` that breaks a promise."""

    def __init__(self, config: EngineConfig, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.now = 0.0
        self.event: ev.Event | None = None
        self.seen = Seen()
        self.queries: dict[int, ev.QueryArrived] = {}
        self.cancelled: set[int] = set()
        self.workers: dict[str, ev.WorkerJoined] = {}
        self._query_of: dict[int, int] = {}

    def note(self, event: ev.Event, now: float) -> None:
        """`event` happens: the engine will hear of it next."""
        self.now, self.event = now, event
        self._note(event)
        self._note_begun()

    def judge(self, event: ev.Event) -> None:
        """All actions that `event` called for have been checked."""
        assert self.seen.taken_back is None, "taken back for nothing"
        self._check_answered(event)
        self._check_limits()

    def _note(self, event: ev.Event) -> None:
        match event:
            case ev.QueryArrived(query=query):
                self.seen.queued.add(query)
            case ev.QueryCancelled(query):
                if not self.seen.settled[query] and query in self.seen.queued | set(
                    self.seen.first_worker
                ):
                    self.cancelled.add(query)
                    self.seen.queued.discard(query)
            case ev.FrontendsChanged(count):
                self.seen.frontends = count
            case ev.Answered(attempt, ok) | ev.ParityAnswered(attempt, ok):
                self._note_answer(attempt, ok, event)
            case _:
                self._note_worker(event)

    def _note_worker(self, event: ev.Event) -> None:
        match event:
            case ev.WorkerJoined(worker=worker):
                if worker not in self.seen.draining or self.workers[worker] != event:
                    self._gone(worker)
                self.seen.draining.discard(worker)
                self.workers[worker] = event
            case ev.WorkerDraining(worker):
                if worker in self.workers:
                    self.seen.draining.add(worker)
            case ev.WorkerMoved(worker, domain):
                if worker in self.workers:
                    self.workers[worker] = replace(self.workers[worker], domain=domain)
            case ev.WorkerLeft(worker) | ev.WorkerSuspected(worker):
                self._gone(worker)

    def _note_answer(self, attempt: int, ok: bool, event: ev.Event) -> None:
        worker, sent = self.seen.outstanding.pop(attempt, ("", None))
        if sent is None:
            return
        self.seen.answered_while_draining += worker in self.seen.draining
        if isinstance(sent, ac.Send) and self.seen.tied.get(sent.query) == attempt:
            self._begin(sent.query, worker)  # its answer overtook that of what ran before it
        if not ok or self.now - self.seen.sent_at[attempt] > SLOW_S:
            self.seen.slow_at[worker] = self.now
        if ok and isinstance(sent, ac.Send):
            self.seen.exact_s.append(self.now - self.seen.sent_at[attempt])
            self.seen.answered_ok[sent.query].add(self.workers[worker].package)
        elif ok:
            self.seen.rows_ok[sent.group].add(sent.row)
        elif event.error_kind is ErrorKind.UNAVAILABLE and worker not in self.seen.draining:
            self._gone(worker)

    def _gone(self, worker: str) -> None:
        self.workers.pop(worker, None)
        self.seen.draining.discard(worker)
        for attempt, (where, _) in list(self.seen.outstanding.items()):
            if where == worker:
                del self.seen.outstanding[attempt]
        tied = self.seen.tied
        self.seen.tied = {q: one for q, one in tied.items() if one in self.seen.outstanding}

    def _note_begun(self) -> None:
        for query in self.seen.begun(self.config.inflight_max):
            self.seen.sent_at[self.seen.tied[query]] = self.now
            self._begin(query, self.seen.outstanding[self.seen.tied[query]][0])

    def _begin(self, query: int, worker: str) -> None:
        """The first attempt at `query` begins."""
        seen, joined = self.seen, self.workers[worker]
        assert query not in seen.first_worker
        seen.tied.pop(query, None)
        seen.first_worker[query] = joined
        seen.first_sent_at[query] = self.now
        seen.queued.discard(query)
        seen.sends[query] += 1
        seen.tried[query].add(joined.domain)

    def _serving(self) -> list[ev.WorkerJoined]:
        """The workers that may be sent queries."""
        found = (w for w in self.workers.values() if DEPLOYED in w.roles)
        return [w for w in found if w.worker not in self.seen.draining]

    def _is_drill(self, query: int) -> bool:
        """Whether the exact answer to `query` may be held back."""
        arrived = self.queries[query]
        able = self.config.parity_possible and self.config.mode == "enforce"
        return arrived.reconstruct and arrived.codable and not arrived.exact and able

    def check(self, action: ac.Action) -> None:
        """The engine wants `action` done."""
        if self.seen.taken_back is not None:
            assert isinstance(action, ac.Send), "taken back for nothing"
            assert action.query == self.seen.taken_back, "taken back for another"
            self.seen.taken_back = None
        match action:
            case ac.Send():
                self._check_send(action)
            case ac.SendParity():
                self._check_parity(action)
            case ac.Reply() | ac.Fail():
                self._check_settled(action)
            case ac.Decode():
                self._check_decode(action)
            case ac.Assess(_, members):
                assert all(self.seen.answered_ok[q] for q in members)
                assert not self.seen.released & set(members)
            case ac.Release(query):
                assert query not in self.seen.released, "released twice"
                assert self.seen.settled[query] or query in self.cancelled, "released too early"
                self.seen.released.add(query)
            case ac.Cancel(attempt):
                self._note_cancel(attempt)
            case ac.Probe(worker):
                self._gone(worker)

    def _note_cancel(self, attempt: int) -> None:
        worker, sent = self.seen.outstanding.pop(attempt, ("", None))
        if sent is None:
            return
        query = sent.query if isinstance(sent, ac.Send) else -1
        was_tied = self.seen.tied.get(query) == attempt
        if was_tied:
            del self.seen.tied[query]
        self._note_begun()
        if self._is_lost_race(sent):
            return
        if was_tied:
            self.seen.taken_back = query
            self.seen.ties["taken back"] += 1
            return
        overdue = self.event == ev.TimerFired(Tick())
        assert overdue or worker not in self.seen.draining, "draining lost what ran there"
        self.seen.slow_at[worker] = self.now  # it was stuck, and gave way

    def _is_lost_race(self, sent: ac.Send | ac.SendParity) -> bool:
        return isinstance(sent, ac.Send) and (
            self.seen.settled[sent.query] > 0 or sent.query in self.cancelled
        )

    def _check_answered(self, event: ev.Event) -> None:
        """What has been computed is passed on at once, except in a drill."""
        if not isinstance(event, ev.Answered) or event.attempt not in self.seen.sent_at:
            return
        query = self._query_of.get(event.attempt)
        if query is None or not self.seen.answered_ok[query] or query in self.cancelled:
            return
        assert self.seen.settled[query] or self._is_drill(query), "an answer was lost"

    def _check_decode(self, action: ac.Decode) -> None:
        rows = self.seen.rows_ok[action.group]
        assert 0 < len(action.missing) <= len(rows), "decode without enough parity rows"
        assert not self.seen.released & set(action.members)
        for i, query in enumerate(action.members):
            assert i in action.missing or self.seen.answered_ok[query], "decode without a member"

    def _check_send(self, action: ac.Send) -> None:
        seen, query = self.seen, self.queries[action.query]
        joined = self.workers.get(action.worker)
        assert joined is not None, "sent to a worker that is not there"
        assert joined in self._serving(), "sent to a worker that is draining"
        ahead = seen.running(action.worker) >= self.config.inflight_max
        if ahead:
            self._check_ahead(action)
        assert not seen.settled[query.query], "sent after the answer"
        assert query.query not in self.cancelled
        assert query.query not in seen.released
        if action.source in (ac.Source.REPLICA, ac.Source.HEDGE):
            self._check_spare(action.worker, urgent=action.source is ac.Source.HEDGE)
            assert joined.domain not in self._domains_of(query.query)
        elif action.source is ac.Source.RETRY:
            self._check_elsewhere(action)
        policy = query.policy or self.config.policy
        seen.by_source[action.source.value] += 1
        if ahead:
            seen.tied[query.query] = action.attempt
        elif action.source is ac.Source.WORKER:
            assert query.query not in seen.tied, "still waits at another worker"
            self._begin(query.query, action.worker)
        else:
            seen.sends[query.query] += 1
            seen.tried[query.query].add(joined.domain)
        assert policy != "none" or seen.sends[query.query] == 1
        seen.outstanding[action.attempt] = (action.worker, action)
        seen.sent_at[action.attempt] = self.now
        self._query_of[action.attempt] = query.query

    def _check_ahead(self, action: ac.Send) -> None:
        """A query goes to a busy worker only if it may, has to, and is likely to begin soon."""
        seen, config, query = self.seen, self.config, self.queries[action.query]
        assert action.source is ac.Source.WORKER
        assert (query.policy or config.policy, config.mode) == ("auto", "enforce")
        assert seen.frontends == 1
        assert not self._is_drill(query.query)
        assert query.query not in seen.tied, "sent ahead twice"
        assert query.query == min(seen.queued - set(seen.tied)), "sent ahead of an older one"
        assert not self._idle_and_quick(), "sent ahead while a quick worker was idle"
        assert seen.running(action.worker) == config.inflight_max, "two wait at one worker"
        first = seen.first_at(action.worker)
        host = seen.outstanding[first][1]
        assert isinstance(host, ac.Send), "it waits for redundant work"
        assert host.source not in (ac.Source.REPLICA, ac.Source.HEDGE)
        sure = len(seen.exact_s) >= ANSWERS_MIN
        late_s = LATE * max(seen.exact_s) if sure else config.latency_prior_s
        assert self.now - seen.sent_at[first] <= late_s, "it waits for a late worker"
        seen.ties["sent"] += 1

    def _check_elsewhere(self, action: ac.Send) -> None:
        tried = self.seen.tried[action.query]
        others = {w.domain for w in self._serving()} - tried
        assert not others or self.workers[action.worker].domain not in tried, "no retry elsewhere"

    def _domains_of(self, query: int) -> set[str]:
        return {
            self.workers[worker].domain
            for worker, sent in self.seen.outstanding.values()
            if isinstance(sent, ac.Send) and sent.query == query and worker in self.workers
        }

    def _check_spare(self, worker: str, *, urgent: bool, frontends: int | None = None) -> None:
        seen, serving = self.seen, self._serving()
        assert seen.running(worker) == 0, "redundant work on a busy worker"
        reserve = 0 if urgent else self.config.idle_reserve
        idle = [w for w in serving if seen.running(w.worker) == 0]
        assert len(idle) > reserve, "redundant work ate the reserve"
        waiting = seen.queued - set(seen.tied)
        assert not waiting or self._slow_lately(worker), "redundant work while queries wait"
        part = -(-(len(serving) - reserve) // (frontends or seen.frontends))
        running = seen.redundant(copies_only=self.config.pool != "shared")
        assert running < part, "redundant work took the room of other frontends"

    def _in_danger(self, members: tuple[int, ...]) -> bool:
        """Whether a member without an answer has waited long, or is on a worker that was slow or
        failed within the time in which the picker forgets."""
        seen = self.seen
        owed = [q for q in members if not seen.settled[q] and not seen.answered_ok[q]]
        where = [
            worker
            for worker, sent in seen.outstanding.values()
            if isinstance(sent, ac.Send) and sent.query in owed
        ]
        return any(self.now - seen.first_sent_at[q] > WAITED_S for q in owed) or any(
            self._slow_lately(worker) for worker in where
        )

    def _check_parity(self, action: ac.SendParity) -> None:
        seen = self.seen
        joined = self.workers[action.worker]
        assert PARITY in joined.roles
        assert action.worker not in seen.draining, "sent to a worker that is draining"
        assert seen.running(action.worker) == 0
        if self.config.pool == "shared":
            drill = any(self._is_drill(q) for q in action.members)
            urgent = drill or self._in_danger(action.members)
            self._check_spare(action.worker, urgent=urgent, frontends=1 if drill else None)
        assert len(action.members) == len(set(action.members)) == self.config.k
        assert len({self.queries[q].key for q in action.members}) == 1, "mixed tenants"
        for query in action.members:
            assert query not in seen.released
            if query in action.fillers:
                assert seen.answered_ok[query], "filler without a prediction"
                continue
            first = seen.first_worker[query]
            assert first.package == joined.package, "mixed versions"
            assert first.domain != joined.domain, "parity beside its member"
        assert joined.domain not in seen.row_domains[action.group]
        seen.row_domains[action.group].append(joined.domain)
        seen.members[action.group] = action.members
        seen.outstanding[action.attempt] = (action.worker, action)
        seen.sent_at[action.attempt] = self.now

    def _slow_lately(self, worker: str) -> bool:
        """Whether it was slow or failed within the time in which the picker forgets."""
        return self.now - self.seen.slow_at.get(worker, -FORGOTTEN_S) < FORGOTTEN_S

    def _idle_and_quick(self) -> list[str]:
        """Workers that queries have no reason to wait for another instead of."""
        limit, names = self.config.inflight_max, [w.worker for w in self._serving()]
        free = [name for name in names if self.seen.running(name) < limit]
        return [name for name in free if not self._slow_lately(name)]

    def _check_settled(self, action: ac.Reply | ac.Fail) -> None:
        query = action.query
        self.seen.settled[query] += 1
        self.seen.queued.discard(query)
        self.seen.tied.pop(query, None)
        assert self.seen.settled[query] == 1, "two replies"
        assert query not in self.cancelled, "a reply to a cancelled query"
        if isinstance(action, ac.Fail):
            assert not self.seen.answered_ok[query], "an error in place of an answer"
            if action.status == "RESOURCE_EXHAUSTED" and query not in self.seen.first_worker:
                self._check_refused(action)
            return
        if self._is_drill(query):
            self.seen.drills[action.source.value] += 1
        if action.source is ac.Source.RECONSTRUCTED:
            assert self.config.mode == "enforce"
            assert not self.queries[query].exact
            assert action.group is not None
            assert query in self.seen.decodes[action.group]
        else:
            assert self.seen.answered_ok[query]

    def _check_refused(self, action: ac.Fail) -> None:
        waited = self.event != self.queries[action.query]
        busy = [self.seen.running(w.worker) >= self.config.inflight_max for w in self._serving()]
        assert waited or all(busy), "refused while a worker had a free place"
        left_s = self.queries[action.query].deadline - self.now
        assert "limit" in action.message or self.seen.is_too_late(left_s, waited=waited)

    def _check_limits(self) -> None:
        engine = self.engine
        assert len(self.seen.queued) <= self.config.queue_max, "too many queries wait"
        waiting = self.seen.queued - set(self.seen.tied)
        assert not waiting or not self._idle_and_quick(), "a query waits for nothing"
        assert len(engine.state.redundant) <= self.config.redundant_queue_max
        share = self.config.hedge_budget
        budget = share * len(self.seen.first_worker) + HEDGE_BURST * (share > 0)
        assert self.seen.by_source["hedge"] <= budget, "more hedges than the budget has"

    def check_end(self) -> None:
        """Nothing more happens."""
        engine, state = self.engine, self.engine.state
        for query in self.queries:
            once = self.seen.settled[query] + (query in self.cancelled)
            assert once == 1, f"query {query} was settled {once} times"
        assert not engine.coding.groups, "a group leaked"
        assert engine.queue_depth == 0
        kept = set(state.queries)
        assert kept == set(self.queries) - self.seen.released, "books differ"
        assert all(q.settled and q.holds == 1 for q in state.queries.values()), "a query leaked"
        assert sum(self.queries[q].size for q in kept) <= self.config.reservoir_bytes_max
        assert not state.attempts, "an attempt leaked"
