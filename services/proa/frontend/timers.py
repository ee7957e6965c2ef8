"""The engine's timers: one heap, one handle of the event loop."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Hashable


class Timers:
    """Calls `fire(timer)` once its time (time.monotonic, seconds) has come.

    Not the loop's own clock: uvloop's stands still within a turn and counts milliseconds.
    """

    def __init__(self, fire: Callable[[Hashable], None]) -> None:
        self._fire = fire
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
        first = self._heap[0][0]
        if self._handle is not None:
            if self._due_at <= first:
                return
            self._handle.cancel()
        self._due_at = first
        delay_s = max(0.0, first - time.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._due)

    def _due(self) -> None:
        self._handle = None
        while self._heap and self._heap[0][0] <= time.monotonic():
            _, _, timer = heapq.heappop(self._heap)
            self._fire(timer)
        if self._heap and self._handle is None:
            self._schedule()
