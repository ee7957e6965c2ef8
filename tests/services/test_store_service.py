"""proa.api.v1.EmbeddingStore over gRPC, for callers that have no map: rows, flush, export."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import pytest_asyncio

from fakes.valkey import Valkey, free_port
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.rpc import connect
from proa.store.agent import serve_agent
from proa.store.coordinator import serve_coordinator
from proa.store.optimisers import SGD, LazyAdam
from proa.store.peer import AgentService
from proa.store.protocol.actions import Phase
from proa.store.protocol.layout import Block
from proa.store.protocol.owned import Owned, OwnerState, Peer
from proa.store.settings import AgentSettings, CoordinatorSettings
from proa.store.tables import Table
from proa.store.wire_tables import table_to_proto

TABLE = Table("t", rows=6000, dim=64, optimiser=SGD(1.0))
WIDE = Table("wide", rows=70, dim=8192, optimiser=LazyAdam())
MESSAGE_BYTES = 1 << 20
SHARDS = 2

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Store:
    """k = 1, r = 1 on two shards, in this process. agents: their tasks."""

    stub: store_pb2_grpc.EmbeddingStoreStub
    agents: list[asyncio.Task[None]]

    async def pull(self, ids: np.ndarray, table: Table = TABLE) -> np.ndarray:
        request = store_pb2.PullRequest(table=table.name, ids=ids.astype("<i8").tobytes())
        found = await self.stub.Pull(request, timeout=20)
        return np.frombuffer(found.weights, "<f4").reshape(len(ids), table.dim)

    async def push(self, step: int, ids: np.ndarray, value: float, **more: int) -> None:
        await self.stub.Push(gradients(step, ids, value, **more), timeout=20)


def gradients(
    step: int, ids: np.ndarray, value: float, *, worker: int = 7, floor: int = 0
) -> store_pb2.PushRequest:
    values = np.full((len(ids), TABLE.dim), value, "<f4")
    table = store_pb2.TableGradients(
        table=TABLE.name, ids=ids.astype("<i8").tobytes(), gradients=values.tobytes()
    )
    return store_pb2.PushRequest(worker=worker, step=step, floor=floor, tables=[table])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store() -> AsyncIterator[Store]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # short: for sockets
        servers = [stack.enter_context(Valkey(folder / f"v{n}")) for n in range(SHARDS)]
        agents = [free_port() for _ in servers]
        address = f"127.0.0.1:{free_port()}"
        shards = ",".join(
            f"127.0.0.1:{port}|{server.path}@node-{port}"
            for port, server in zip(agents, servers, strict=True)
        )
        coordinator = CoordinatorSettings(
            shards=shards, state=str(folder / "state.json"), k=1, r=1, host="127.0.0.1",
            port=int(address.rpartition(":")[2]), admin_port=0, message_bytes_max=MESSAGE_BYTES,
            grace_s=0.0,
        )  # fmt: skip
        tasks = [asyncio.create_task(serve_coordinator(coordinator))]
        for shard, (port, server) in enumerate(zip(agents, servers, strict=True)):
            settings = AgentSettings(
                shard=shard, coordinator=address, host="127.0.0.1", port=port, admin_port=0,
                server=str(server.path), grace_s=0.0,
            )  # fmt: skip
            tasks.append(asyncio.create_task(serve_agent(settings)))
        try:
            async with connect(address, message_bytes_max=64 << 20) as channel:
                stub = store_pb2_grpc.EmbeddingStoreStub(channel)
                for table in (TABLE, WIDE):
                    request = store_pb2.CreateTableRequest(table=table_to_proto(table))
                    await stub.CreateTable(request, timeout=30, wait_for_ready=True)
                yield Store(stub, tasks[1:])
        finally:
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=30)
            for task in left:
                task.print_stack()
            assert not left


def refused(code: grpc.StatusCode, match: str) -> pytest.RaisesExc[grpc.aio.AioRpcError]:
    return pytest.RaisesExc(
        grpc.aio.AioRpcError, check=lambda exc: exc.code() is code, match=f"(?s){match}"
    )


# --- rows


async def test_ids_come_in_any_order_and_more_than_once(store: Store):
    ids = np.array([5, 3, 3, 5999, 0, 5, 3])
    found = await store.pull(ids)
    assert (found == TABLE.init.weights(TABLE.name, ids, TABLE.dim)).all()
    assert (await store.pull(np.array([], np.int64))).shape == (0, TABLE.dim)


@pytest.mark.parametrize("bad", [6000, -1, 1 << 31])
async def test_an_id_that_is_none_is_named(store: Store, bad: int):
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"id {bad} is not 0 to 5999"):
        await store.pull(np.array([1, bad, 1]))


async def test_an_answer_above_the_limit_is_refused_and_the_limit_named(store: Store):
    most = (MESSAGE_BYTES - 1024) // (4 * TABLE.dim)
    assert len(await store.pull(np.arange(most))) == most
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"more than the {most} that fit a message of {MESSAGE_BYTES} bytes",
    ):
        await store.pull(np.arange(most + 1))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(MESSAGE_BYTES)):
        await store.pull(np.zeros(MESSAGE_BYTES // 8, np.int64))


async def test_a_push_is_applied_once_however_often_it_comes(store: Store):
    ids = np.array([4000, 10, 2])
    before = await store.pull(ids)
    for _ in range(3):
        await store.push(0, ids, 1.0)
    await store.push(1, ids, 1.0, floor=1)
    assert (await store.pull(ids) == before - 1 - 1).all()


async def test_what_is_no_push_is_refused_whole(store: Store):
    ids = np.array([100, 101])
    before = await store.pull(ids)
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    with refused(invalid, "comes twice"):
        await store.push(0, np.array([100, 100]), 1.0, worker=8)
    with refused(invalid, "100"):
        await store.push(0, ids, float("nan"), worker=8)
    with refused(invalid, "floor = 3"):
        await store.push(2, ids, 1.0, worker=8, floor=3)
    twice = gradients(0, ids, 1.0, worker=8)
    twice.tables.append(twice.tables[0])
    with refused(invalid, "'t' comes twice"):
        await store.stub.Push(twice, timeout=20)
    short = gradients(0, ids, 1.0, worker=8)
    short.tables[0].gradients = short.tables[0].gradients[:-4]
    with refused(invalid, "not fp32 of 2 rows"):
        await store.stub.Push(short, timeout=20)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(MESSAGE_BYTES)):
        await store.push(0, np.arange(6000), 1.0, worker=8)
    assert (await store.pull(ids) == before).all()


# --- export


async def exported(store: Store, table: Table, **request: int) -> list[store_pb2.ExportChunk]:
    call = store.stub.Export(store_pb2.ExportRequest(table=table.name, **request), timeout=30)
    return [chunk async for chunk in call]


async def test_rows_are_exported_in_order_with_their_state_if_asked(store: Store):
    chunks = await exported(store, TABLE, begin=5, end=5000)
    weights = np.concatenate([np.frombuffer(c.weights, "<f4") for c in chunks])
    expected = [
        await store.pull(np.arange(at, min(at + 1000, 5000))) for at in range(5, 5000, 1000)
    ]
    assert (weights.reshape(-1, TABLE.dim) == np.concatenate(expected)).all()
    assert chunks[0].first_id == 5
    assert not any(chunk.state for chunk in chunks)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "6000 rows"):
        await exported(store, TABLE, begin=5, end=6001)


async def test_rows_too_long_for_one_message_are_exported_in_more(store: Store):
    chunks = await exported(store, WIDE, state=True)
    assert len(chunks) > 1
    assert max(chunk.ByteSize() for chunk in chunks) <= MESSAGE_BYTES
    firsts = np.cumsum([0] + [len(chunk.weights) // (4 * WIDE.dim) for chunk in chunks])
    assert [chunk.first_id for chunk in chunks] == firsts[:-1].tolist()
    assert firsts[-1] == WIDE.rows
    assert sum(len(chunk.state) for chunk in chunks) == WIDE.rows * (WIDE.width - 4 * WIDE.dim)


# --- flush


async def test_a_flush_returns_while_others_push(store: Store):
    stop = asyncio.Event()

    async def push(worker: int) -> None:
        step = 0
        while not stop.is_set():
            await store.push(step, np.arange(20), 0.0, worker=worker, floor=step)
            step += 1

    tasks = [asyncio.create_task(push(100 + number)) for number in range(3)]
    try:
        for _ in range(5):
            await store.stub.Flush(store_pb2.FlushRequest(), timeout=20)
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_shard_has_flushed_when_parity_has_what_was_written_at_the_call():
    """Its outbox is never empty: somebody pushes all the time."""
    owned = Owned(Block(0, 0), epoch=1, version=5, durable=5)
    owned.peers[1] = peer = Peer(term=1, base=0, acked=4, sent=5, sent_at=0.0)
    state = OwnerState.__new__(OwnerState)
    state.blocks = state.busy = {owned.block: owned}
    agent = SimpleNamespace(phase=Phase.OPEN, owner=SimpleNamespace(state=state))
    shell = SimpleNamespace(agent=agent, shard=0, receive=None, push=None)
    service = AgentService.__new__(AgentService)
    service._shell = shell
    flush = asyncio.create_task(service.Flush(store_pb2.FlushRequest(), None))
    for _ in range(3):
        await asyncio.wait([flush], timeout=0.05)
        assert not flush.done()
        owned.version += 1
    peer.acked = 5
    await asyncio.wait_for(flush, 10)
    assert owned.watermark() < owned.version


async def test_a_shard_that_does_not_answer_has_not_flushed(store: Store):
    """The last one: the store is not whole after it."""
    store.agents[1].cancel()
    await asyncio.gather(store.agents[1], return_exceptions=True)
    with refused(grpc.StatusCode.UNAVAILABLE, "shard 1 is not on its parity"):
        await store.stub.Flush(store_pb2.FlushRequest(), timeout=3)
