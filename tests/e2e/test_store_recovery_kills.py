"""Who dies while a shard is being recovered, at a known part of it; k = 4 on real processes.

Recovery is slow here (PROA_STORE_SWEEP_ROWS_PER_S_MAX), and has much to do: tables of blocks of 16
rows, so that the sweep goes in small steps. How far it is, the recovering agent's metrics say.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import pytest_asyncio

from fakes.real_store import Load, Model, started, until, until_sync
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.local.store import StoreOptions, agent_name, server_name
from proa.rpc import connect
from proa.store.client import StoreClient
from proa.store.optimisers import LazyAdam, RowWiseAdagrad
from proa.store.tables import Table

pytestmark = [
    pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module"), pytest.mark.long
]  # fmt: skip

SLOW = {"PROA_STORE_SWEEP_ROWS_PER_S_MAX": "150"}
PENDING = "proa_store_rows_pending"
FIRST, SECOND = 1, 3
ROWS, TABLES, BLOCK = 128, 24, 16  # 2 data blocks of each table on every shard
LAST_PACE = 30  # rows/s, near the end: half a second for each of the last blocks
BOUND_S = 60.0


class Slow:
    """A store of k = 2, r = 2 on four shards that recovers slowly, and the models of its tables."""

    def __init__(self, watch, models):
        self.watch, self.models = watch, models

    async def pending(self, shard):
        return await self.watch.metric(shard, PENDING)

    async def at_most(self, shard, rows):
        """Wait until no more are pending; how many are."""

        async def is_so():
            return await self.pending(shard) <= rows

        await until(is_so, BOUND_S)
        return await self.pending(shard)

    async def lost(self, *shards):
        """The servers of these died at once; how many rows the first one's successor began with."""
        epochs = await self.watch.epochs()
        for shard in shards:
            self.watch.supervisor.kill(server_name(shard))
        for shard in shards:
            await self.watch.epoch_after(shard, epochs[shard])
        await until(lambda: self.pending(shards[0]), BOUND_S)
        return await self.pending(shards[0])

    async def paced(self, shard, rows_per_s_max):
        """One shard's recovery goes at this pace for a while."""
        specs = self.watch.running.topology.processes
        port = next(spec.port for spec in specs if spec.name == agent_name(shard))
        async with connect(f"127.0.0.1:{port}", message_bytes_max=1 << 20) as channel:
            request = store_pb2.PaceRequest(rows_per_s_max=rows_per_s_max, lease_ms=60_000)
            await store_pb2_grpc.StorePeerStub(channel).Pace(request, timeout=20)

    async def killed(self, shard, names):
        """These died; how many rows were pending at that moment. Returns when they are back."""
        watch = self.watch
        before, epochs = self.processes(), await watch.epochs()
        assert all(before[name] for name in names)
        pending = await self.pending(shard)
        for name in names:
            watch.supervisor.kill(name)
        await until_sync(lambda: all(self.processes()[n] not in (None, before[n]) for n in names))
        for one, epoch in epochs.items():
            if agent_name(one) in names or server_name(one) in names:
                await watch.epoch_after(one, epoch)
        return pending

    def processes(self):
        """Of all that run: an agent is not ready while its shard is recovered."""
        return {status.name: status.pid for status in self.watch.supervisor.status()}

    async def quickly(self):
        """The rest of a recovery, without the limit."""
        async with connect(self.watch.address, message_bytes_max=1 << 20) as channel:
            request = store_pb2.RecoverRequest(rows_per_s_max=1_000_000)
            call = store_pb2_grpc.EmbeddingStoreStub(channel).Recover(request, timeout=90)
            progress = [one async for one in call]
        assert progress[-1].done
        assert (progress[-1].rows_pending, progress[-1].rows_lost) == (0, 0)

    async def check(self):
        """Every byte of every table."""
        async with StoreClient(self.watch.address, timeout_s=60) as client:
            for model in self.models:
                stored = await client.stored(model.table.name, np.arange(model.table.rows))
                assert (stored == model.stored).all(), model.table.name
        await self.watch.check(self.models[0])


