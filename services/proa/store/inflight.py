"""Steps under way: their numbers, and what becomes of those that were not acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from proa.errors import PushIndeterminate
from proa.store.protocol.config import StoreConfig
from proa.store.pushing import REFUSED, Parts

Send = Callable[[int, Parts], Awaitable[None]]

# Agents forget clients that were silent for long, and would apply the step once more.
RETRY_AGE_S_MAX = StoreConfig().worker_silent_s / 2


class InFlight:
    """`send(step, parts)` returns when the step is acknowledged. `begin`: number of the first one.

    A step that was neither acknowledged nor refused for good is unresolved: it is kept, and nothing
    new is taken until `retry` has sent it again under its number. in_session: the others of the
    session count on `floor`, so it never passes a step that was refused. clock: of the wall, which
    goes on while the machine sleeps, in seconds.
    """

    def __init__(
        self,
        send: Send,
        most: int,
        *,
        begin: int = 0,
        in_session: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._send, self._most, self._in_session = send, most, in_session
        self._clock = clock
        self._next = begin
        self._open: dict[int, asyncio.Task[None]] = {}
        self._unresolved: dict[int, tuple[Parts, Exception]] = {}
        self._taken: dict[int, float] = {}  # when, of what is open or unresolved
        self._refusal: Exception | None = None
        self._passed: int | None = None  # of a session: the first step that was refused

    async def take(self, parts: Parts) -> int:
        """Send a new step; its number. Returns when fewer than `most` wait. Errors: what an earlier
        step met, and this one was not taken then: no number, nothing sent."""
        while len(self._open) >= self._most:
            await asyncio.wait(list(self._open.values()), return_when=asyncio.FIRST_COMPLETED)
        self._raise()
        step = self._next
        self._next += 1
        self._taken[step] = self._clock()
        self._start(step, parts)
        return step

    async def flush(self) -> None:
        """Return when every step was acknowledged. Errors: what one of them met: every time while
        it is unresolved, once if it was refused for good."""
        while self._open:
            await asyncio.wait(list(self._open.values()))
        self._raise()

    async def retry(self) -> None:
        """Send what is unresolved again, under the same numbers; then as `flush`. Errors: also
        PushIndeterminate, always, of a step outside a session that was new half a day ago."""
        again, self._unresolved = self._unresolved, {}
        for step, (parts, _) in sorted(again.items()):
            age_s = self._clock() - self._taken[step]
            if self._in_session or age_s < RETRY_AGE_S_MAX:
                self._start(step, parts)
            else:
                self._unresolved[step] = parts, PushIndeterminate(_too_late(step, age_s), step=step)
        await self.flush()

    async def cancel(self) -> None:
        """What was not acknowledged yet may be lost."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def floor(self) -> int:
        """Nobody asks about steps below it again."""
        floor = min((*self._open, *self._unresolved), default=self._next)
        return floor if self._passed is None else min(floor, self._passed)

    def _start(self, step: int, parts: Parts) -> None:
        self._open[step] = asyncio.create_task(self._run(step, parts))

    async def _run(self, step: int, parts: Parts) -> None:
        try:
            await self._send(step, parts)
        except REFUSED as exc:
            self._refusal = self._refusal or exc
            if self._in_session and self._passed is None:
                self._passed = step
        except Exception as exc:  # noqa: BLE001  # of whatever kind: it may have been written
            self._unresolved[step] = parts, exc
        finally:
            del self._open[step]
            if step not in self._unresolved:
                del self._taken[step]

    def _raise(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        if self._unresolved:
            _, error = self._unresolved[min(self._unresolved)]
            raise error.with_traceback(None)


def _too_late(step: int, age_s: float) -> str:
    return (
        f"step {step} was pushed {age_s / 3600:.0f} h ago: the store may not know any more whether"
        " it has it; go on with a new client from the rows that are there"
    )
