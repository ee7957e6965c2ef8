"""A store under measurement: what its processes cost, rows straight from its servers, loads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import redis.asyncio as redis

from proa.api.v1 import store_pb2
from proa.demo.store.watch import Watch
from proa.local.store import RunningStore, StoreOptions, agent_name, embedded_store, server_name
from proa.rpc import Channels
from proa.store import wire
from proa.store.client import StoreClient
from proa.store.disk.commands import fields, rows_key
from proa.store.initial import Floats, Ids
from proa.store.optimisers import RowWiseAdagrad
from proa.store.protocol import messages as ms
from proa.store.protocol.log import Entry, Mark
from proa.store.pushing import parts_of
from proa.store.tables import Catalogue, Located, Table
from proa.store.told import ask
from proa.store.valkey import socket_of

Batch = tuple[Ids, Floats]

DIM = 64
ROWS_PER_CALL = 1000
FILL_ROWS = 4000
TABLE = "measured"
SWEEP = "PROA_STORE_SWEEP_ROWS_PER_S_MAX"
WHOLE_S_MAX = 600.0
CALL_S_MAX = 300.0  # a busy machine, and a shard that is dead for a while


def cpu_s(pid: int) -> float:
    """Time on a CPU of all threads of a process, seconds."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread ended
            total += int(path.read_text(encoding="utf-8").split()[0])
    return total / 1e9


