"""A real store under load, and a model of its tables that nothing may differ from by a bit.

Every row has one writer, which knows all values the row ever had: the same `Table.update` as the
owners', on a copy. So it is known what a row may be at any time: after its last acknowledged value,
before its last pushed one, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import reduce
from typing import Any

import numpy as np
import redis

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.local.processes import Limits, State
from proa.local.store import (
    RunningStore,
    StoreOptions,
    agent_name,
    embedded_store,
    server_name,
)
from proa.rpc import connect
from proa.store.client import StoreClient
from proa.store.gf256 import TABLE, Bytes, coefficient
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.layout import Block
from proa.store.protocol.storage import BlockView, StripeView
from proa.store.redis_disk import RedisViews
from proa.store.tables import Table
from proa.store.told import Told, ask, server_at
from proa.store.valkey import socket_of

QUICK = Limits(backoff_s_max=0.3)
PACE_S = 0.01
WHOLE_S = 90.0


class Model:
    """One table as its writers made it. `pushed`, `acked`: how many values each row has had."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.stored = np.zeros((table.rows, table.width), np.uint8)
        self.values: list[list[bytes]] = [
            [one.tobytes()] for one in table.weights(np.arange(table.rows), self.stored)
        ]
        self.acked = np.zeros(table.rows, np.int64)
        self.steps = 0

    def push(self, ids: np.ndarray, gradients: np.ndarray) -> None:
        """These rows have been sent."""
        table = self.table
        self.stored[ids] = table.update(ids, self.stored[ids], gradients.view(np.uint8))
        for row, weights in zip(ids.tolist(), table.weights(ids, self.stored[ids]), strict=True):
            self.values[row].append(weights.tobytes())

    def ack(self, ids: np.ndarray) -> None:
        """They have come back as acknowledged."""
        self.acked[ids] = [len(self.values[row]) - 1 for row in ids.tolist()]
        self.steps += 1


class Load:
    """Writers and a reader of one table, from `start` until `stop`."""

    def __init__(self, address: str, model: Model, *, writers: int = 2, seed: int = 0) -> None:
        self.model = model
        self._address, self._writers, self._seed = address, writers, seed
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.reads = 0

    async def __aenter__(self) -> Load:
        self._tasks = [
            *(asyncio.create_task(self._write(number)) for number in range(self._writers)),
            asyncio.create_task(self._read()),
        ]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Every push is acknowledged when this returns."""
        self._stop.set()
        found = await asyncio.gather(*self._tasks, return_exceptions=True)
        errors = [error for error in found if isinstance(error, BaseException)]
        if errors:
            raise errors[0]

    async def steps(self, count: int) -> None:
        """Wait until `count` more were acknowledged and as many reads answered."""
        end, reads = self.model.steps + count, self.reads + count // 4
        await self.until(lambda: self.model.steps >= end and self.reads >= reads)

    async def until(self, condition: Callable[[], object], timeout_s: float = WHOLE_S) -> None:
        """Wait, as long as no writer fails."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def _write(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        model, table = self.model, self.model.table
        own = np.arange(number, table.rows, self._writers)
        async with StoreClient(self._address, timeout_s=60.0) as client:
            while not self._stop.is_set():
                ids = rng.choice(own, rng.integers(1, 24), replace=False)
                gradients = rng.standard_normal((len(ids), table.dim), np.float32)
                model.push(ids, gradients)
                await client.push({table.name: (ids, gradients)})
                await client.flush()
                model.ack(ids)
                await asyncio.sleep(PACE_S)

    async def _read(self) -> None:
        rng = np.random.default_rng([self._seed, 99])
        model, table = self.model, self.model.table
        async with StoreClient(self._address, timeout_s=60.0) as client:
            while not self._stop.is_set():
                ids = rng.choice(table.rows, 16, replace=False)
                least = model.acked[ids]
                found = await client.pull(table.name, ids)
                for row, low, weights in zip(ids.tolist(), least.tolist(), found, strict=True):
                    may = model.values[row][low:]
                    assert weights.tobytes() in may, f"row {row}: none of its values since {low}"
                self.reads += 1
                await asyncio.sleep(PACE_S)


@contextlib.asynccontextmanager
async def started(options: StoreOptions) -> AsyncIterator[Watch]:
    """A store whose processes are all ready; what they said last is printed."""
    lines: list[str] = []

    def sink(name: str, line: str) -> None:
        if not name.startswith("valkey"):
            lines.append(f"{name} | {line}")

    async with embedded_store(options, sink=sink, limits=QUICK) as running:
        watch = Watch(running, lines)
        try:
            await running.supervisor.ready()
            yield watch
        finally:
            print("\n".join(lines[-150:]))
            await watch.close()


