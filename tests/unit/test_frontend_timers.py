"""The engine's timers on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable

from fakes.eventually import eventually
from proa.frontend.timers import Timers


async def test_timers_fire_in_the_order_of_their_times() -> None:
    fired: list[Hashable] = []
    timers = Timers(fired.append)
    now = time.monotonic()
    for name, delay_s in (("late", 0.03), ("soon", 0.01), ("past", -1.0), ("soon too", 0.01)):
        timers.set(name, now + delay_s)
    await eventually(lambda: len(fired) == 4)
    assert fired == ["past", "soon", "soon too", "late"]


async def test_none_fires_before_its_time() -> None:
    early: list[float] = []
    done = asyncio.Event()

    def fire(at: Hashable) -> None:
        assert isinstance(at, float)
        if time.monotonic() < at:
            early.append(at)
        if at == last:
            done.set()

    timers = Timers(fire)
    start = time.monotonic()
    times = [start + i * 0.000_7 for i in range(50)]
    last = times[-1]
    for at in reversed(times):
        timers.set(at, at)
    async with asyncio.timeout(10):
        await done.wait()
    assert early == []


async def test_a_timer_may_set_another() -> None:
    fired: list[Hashable] = []

    def fire(timer: Hashable) -> None:
        fired.append(timer)
        if timer == "first":
            timers.set("second", 0.0)

    timers = Timers(fire)
    timers.set("first", 0.0)
    await eventually(lambda: fired == ["first", "second"])


async def test_nothing_fires_after_close() -> None:
    fired: list[Hashable] = []
    timers, other = Timers(fired.append), Timers(fired.append)
    timers.set("closed", time.monotonic())
    timers.close()
    other.set("open", time.monotonic() + 0.02)
    await eventually(lambda: fired)
    assert fired == ["open"]
