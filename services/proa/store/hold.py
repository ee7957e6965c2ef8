"""Taking no new steps for a while, so that a snapshot finds whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Hold:
    """`clock`: seconds. A worker is, in a synchronous session, the session: its workers' pushes of
    a step are one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held_until = float("-inf")
        self._until: Mapping[int, int] = {}
        self._last = float("-inf")
        self.taken: dict[int, int] = {}
        self.under_way = 0

    def hold(self, lease_s: float, until: Mapping[int, int]) -> None:
        """For so long, from now on, take only steps up to these; 0: take all again."""
        self._held_until, self._until = self._clock() + lease_s, until

    def refuses(self, worker: int, step: int) -> bool:
        """Whether this step has to wait."""
        return self._clock() < self._held_until and step > self._until.get(worker, -1)

    @contextmanager
    def push(self, worker: int, step: int) -> Iterator[None]:
        """While a push is under way."""
        self.taken[worker] = max(step, self.taken.get(worker, -1))
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            self._last = self._clock()

    @property
    def quiet_s(self) -> float:
        """Time since the last push ended."""
        return self._clock() - self._last
