"""Faults of a shard's agent: those of its calls, bits of its rows, and an old disk.

An old disk is what a server has that starts again from an old file. So it is put back into a new
life of the server, never under a life whose rows somebody may be reading.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from proa.api.v1 import faults_pb2
from proa.errors import InvalidRequest, NotSupported, Overloaded, ShardUnavailable, Unavailable
from proa.store.disk_faults import Copy, Flip, copy, flip, may_shut_down, put_back, shutdown
from proa.store.protocol.layout import Block
from proa.store.redis_disk import Link, Server

log = logging.getLogger(__name__)

PROGRAMS = ("", "data", "parity")
BITS_MAX = 4096
NAMED_MAX = 20
BACK_S_MAX = 120.0  # for a server that was told to end to be there again
RETRY_S = 0.05


class DiskFaults:
    """An actor of FaultTable, at the shard's own `server`. `k`: data blocks of a stripe, 0 while it
    is not known. `name`: of a row, for the log. `run` is a root task."""

    kinds = frozenset({faults_pb2.BITFLIP, faults_pb2.STALE_DISK})

    def __init__(
        self, server: Server, k: Callable[[], int], name: Callable[[Block, int], str]
    ) -> None:
        self._server, self._k, self._name = server, k, name
        self._copy: Copy | None = None
        self._ended = asyncio.Event()

    @property
    def leaving(self) -> bool:
        """The old disk is being put back: nobody may take the disk."""
        return self._ended.is_set()

    async def begin(self, fault: faults_pb2.Fault) -> None:
        """See Actor. Errors: NotSupported, InvalidRequest, Overloaded, Unavailable."""
        if not self._k():
            raise Unavailable("the agent has not heard from its coordinator yet")
        if fault.kind == faults_pb2.BITFLIP:
            await self._flip(fault)
        else:
            await self._age(fault)

    def ended(self, fault: faults_pb2.Fault) -> None:
        """See Actor. Flipped bits stay as they are."""
        if fault.kind == faults_pb2.STALE_DISK:
            self._ended.set()

    async def run(self) -> None:
        """Never returns. Errors: Unavailable, once the old disk is there: for the process to end;
        ShardUnavailable: it could not be put back."""
        await self._ended.wait()
        assert self._copy is not None
        link = await self._next_life(await self._end_life())
        try:
            await link.run(put_back(self._copy, self._k()))
        finally:
            await link.close()
        raise Unavailable("its disk is an old one now, for its successor to find")

    async def _flip(self, fault: faults_pb2.Fault) -> None:
        if fault.site != faults_pb2.EMBEDDING:
            raise NotSupported("fault: an agent flips bits at site EMBEDDING only")
        bits = fault.bits or 1
        if bits > BITS_MAX:
            raise InvalidRequest(f"fault: bits is {bits}; the limits are 1 to {BITS_MAX}")
        if fault.program not in PROGRAMS:
            raise InvalidRequest(f"fault: program is {fault.program!r}; blocks are data or parity")
        dice = random.Random(fault.seed)  # noqa: S311  # must be repeatable
        link = await self._open()
        try:
            found = await link.run(flip(self._k(), fault.program, bits, dice))
        finally:
            await link.close()
        self._tell(found)

    def _tell(self, found: list[Flip]) -> None:
        rows = sorted({(one.block, one.row) for one in found})
        names = ", ".join(self._name(block, row) for block, row in rows[:NAMED_MAX])
        more = f" and {len(rows) - NAMED_MAX} more" if len(rows) > NAMED_MAX else ""
        log.warning("%d bits of %d rows were flipped: %s%s", len(found), len(rows), names, more)

    async def _age(self, fault: faults_pb2.Fault) -> None:
        if fault.program or fault.probability not in (0.0, 1.0):
            raise InvalidRequest("fault: STALE_DISK has no program and no probability")
        if self._copy is not None:
            raise Overloaded("one copy of the disk is kept; that fault has to end first")
        link = await self._open()
        try:
            await link.run(may_shut_down())
            found = await link.run(copy(self._k()))
        finally:
            await link.close()
        self._copy = found  # nothing is awaited from here on: a copy belongs to a fault

    async def _open(self) -> Link:
        link = Link(self._server)
        try:
            await link.open()
        except BaseException:
            await link.close()
            raise
        return link

    async def _end_life(self) -> str:
        """The name of the server's life that is over; empty: it was over already."""
        try:
            link = await self._open()
        except ShardUnavailable as exc:
            log.info("the server's life is over already: %s", exc)
            return ""
        try:
            await link.run(shutdown())
        except ShardUnavailable as exc:
            log.info("the server ends its life: %s", exc)
        finally:
            await link.close()
        return link.disk

    async def _next_life(self, life: str) -> Link:
        end_s = asyncio.get_running_loop().time() + BACK_S_MAX
        while asyncio.get_running_loop().time() < end_s:
            try:
                link = await self._open()
                if link.disk != life:
                    return link
                await link.close()
            except ShardUnavailable as exc:
                log.debug("not there yet: %s", exc)
            await asyncio.sleep(RETRY_S)
        raise ShardUnavailable(f"{self._server} did not come back within {BACK_S_MAX:g} s")
