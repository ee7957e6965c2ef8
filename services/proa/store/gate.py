"""Synchronous training: a step is applied once, when every worker of its session has pushed it.

The gradients of all workers are summed row by row, in the order of the workers' numbers, and go on
as one push of the session. So tables do not depend on who was faster, and an agent that dies in the
midst of a step leaves nothing half done: all workers push it again, to the same sum.

One process at a time is a worker: the last one that began as it (`joining`). Two jobs with the same
number would otherwise have their pushes taken for each other's, and be told that all is well.
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
from proa.store.protocol.log import Sessions
from proa.store.shell import PushAnswer

MEMBERS_MAX = 4096

Forward = Callable[[ms.Push], Awaitable[PushAnswer]]
Check = Callable[[ms.Push], None]


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
    processes: dict[int, int] = field(default_factory=dict)  # by worker


class StepGate:
    """`forward` takes the sums; `check` refuses (InvalidRequest) those that no owner may take:
    finite gradients of several workers can sum to Inf. A worker whose answer got lost with the
    agent pushes again, alone: the others tell by their floors that it was acknowledged, if need be
    with a push of no parts."""

    def __init__(self, forward: Forward, check: Check) -> None:
        self._forward, self._check = forward, check
        self._sessions: dict[int, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def next_step(self, session: int, members: int) -> int:
        """One after the last step that was acknowledged here, or may be soon."""
        known = self._sessions.get(session)
        if known is None:
            return 0
        _check_members(known, members)
        return 1 + max([known.done, *(n for n, step in known.steps.items() if step.under_way)])

    def begin(self, session: int, members: int, worker: int, process: int) -> None:
        """From here on this process is the worker. What another one left here is not applied.

        Errors: InvalidRequest.
        """
        known = self._session(session, members, worker)
        if known.processes.get(worker) != process:
            known.processes[worker] = process
            for step in known.steps.values():
                if not step.under_way:
                    step.pushes.pop(worker, None)

    async def push(self, session: int, members: int, push: ms.Push, process: int = 0) -> PushAnswer:
        """Answered as the whole step is. A worker with nothing to say pushes no parts. process: who
        began as the worker; the first that pushes where nobody did; 0: who numbers its own steps.

        Errors: InvalidRequest, and what `forward` raises.
        """
        known = self._session(session, members, push.worker)
        if process:
            known.processes.setdefault(push.worker, process)
        _check_process(known, session, push.worker, process)
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
        try:
            answer = await asyncio.shield(step.answer)
        except asyncio.CancelledError:
            # It pushes again if it lives. If not, its job may begin again, and do this step anew.
            if not step.under_way and step.pushes.get(push.worker) is push:
                del step.pushes[push.worker]
            raise
        _check_process(known, session, push.worker, process)
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
        _check_members(known, members)
        return known

    async def _apply(self, session: int, known: _Session, number: int) -> None:
        step = known.steps[number]
        try:
            sums = merged(session, step.pushes.values())
            self._check_sums(sums)
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

    def _check_sums(self, sums: ms.Push) -> None:
        try:
            self._check(sums)
        except InvalidRequest as exc:
            raise InvalidRequest(f"step {sums.step}, summed over the workers: {exc}") from exc

    def _end(self, known: _Session, number: int, answer: PushAnswer) -> None:
        step = known.steps.pop(number, None)
        if step is not None and not step.answer.done():
            step.answer.set_result(answer)


def _check_members(known: _Session, members: int) -> None:
    if known.members != members:
        raise InvalidRequest(f"members = {members}: the session has {known.members}")


def _check_process(known: _Session, session: int, worker: int, process: int) -> None:
    if known.processes.get(worker, 0) != process:
        raise InvalidRequest(
            f"session {session}: another process is worker {worker}; two jobs need two numbers"
        )


def next_of(blocks: Iterable[Sessions], session: int) -> int:
    """One after the last step of a session that one of these blocks includes."""
    found = 0
    for sessions in blocks:
        floor, steps = sessions.workers.get(session, (0, frozenset()))
        found = max(found, floor, *(step + 1 for step in steps))
    return found


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
