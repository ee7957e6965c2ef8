"""Faults that act on the calls of a service of ours: an interceptor and the service that feeds it.

Both are only there where the process was started with fault injection. Health, reflection and the
fault service itself are never hit: a faulty process looks healthy, as in life.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from proa.api.v1 import faults_pb2, faults_pb2_grpc
from proa.errors import DeadlinePassed, InvalidRequest, NotSupported, Overloaded, Unavailable
from proa.rpc import Context, servicer_errors
from proa.runtime.interceptor import Handler, UnaryInterceptor
from proa.runtime.waiting import set_within

log = logging.getLogger(__name__)

FAULT_SERVICE = faults_pb2.DESCRIPTOR.services_by_name["FaultInjector"].full_name
FAULTS_MAX = 16
TTL_MS_MAX = 600_000
DELAY_MS_MAX = 600_000
TEXT_BYTES_MAX = 64
_OF_CALLS = (faults_pb2.DELAY, faults_pb2.PAUSE, faults_pb2.ERROR, faults_pb2.DROP)
_ELSEWHERE = {
    faults_pb2.BITFLIP: "BITFLIP acts on workers and on agents of the store; this service has"
    " nothing to flip",
    faults_pb2.STALE_DISK: "STALE_DISK acts on agents of the store; this service has no disk",
}

# Takes in what `FaultInjector.Announce` says. Errors: InvalidRequest, Overloaded.
Announce = Callable[[faults_pb2.AnnounceRequest], None]


class Watcher(Protocol):
    """Hears of the faults of a table; must not raise."""

    def begun(self, fault: faults_pb2.Fault) -> None:
        """It acts from now on."""

    def ended(self, fault_id: str) -> None:
        """It was cleared, or replaced, or its time has run out."""


@dataclass(eq=False)
class _Active:
    """A fault in force. `ended` is set when it is cleared, replaced, or its time has run out."""

    fault: faults_pb2.Fault
    ended: asyncio.Event
    dice: random.Random
    timer: asyncio.TimerHandle


class Actor(Protocol):
    """Acts out faults that are not of calls: those of its `kinds`."""

    @property
    def kinds(self) -> frozenset[int]: ...

    async def begin(self, fault: faults_pb2.Fault) -> None:
        """Let it act. Errors: a ProaError, and nothing was done."""

    def ended(self, fault: faults_pb2.Fault) -> None:
        """It was cleared, or replaced, or its time has run out. Must not raise."""


class FaultTable:
    """The active faults of this process. Use it on the event loop only. `actor`: who acts out what
    is not of calls; without one, such faults are refused."""

    def __init__(self, actor: Actor | None = None) -> None:
        self._active: dict[str, _Active] = {}
        self._watcher: Watcher | None = None
        self._actor = actor
        self._turn = asyncio.Lock()

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of every fault from now on."""
        self._watcher = watcher

    async def begin(self, fault: faults_pb2.Fault) -> None:
        """As `inject`, also what the actor acts out; one that is active already is not begun again.
        Errors: those of `inject` and of the actor."""
        async with self._turn:
            self._admit(fault)
            if self._actor is not None and fault.kind in self._actor.kinds:
                known = self._active.get(fault.id)
                if known is not None and known.fault == fault:
                    return
                await self._actor.begin(fault)
            self._add(fault)

    def inject(self, fault: faults_pb2.Fault) -> None:
        """Add a fault of calls, or replace the one of its id. Errors: InvalidRequest, NotSupported,
        Overloaded."""
        self._admit(fault)
        assert self._actor is None or fault.kind not in self._actor.kinds, "see begin"
        self._add(fault)

    def _admit(self, fault: faults_pb2.Fault) -> None:
        _check(fault, self._actor.kinds if self._actor is not None else frozenset())
        if fault.id not in self._active and len(self._active) >= FAULTS_MAX:
            raise Overloaded(f"{FAULTS_MAX} faults are active, which is the limit; clear one")

    def _add(self, fault: faults_pb2.Fault) -> None:
        self._end(fault.id)
        loop = asyncio.get_running_loop()
        self._active[fault.id] = _Active(
            fault,
            asyncio.Event(),
            random.Random(fault.seed),  # noqa: S311  # must be repeatable
            loop.call_later(fault.ttl_ms / 1000.0, self._end, fault.id),
        )
        if self._watcher is not None:
            self._watcher.begun(fault)

    def clear(self, fault_id: str = "") -> None:
        """End the fault of that id, or all of them."""
        for name in [fault_id] if fault_id else list(self._active):
            self._end(name)

    def reply(self) -> faults_pb2.FaultReply:
        """The active faults, oldest first."""
        return faults_pb2.FaultReply(active=[one.fault for one in self._active.values()])

    async def act(self, method: str) -> None:
        """Do to one call of `method` what the faults say; returns if it may go on.

        Errors: Unavailable (ERROR, and DROP once its caller outlived every time to live).
        """
        hits = [one for one in self._active.values() if _hits(one, method)]
        for one in hits:
            if one.fault.kind == faults_pb2.DELAY:
                await set_within(one.ended, one.fault.delay_ms / 1000.0)
            elif one.fault.kind == faults_pb2.PAUSE:
                await one.ended.wait()
        for one in hits:
            if one.fault.kind == faults_pb2.DROP:
                # The caller's deadline cancels us; without one this bounds the leak.
                await asyncio.sleep(TTL_MS_MAX / 1000.0)
            if one.fault.kind in (faults_pb2.ERROR, faults_pb2.DROP):
                raise Unavailable(f"injected fault {one.fault.id}")

    async def reach(self, peer: str, timeout_s: float) -> None:
        """Do to one call to `peer` what the faults say: a cut network loses it (DROP).

        Errors: Unavailable (ERROR), DeadlinePassed after `timeout_s` seconds.
        """
        if not self._active:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.act(peer)
        except TimeoutError as exc:
            raise DeadlinePassed(f"{peer}: no answer within {timeout_s:.3g} s") from exc

    def _end(self, fault_id: str) -> None:
        one = self._active.pop(fault_id, None)
        if one is not None:
            one.timer.cancel()
            one.ended.set()
            if self._actor is not None and one.fault.kind in self._actor.kinds:
                self._actor.ended(one.fault)
            if self._watcher is not None:
                self._watcher.ended(fault_id)


