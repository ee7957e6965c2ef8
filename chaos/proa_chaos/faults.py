"""The faults of a run: injected on time, ended on time, rolled back at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from proa.errors import ProaError
from proa_chaos.plan import Hit
from proa_chaos.result import Done
from proa_chaos.system import System

# What takes no time, a kill, is to be seen for a moment.
ANNOUNCED_S_MIN = 1.0

Note = Callable[[str, str], None]


class Faults:
    """Plays `hits` on `system` and writes into `done` what was done, in seconds of the run."""

    def __init__(
        self,
        system: System,
        hits: Sequence[Hit],
        done: list[Done],
        elapsed_s: Callable[[], float],
        note: Note,
    ) -> None:
        self._system = system
        self._hits = hits
        self._done = done
        self._elapsed_s = elapsed_s
        self._note = note

    async def act(self) -> None:
        """Every hit from its start to its end, counted from now. Errors: those of the place."""
        begin_s = self._elapsed_s()
        try:
            async with asyncio.TaskGroup() as tasks:
                for hit in self._hits:
                    tasks.create_task(self._play(hit, begin_s))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def end_all(self) -> None:
        """End what has not ended. What cannot be ended now is noted: it ends by itself."""
        await asyncio.gather(*(self._end(one) for one in self._done if one.end_s is None))

    async def _play(self, hit: Hit, begin_s: float) -> None:
        await self._until(begin_s + hit.start_s)
        one = Done(hit, self._elapsed_s())
        self._done.append(one)  # before it is done: it may be done although we do not hear of it
        ttl_s = hit.end_s - hit.start_s
        try:
            await asyncio.gather(
                self._system.place.inject(hit, ttl_s),
                self._system.announce(hit, max(ttl_s, ANNOUNCED_S_MIN)),
            )
        except ProaError as exc:
            one.error = str(exc)
            self._note("fault", f"{hit.text}: {exc}")
            raise
        self._note("fault", f"{hit.text}, {ttl_s:g} s")
        await self._until(begin_s + hit.end_s)
        await self._end(one)

    async def _end(self, one: Done) -> None:
        try:
            await self._system.place.end(one.hit)
        except ProaError as exc:
            one.end_error = str(exc)
            self._note("end", f"{one.hit.text}: not ended from here ({exc}); ends by itself")
        else:
            self._note("end", one.hit.text)
        one.end_s = self._elapsed_s()
        if one.hit.end_s > one.hit.start_s:
            await self._system.announce(one.hit, 0.0)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._elapsed_s()))
