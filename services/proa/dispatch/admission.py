"""Admission: a query that cannot be answered before its deadline is refused at once.

Without it a queue under overload fills up to the deadline: queries are sent just before they
expire, and all of the workers' time goes into answers that nobody waits for any longer.

The wait follows from Little's law: the places at the workers, over the time that one answer held
its place lately. That time contains what workers do for other frontends, so foreign load needs no
term of its own. In doubt a query is let in: while a place is free, before there is data, and while
no worker is ready.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.dispatch.query import Query
from proa.dispatch.state import State

# An answer is expected to take this much longer than computed: the estimate is of what was, and
# who is let in shall be answered. Simulated at 1.5x and 3x overload: with 1.0, 1 to 2 % are not.
MARGIN = 1.1


class Admission:
    """Who may wait, and how long, in the queue of one engine."""

    def __init__(self, state: State, *, queue_depth: Callable[[], int]) -> None:
        self._state = state
        self._queue_depth = queue_depth

    def wait_s(self) -> float:
        """How long until what waits now has been sent; also the delay after which to try again."""
        places = max(1, self._state.workers.ready()) * self._state.config.inflight_max
        return self._queue_depth() * self._state.latency.held_s() / places

    def refusal(self, query: Query, now: float) -> str:
        """Why `query`, which has just arrived, may not wait; empty: it may, or need not."""
        state, depth = self._state, self._queue_depth()
        if state.workers.has_place():
            return ""
        if depth >= state.config.queue_max:
            return f"queue is full: {state.config.queue_max} queries wait, which is the limit"
        answer_s = MARGIN * (self.wait_s() + state.latency.typical_s())
        left_s = query.deadline - now
        if not self._is_sure() or answer_s <= left_s:
            return ""
        return (
            f"overloaded: {depth} queries wait, an answer would take {1000 * answer_s:.0f} ms, "
            f"its deadline is in {1000 * left_s:.0f} ms"
        )

    def in_vain(self, query: Query, now: float) -> bool:
        """Whether `query`, which has waited, would most likely be answered too late now."""
        left_s = query.deadline - now
        waited = now > query.arrived_at
        return waited and self._is_sure() and left_s < self._state.latency.typical_s()

    def _is_sure(self) -> bool:
        return self._state.latency.known and self._state.workers.ready() > 0
