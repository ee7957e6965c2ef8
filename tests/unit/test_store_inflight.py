"""Steps under way: what fails without being refused is kept, and nothing goes on without it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proa.errors import DataLost, InvalidRequest, Overloaded, PushIndeterminate, ShardUnavailable
from proa.store.inflight import RETRY_AGE_S_MAX, InFlight


class Store:
    """Meets what it is told to, then takes all; waits while it is held."""

    def __init__(self, *meets: Exception) -> None:
        self.meets = list(meets)
        self.sent: list[tuple[int, Any]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def send(self, step: int, parts: Any) -> None:
        self.sent.append((step, parts))
        await self.free.wait()
        if self.meets:
            raise self.meets.pop(0)


@pytest.mark.parametrize(
    "error",
    [PushIndeterminate("late"), ShardUnavailable("down"), Overloaded("full"), RuntimeError("bug")],
)
@pytest.mark.parametrize("in_session", [True, False])
async def test_what_is_unresolved_is_pushed_again_under_its_number(
    error: Exception, in_session: bool
) -> None:
    store = Store(error, PushIndeterminate("late again"))
    flight = InFlight(store.send, 2, begin=5, in_session=in_session)
    assert await flight.take("a") == 5
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            await flight.flush()
        with pytest.raises(type(error)):
            await flight.take("b")
    assert store.sent == [(5, "a")]
    assert flight.floor() == 5
    with pytest.raises(PushIndeterminate, match="late again"):
        await flight.retry()
    await flight.retry()
    assert await flight.take("b") == 6
    await flight.flush()
    await flight.retry()  # of nothing
    assert store.sent == [(5, "a")] * 3 + [(6, "b")]
    assert flight.floor() == 7


@pytest.mark.parametrize("in_session", [True, False])
async def test_what_agents_may_have_forgotten_is_not_pushed_again(in_session: bool) -> None:
    store, now = Store(PushIndeterminate("first"), PushIndeterminate("second")), [1e9]
    flight = InFlight(store.send, 2, in_session=in_session, clock=lambda: now[-1])
    await flight.take("a")
    with pytest.raises(PushIndeterminate, match="first"):
        await flight.flush()
    now.append(now[0] + RETRY_AGE_S_MAX - 1)
    with pytest.raises(PushIndeterminate, match="second"):
        await flight.retry()
    now.append(now[0] + RETRY_AGE_S_MAX)  # since it was taken: a try need not have come anywhere
    if in_session:  # is never forgotten
        await flight.retry()
        assert len(store.sent) == 3
        return
    for again in (flight.retry, flight.flush, flight.retry):
        with pytest.raises(PushIndeterminate, match="step 0 was pushed 12 h ago"):
            await again()
    assert len(store.sent) == 2


@pytest.mark.parametrize("error", [InvalidRequest("NaN"), DataLost("gone")])
@pytest.mark.parametrize("in_session", [True, False])
async def test_what_is_refused_for_good_is_told_once(error: Exception, in_session: bool) -> None:
    store = Store(error)
    flight = InFlight(store.send, 2, in_session=in_session)
    await flight.take("a")
    with pytest.raises(type(error)):
        await flight.flush()
    await flight.flush()
    assert await flight.take("b") == 1
    await flight.flush()
    # The others of a session take it that steps below the floor were acknowledged.
    assert flight.floor() == (0 if in_session else 2)


async def test_no_more_steps_are_under_way_than_allowed() -> None:
    store = Store()
    flight = InFlight(store.send, 2)
    store.free.clear()
    await flight.take("a")
    await flight.take("b")
    third = asyncio.create_task(flight.take("c"))
    await asyncio.sleep(0)
    assert not third.done()
    assert len(store.sent) == 2
    assert flight.floor() == 0
    store.free.set()
    assert await third == 2
    await flight.flush()
    assert flight.floor() == 3


async def test_an_error_that_comes_while_a_push_waits_keeps_it_from_being_taken() -> None:
    store = Store(PushIndeterminate("late"))
    flight = InFlight(store.send, 1)
    store.free.clear()
    await flight.take("a")
    second = asyncio.create_task(flight.take("b"))
    await asyncio.sleep(0)
    store.free.set()
    with pytest.raises(PushIndeterminate):
        await second
    await flight.retry()
    assert [step for step, _ in store.sent] == [0, 0]
