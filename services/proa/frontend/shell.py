"""The asyncio shell around one model's engine: performs its actions, reports what came of them.

The engine moves ids; the shell keeps the tensors that belong to them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any

from proa import errors
from proa.codes import Code
from proa.dispatch import Engine
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import ErrorKind
from proa.dispatch.timers import OF_QUERY
from proa.errors import ProaError
from proa.frontend.addresses import WorkerAddress
from proa.frontend.agreement import agreement
from proa.frontend.coders import Coders, Group
from proa.frontend.queries import CheckedQuery, Tensors, as_declared
from proa.frontend.stories import QUIET, Decoding, Part, Row, Story, decoding_of, row_of
from proa.frontend.timers import Timers
from proa.frontend.workers import Prediction, WorkerCalls, mapped, worker_request
from proa.parity import decode_outputs
from proa.spec import CodedModel

log = logging.getLogger(__name__)

# A parity query that takes longer than this many late answers is not worth its worker's place.
PARITY_PATIENCE = 4.0
PARITY_S_MIN = 0.25

_KINDS: dict[str, ErrorKind] = {kind.value: kind for kind in ErrorKind}
_ERRORS: dict[str, type[ProaError]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "UNAVAILABLE": errors.Unavailable,
    "DEADLINE_EXCEEDED": errors.DeadlinePassed,
    "INTERNAL": errors.BadAnswer,
}


@dataclass(frozen=True, slots=True)
class Result:
    """An answer and where it came from. `verdict`: `ok` or `repaired`, from a worker that checks
    its own arithmetic; `failed` where the spec wants such answers."""

    outputs: Tensors
    source: str
    worker: str | None
    group: int | None
    verdict: str | None = None


@dataclass(slots=True)
class _Open:
    """The tensors of a query while the engine needs them."""

    query: CheckedQuery
    request: bytes
    deadline: float
    arrived_at: float
    future: asyncio.Future[Result]
    story: Story | None = None
    hedges: int = 0
    package: str = ""
    exact: Tensors | None = None
    answers: dict[int, Prediction] = field(default_factory=dict)
    reconstructed: Tensors | None = None


class Shell:
    """One model: its engine, its open queries, its calls."""

    def __init__(
        self,
        spec: CodedModel,
        engine: Engine,
        calls: WorkerCalls,
        coders: Coders,
        code: Code,
        *,
        on_probe: Callable[[str], None],
        on_reply: Callable[[str, float, float | None, Story | None], None],
        on_end: Callable[[int], None],
    ) -> None:
        self.spec = spec
        self.engine = engine
        self._calls = calls
        self._coders = coders
        self._code = code
        self._on_probe = on_probe
        self._on_reply = on_reply
        self._on_end = on_end
        self._workers: dict[str, WorkerAddress] = {}
        self._packages: dict[str, str] = {}
        self._open: dict[int, _Open] = {}
        self._parity: dict[int, dict[int, Tensors]] = {}
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers = Timers(lambda timer: self.report(ev.TimerFired(timer)), self._stands)
        self._next = 0
        self._perform: dict[type, Callable[[Any], object]] = {
            ac.Send: self._send,
            ac.SendParity: self._send_parity,
            ac.Decode: self._decode,
            ac.Assess: self._assess,
            ac.Reply: self._reply,
            ac.Fail: self._fail,
            ac.Cancel: self._cancel,
            ac.SetTimer: lambda a: self._timers.set(a.timer, a.at),
            ac.Release: lambda a: self._open.pop(a.query, None),
            ac.ForgetGroup: lambda a: self._parity.pop(a.group, None),
            ac.Probe: lambda a: self._on_probe(a.worker),
        }

    # --- the way in

    async def infer(
        self, query: CheckedQuery, deadline: float, story: Story | None = None
    ) -> Result:
        """Answer `query` by `deadline` (time.monotonic, s). Errors: what the engine fails it with.

        Cancelling this coroutine withdraws the query. What happens to it is noted in `story`.
        """
        self._next += 1
        number = self._next
        now = time.monotonic()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        request = worker_request(self.spec, query.inputs)
        entry = self._open[number] = _Open(query, request, deadline, now, future, story)
        if story is not None:
            story.query = number
        key: Hashable = query.key(self.spec.name)
        self.report(
            ev.QueryArrived(
                number,
                key,
                deadline,
                size=query.size,
                exact=query.exact,
                policy=query.policy,
                codable=self.spec.codable,
                reconstruct=query.reconstruct,
            )
        )
        try:
            return await future
        except asyncio.CancelledError:
            self.report(ev.QueryCancelled(number))
            raise
        finally:
            self._on_end(entry.hedges)

    def joined(self, worker: WorkerAddress, package: str, roles: frozenset[str]) -> None:
        """`worker` passed its canary."""
        self._workers[worker.name] = worker
        self._packages[worker.name] = package
        self.report(ev.WorkerJoined(worker.name, worker.domain, package, roles))

    def draining(self, worker: str) -> None:
        """`worker` is about to leave: nothing new goes there."""
        self.report(ev.WorkerDraining(worker))

    def moved(self, worker: WorkerAddress) -> None:
        """A worker that joined counts to another failure domain."""
        self._workers[worker.name] = worker
        self.report(ev.WorkerMoved(worker.name, worker.domain))

    def left(self, worker: str) -> None:
        """`worker` is gone for good; its name may come again."""
        self.report(ev.WorkerLeft(worker))
        self._workers.pop(worker, None)
        self._packages.pop(worker, None)
        self._calls.forget(worker)

    def report(self, event: ev.Event) -> None:
        """Tell the engine, and do what it says."""
        for action in self.engine.handle(event, time.monotonic()):
            self._perform[type(action)](action)

    def _stands(self, timer: Hashable) -> bool:
        """Whether the engine would still do something about `timer`."""
        if not isinstance(timer, OF_QUERY):
            return True
        query = self.engine.state.queries.get(timer.query)
        return query is not None and not query.settled

    async def close(self) -> None:
        """Stop everything that runs for this model."""
        self._timers.close()
        tasks = [*self._attempts.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- answers

    def _reply(self, action: ac.Reply) -> None:
        entry = self._open[action.query]
        if action.attempt is None:
            assert entry.reconstructed is not None
            found = Prediction(entry.reconstructed)
        else:
            found = entry.answers[action.attempt]
        status = None if found.verdict is None else found.verdict.status
        result = Result(found.outputs, action.source.value, action.worker, action.group, status)
        story = entry.story
        if story is not None:
            story.replied(action)
        latency_s = time.monotonic() - entry.arrived_at
        self._on_reply(action.source.value, latency_s, action.would_be_s, story)
        entry.request = b""  # nothing is sent any more; a filler needs its tensors only
        if not entry.future.done():
            entry.future.set_result(result)

    def _fail(self, action: ac.Fail) -> None:
        entry = self._open[action.query]
        if action.status == "RESOURCE_EXHAUSTED":
            error: ProaError = errors.Overloaded(
                f"model {self.spec.name}: {action.message}",
                retry_after_s=action.retry_after_s or 0.1,
            )
        else:
            kind = _ERRORS.get(action.status, errors.BadAnswer)
            error = kind(f"model {self.spec.name}: {action.message}")
        if not entry.future.done():
            entry.future.set_exception(error)

    # --- attempts

    def _send(self, action: ac.Send) -> None:
        entry = self._open[action.query]
        if not entry.package:
            entry.package = self._packages[action.worker]
        # Taken now: by the time the task runs, the worker may have left, the query be answered.
        worker, package = self._workers[action.worker], self._packages[action.worker]
        entry.hedges += action.source is ac.Source.HEDGE
        note: Part | None = None
        if entry.story is not None:
            note = entry.story.attempt(action.attempt, action.source.value, worker)
        work = self._attempt(action.attempt, entry, entry.request, worker, package, note)
        self._start(action.attempt, work)

    async def _attempt(
        self,
        attempt: int,
        entry: _Open,
        request: bytes,
        worker: WorkerAddress,
        package: str,
        note: Part | None,
    ) -> None:
        # The call may outlive the answer: a loser's latency tells how slow its worker is.
        timeout_s = max(0.001, entry.deadline - time.monotonic())
        try:
            with note or QUIET as trace:
                found = await self._calls.infer(
                    worker, request, entry.query.batch, timeout_s, trace
                )
        except Exception as exc:  # noqa: BLE001  # the border: the engine must hear of all of it
            error = mapped(exc)
            event = ev.Answered(attempt, False, _kind(error), str(error))
        else:
            entry.answers[attempt] = found
            if entry.exact is None and package == entry.package:
                entry.exact = found.outputs
            share = self._calls.meter(worker.name).share
            event = ev.Answered(attempt, True, load=share)
        self._end(attempt, event)

    def _send_parity(self, action: ac.SendParity) -> None:
        # Tensors are taken now: by the time the task runs, the engine may have released them.
        members = [self._open[q].query.inputs for q in action.members]
        group = self._group(action.group, action.members)
        self._parity.setdefault(action.group, {})
        worker = self._workers[action.worker]
        stories = [self._open[q].story for q in action.members]
        note = row_of(action, self.spec.redundancy.r, worker, stories)
        self._start(action.attempt, self._attempt_parity(action, group, members, worker, note))

    async def _attempt_parity(
        self,
        action: ac.SendParity,
        group: Group,
        members: list[Tensors],
        worker: WorkerAddress,
        note: Row | None,
    ) -> None:
        late_s = self.engine.state.latency.late_after_s()
        timeout_s = max(PARITY_S_MIN, PARITY_PATIENCE * late_s)
        try:
            with note or QUIET, self._calls.meter(worker.name).own():
                outputs = await self._coders.infer_parity(
                    group, action.row, members, worker, timeout_s, note
                )
        except Exception as exc:  # noqa: BLE001  # the border: the engine must hear of all of it
            error = mapped(exc)
            log.debug("parity of group %d failed: %s", action.group, error)
            self._calls.note_refusal(worker, error)
            # Behind an encoder it cannot be told whether encoder or worker failed.
            inline = self._coders.encodes_inline(members)
            kind = _kind(error) if inline else None
            event = ev.ParityAnswered(action.attempt, False, kind)
        else:
            if action.group in self._parity:
                self._parity[action.group][action.row] = outputs
            event = ev.ParityAnswered(action.attempt, True)
        self._end(action.attempt, event)

    def _group(self, group: int, members: tuple[int, ...]) -> Group:
        return Group(group, self._open[members[0]].package if members else "", members)

    def _start(self, attempt: int, work: Coroutine[Any, Any, None]) -> None:
        self._attempts[attempt] = asyncio.get_running_loop().create_task(work)

    def _end(self, attempt: int, event: ev.Event) -> None:
        self._attempts.pop(attempt, None)
        self.report(event)

    def _cancel(self, action: ac.Cancel) -> None:
        task = self._attempts.pop(action.attempt, None)
        if task is not None:
            task.cancel()

    # --- coding

    def _decode(self, action: ac.Decode) -> None:
        available = self._known(action.members, action.missing)
        parity = dict(self._parity[action.group])
        group = self._group(action.group, action.members)
        stories = [self._open[action.members[i]].story for i in action.missing]
        note = decoding_of(action, stories, parity)
        self._spawn(self._reconstruct(action, group, available, parity, note))

    async def _reconstruct(
        self,
        action: ac.Decode,
        group: Group,
        available: dict[int, Tensors],
        parity: dict[int, Tensors],
        note: Decoding | None,
    ) -> None:
        try:
            with note or QUIET:
                found = await self._coders.decode(group, available, parity, action.missing, note)
            for position, outputs in found.items():
                entry = self._open.get(action.members[position])
                if entry is not None:
                    entry.reconstructed = as_declared(outputs, self.spec, entry.query.batch)
            queries = tuple(action.members[i] for i in action.missing)
        except Exception as exc:  # noqa: BLE001  # the border: the engine must hear of all of it
            log.warning("group %d was not decoded: %s", action.group, mapped(exc))
            queries = ()
        self.report(ev.Decoded(action.group, queries))

    def _assess(self, action: ac.Assess) -> None:
        members = list(self._known(action.members, ()).values())
        self._spawn(self._compare(action, members, dict(self._parity[action.group])))

    async def _compare(
        self, action: ac.Assess, members: list[Tensors], parity: dict[int, Tensors]
    ) -> None:
        def decode(*args: Any) -> Any:
            return decode_outputs(self._code, *args)

        try:
            share: float | None = await asyncio.to_thread(agreement, members, parity, decode)
        except Exception as exc:  # noqa: BLE001  # the border: the engine must hear of all of it
            log.warning("group %d was not assessed: %s", action.group, mapped(exc))
            share = None
        self.report(ev.Assessed(action.group, share))

    def _known(self, members: tuple[int, ...], missing: tuple[int, ...]) -> dict[int, Tensors]:
        """The exact predictions of a group's members by position."""
        found: dict[int, Tensors] = {}
        for position, query in enumerate(members):
            if position not in missing:
                exact = self._open[query].exact
                assert exact is not None
                found[position] = exact
        return found

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kind(error: ProaError) -> ErrorKind:
    return _KINDS.get(error.status, ErrorKind.INTERNAL)