async def pushed(client, models, seed):
    """One acknowledged step to all rows of these tables."""
    random, step = np.random.default_rng(seed), {}
    for model in models:
        ids = np.arange(model.table.rows)
        gradients = random.standard_normal((len(ids), model.table.dim), np.float32)
        model.push(ids, gradients)
        step[model.table.name] = (ids, gradients)
    await client.push(step)
    await client.flush()
    for model in models:
        model.ack(np.arange(model.table.rows))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sr")
    env = dict.fromkeys(range(4), SLOW)
    options = StoreOptions(folder, port=0, admin_port=0, r=2, shards=4, agent_env=env)
    async with started(options) as watch:
        tables = [Table(f"t{n}", ROWS, 8, RowWiseAdagrad(0.05)) for n in range(TABLES)]
        async with StoreClient(watch.address, timeout_s=60) as client:
            await asyncio.gather(*map(client.create_table, tables))
            models = [Model(table) for table in tables]
            await pushed(client, models, 0)
        yield Slow(watch, models)


SERVERS = {
    "other": (server_name(SECOND),),
    "itself": (server_name(FIRST),),
    "both": (server_name(FIRST), server_name(SECOND)),
    "agent": (agent_name(FIRST),),
    "both agents": (agent_name(FIRST), agent_name(SECOND)),
}


@pytest.mark.parametrize(
    ("share", "who"),
    [
        *((share, who) for share in (0.01, 0.25, 0.5, 0.99) for who in ("other", "both")),
        *((0.5, who) for who in ("itself", "agent", "both agents")),
        (0.99, "itself"),
    ],
)
async def test_who_dies_during_a_recovery(slow, share, who):
    """share: of the recovery that is done by then; 0.99: all but the last block."""
    async with Load(slow.watch.address, slow.models[0]) as load:
        await load.steps(10)
        whole = await slow.lost(FIRST)
        assert whole > ROWS * TABLES / 5  # one of four shards
        if share == 0.99:
            await slow.at_most(FIRST, 0.1 * whole)
            await slow.paced(FIRST, LAST_PACE)
        most = BLOCK if share == 0.99 else (1 - share) * whole
        await slow.at_most(FIRST, most)
        before = await slow.killed(FIRST, SERVERS[who])
        assert 0 < before <= most
        assert share == 0.99 or before > most - 0.2 * whole, "it was further"
        await load.steps(10)
        await slow.quickly()
        await load.steps(10)
    await slow.check()


async def test_both_die_at_once_and_then_again_one_and_both(slow):
    """What a recovery has done is gone, over and over, before any of them is over."""
    async with Load(slow.watch.address, slow.models[0]) as load:
        whole = await slow.lost(FIRST, SECOND)
        for shards in ((FIRST,), (SECOND,), (FIRST, SECOND), (SECOND, FIRST)):
            assert await slow.at_most(shards[0], 0.9 * whole) > 0
            assert await slow.pending(FIRST) > 0
            assert await slow.pending(SECOND) > 0
            assert await slow.lost(*shards) > 0
        await load.steps(10)
        await slow.quickly()
    await slow.check()


async def test_with_stripes_of_four(tmp_path_factory):
    """k = 4, r = 1 on six shards: a server, an agent, and a server during its recovery."""
    folder = tmp_path_factory.mktemp("k4")
    env = dict.fromkeys(range(6), SLOW)
    options = StoreOptions(folder, port=0, admin_port=0, k=4, r=1, shards=6, agent_env=env)
    async with started(options) as watch:
        model = Model(Table("t", 4000, 8, LazyAdam(0.02)))
        async with StoreClient(watch.address, timeout_s=60) as client:
            await client.create_table(model.table)
            await pushed(client, [model], 1)
        async with Load(watch.address, model) as load:
            await load.steps(20)
            await watch.killed(server_name(2))
            assert await watch.metric(2, PENDING) > 0
            await load.steps(20)
            # The same shard: one loss is all that r = 1 bears.
            await watch.killed(server_name(2))
            assert await watch.metric(2, PENDING) > 0
            await load.steps(20)
            await watch.whole()
            await watch.killed(agent_name(4))
            await load.steps(10)
        await watch.check(model)
        assert await watch.audit() == (await watch.told()).catalogue.layout.stripes
