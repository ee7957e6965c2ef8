"""Synchronous steps: sums in the order of the workers, one push, one answer for all; one process a
worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np
import pytest

from proa.errors import InvalidRequest, Unavailable
from proa.store.gate import StepGate, merged, next_of
from proa.store.protocol import messages as ms
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Sessions

A, B = Block(0, 0), Block(3, 1)
SESSION = 77


def part(block: Block, rows: Iterable[int], value: float) -> ms.Part:
    at = np.array(list(rows), np.intp)
    return ms.Part(block, at, np.full((len(at), 2), value, np.float32).view(np.uint8))


def push(worker: int, step: int, *parts: ms.Part, floor: int = 0) -> ms.Push:
    return ms.Push(worker, step, floor, 5, parts)


class Owner:
    """Takes sums; answers when it is let."""

    def __init__(self) -> None:
        self.taken: list[ms.Push] = []
        self.answers: list[object] = []

    async def forward(self, given: ms.Push) -> ms.PushDone | ms.PushRefused:
        self.taken.append(given)
        answer = self.answers.pop(0) if self.answers else ms.PushDone(given.worker, given.step)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, ms.PushDone | ms.PushRefused)
        return answer


def finite(push: ms.Push) -> None:
    """As an owner's check."""
    for part in push.parts:
        if not np.isfinite(part.payload.view(np.float32)).all():
            raise InvalidRequest(f"{part.block}: NaN or Inf")


def test_rows_are_summed_in_the_order_of_the_workers() -> None:
    big, small = np.float32(1e8), np.float32(1.0)
    pushes = [
        push(2, 4, part(A, [1, 5], -1e8), floor=4),
        push(0, 4, part(A, [1, 2], 1e8), part(B, [0], 3.0), floor=2),
        push(1, 4, part(A, [1], 1.0), floor=3),
    ]
    found = merged(SESSION, pushes)
    assert (found.worker, found.step, found.floor, found.epoch) == (SESSION, 4, 2, 5)
    assert [one.block for one in found.parts] == [A, B]
    rows, sums = found.parts[0].rows, found.parts[0].payload.view(np.float32)
    assert rows.tolist() == [1, 2, 5]
    assert sums[:, 0].tolist() == [(big + small) - big, big, -big]
    assert found.parts[1].payload.view(np.float32).tolist() == [[3.0, 3.0]]


async def test_a_step_is_applied_when_all_have_pushed_it_and_answers_all() -> None:
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    first = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    await asyncio.sleep(0)
    assert not owner.taken
    assert await gate.push(SESSION, 2, push(1, 0)) == ms.PushDone(1, 0)
    assert await first == ms.PushDone(0, 0)
    assert len(owner.taken) == 1
    # Whoever asks again is told so, and nothing is applied again.
    assert await gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))) == ms.PushDone(0, 0)
    assert len(owner.taken) == 1


async def test_a_lost_agent_is_told_by_floors_what_was_acknowledged() -> None:
    owner = Owner()
    after = StepGate(owner.forward, finite)  # that of the next process: it remembers nothing
    lone = asyncio.create_task(after.push(SESSION, 2, push(1, 6, part(A, [1], 1.0), floor=6)))
    await asyncio.sleep(0)
    assert not lone.done()
    assert await after.push(SESSION, 2, push(0, 6, floor=7)) == ms.PushDone(0, 6)
    assert await lone == ms.PushDone(1, 6)
    assert not owner.taken


async def test_a_failure_reaches_all_and_the_step_can_be_pushed_again() -> None:
    owner = Owner()
    owner.answers = [Unavailable("gone"), ms.PushRefused(SESSION, 0, ms.Refusal.OVERLOADED)]
    gate = StepGate(owner.forward, finite)

    async def both() -> list[object]:
        pushes = [gate.push(SESSION, 2, push(w, 0, part(A, [w], 1.0))) for w in (0, 1)]
        return await asyncio.gather(*pushes, return_exceptions=True)

    assert all(isinstance(one, Unavailable) for one in await both())
    assert await both() == [ms.PushRefused(w, 0, ms.Refusal.OVERLOADED) for w in (0, 1)]
    assert await both() == [ms.PushDone(0, 0), ms.PushDone(1, 0)]


async def test_who_leaves_does_not_end_the_step_for_others() -> None:
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    gone = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    await asyncio.sleep(0)
    gone.cancel()
    again = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    assert await gate.push(SESSION, 2, push(1, 0)) == ms.PushDone(1, 0)
    assert await again == ms.PushDone(0, 0)
    assert len(owner.taken) == 1


