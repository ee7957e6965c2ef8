"""The store's client: pulls rows from the shards' servers, pushes gradients to their agents.

For one event loop. `proa.embedding` wraps it for torch.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Self

import numpy as np

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import InvalidRequest
from proa.rpc import Channels, peer_errors
from proa.runtime.tls import open_tls
from proa.store.access import TLS_SETTING, Access
from proa.store.gf256 import Bytes
from proa.store.inflight import InFlight
from proa.store.initial import Floats, Ids
from proa.store.joining import Joining
from proa.store.post import ROLE
from proa.store.protocol.heard import FIRST_CLIENT
from proa.store.protocol.layout import Block
from proa.store.protocol.messages import Part
from proa.store.protocol.reading import Answer
from proa.store.pushing import (
    RETRY_S_MAX,
    RETRY_S_MIN,
    WORKER_BITS,
    Gradients,
    Parts,
    Pusher,
    Session,
    Steps,
    Who,
    check_sizes,
    lost_rows,
    parts_of,
    pause,
)
from proa.store.reads import read_rows
from proa.store.redis_disk import RedisViews
from proa.store.tables import Catalogue, Located, Table, check_ids
from proa.store.told import MapKeeper, Told
from proa.store.wire_tables import table_to_proto

MESSAGE_BYTES_MAX = 64 << 20
TELL_FLOOR_S = 0.5
EXPORT_ROWS = 4096
EXPORT_BYTES = 8 << 20


class StoreClient:
    """`async with StoreClient("host:port") as store`. coordinator: its address.

    timeout_s: how long a pull or a push may take; inflight_max: steps that may wait for their
    acknowledgement; message_bytes_max: of what a step has for one shard. Without `session` each
    step is applied as it comes. Errors: EnvironmentLacks (certificates that cannot be used); on
    entering, InvalidRequest where the session stands at another step than it begins with.
    """

    def __init__(
        self,
        coordinator: str,
        *,
        session: Session | None = None,
        timeout_s: float = 30.0,
        inflight_max: int = 2,
        access: Access | None = None,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._access = access or Access()
        self._tls = open_tls(self._access.tls_dir, TLS_SETTING)
        self._channels = Channels(message_bytes_max=message_bytes_max, tls=self._tls)
        self._coordinator, self._session = coordinator, session
        self._timeout_s, self._message_bytes_max = timeout_s, message_bytes_max
        self._worker = session.worker if session else FIRST_CLIENT + secrets.randbits(WORKER_BITS)
        self._process = 1 + secrets.randbits(WORKER_BITS - 1) if session else 0
        self._maps = MapKeeper(self._channels, coordinator)
        self._pusher = Pusher(self._channels, self._maps)
        self._views: RedisViews | None = None
        begin = session.begin if session else 0
        self._flight = InFlight(
            self._push, inflight_max, begin=begin, in_session=session is not None
        )
        self._setter = Steps()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._maps.run())]
        if self._tls is not None:
            self._tasks.append(asyncio.create_task(self._tls.watch()))
        try:
            told = await self._maps.fresh(self._deadline())
            if self._session is not None:
                await Joining(
                    self._channels, self._maps, self._session, self._process, self._deadline()
                ).run()
        except BaseException:
            await self.close()
            raise
        servers = {shard: self._access.server(at) for shard, at in enumerate(told.servers)}
        self._views = RedisViews(servers, lambda: self._latest().catalogue.layout)
        if self._session is not None:
            self._tasks.append(asyncio.create_task(self._tell_floor(self._session)))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Pushes that were not acknowledged yet may be lost."""
        await self._flight.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._views is not None:
            await self._views.close()
        await self._channels.close()

    # --- tables

    async def create_table(self, table: Table) -> None:
        """Returns when every shard has it. Errors: InvalidRequest (another one of that name),
        Unavailable (a shard is down)."""
        async with peer_errors(f"coordinator {self._coordinator}"):
            stub = store_pb2_grpc.EmbeddingStoreStub(  # type: ignore[no-untyped-call]
                self._channels(self._coordinator, ROLE)
            )
            await stub.CreateTable(
                store_pb2.CreateTableRequest(table=table_to_proto(table)), timeout=self._timeout_s
            )
        deadline = self._deadline()
        while not (await self._fresh(deadline)).usable.has(table.name):
            self._maps.hurry()
            await asyncio.sleep(RETRY_S_MIN)

    async def table(self, name: str) -> Table:
        """Errors: InvalidRequest, ShardUnavailable."""
        return (await self._fresh(self._deadline())).usable.table(name)

    # --- rows

    async def pull(self, name: str, ids: Ids) -> Floats:
        """float32 `[ids, dim]`, any order, no id twice; what was acknowledged is in it.

        Errors: InvalidRequest, DataLost with the ids, ShardUnavailable.
        """
        return (await self.pull_many({name: ids}))[name]

    async def pull_many(self, asked: Mapping[str, Ids]) -> dict[str, Floats]:
        """`pull` of some tables at once, by name: one exchange with each shard for all of them.

        Errors: as `pull`, and nothing of the others then.
        """
        deadline = self._deadline()
        usable = (await self._fresh(deadline)).usable
        tables = {name: usable.table(name) for name in asked}
        ids = {name: check_ids(tables[name], some) for name, some in asked.items()}
        stored = await self._stored(ids, deadline)
        return {name: table.weights(ids[name], stored[name]) for name, table in tables.items()}

    async def stored(self, name: str, ids: Ids, lost: set[int] | None = None) -> Bytes:
        """`pull_stored` within the time of one pull."""
        return await self.pull_stored(name, ids, self._deadline(), lost)

    async def pull_stored(
        self, name: str, ids: Ids, deadline: float, lost: set[int] | None = None
    ) -> Bytes:
        """Records as the store has them, uint8 `[ids, width]`; see `pull`. lost: takes the ids of
        lost rows, which are zero then, in place of DataLost."""
        return (await self._stored({name: ids}, deadline, lost))[name]

    async def _stored(
        self, asked: Mapping[str, Ids], deadline: float, lost: set[int] | None = None
    ) -> dict[str, Bytes]:
        told = await self._fresh(deadline)
        stored: dict[str, Bytes] = {}
        todo: dict[Block, Located] = {}
        for name, ids in asked.items():
            stored[name] = np.zeros((len(ids), told.usable.table(name).width), np.uint8)
            todo.update((one.block, one) for one in told.usable.locate(name, ids))
        wait_s = RETRY_S_MIN
        assert self._views is not None
        while todo:
            rows = {block: one.rows for block, one in todo.items()}
            answers = await read_rows(told.catalogue.layout, told.map, rows, self._views)
            todo = self._taken(told.catalogue, todo, answers, stored, lost)
            if todo:
                self._maps.hurry()
                tables = ", ".join(map(repr, asked))
                await pause(wait_s, deadline, f"{len(todo)} blocks of table {tables}")
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                told = await self._fresh(deadline)
        return stored

    def _taken(
        self,
        catalogue: Catalogue,
        todo: Mapping[Block, Located],
        answers: Mapping[Block, Answer],
        stored: Mapping[str, Bytes],
        lost: set[int] | None,
    ) -> dict[Block, Located]:
        """Puts pieces where they belong; what is still to read. Errors: DataLost."""
        rest: dict[Block, Located] = {}
        for block, one in todo.items():
            answer = answers[block]
            target = stored[catalogue.placed_at(block.stripe).table.name]
            if answer.lost:
                table, ids = catalogue.ids(block, np.array(answer.lost, np.intp))
                if lost is None:
                    raise lost_rows(table.name, tuple(ids.tolist()))
                lost.update(ids.tolist())
            for piece in answer.pieces:
                whole = len(piece.rows) == len(one.rows)
                at = slice(None) if whole else np.searchsorted(one.rows, piece.rows)
                target[one.where[at]] = piece.data
            if answer.later:
                at = np.searchsorted(one.rows, np.array(answer.later, np.intp))
                rest[block] = Located(block, one.rows[at], one.where[at])
        return rest

    # --- pushes

    async def push(self, gradients: Gradients) -> int:
        """One step: per table ids (no id twice) and float32 `[ids, dim]`. Its number.

        Returns when fewer than `inflight_max` steps wait. Errors: InvalidRequest, of these
        gradients; or what an earlier step met. Either way nothing of this step was sent.
        """
        return await self.take(await self.prepared(gradients))

    async def prepared(self, gradients: Gradients) -> Parts:
        """What `take` sends as one step. Errors: InvalidRequest, naming table and ids, or a limit;
        ShardUnavailable."""
        told = self._latest()
        if not all(told.usable.has(name) for name in gradients):
            told = await self._fresh(self._deadline())
        return self._parts(told, gradients, everywhere=self._session is not None)

    async def take(self, parts: Parts) -> int:
        """The second half of `push`. Errors: what an earlier step met: this one was not taken."""
        return await self._flight.take(parts)

    async def flush(self) -> None:
        """Return when every step was acknowledged. Errors: what one of them met.

        InvalidRequest and DataLost are raised once: each shard has taken its part of that step or
        refused it. With any other error the step is unresolved: `push` and `flush` raise the error
        until `retry` succeeds.
        """
        await self._flight.flush()

    async def retry(self) -> None:
        """Push unresolved steps again, under their numbers: what was written is not written twice.
        Returns when every step was acknowledged. Errors: as `flush`."""
        await self._flight.retry()

    def _parts(self, told: Told, gradients: Gradients, *, everywhere: bool) -> Parts:
        parts = parts_of(told.usable, gradients, everywhere=everywhere)
        check_sizes(parts, self._message_bytes_max)
        return parts

    async def push_as(
        self,
        worker: int,
        step: int,
        floor: int,
        gradients: Gradients,
        session: Session | None,
        *,
        limit_s: float | None = None,
    ) -> None:
        """A step of somebody else, who numbers its steps; returns when it was acknowledged.

        Errors: InvalidRequest, DataLost, PushIndeterminate, ShardUnavailable.
        """
        if not 0 <= floor <= step:
            raise InvalidRequest(f"floor = {floor} is not 0 to step = {step}")
        if not 0 <= worker < 1 << WORKER_BITS:
            raise InvalidRequest(f"worker = {worker} is not 0 to 2^{WORKER_BITS} - 1")
        deadline = asyncio.get_running_loop().time() + (limit_s or self._timeout_s)
        told = await self._fresh(deadline)
        parts = self._parts(told, gradients, everywhere=session is not None)
        await self._pusher.push(told, Who(worker, step, lambda: floor), parts, deadline, session)

    async def export(
        self, name: str, begin: int, end: int
    ) -> AsyncIterator[tuple[int, Floats, Floats]]:
        """Rows `begin` to `end` - 1 in chunks: the first id, weights `[n, dim]`, state `[n, s]`.

        Not of one moment while others push. Errors: as `pull`.
        """
        table = await self.table(name)
        rows = _rows_at_once(table)
        for first in range(begin, end, rows):
            ids = np.arange(first, min(first + rows, end))
            stored = await self.pull_stored(name, ids, self._deadline())
            values = (stored ^ table.initial_records(ids)).view(np.float32)
            yield first, values[:, : table.dim], values[:, table.dim :]

    async def set_rows(self, name: str, ids: Ids, weights: Floats, state: Floats | None) -> None:
        """Rows become these, bit by bit, lost ones too; state: None: the initial one. Returns when
        that is acknowledged. Errors: InvalidRequest, PushIndeterminate, ShardUnavailable."""
        deadline = self._deadline()
        told = await self._fresh(deadline)
        table = told.usable.table(name)
        payload = table.whole(weights, state)
        parts: Parts = {}
        for one in told.usable.locate(name, check_ids(table, ids)):
            part = Part(one.block, one.rows, payload[one.where])
            parts.setdefault(told.catalogue.layout.shard_of(*one.block), []).append(part)
        check_sizes(parts, self._message_bytes_max)
        with self._setter.step() as who:
            await self._pusher.push(told, who, parts, deadline, None)

    async def load(self, name: str, weights: Floats, state: Floats | None = None) -> None:
        """Replace all rows of a table, a few thousand at a time. Errors: as `set_rows`."""
        table = await self.table(name)
        table.whole(weights[:0], None if state is None else state[:0])
        if len(weights) != table.rows or (state is not None and len(state) != table.rows):
            raise InvalidRequest(f"table {name!r} has {table.rows} rows, not {len(weights)}")
        rows = _rows_at_once(table)
        for first in range(0, table.rows, rows):
            some = slice(first, min(first + rows, table.rows))
            ids = np.arange(some.start, some.stop)
            await self.set_rows(name, ids, weights[some], None if state is None else state[some])

    async def _push(self, step: int, parts: Parts) -> None:
        deadline = self._deadline()
        who = Who(self._worker, step, self._floor, self._process)
        await self._pusher.push(await self._fresh(deadline), who, parts, deadline, self._session)

    def _floor(self) -> int:
        return self._flight.floor()

    async def _tell_floor(self, session: Session) -> None:
        """A new agent learns from it which steps were acknowledged: see `gate`."""
        while True:
            await asyncio.sleep(TELL_FLOOR_S)
            told, floor = self._maps.latest, self._floor()
            if told is not None and floor > 0:
                await self._pusher.tell_floor(told, session, floor, self._process)

    # --- time

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s

    def _latest(self) -> Told:
        assert self._maps.latest is not None
        return self._maps.latest

    async def _fresh(self, deadline: float) -> Told:
        return await self._maps.fresh(deadline)


def _rows_at_once(table: Table) -> int:
    """Of a table that is read or set as a whole."""
    return max(1, min(EXPORT_ROWS, EXPORT_BYTES // table.width))
