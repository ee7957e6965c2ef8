"""The engine's timers on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable

import pytest
import uvloop

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


async def test_what_no_longer_stands_is_not_fired() -> None:
    fired: list[Hashable] = []
    gone = {"first", "third"}
    timers = Timers(fired.append, lambda timer: timer not in gone)
    now = time.monotonic()
    for i, name in enumerate(("first", "second", "third", "fourth", "fifth")):
        timers.set(name, now + 0.002 * i)
    gone.add("fourth")
    await eventually(lambda: "fifth" in fired)
    assert fired == ["second", "fifth"]


@pytest.mark.parametrize("ahead_s", [0.000_2, 0.000_4, 0.002_3])
def test_the_loop_is_not_asked_again_and_again(ahead_s: float) -> None:
    """uvloop counts milliseconds, and fires at once what is less than half of one away."""
    looks = 0

    async def one_timer() -> None:
        nonlocal looks
        fired = asyncio.Event()

        def stands(_timer: Hashable) -> bool:
            nonlocal looks
            looks += 1
            return True

        timers = Timers(lambda _: fired.set(), stands)
        timers.set("x", time.monotonic() + ahead_s)
        await fired.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(one_timer())
    assert looks <= 4
