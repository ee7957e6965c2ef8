"""Pushes to a shard's agent that is stopped in the midst of one, and what its rows are then."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc.aio
import numpy as np
import redis

from fakes.real_store import Model
from fakes.store_successor import Succession
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.store import wire
from proa.store.client import StoreClient
from proa.store.disk.commands import rows_key
from proa.store.optimisers import RowWiseAdagrad
from proa.store.protocol import messages as ms
from proa.store.protocol.layout import Block
from proa.store.pushing import parts_of
from proa.store.tables import Table

SHARD = 1
_workers = itertools.count(1000)


async def filled(client: StoreClient) -> Model:
    """A table all of whose rows were pushed to once."""
    model = Model(Table("t", 600, 8, RowWiseAdagrad(0.05)))
    await client.create_table(model.table)
    await step(client, model, np.arange(600))
    return model


async def step(client: StoreClient, model: Model, ids: np.ndarray) -> None:
    """One acknowledged push."""
    gradients = np.random.default_rng(model.steps).standard_normal((len(ids), 8), np.float32)
    model.push(ids, gradients)
    await client.push({"t": (ids, gradients)})
    await client.flush()
    model.ack(ids)


async def of_shard(watch: Succession) -> tuple[np.ndarray, list[Block]]:
    """The ids of the shard's rows, and its blocks."""
    told = await watch.told()
    layout = told.catalogue.layout
    found = [
        one
        for one in told.catalogue.locate("t", np.arange(600))
        if layout.shard_of(*one.block) == SHARD
    ]
    return np.sort(np.concatenate([one.where for one in found])), [one.block for one in found]


async def begun(watch: Succession, ids: np.ndarray) -> asyncio.Task[str]:
    """A push of these rows to the old agent alone, at its own address, in the background: what it
    answers, if it does."""
    told = await watch.told()
    epoch = told.map.shards[SHARD].epoch
    gradients = np.full((len(ids), 8), 100.0, np.float32)
    parts = parts_of(told.usable, {"t": (ids, gradients)}, everywhere=False)
    assert list(parts) == [SHARD]
    push = ms.Push(next(_workers), 0, 0, epoch, tuple(parts[SHARD]))
    request = store_pb2.PushBlocksRequest(push=wire.to_proto(push).push)

    async def send() -> str:
        # No pings: it waits for as long as the other side is stopped.
        async with grpc.aio.insecure_channel(watch.address_of(watch.old)) as channel:
            answer = await store_pb2_grpc.StorePeerStub(channel).PushBlocks(request, timeout=120)
            return "refused" if answer.HasField("refused") else "acknowledged"

    task = asyncio.create_task(send())
    await watch.old_stopped()
    assert not task.done()
    return task


def held(server: redis.Redis, blocks: list[Block]) -> list[Any]:
    """Every record of these blocks on a server."""
    return [server.hgetall(rows_key(block)) for block in blocks]


async def unchanged(client: StoreClient, model: Model, ids: np.ndarray) -> None:
    """These rows are what the model has, to who reads them."""
    found = await client.pull("t", ids)
    assert [one.tobytes() for one in found] == [model.values[row][-1] for row in ids]


async def unanswered(task: asyncio.Task[str]) -> None:
    """It was not acknowledged, now that who was to answer is gone."""
    (found,) = await asyncio.gather(task, return_exceptions=True)
    assert found == "refused" or isinstance(found, grpc.aio.AioRpcError)
