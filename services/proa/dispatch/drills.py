"""Drills: queries that are answered from the code although their workers live.

A drill is sent as usual, but its exact answer is held back for a while, as if it had been lost. If
no reconstruction comes, the exact answer is given after all, and its source says so.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.actions import Reply, SetTimer
from proa.dispatch.config import EngineConfig
from proa.dispatch.events import QueryArrived
from proa.dispatch.query import Query
from proa.dispatch.state import State
from proa.dispatch.timers import DrillTimer

# A reconstruction takes two computations one after the other, and waits for an idle worker.
DRILL_LATES = 8.0
DRILL_S_MIN = 0.25
# The exact answer must still find the client there.
DEADLINE_SHARE = 0.75


def wants_drill(event: QueryArrived, config: EngineConfig) -> bool:
    """Whether to answer it from the code; where nothing can be coded it is a query like any."""
    able = config.parity_possible and config.mode == "enforce"
    return event.reconstruct and event.codable and able and not event.exact


class Drills:
    """The drills of one engine."""

    def __init__(self, state: State, *, reply: Callable[[Query, Reply, float], None]) -> None:
        self._state = state
        self._reply = reply

    def begin(self, query: Query, now: float) -> None:
        """`query` was sent and has joined a group."""
        late_s = self._state.latency.late_after_s()
        patience_s = max(DRILL_S_MIN, DRILL_LATES * late_s) + self._state.config.group_s_max
        until = now + min(patience_s, DEADLINE_SHARE * (query.deadline - now))
        self._state.out.append(SetTimer(DrillTimer(query.id), until))

    def over(self, query_id: int, now: float) -> None:
        """No reconstruction has come in time: from now on any answer will do."""
        query = self._state.queries.get(query_id)
        if query is None or query.settled:
            return
        query.drill = False
        if query.held is not None:
            self._reply(query, query.held, now)
