"""What a run asks a store's coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

from proa.api.v1 import store_pb2
from proa.errors import ProaError, Unavailable
from proa.local.store import asked
from proa.store.findings import named
from proa.store.upkeep import decoded_since
from proa_chaos.store.measures import Scrubbed

REPORT_S_MAX = 5.0
# A look at the recovery: it is over when nothing was amiss for as long as a dead shard may go
# unnoticed, which is less.
RECOVER_S_MAX = 10.0
WATCH_MS = 500
AGAIN_S = 0.5


class Coordinator:
    """The one at `address`. tls_dir: our certificate, where there is TLS."""

    def __init__(self, address: str, tls_dir: Path | None = None) -> None:
        self._address, self._tls_dir = address, tls_dir

    def _ask(self, call: Callable[[Any], Any]) -> AsyncGenerator[Any, None]:
        return asked(self._address, call, self._tls_dir)

    async def report(self) -> store_pb2.StoreReport:
        """Shards and tables now. Errors: Unavailable."""
        request = store_pb2.StoreStatusRequest()
        reports = self._ask(lambda stub: stub.Status(request, timeout=REPORT_S_MAX))
        async with contextlib.aclosing(reports):
            async for report in reports:
                found: store_pb2.StoreReport = report
                return found
        raise Unavailable(f"coordinator {self._address}: no report")

    async def waiting_for(self) -> tuple[list[str], int]:
        """What is not whole, for up to 10 s; nothing as soon as all shards serve and nothing is
        left to decode or collect that can be. And how many rows are lost."""
        last = store_pb2.RecoverProgress()
        stream = self._ask(lambda stub: stub.Recover(store_pb2.RecoverRequest()))
        try:
            async with asyncio.timeout(RECOVER_S_MAX), contextlib.aclosing(stream):
                async for last in stream:
                    if last.done:
                        return [], last.rows_lost
        except TimeoutError:
            return _missing(last), last.rows_lost
        except ProaError as exc:
            return [str(exc)], 0
        return [f"coordinator {self._address} says nothing more of the recovery"], 0

    async def scrub(self, notes: list[str]) -> Scrubbed:
        """Every row read once; `notes` gets a line for each block where something was found.

        Errors: Unavailable (a shard could not be read to the end).
        """
        last = store_pb2.ScrubProgress()
        async for last in self._ask(lambda stub: stub.Scrub(store_pb2.ScrubRequest())):
            notes += [f"scrub: {named(one)}" for one in last.findings]
        if not last.done:
            shards = ", ".join(map(str, last.shards_failed))
            raise Unavailable(f"the scrub did not read all rows of shards {shards}")
        return Scrubbed(last.rows_bad, last.rows_repaired, last.stripes_bad)

    @contextlib.asynccontextmanager
    async def decoded(self, count: Callable[[int], None]) -> AsyncIterator[None]:
        """Tell `count` of rows that are decoded meanwhile, twice a second."""
        task = asyncio.create_task(self._count_decoded(count))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _count_decoded(self, count: Callable[[int], None]) -> None:
        before: dict[int, store_pb2.ShardReport] = {}
        request = store_pb2.StoreStatusRequest(interval_ms=WATCH_MS)
        while True:
            with contextlib.suppress(ProaError):  # the coordinator is what was killed
                async for report in self._ask(lambda stub: stub.Status(request)):
                    for one in report.shards:
                        if one.state == "open":
                            count(decoded_since(before.get(one.shard, one), one))
                            before[one.shard] = one
            await asyncio.sleep(AGAIN_S)


def _missing(last: store_pb2.RecoverProgress) -> list[str]:
    parts = (
        (last.shards_away, "shards do not serve"),
        (last.rows_pending, "rows are to be decoded"),
        (last.parity_pending, "parity blocks are to be collected"),
    )
    return [f"{count} {what}" for count, what in parts if count] or ["the store settles"]
