"""The open-loop generator: one asyncio task per request, started by the schedule alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest, ProaError
from proa.load.records import DROPPED, Outcome, Record

Send = Callable[[int], Awaitable[Outcome]]


class Clock(Protocol):
    """Seconds on some monotonic scale, and a way to wait on it."""

    def now(self) -> float: ...

    async def sleep_until(self, at_s: float) -> None:
        """Return at or after `at_s`; at once if that has passed."""
        ...


class LoopClock:
    """The running event loop's clock."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, at_s: float) -> None:
        delay_s = at_s - self.now()
        if delay_s > 0:
            await asyncio.sleep(delay_s)


async def run_open_loop(
    send: Send,
    schedule: Sequence[float] | NDArray[np.float64],
    *,
    inflight_max: int,
    clock: Clock | None = None,
    start_s: float | None = None,
) -> list[Record]:
    """Call `send(index)` at each time of `schedule` and return one record each, in that order.

    schedule: ascending seconds from `start_s` (clock time; default: now). `send` returns an
    Outcome; a ProaError it raises is a failed request, anything else ends the run (an
    ExceptionGroup). With `inflight_max` requests open, the next is not sent: it is recorded as
    failed (`DROPPED`), never delayed and never left out.
    """
    if inflight_max < 1:
        raise InvalidRequest(f"inflight_max {inflight_max} must be at least 1")
    run = _Run(send, clock or LoopClock(), start_s)
    async with asyncio.TaskGroup() as tasks:
        for index, intended_s in enumerate(schedule):
            await run.clock.sleep_until(run.start_s + float(intended_s))
            if run.inflight >= inflight_max:
                run.drop(index, float(intended_s))
                continue
            run.inflight += 1
            tasks.create_task(run.request(index, float(intended_s)))
    return [run.records[index] for index in range(len(schedule))]


class _Run:
    def __init__(self, send: Send, clock: Clock, start_s: float | None) -> None:
        self.send = send
        self.clock = clock
        self.start_s = clock.now() if start_s is None else start_s
        self.inflight = 0
        self.records: dict[int, Record] = {}

    def elapsed_s(self) -> float:
        return self.clock.now() - self.start_s

    def drop(self, index: int, intended_s: float) -> None:
        self.records[index] = Record(
            index, intended_s, None, self.elapsed_s(), ok=False, error=DROPPED
        )

    async def request(self, index: int, intended_s: float) -> None:
        sent_s = self.elapsed_s()
        try:
            outcome = await self.send(index)
        except ProaError as error:
            outcome = Outcome(ok=False, error=f"{type(error).__name__}: {error}")
        finally:
            self.inflight -= 1
        self.records[index] = Record(
            index=index,
            intended_s=intended_s,
            sent_s=sent_s,
            done_s=self.elapsed_s(),
            ok=outcome.ok,
            source=outcome.source,
            error=outcome.error,
            value=outcome.value,
        )