class System:
    """One running store with one full table."""

    def __init__(
        self, running: RunningStore, client: StoreClient, catalogue: Catalogue, watch: Watch
    ) -> None:
        self.running, self.client, self.watch = running, client, watch
        self.catalogue, self.table = catalogue, catalogue.table(TABLE)
        self.raw = [
            redis.Redis(unix_socket_path=str(socket_of(directory)))
            for directory in running.topology.directories
        ]

    def used(self) -> float:
        """CPU seconds of coordinator, agents and servers so far."""
        return sum(
            cpu_s(one.pid) for one in self.running.supervisor.status() if one.pid is not None
        )

    async def close(self) -> None:
        for one in self.raw:
            await one.aclose()

    def located(self, ids: Ids) -> dict[int, list[Located]]:
        """Where the rows are, by shard."""
        found: dict[int, list[Located]] = {}
        for one in self.catalogue.locate(TABLE, ids):
            found.setdefault(self.catalogue.layout.shard_of(*one.block), []).append(one)
        return found

    # --- the same rows without the store

    async def raw_pull(self, ids: Ids) -> Floats:
        """HMGET on the hashes of the store, one pipeline per server: float32 [ids, floats]."""
        table = np.empty((len(ids), self.table.width // 4), np.float32)

        async def one(shard: int, some: list[Located]) -> None:
            pipe = self.raw[shard].pipeline(transaction=False)
            for part in some:
                pipe.hmget(rows_key(part.block), fields(part.rows))
            for part, records in zip(some, await pipe.execute(), strict=True):
                whole = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
                table[part.where] = np.ascontiguousarray(whole[:, : self.table.width]).view("<f4")

        await asyncio.gather(*(one(shard, some) for shard, some in self.located(ids).items()))
        return table

    async def raw_push(self, ids: Ids, values: Floats) -> None:
        """HSET of as many bytes to hashes like those of the store, of another name."""

        async def one(shard: int, some: list[Located]) -> None:
            pipe = self.raw[shard].pipeline(transaction=False)
            for part in some:
                raw, size = values[part.where].tobytes(), values.shape[1] * 4
                rows = (raw[at : at + size] for at in range(0, len(raw), size))
                pairs = dict(zip(fields(part.rows), rows, strict=True))
                pipe.hset(b"raw:" + rows_key(part.block), mapping=pairs)
            await pipe.execute()

        await asyncio.gather(*(one(shard, some) for shard, some in self.located(ids).items()))

    async def forget_raw(self) -> None:
        for one in self.raw:
            async for key in one.scan_iter(match="raw:*", count=1000):
                await one.unlink(key)

    async def memory(self) -> int:
        """Bytes that all servers use."""
        return sum([int((await one.info("memory"))["used_memory"]) for one in self.raw])

    # --- sizes

    def push_bytes(self, ids: Ids, gradients: Floats) -> tuple[int, int]:
        """Of one push: bytes of the messages to the owners, and of those to the parities, as they
        are serialised; acknowledgements and what agents say to their servers are not in it."""
        parts = parts_of(self.catalogue, {TABLE: (ids, gradients)}, everywhere=False)
        to_owners = to_parities = 0
        for some in parts.values():
            push = ms.Push(1, 1, 0, 1, tuple(some))
            request = store_pb2.PushBlocksRequest(push=wire.to_proto(push).push)
            to_owners += request.ByteSize()
            for part in some:
                # The change of the whole record, optimiser state included.
                change = np.zeros((len(part.rows), self.table.width), np.uint8)
                entry = Entry(1, 2, part.rows, change, (Mark(1, 1, 0),))
                delta = ms.Delta(part.block, self.catalogue.k, 1, 1, entry, 1)
                to_parities += self.catalogue.r * wire.to_proto(delta).ByteSize()
        return to_owners, to_parities


@contextlib.asynccontextmanager
async def system(
    *, k: int, r: int, shards: int, rows: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[System]:
    """A store whose table of `rows` rows was written from end to end."""
    env = {shard: dict(environment or {}) for shard in range(shards)}
    with tempfile.TemporaryDirectory(prefix="proa-bench-") as folder:
        options = StoreOptions(
            run_dir=Path(folder), port=0, admin_port=0, k=k, r=r, shards=shards, agent_env=env
        )
        async with embedded_store(options) as running:
            await running.supervisor.ready()
            table = Table(TABLE, rows, DIM, RowWiseAdagrad(0.05))
            watch = Watch(running.topology.address)
            watching = asyncio.create_task(watch.run())
            async with StoreClient(running.topology.address, timeout_s=CALL_S_MAX) as client:
                await client.create_table(table)
                channels = Channels(message_bytes_max=16 << 20)
                told = await ask(channels, running.topology.address, None)
                await channels.close()
                found = System(running, client, told.catalogue, watch)
                try:
                    await _fill(client, rows)
                    yield found
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                    await found.close()


async def _fill(client: StoreClient, rows: int) -> None:
    draw = np.random.default_rng(0)
    for first in range(0, rows, FILL_ROWS):
        ids = np.arange(first, min(first + FILL_ROWS, rows))
        await client.push({TABLE: (ids, gradients(draw, len(ids)))})
    await client.flush()


def gradients(draw: np.random.Generator, count: int) -> Floats:
    return (0.01 * draw.standard_normal((count, DIM))).astype(np.float32)


def batches(rows: int, count: int, seed: int) -> list[Batch]:
    """Ids of so many calls: 1,000 different ones each, uniformly chosen, and their gradients."""
    draw = np.random.default_rng((1, seed))
    size = min(ROWS_PER_CALL, rows)
    chosen = [np.sort(draw.choice(rows, size, replace=False)) for _ in range(count)]
    return [(ids, gradients(draw, size)) for ids in chosen]


@dataclass
class Load:
    """Pull, then push, again and again until told to end. `acked`: (when, rows) of each push.
    pause_s: after each step, for what a trainer computes elsewhere."""

    system: System
    work: list[Batch]
    pause_s: float = 0.0
    acked: list[tuple[float, int]] = field(default_factory=list)
    rounds: int = 0
    _ends: bool = False

    async def run(self) -> None:
        while not self._ends:
            await self.once(self.rounds)
            self.rounds += 1
            await asyncio.sleep(self.pause_s)
        await self.system.client.flush()

    async def once(self, number: int) -> None:
        """One step: its rows are pulled, changed, acknowledged."""
        ids, values = self.work[number % len(self.work)]
        client = self.system.client
        await client.pull(TABLE, ids)
        await client.push({TABLE: (ids, values)})
        await client.flush()
        self.acked.append((time.monotonic(), len(ids)))

    def end(self) -> None:
        self._ends = True

    def rate(self, begin: float, end: float) -> float:
        """Rows a second that were acknowledged in a time."""
        rows = sum(count for at, count in self.acked if begin < at <= end)
        return rows / max(end - begin, 1e-9)

    def stall_s(self, begin: float, end: float) -> float:
        """The longest time in which nothing was."""
        at = [begin, *(one for one, _ in self.acked if begin < one <= end), end]
        return max(b - a for a, b in itertools.pairwise(at))


def kill(found: System, shard: int) -> float:
    """SIGKILL to a shard's server and agent. When."""
    found.watch.lost(shard)
    found.running.supervisor.kill(server_name(shard))
    found.running.supervisor.kill(agent_name(shard))
    return time.monotonic()
