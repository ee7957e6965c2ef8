"""Hedged requests: another attempt at a query whose answer is late, within a budget."""

from __future__ import annotations

from proa.dispatch.actions import SetTimer, Source
from proa.dispatch.coding import Coding
from proa.dispatch.latency import LATE_MAX
from proa.dispatch.query import Query
from proa.dispatch.redundancy import CopyWork
from proa.dispatch.state import State
from proa.dispatch.timers import HedgeTimer

HEDGE_BURST = 5.0


class HedgeBudget:
    """A token bucket: `share` of a hedge is earned by each query, at most a small burst is kept."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = HEDGE_BURST if share > 0 else 0.0

    def earn(self) -> None:
        """A query was sent."""
        self._tokens = min(HEDGE_BURST, self._tokens + self._share)

    def spend(self) -> bool:
        """Take a hedge out of the budget, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Hedges:
    """The hedges of one engine.

    A query that is late is hedged once it was overtaken, or is later than 1.5x the median. When a
    stall of the machine or a burst makes all answers late, they come in the order in which their
    queries were sent: a hedge then wins nothing, and holds a worker that the burst needs. Where
    the delay is configured, it is kept as it is.
    """

    def __init__(self, state: State, coding: Coding) -> None:
        self._state = state
        self._coding = coding
        self._budget = HedgeBudget(state.config.hedge_budget)
        self._late: dict[int, None] = {}

    def earn(self) -> None:
        """A query was sent."""
        self._budget.earn()

    def watch(self, query: Query, now: float) -> None:
        """Hedge `query`, which is sent now, when it is late."""
        delay_s = self._state.config.hedge_delay_s or self._state.latency.late_after_s()
        self._state.out.append(SetTimer(HedgeTimer(query.id), now + delay_s))

    def late(self, query_id: int, now: float) -> None:
        """A query may be late: hedge it, or see when that is to be."""
        self._late.pop(query_id, None)
        query = self._state.queries.get(query_id)
        if query is None or query.settled or query.hedged or not query.attempts:
            return
        certain_at = query.sent_at + LATE_MAX * self._state.latency.quantile(0.5)
        if self._state.config.hedge_delay_s or now >= certain_at or self._overtaken(query):
            self._hedge(query, now)
        else:
            self._late[query_id] = None
            self._state.out.append(SetTimer(HedgeTimer(query_id), certain_at))

    def look(self, now: float) -> None:
        """Hedge the late queries that have been overtaken."""
        for query_id in list(self._late):
            query = self._state.queries.get(query_id)
            if query is None or query.settled or self._overtaken(query):
                self.late(query_id, now)

    def _overtaken(self, query: Query) -> bool:
        median_s = self._state.latency.quantile(0.5)
        return self._state.stragglers.overtook(query.sent_at, median_s)

    def _hedge(self, query: Query, now: float) -> None:
        """Hedge `query`, unless a reconstruction is about to come."""
        rescue_at = self._coding.rescue_at(query, now)
        if rescue_at is not None:
            self._state.out.append(SetTimer(HedgeTimer(query.id), rescue_at))
        elif self._budget.spend():
            query.hedged = True
            query.waiting += 1
            self._state.redundant.add(CopyWork(query.id, Source.HEDGE))
