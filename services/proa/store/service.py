"""proa.api.v1.EmbeddingStore, as the coordinator serves it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

import grpc.aio
import numpy as np

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import InvalidRequest
from proa.rpc import Channels, Context, servicer_errors, servicer_stream_errors
from proa.store import wire
from proa.store.access import Access
from proa.store.books import Books
from proa.store.client import StoreClient
from proa.store.initial import Floats, Ids
from proa.store.places import Place
from proa.store.post import ROLE
from proa.store.pushing import Session
from proa.store.settings import ShardAddress
from proa.store.tables import Table
from proa.store.upkeep import Upkeep
from proa.store.wire_tables import (
    floats_from_bytes,
    ids_from_bytes,
    table_from_proto,
    table_to_proto,
)

log = logging.getLogger(__name__)

NAME = store_pb2.DESCRIPTOR.services_by_name["EmbeddingStore"].full_name
IDS_MAX = 1 << 20
REPORT_S_MAX = 1.0
INTERVAL_MS_MIN, INTERVAL_MS_MAX = 100, 60_000
FLUSH_S_MAX = 30.0  # of a call without a deadline
SPARE_BYTES = 1024  # of a message, beside rows


class StoreService(store_pb2_grpc.EmbeddingStoreServicer):
    """`access`: of the client for callers that have no map, which is connected when the first of
    them comes; `place`: of a snapshot, by its name; `message_bytes_max`: of the server."""

    def __init__(
        self,
        books: Books,
        addresses: tuple[ShardAddress, ...],
        channels: Channels,
        *,
        access: Access | None = None,
        place: Callable[[str], Place],
        message_bytes_max: int,
    ) -> None:
        self._books, self._addresses, self._channels = books, addresses, channels
        self._access = access
        self._rows_bytes_max = message_bytes_max - SPARE_BYTES
        self._client: StoreClient | None = None
        self._connecting = asyncio.Lock()
        self.address = ""  # our own, once it is known
        self._upkeep = Upkeep(books, addresses, channels, self._reports, self._connected, place)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    # --- map and tables

    @servicer_errors
    async def GetMap(
        self,
        request: store_pb2.GetMapRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.StoreMap:
        books = self._books
        catalogue = books.catalogue
        # Versions start at 0 and 0 means "nothing": callers add one to theirs.
        known = request.catalogue_version == catalogue.version + 1
        return store_pb2.StoreMap(
            store=books.store,
            map=wire.map_to_proto(books.map),
            ttl_ms=round(books.config.map_ttl_s * 1000),
            catalogue="" if known else json.dumps(catalogue.to_json()),
            catalogue_version=catalogue.version,
            agents=[one.agent for one in self._addresses],
            servers=[one.server for one in self._addresses],
        )

    @servicer_errors
    async def CreateTable(
        self, request: store_pb2.CreateTableRequest, context: Context
    ) -> store_pb2.CreateTableResponse:
        left_s = context.time_remaining()
        limit_s = 30.0 if left_s is None else left_s
        version = await self._books.create(table_from_proto(request.table), limit_s)
        return store_pb2.CreateTableResponse(version=version)

    # --- rows

    @servicer_errors
    async def Pull(
        self,
        request: store_pb2.PullRequest,
        context: Context,  # noqa: ARG002
    ) -> store_pb2.PullResponse:
        ids = ids_from_bytes(request.ids)
        if len(ids) > IDS_MAX:
            raise InvalidRequest(f"ids: {len(ids)} are more than {IDS_MAX}")
        client = await self._connected()
        table = await client.table(request.table)
        most = self._rows_of(4 * table.dim)
        if len(ids) > most:
            raise InvalidRequest(
                f"ids: {len(ids)} rows of dim = {table.dim} are more than the {most} that fit a"
                f" message of {self._rows_bytes_max + SPARE_BYTES} bytes"
                " (PROA_STORE_MESSAGE_BYTES_MAX of the coordinator)"
            )
        every, where = np.unique(ids, return_inverse=True)
        weights = await client.pull(request.table, every)
        return store_pb2.PullResponse(weights=weights[where].astype("<f4").tobytes())

    def _rows_of(self, row_bytes: int) -> int:
        """How many rows fit one message."""
        return self._rows_bytes_max // row_bytes

    @servicer_errors
    async def Push(
        self, request: store_pb2.PushRequest, context: Context
    ) -> store_pb2.PushResponse:
        session = None
        if request.session:
            session = Session(request.session, request.worker, request.members)
        client = await self._connected()
        gradients: dict[str, tuple[Ids, Floats]] = {}
        for one in request.tables:
            if one.table in gradients:
                raise InvalidRequest(f"tables: {one.table!r} comes twice")
            ids = ids_from_bytes(one.ids)
            table = await client.table(one.table)
            gradients[one.table] = ids, floats_from_bytes(one.gradients, len(ids), table.dim)
        left_s = context.time_remaining()
        await client.push_as(
            request.worker, request.step, request.floor, gradients, session,
            limit_s=None if left_s is None else 0.9 * left_s,
        )  # fmt: skip
        return store_pb2.PushResponse()

    @servicer_errors
    async def Flush(
        self,
        request: store_pb2.FlushRequest,  # noqa: ARG002
        context: Context,
    ) -> store_pb2.FlushResponse:
        left_s = context.time_remaining()
        await self._upkeep.flush(FLUSH_S_MAX if left_s is None else 0.9 * left_s)
        return store_pb2.FlushResponse()

    @servicer_stream_errors
    async def Export(
        self,
        request: store_pb2.ExportRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.ExportChunk]:
        client = await self._connected()
        table = await client.table(request.table)
        end = request.end or table.rows
        if not request.begin <= end <= table.rows:
            raise InvalidRequest(
                f"begin = {request.begin}, end = {end}: table {table.name!r} has {table.rows} rows"
            )
        async for first, weights, state in client.export(request.table, request.begin, end):
            for chunk in self._chunks(
                table, first, weights, state[:, : None if request.state else 0]
            ):
                yield chunk

    def _chunks(
        self, table: Table, first: int, weights: Floats, state: Floats
    ) -> Iterable[store_pb2.ExportChunk]:
        """These rows in messages that are not too long."""
        most = self._rows_of(table.width)
        for begin in range(0, len(weights), most):
            some = slice(begin, begin + most)
            yield store_pb2.ExportChunk(
                first_id=first + begin,
                weights=weights[some].astype("<f4").tobytes(),
                state=state[some].astype("<f4").tobytes(),
            )

    async def _connected(self) -> StoreClient:
        async with self._connecting:
            if self._client is None:
                client = StoreClient(self.address, access=self._access)
                await client.__aenter__()
                self._client = client
        return self._client

    # --- upkeep

    @servicer_stream_errors
    async def Recover(
        self,
        request: store_pb2.RecoverRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.RecoverProgress]:
        async for progress in self._upkeep.recover(request.rows_per_s_max):
            yield progress

    @servicer_stream_errors
    async def Scrub(
        self,
        request: store_pb2.ScrubRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.ScrubProgress]:
        async for progress in self._upkeep.scrub(request.rows_per_s_max):
            yield progress

    @servicer_stream_errors
    async def Snapshot(
        self,
        request: store_pb2.SnapshotRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.SnapshotProgress]:
        async for progress in self._upkeep.snapshot(request.destination):
            yield progress

    # --- status

    @servicer_stream_errors
    async def Status(
        self,
        request: store_pb2.StoreStatusRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[store_pb2.StoreReport]:
        interval_ms = request.interval_ms or 1000
        if not INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
            raise InvalidRequest(
                f"interval_ms = {interval_ms} is not {INTERVAL_MS_MIN} to {INTERVAL_MS_MAX}"
            )
        while True:
            yield await self._report()
            await asyncio.sleep(interval_ms / 1000.0)

    async def _report(self) -> store_pb2.StoreReport:
        books = self._books
        catalogue, told = books.catalogue, books.map
        shards = await self._reports()
        return store_pb2.StoreReport(
            unix_ms=round(time.time() * 1000),
            map_version=told.version,
            k=catalogue.k,
            r=catalogue.r,
            shards=shards,
            tables=[
                store_pb2.TableReport(
                    table=table_to_proto(placed.table),
                    stripes=placed.extent.stripes,
                    creating=placed.extent.first + placed.extent.stripes > told.settled,
                )
                for placed in catalogue.tables
            ],
            redundancy=survived(catalogue.r, shards),
        )

    async def _reports(self) -> list[store_pb2.ShardReport]:
        return list(await asyncio.gather(*(self._of_shard(i) for i in range(len(self._addresses)))))

    async def _of_shard(self, shard: int) -> store_pb2.ShardReport:
        where = self._addresses[shard]
        stub = store_pb2_grpc.StorePeerStub(self._channels(where.agent, ROLE))  # type: ignore[no-untyped-call]
        report = store_pb2.ShardReport(state="down")
        try:
            if self._books.map.shards[shard].up:
                report = await stub.Report(store_pb2.ReportRequest(), timeout=REPORT_S_MAX)
        except grpc.aio.AioRpcError as exc:
            log.debug("shard %d does not report: %s", shard, exc.details())
        report.shard, report.domain = shard, where.domain
        return report


def survived(r: int, shards: Iterable[store_pb2.ShardReport]) -> int:
    """Losses that every stripe survives now. A shard that does not serve, has rows to decode or
    parity to collect is a loss already, for the stripes that it has a block of."""
    lost = sum(
        one.state != "open" or one.rows_pending > 0 or one.parity_incomplete > 0 for one in shards
    )
    return max(0, r - lost)
