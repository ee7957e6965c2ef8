"""The engine's timers: one heap, one handle of the event loop."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Hashable


class Timers:
    """Calls `fire(timer)` once its time (time.monotonic, seconds) has come, up to a millisecond
    late. A timer that no longer `stands` then is dropped.

    Not the loop's own clock: uvloop's stands still within a turn and counts milliseconds, which it
    rounds: what is less than half of one away would be asked for again and again until it is there.
    """

    def __init__(
        self, fire: Callable[[Hashable], None], stands: Callable[[Hashable], bool] = lambda _: True
    ) -> None:
        self._fire = fire
        self._stands = stands
        self._heap: list[tuple[float, int, Hashable]] = []
        self._sequence = 0
        self._handle: asyncio.TimerHandle | None = None
        self._due_at = 0.0

    def set(self, timer: Hashable, at: float) -> None:
        """Fire `timer` at `at`."""
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, timer))
        self._schedule()

    def close(self) -> None:
        """Fire nothing any more."""
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _schedule(self) -> None:
        while self._heap and not self._stands(self._heap[0][2]):
            heapq.heappop(self._heap)
        if not self._heap:
            return
        first = self._heap[0][0]
        if self._handle is not None:
            if self._due_at <= first:
                return
            self._handle.cancel()
        self._due_at = first
        delay_ms = math.ceil(1000.0 * max(0.0, first - time.monotonic()))
        self._handle = asyncio.get_running_loop().call_later(delay_ms / 1000.0, self._due)

    def _due(self) -> None:
        self._handle = None
        while self._heap and self._heap[0][0] <= time.monotonic():
            _, _, timer = heapq.heappop(self._heap)
            if self._stands(timer):
                self._fire(timer)
        if self._handle is None:
            self._schedule()
