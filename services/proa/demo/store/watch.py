"""How the store is doing, told by its coordinator: when it was whole again after a loss."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import ProaError
from proa.rpc import Channels, peer_errors

INTERVAL_MS = 100
MESSAGE_BYTES_MAX = 16 << 20
AGAIN_S = 0.1


@dataclass
class Watch:
    """`run` is a task. Times are of the event loop's clock, which is time.monotonic's.

    After `lost`: down_at, when the shard was first not open; back_at, when it had a new epoch, its
    agent had started again; whole_at, when everything was open and complete again.
    """

    address: str
    report: store_pb2.StoreReport | None = None
    down_at: float | None = None
    back_at: float | None = None
    whole_at: float | None = None
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    _shard: int | None = None
    _epoch: int = 0

    async def run(self) -> None:
        """Never returns."""
        channels = Channels(message_bytes_max=MESSAGE_BYTES_MAX)
        try:
            while True:
                try:
                    await self._follow(channels)
                except ProaError:
                    await asyncio.sleep(AGAIN_S)
        finally:
            await channels.close()

    async def _follow(self, channels: Channels) -> None:
        async with peer_errors(f"coordinator {self.address}"):
            stub = store_pb2_grpc.EmbeddingStoreStub(channels(self.address, "store"))  # type: ignore[no-untyped-call]
            request = store_pb2.StoreStatusRequest(interval_ms=INTERVAL_MS)
            async for report in stub.Status(request):
                self._take(report)

    def lost(self, shard: int) -> None:
        """It was killed just now."""
        assert self.report is not None
        self._shard, self._epoch = shard, self.report.shards[shard].epoch

    def _take(self, report: store_pb2.StoreReport) -> None:
        self.report = report
        if self._shard is None or self.whole_at is not None:
            return
        now, shard = asyncio.get_running_loop().time(), report.shards[self._shard]
        if self.down_at is None and (shard.state != "open" or shard.epoch != self._epoch):
            self.down_at = now
        if self.back_at is None and shard.epoch > self._epoch:
            self.back_at = now
        behind = any(s.rows_pending or s.parity_incomplete for s in report.shards)
        complete = all(s.state == "open" for s in report.shards) and not behind
        if shard.epoch > self._epoch and complete and report.redundancy == report.r:
            self.whole_at = now
            self.whole.set()
