"""Synchronous steps: sums in the order of the workers, one push, one answer for all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np
import pytest

from proa.errors import InvalidRequest, Unavailable
from proa.store.gate import StepGate, merged
from proa.store.protocol import messages as ms
from proa.store.protocol.layout import Block

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
    gate = StepGate(owner.forward)
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
    after = StepGate(owner.forward)  # that of the next process: it remembers nothing
    lone = asyncio.create_task(after.push(SESSION, 2, push(1, 6, part(A, [1], 1.0), floor=6)))
    await asyncio.sleep(0)
    assert not lone.done()
    assert await after.push(SESSION, 2, push(0, 6, floor=7)) == ms.PushDone(0, 6)
    assert await lone == ms.PushDone(1, 6)
    assert not owner.taken


async def test_a_failure_reaches_all_and_the_step_can_be_pushed_again() -> None:
    owner = Owner()
    owner.answers = [Unavailable("gone"), ms.PushRefused(SESSION, 0, ms.Refusal.OVERLOADED)]
    gate = StepGate(owner.forward)

    async def both() -> list[object]:
        pushes = [gate.push(SESSION, 2, push(w, 0, part(A, [w], 1.0))) for w in (0, 1)]
        return await asyncio.gather(*pushes, return_exceptions=True)

    assert all(isinstance(one, Unavailable) for one in await both())
    assert await both() == [ms.PushRefused(w, 0, ms.Refusal.OVERLOADED) for w in (0, 1)]
    assert await both() == [ms.PushDone(0, 0), ms.PushDone(1, 0)]


async def test_who_leaves_does_not_end_the_step_for_others() -> None:
    owner = Owner()
    gate = StepGate(owner.forward)
    gone = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    await asyncio.sleep(0)
    gone.cancel()
    again = asyncio.create_task(gate.push(SESSION, 2, push(0, 0, part(A, [1], 1.0))))
    assert await gate.push(SESSION, 2, push(1, 0)) == ms.PushDone(1, 0)
    assert await again == ms.PushDone(0, 0)
    assert len(owner.taken) == 1


@pytest.mark.parametrize(
    ("members", "worker", "said"),
    [(0, 0, "members = 0"), (2, 2, "worker = 2"), (3, 0, "the session has 2"), (2, -1, "worker")],
)
async def test_bad_sessions_are_refused(members: int, worker: int, said: str) -> None:
    gate = StepGate(Owner().forward)
    await gate.push(SESSION, 2, push(0, 0, floor=1))
    with pytest.raises(InvalidRequest, match=said):
        await gate.push(SESSION, members, push(worker, 0))


async def test_a_step_of_no_rows_here_is_done_without_the_owner() -> None:
    owner = Owner()
    gate = StepGate(owner.forward)
    pushes = (gate.push(SESSION, 2, push(worker, 0)) for worker in (0, 1))
    assert await asyncio.gather(*pushes) == [ms.PushDone(0, 0), ms.PushDone(1, 0)]
    assert not owner.taken
