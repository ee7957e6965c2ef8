"""Synchronous training: a step is applied once, when every worker of its session has pushed it.

The gradients of all workers are summed row by row, in the order of the workers' numbers, and go on
as one push of the session. So tables do not depend on who was faster, and an agent that dies in the
midst of a step leaves nothing half done: all workers push it again, to the same sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from proa.errors import InvalidRequest
from proa.store.optimisers import sum_duplicates
from proa.store.protocol import messages as ms
from proa.store.protocol.layout import Block
from proa.store.shell import PushAnswer

MEMBERS_MAX = 4096

Forward = Callable[[ms.Push], Awaitable[PushAnswer]]


@dataclass(slots=True)
class _Step:
    pushes: dict[int, ms.Push] = field(default_factory=dict)
    answer: asyncio.Future[PushAnswer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    under_way: bool = False


@dataclass(slots=True)
class _Session:
    members: int
    done: int = -1  # the last step that is known to be acknowledged
    steps: dict[int, _Step] = field(default_factory=dict)


class StepGate:
    """`forward` takes the sums. A worker whose answer got lost with the agent pushes again, alone:
    the others tell by their floors that it was acknowledged, if need be with a push of no parts."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._sessions: dict[int, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def push(self, session: int, members: int, push: ms.Push) -> PushAnswer:
        """Answered as the whole step is. A worker with nothing to say pushes no parts.

        Errors: InvalidRequest, and what `forward` raises.
        """
        known = self._session(session, members, push.worker)
        self._acknowledged(session, known, push.floor)
        if push.step <= known.done:
            return ms.PushDone(push.worker, push.step)
        step = known.steps.setdefault(push.step, _Step())
        step.pushes[push.worker] = push
        if len(step.pushes) == members and not step.under_way:
            step.under_way = True
            task = asyncio.create_task(self._apply(session, known, push.step))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        answer = await asyncio.shield(step.answer)
        if isinstance(answer, ms.PushRefused):
            return ms.PushRefused(push.worker, push.step, answer.why, answer.lost)
        return ms.PushDone(push.worker, push.step)

    def _acknowledged(self, session: int, known: _Session, floor: int) -> None:
        """What one member had acknowledged, all had: a step is answered as a whole."""
        known.done = max(known.done, floor - 1)
        for late in [step for step in known.steps if step <= known.done]:
            self._end(known, late, ms.PushDone(session, late))

    def _session(self, session: int, members: int, worker: int) -> _Session:
        if not 1 <= members <= MEMBERS_MAX:
            raise InvalidRequest(f"members = {members} is not 1 to {MEMBERS_MAX}")
        if not 0 <= worker < members:
            raise InvalidRequest(f"worker = {worker}: the session has {members} members")
        known = self._sessions.setdefault(session, _Session(members))
        if known.members != members:
            raise InvalidRequest(f"members = {members}: the session has {known.members}")
        return known

    async def _apply(self, session: int, known: _Session, number: int) -> None:
        step = known.steps[number]
        try:
            sums = merged(session, step.pushes.values())
            done = ms.PushDone(session, number)
            answer = await self._forward(sums) if sums.parts else done
        except Exception as exc:  # noqa: BLE001  # handed on to those who wait
            known.steps.pop(number, None)
            if not step.answer.done():
                step.answer.set_exception(exc)
            return
        if isinstance(answer, ms.PushDone):
            known.done = max(known.done, number)
        self._end(known, number, answer)

    def _end(self, known: _Session, number: int, answer: PushAnswer) -> None:
        step = known.steps.pop(number, None)
        if step is not None and not step.answer.done():
            step.answer.set_result(answer)


def merged(session: int, pushes: Iterable[ms.Push]) -> ms.Push:
    """One push of `session` with the sums of all, float32, in the order of the workers."""
    ordered = sorted(pushes, key=lambda push: push.worker)
    parts: dict[Block, list[ms.Part]] = {}
    for push in ordered:
        for part in push.parts:
            parts.setdefault(part.block, []).append(part)
    sums = tuple(_sum(block, some) for block, some in sorted(parts.items()))
    first = ordered[0]
    return ms.Push(session, first.step, min(p.floor for p in ordered), first.epoch, sums)


def _sum(block: Block, parts: list[ms.Part]) -> ms.Part:
    if len(parts) == 1:
        return parts[0]
    if any(part.payload.shape[1] % 4 for part in parts):
        raise InvalidRequest(f"{block}: whole rows of several workers have no sum")
    gradients = np.concatenate([part.payload for part in parts]).view(np.float32)
    rows, total = sum_duplicates(np.concatenate([part.rows for part in parts]), gradients)
    return ms.Part(block, rows, total.view(np.uint8))