async def test_who_leaves_takes_along_what_was_not_applied() -> None:
    """Else it would be summed with what the others push when the job begins again."""
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    gone = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 5.0))))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    other = asyncio.create_task(gate.push(SESSION, 2, push(1, 0)))
    for _ in range(4):
        await asyncio.sleep(0)
    assert not owner.taken
    assert await gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))) == ms.PushDone(0, 0)
    assert await other == ms.PushDone(1, 0)
    assert [one.parts[0].payload.view(np.float32)[0, 0] for one in owner.taken] == [1.0]


@pytest.mark.parametrize(
    ("members", "worker", "said"),
    [(0, 0, "members = 0"), (2, 2, "worker = 2"), (3, 0, "the session has 2"), (2, -1, "worker")],
)
async def test_bad_sessions_are_refused(members: int, worker: int, said: str) -> None:
    gate = StepGate(Owner().forward, finite)
    await gate.push(SESSION, 2, push(0, 0, floor=1))
    with pytest.raises(InvalidRequest, match=said):
        await gate.push(SESSION, members, push(worker, 0))


async def test_a_step_of_no_rows_here_is_done_without_the_owner() -> None:
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    pushes = (gate.push(SESSION, 2, push(worker, 0)) for worker in (0, 1))
    assert await asyncio.gather(*pushes) == [ms.PushDone(0, 0), ms.PushDone(1, 0)]
    assert not owner.taken


async def test_sums_that_overflow_are_refused_and_others_go_on() -> None:
    owner = Owner()
    gate = StepGate(owner.forward, finite)

    async def both(step: int, value: float) -> list[object]:
        pushes = [gate.push(SESSION, 2, push(w, step, part(A, [1], value))) for w in (0, 1)]
        return await asyncio.gather(*pushes, return_exceptions=True)

    for refused in await both(0, 3e38):
        assert isinstance(refused, InvalidRequest)
        assert "step 0, summed over the workers" in str(refused)
    assert not owner.taken
    assert await both(1, 1e38) == [ms.PushDone(0, 1), ms.PushDone(1, 1)]


async def test_it_says_how_far_a_session_is() -> None:
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    assert gate.next_step(SESSION, 2) == 0
    waits = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    await asyncio.sleep(0)
    assert gate.next_step(SESSION, 2) == 0  # the other one may still come with another step
    await gate.push(SESSION, 2, push(1, 0))
    await waits
    assert gate.next_step(SESSION, 2) == 1
    await gate.push(SESSION, 2, push(1, 4, floor=5))
    assert gate.next_step(SESSION, 2) == 5
    with pytest.raises(InvalidRequest, match="members = 3"):
        gate.next_step(SESSION, 3)


def test_blocks_say_how_far_a_session_is() -> None:
    none, floor = Sessions({}), Sessions({SESSION: (3, frozenset()), 5: (9, frozenset({12}))})
    assert next_of([], SESSION) == next_of([none], SESSION) == 0
    assert next_of([floor, none], SESSION) == 3
    assert next_of([floor, Sessions({SESSION: (2, frozenset({3, 6}))})], SESSION) == 7


async def test_who_begins_takes_the_place_of_another_process() -> None:
    """What the other one pushed is neither applied nor said to be."""
    owner = Owner()
    gate = StepGate(owner.forward, finite)
    gate.begin(SESSION, 2, 0, 11)
    early = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 5.0)), 11))
    await asyncio.sleep(0)
    gate.begin(SESSION, 2, 0, 22)
    gate.begin(SESSION, 2, 0, 22)  # asked again, as its answer got lost
    other = asyncio.create_task(gate.push(SESSION, 2, push(1, 0)))
    await asyncio.sleep(0)
    assert not owner.taken
    assert await gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0)), 22) == ms.PushDone(0, 0)
    assert await other == ms.PushDone(1, 0)
    assert [one.parts[0].payload.view(np.float32)[0, 0] for one in owner.taken] == [1.0]
    for late in (early, gate.push(SESSION, 2, push(0, 1), 11), gate.push(SESSION, 2, push(0, 1))):
        with pytest.raises(InvalidRequest, match="another process is worker 0"):
            await late


async def test_after_the_agent_is_lost_the_first_process_that_pushes_is_the_worker() -> None:
    gate = StepGate(Owner().forward, finite)
    assert await gate.push(SESSION, 1, push(0, 6, floor=6), 22) == ms.PushDone(0, 6)
    with pytest.raises(InvalidRequest, match="another process"):
        await gate.push(SESSION, 1, push(0, 7, floor=7), 11)