class Watch:
    """Looks at a running store from outside."""

    def __init__(self, running: RunningStore, lines: list[str]) -> None:
        self.running, self.lines = running, lines
        self.supervisor = running.supervisor
        self.address = running.topology.address
        self._channel = connect(self.address, message_bytes_max=8 << 20)

    async def close(self) -> None:
        await self._channel.close()

    async def report(self) -> store_pb2.StoreReport:
        """What `proa store status` shows."""
        call = store_pb2_grpc.EmbeddingStoreStub(self._channel).Status(
            store_pb2.StoreStatusRequest(), timeout=10
        )
        try:
            return await call.read()
        finally:
            call.cancel()

    async def told(self) -> Told:
        return await ask(lambda *_: self._channel, self.address, None)  # type: ignore[arg-type]

    async def map(self) -> ClusterMap:
        return (await self.told()).map

    async def whole(self, *, but_lost: bool = False) -> store_pb2.StoreReport:
        """Wait until all shards are open and nothing is behind, nor to be decoded."""
        report = None

        async def is_whole() -> bool:
            nonlocal report
            try:
                report = await self.report()
            except Exception:  # noqa: BLE001  # the coordinator is down: not whole
                return False
            return all(
                s.state == "open"
                and not (s.rows_pending or s.outbox)
                and (but_lost or not (s.parity_incomplete or s.rows_lost))
                for s in report.shards
            )

        try:
            await until(is_whole)
        except TimeoutError:
            raise AssertionError(f"not whole: {report}") from None
        assert report is not None
        return report

    def server(self, shard: int) -> redis.Redis:
        """For what a test wants to set or spoil."""
        path = socket_of(self.running.topology.directories[shard])
        return redis.Redis(unix_socket_path=str(path), socket_timeout=20)

    async def metric(self, shard: int, name: str) -> float:
        """A number that the shard's agent exports; `name` with its labels."""
        specs = self.running.topology.processes
        port = next(spec.admin_port for spec in specs if spec.name == agent_name(shard))

        def get() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                return str(page.read().decode())

        lines = (await asyncio.to_thread(get)).splitlines()
        return next((float(x.rpartition(" ")[2]) for x in lines if x.startswith(name + " ")), 0.0)

    def pid(self, name: str) -> int | None:
        status = next(p for p in self.supervisor.status() if p.name == name)
        return status.pid if status.state is State.READY else None

    async def killed(self, *names: str) -> None:
        """kill -9 to all of these at once; returns when they are back and hold their shards."""
        before = {name: self.pid(name) for name in names}
        epochs = await self.epochs()
        for name in names:
            self.supervisor.kill(name)
        await until_sync(lambda: all(self.pid(name) not in (None, before[name]) for name in names))
        for shard, epoch in epochs.items():
            if agent_name(shard) in names or server_name(shard) in names:
                await self.epoch_after(shard, epoch)

    async def epochs(self) -> dict[int, int]:
        return {shard: entry.epoch for shard, entry in (await self.map()).shards.items()}

    async def epoch_after(self, shard: int, epoch: int) -> None:
        """Wait until somebody was granted the shard after `epoch`."""

        async def is_granted() -> bool:
            try:
                entry = (await self.map()).shards[shard]
            except Exception:  # noqa: BLE001  # the coordinator is down
                return False
            return entry.up and entry.epoch > epoch

        await until(is_granted)

    # --- what it holds

    async def check(self, model: Model) -> None:
        """Every byte is the model's, read through the client and on the disks with their parity."""
        await self.whole()
        async with StoreClient(self.address) as client:
            ids = np.arange(model.table.rows)
            deadline = asyncio.get_running_loop().time() + 30
            stored = await client.pull_stored(model.table.name, ids, deadline)
        wrong = np.flatnonzero((stored != model.stored).any(axis=1))
        assert not len(wrong), f"{len(wrong)} rows are not the model's: {wrong[:8]}"
        await self.audit()

    async def audit(self) -> int:
        """Parity on the disks is that of the data on the disks; how many stripes have data."""
        told = await self.told()
        layout = told.catalogue.layout
        disks = RedisViews({s: server_at(told.servers[s]) for s in told.map.shards}, lambda: layout)
        try:
            stripes = [await _blocks(disks, told, stripe) for stripe in range(layout.stripes)]
        finally:
            await disks.close()
        for stripe, blocks in enumerate(stripes):
            for row in range(layout.r):
                want = reduce(
                    np.bitwise_xor,
                    (TABLE[coefficient(row, i)][blocks[i]] for i in range(layout.k)),
                )
                held = blocks[layout.k + row]
                assert (held == want).all(), f"stripe {stripe}: parity {row} is not its data's"
        return sum(any(one.any() for one in blocks) for blocks in stripes)


async def _blocks(disks: RedisViews, told: Told, stripe: int) -> list[Bytes]:
    """All blocks of a stripe, data first."""
    layout, found = told.catalogue.layout, []
    rows = np.arange(layout.extent_of(stripe).rows)
    for position in range(layout.k + layout.r):
        block = Block(stripe, position)
        shard = layout.shard_of(stripe, position)
        view = await disks.view(shard, told.map.shards[shard].disk, block, rows)
        assert isinstance(view, BlockView | StripeView), f"{block} is not on shard {shard}"
        assert not view.missing, f"{block}: rows {sorted(view.missing)} are not there"
        found.append(view.data)
    return found


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = WHOLE_S) -> None:
    """Wait until it is true. Errors: TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(0.05)


async def until_sync(condition: Callable[[], object], timeout_s: float = WHOLE_S) -> None:
    """The same for a condition that needs no waiting."""

    async def held() -> Any:
        return condition()

    await until(held, timeout_s)
