"""What the coordinator does for the whole store at once: recovery, scrubs, snapshots."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

import grpc.aio

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import ProaError, Unavailable
from proa.rpc import Channels, peer_errors
from proa.store import snapshot
from proa.store.books import Books
from proa.store.client import StoreClient
from proa.store.places import Place
from proa.store.post import ROLE
from proa.store.settings import ShardAddress

log = logging.getLogger(__name__)

LOOK_S = 0.2
LEASE_S = 5.0  # of a pace or a hold; said again every second
RENEW_S = 1.0
CALL_S_MAX = 2.0
QUIET_S = 1.0  # longer than any client waits before it pushes the rest of a step again
DRAIN_S_MAX = 30.0

Reports = Callable[[], Awaitable[list[store_pb2.ShardReport]]]


class Upkeep:
    """`reports`: of all shards; `client`: connected; `place`: of a snapshot, by its name."""

    def __init__(
        self,
        books: Books,
        addresses: tuple[ShardAddress, ...],
        channels: Channels,
        reports: Reports,
        client: Callable[[], Awaitable[StoreClient]],
        place: Callable[[str], Place],
    ) -> None:
        self._books, self._addresses, self._channels = books, addresses, channels
        self._reports, self._client, self._place = reports, client, place
        self._snapshotting = asyncio.Lock()

    def _stub(self, shard: int) -> store_pb2_grpc.StorePeerStub:
        return store_pb2_grpc.StorePeerStub(self._channels(self._addresses[shard].agent, ROLE))  # type: ignore[no-untyped-call]

    # --- what was written is on parity

    async def flush(self, limit_s: float) -> None:
        """Returns when all that shards had written is on their parity. Who does not answer has not
        said so. Errors: Unavailable after `limit_s`."""
        deadline = asyncio.get_running_loop().time() + limit_s
        await asyncio.gather(
            *(self._flush(shard, deadline) for shard in range(len(self._addresses)))
        )

    async def _flush(self, shard: int, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                limit_s = max(0.01, deadline - loop.time())
                await self._stub(shard).Flush(store_pb2.FlushRequest(), timeout=limit_s)
            except grpc.aio.AioRpcError as exc:
                if loop.time() + LOOK_S >= deadline:
                    why = exc.details() or exc.code().name
                    raise Unavailable(f"shard {shard} is not on its parity: {why}") from exc
            else:
                return
            await asyncio.sleep(LOOK_S)

    # --- recovery

    async def recover(self, rows_per_s_max: int) -> AsyncIterator[store_pb2.RecoverProgress]:
        """Progress until nothing is left to do. rows_per_s_max: of each shard, while this lasts;
        0: as the agents are set."""
        before: dict[int, store_pb2.ShardReport] = {}
        done, calm_at = 0, asyncio.get_running_loop().time()
        while True:
            if rows_per_s_max:
                await self._pace(rows_per_s_max)
            shards = await self._reports()
            for one in shards:
                if one.state == "open":
                    done += decoded_since(before.get(one.shard, one), one)
                    before[one.shard] = one
            progress = store_pb2.RecoverProgress(
                rows_done=done,
                rows_pending=sum(one.rows_pending for one in shards),
                parity_pending=sum(one.parity_incomplete for one in shards),
                rows_lost=sum(one.rows_lost for one in shards),
                shards_away=sum(one.state != "open" for one in shards),
            )
            stuck = progress.rows_lost and not progress.rows_pending  # no parity without them
            now = asyncio.get_running_loop().time()
            if (
                progress.shards_away
                or progress.rows_pending
                or (progress.parity_pending and not stuck)
            ):
                calm_at = now
            # What died just now is noticed within this time.
            progress.done = now - calm_at > self._books.config.detect_s
            yield progress
            if progress.done:
                return
            await asyncio.sleep(LOOK_S)

    async def _pace(self, rows_per_s_max: int) -> None:
        request = store_pb2.PaceRequest(
            rows_per_s_max=rows_per_s_max, lease_ms=round(LEASE_S * 1000)
        )

        async def say(shard: int) -> None:
            with suppress(grpc.aio.AioRpcError):  # one that is away is told when it is back
                await self._stub(shard).Pace(request, timeout=CALL_S_MAX)

        await asyncio.gather(*(say(shard) for shard in range(len(self._addresses))))

    # --- scrub

    async def scrub(self, rows_per_s_max: int) -> AsyncIterator[store_pb2.ScrubProgress]:
        """All shards at once; what each found, as it is found, and sums over all of them."""
        queue: asyncio.Queue[tuple[int, store_pb2.ScrubProgress | None]] = asyncio.Queue()
        request = store_pb2.ScrubRequest(rows_per_s_max=rows_per_s_max)

        async def read(shard: int) -> None:
            try:
                async for one in self._stub(shard).Scrub(request):
                    await queue.put((shard, one))
            except grpc.aio.AioRpcError as exc:
                log.warning("scrub of shard %d failed: %s", shard, exc.details())
            await queue.put((shard, None))

        tasks = [asyncio.create_task(read(shard)) for shard in range(len(self._addresses))]
        latest: dict[int, store_pb2.ScrubProgress] = {}
        try:
            left = len(tasks)
            while left:
                shard, one = await queue.get()
                if one is None:
                    left -= 1
                    continue
                latest[shard] = one
                yield _sum(latest.values(), one)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        total = _sum(latest.values(), store_pb2.ScrubProgress())
        whole = {shard for shard, one in latest.items() if one.done}
        total.shards_failed.extend(s for s in range(len(self._addresses)) if s not in whole)
        total.done = not total.shards_failed
        yield total

    # --- snapshots

    async def snapshot(self, destination: str) -> AsyncIterator[store_pb2.SnapshotProgress]:
        """One moment of all tables: see docs/store.md. Errors: InvalidRequest, those of a
        place, Unavailable (a shard is down, or was replaced meanwhile)."""
        place = self._place(destination)
        if self._snapshotting.locked():
            raise Unavailable("another snapshot is being taken; try again later")
        async with self._snapshotting:
            await asyncio.to_thread(place.claim)
            client = await self._client()
            epochs = self._epochs()
            settled = self._books.map.settled
            tables = [
                placed.table
                for placed in self._books.catalogue.tables
                if placed.extent.first + placed.extent.stripes <= settled
            ]
            last = snapshot.Progress(0, 0, 0)
            async with self._held() as until:
                async for last in snapshot.write(client, tables, self._books.store, place):
                    yield store_pb2.SnapshotProgress(
                        rows_written=last.written, bytes_written=last.bytes
                    )
                await self._check(until, epochs)
            await asyncio.to_thread(snapshot.seal, place)
            yield store_pb2.SnapshotProgress(
                rows_written=last.written, bytes_written=last.bytes, done=True
            )

    def _epochs(self) -> dict[int, int]:
        """Errors: Unavailable if not all shards are up."""
        shards = self._books.map.shards
        down = [shard for shard, entry in shards.items() if not entry.up]
        if down:
            raise Unavailable(f"shards {', '.join(map(str, down))} are down: no snapshot now")
        return {shard: entry.epoch for shard, entry in shards.items()}

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[Mapping[int, int]]:
        """No steps begin, and those that had are whole. The last ones, by worker. Errors:
        Unavailable."""
        task: asyncio.Task[None] | None = None
        try:
            taken = _most(await self._hold(LEASE_S, {}))
            deadline = asyncio.get_running_loop().time() + DRAIN_S_MAX
            while True:
                answers = await self._hold(LEASE_S, taken)
                if all(not a.under_way and a.quiet_ms >= QUIET_S * 1000 for a in answers):
                    break
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable("pushes do not come to an end: no snapshot now")
                await asyncio.sleep(LOOK_S)
            task = asyncio.create_task(self._renew(taken))
            yield taken
        finally:
            if task is not None:
                task.cancel()
            with suppress(ProaError):
                await self._hold(0.0, {})

    async def _renew(self, until: Mapping[int, int]) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(ProaError):  # whether it held is seen in the end
                await self._hold(LEASE_S, until)

    async def _hold(self, lease_s: float, until: Mapping[int, int]) -> list[store_pb2.HoldResponse]:
        request = store_pb2.HoldRequest(
            lease_ms=round(lease_s * 1000),
            until=[store_pb2.WorkerStep(worker=w, step=s) for w, s in until.items()],
        )

        async def say(shard: int) -> store_pb2.HoldResponse:
            async with peer_errors(f"agent of shard {shard}"):
                answer: store_pb2.HoldResponse = await self._stub(shard).Hold(
                    request, timeout=CALL_S_MAX
                )
                return answer

        return list(await asyncio.gather(*map(say, range(len(self._addresses)))))

    async def _check(self, until: Mapping[int, int], epochs: Mapping[int, int]) -> None:
        """Nobody began a step while the rows were read. Errors: Unavailable."""
        taken = _most(await self._hold(LEASE_S, until))
        late = [worker for worker, step in taken.items() if step > until.get(worker, -1)]
        if late or self._epochs() != epochs:
            raise Unavailable("a shard was replaced while the snapshot was taken: take it again")


def decoded_since(before: store_pb2.ShardReport, now: store_pb2.ShardReport) -> int:
    """Rows that a shard decoded between two reports. An agent that was started again counts from
    0; who decoded as many as before it died is known by its pushes, which are fewer."""
    again = now.rows_decoded < before.rows_decoded or now.pushes < before.pushes
    return int(now.rows_decoded) - (0 if again else int(before.rows_decoded))


def _most(answers: list[store_pb2.HoldResponse]) -> dict[int, int]:
    found: dict[int, int] = defaultdict(lambda: -1)
    for answer in answers:
        for one in answer.taken:
            found[one.worker] = max(found[one.worker], one.step)
    return dict(found)


def _sum(
    latest: Iterable[store_pb2.ScrubProgress], newest: store_pb2.ScrubProgress
) -> store_pb2.ScrubProgress:
    total = store_pb2.ScrubProgress(findings=newest.findings)
    for one in latest:
        total.rows_read += one.rows_read
        total.rows_bad += one.rows_bad
        total.rows_repaired += one.rows_repaired
        total.stripes_bad += one.stripes_bad
        total.rows_compared += one.rows_compared
        total.stripes_repaired += one.stripes_repaired
        total.stripes_unread += one.stripes_unread
    return total
