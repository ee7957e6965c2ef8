"""A clock that tests move by hand, and pauses that wait on it."""

from __future__ import annotations

import asyncio

from fakes.eventually import eventually


class ManualClock:
    """`pause` is a sleep of this clock; `asked`: every pause that was asked for."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.asked: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    async def pause(self, seconds: float) -> None:
        self.asked.append(seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, woken))
        await woken

    @property
    def sleeping(self) -> int:
        """How many pauses are not over."""
        self._sleepers = [one for one in self._sleepers if not one[1].done()]
        return len(self._sleepers)

    async def asleep(self, count: int) -> None:
        """Wait until so many tasks pause."""
        await eventually(lambda: self.sleeping == count)

    def advance(self, seconds: float) -> None:
        """Move on; whoever paused until then goes on."""
        self.time += seconds
        for due, woken in self._sleepers:
            if due <= self.time and not woken.done():
                woken.set_result(None)
