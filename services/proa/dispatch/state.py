"""What the parts of one engine share: queries, attempts, workers, and the list of actions."""

from __future__ import annotations

from dataclasses import replace

from proa.dispatch.actions import Action, Release, SetTimer
from proa.dispatch.config import EngineConfig
from proa.dispatch.latency import LatencyWindow, Stragglers, Way
from proa.dispatch.quality import Quality
from proa.dispatch.query import Attempt, Query
from proa.dispatch.redundancy import FrontendShare, RedundantQueue, Work
from proa.dispatch.stats import Stats
from proa.dispatch.timers import LookTimer
from proa.dispatch.workers import Worker, WorkerTable


class State:
    """The data of one engine. Parts of the engine add to `out`; the shell performs it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.out: list[Action] = []
        self.queries: dict[int, Query] = {}
        self.attempts: dict[int, Attempt] = {}
        self.latency = LatencyWindow(prior_s=config.latency_prior_s)
        self.way = Way()
        self.stragglers = Stragglers()
        self.workers = WorkerTable(
            inflight_max=config.inflight_max, median_s=lambda: self.latency.quantile(0.5)
        )
        self.share = FrontendShare()
        self.quality = Quality(agreement_min=config.agreement_min, sample=config.quality_sample)
        self.stats = Stats()
        self.dropped: list[Work] = []
        self.redundant = RedundantQueue(
            limit=config.redundant_queue_max, on_drop=self.dropped.append
        )
        self._attempt = 0

    def next_attempt(self) -> int:
        """A fresh attempt id."""
        self._attempt += 1
        return self._attempt

    def begin(self, attempt: Attempt, worker: Worker) -> None:
        """`attempt` runs on `worker` from now on."""
        self.attempts[attempt.id] = attempt
        self.workers.start(worker, attempt.id, attempt.sent_at)

    def restart(self, attempt: Attempt, worker: Worker, now: float) -> None:
        """`attempt` has waited at `worker` and begins only now."""
        self.attempts[attempt.id] = replace(attempt, sent_at=now, tied=True)
        worker.running[attempt.id] = now

    def forget(self, attempt: Attempt) -> None:
        """`attempt` is over: neither its worker nor its query has it any longer."""
        del self.attempts[attempt.id]
        worker = self.workers.get(attempt.worker)
        if worker is not None:
            worker.running.pop(attempt.id, None)
        query = None if attempt.query is None else self.queries.get(attempt.query)
        if query is not None:
            query.attempts.discard(attempt.id)

    def look_again(self, query: Query, at: float, now: float) -> None:
        """Look at what waits for the sake of `query` then, unless a look at it is to come."""
        if query.look_at <= now < at:
            query.look_at = at
            self.out.append(SetTimer(LookTimer(query.id), at))

    def hold(self, query: Query) -> None:
        """Someone more needs the tensors of `query`."""
        assert query.id in self.queries
        query.holds += 1

    def let_go(self, query: Query) -> None:
        """Someone needs them no longer; the last one releases them."""
        query.holds -= 1
        assert query.holds >= 0, f"query {query.id} let go too often"
        if query.holds == 0:
            del self.queries[query.id]
            self.out.append(Release(query.id))