class FaultService(faults_pb2_grpc.FaultInjectorServicer):
    """proa.api.v1.FaultInjector over a table. `announce`: who wants to know of faults elsewhere."""

    def __init__(self, table: FaultTable, announce: Announce | None = None) -> None:
        self._table = table
        self._announce = announce

    @servicer_errors
    async def Inject(
        self, request: faults_pb2.InjectRequest, _context: Context
    ) -> faults_pb2.FaultReply:
        await self._table.begin(request.fault)
        return self._table.reply()

    @servicer_errors
    async def Clear(
        self, request: faults_pb2.ClearRequest, _context: Context
    ) -> faults_pb2.FaultReply:
        self._table.clear(request.id)
        return self._table.reply()

    @servicer_errors
    async def List(
        self, _request: faults_pb2.ListRequest, _context: Context
    ) -> faults_pb2.FaultReply:
        return self._table.reply()

    @servicer_errors
    async def Announce(
        self, request: faults_pb2.AnnounceRequest, _context: Context
    ) -> faults_pb2.AnnounceReply:
        if self._announce is None:
            raise NotSupported("faults are announced to frontends")
        self._announce(request)
        return faults_pb2.AnnounceReply()


def add_faults(server: grpc.aio.Server, table: FaultTable, announce: Announce | None = None) -> str:
    """Serve `table` on `server`; the service's full name, for reflection."""
    log.warning("fault injection is on")
    faults_pb2_grpc.add_FaultInjectorServicer_to_server(  # type: ignore[no-untyped-call]
        FaultService(table, announce), server
    )
    return FAULT_SERVICE


class FaultInterceptor(UnaryInterceptor):
    """Lets the table act on every unary call of the service `service` (full name)."""

    def __init__(self, table: FaultTable, service: str) -> None:
        super().__init__(service)
        self._table = table

    def around(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """See UnaryInterceptor."""
        return self._faulty(handler, details.method.rpartition("/")[2])

    def _faulty(self, handler: Handler, method: str) -> Handler:
        @servicer_errors
        async def call(table: FaultTable, request: Any, context: Context) -> Any:
            await table.act(method)
            return await handler(request, context)

        async def bound(request: Any, context: Context) -> Any:
            return await call(self._table, request, context)

        return bound


def _hits(one: _Active, method: str) -> bool:
    if one.fault.program not in ("", method):
        return False
    probability = one.fault.probability or 1.0
    return probability >= 1.0 or one.dice.random() < probability


def _check(fault: faults_pb2.Fault, more: frozenset[int]) -> None:
    """`more`: kinds beside those of calls."""
    if fault.kind in _ELSEWHERE and fault.kind not in more:
        raise NotSupported(f"fault: {_ELSEWHERE[fault.kind]}")
    if fault.kind not in _OF_CALLS and fault.kind not in more:
        raise InvalidRequest(f"fault: kind {fault.kind} is not one of DELAY, PAUSE, ERROR, DROP")
    limits = {
        "ttl_ms": (fault.ttl_ms, 1, TTL_MS_MAX),
        "delay_ms": (fault.delay_ms, int(fault.kind == faults_pb2.DELAY), DELAY_MS_MAX),
        "length of id": (len(fault.id.encode()), 1, TEXT_BYTES_MAX),
        "length of program": (len(fault.program.encode()), 0, TEXT_BYTES_MAX),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InvalidRequest(f"fault: {name} is {value}; the limits are {low} to {high}")
    if not 0.0 <= fault.probability <= 1.0:
        raise InvalidRequest(f"fault: probability is {fault.probability}; the limits are 0 to 1")
