"""Faults of agents, on a real store: flipped bits, an old disk, calls that are refused."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from fakes.real_store import Load, Model, Watch, started
from proa.api.v1 import faults_pb2, faults_pb2_grpc, store_pb2, store_pb2_grpc
from proa.errors import InvalidRequest, NotSupported, Overloaded, ProaError, PushIndeterminate
from proa.local.store import StoreOptions, agent_name, server_name
from proa.rpc import connect, peer_errors
from proa.store.client import StoreClient
from proa.store.optimisers import SGD
from proa.store.tables import Table

ROWS, DIM = 200, 8
SHARD, SPARED = 1, 2

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def filled() -> AsyncIterator[tuple[Watch, Model]]:
    """A store with faults on, and a table with all its rows written."""
    model = Model(Table("t", ROWS, DIM, SGD(0.1)))
    own = {SHARD: {"PROA_STORE_GRACE_S": "90"}, SPARED: {"PROA_STORE_FAULTS": "false"}}
    with tempfile.TemporaryDirectory() as found:  # tmp_path is too long for a socket
        async with started(StoreOptions(Path(found), 0, 0, faults=True, agent_env=own)) as store:
            async with StoreClient(store.address) as client:
                await client.create_table(model.table)
                await push(client, model)
            yield store, model


@pytest.fixture
def store(filled: tuple[Watch, Model]) -> Watch:
    return filled[0]


@pytest.fixture
def model(filled: tuple[Watch, Model]) -> Model:
    return filled[1]


async def push(client: StoreClient, model: Model) -> None:
    ids, gradients = np.arange(ROWS), np.ones((ROWS, DIM), np.float32)
    model.push(ids, gradients)
    await client.push({"t": (ids, gradients)})
    await client.flush()
    model.ack(ids)


def fault(kind: int, **fields: Any) -> faults_pb2.Fault:
    return faults_pb2.Fault(**{"id": "a", "kind": kind, "ttl_ms": 60_000, **fields})


def flips(**fields: Any) -> faults_pb2.Fault:
    return fault(faults_pb2.BITFLIP, site=faults_pb2.EMBEDDING, **fields)


@contextlib.asynccontextmanager
async def injector(
    store: Watch, shard: int = SHARD
) -> AsyncIterator[faults_pb2_grpc.FaultInjectorStub]:
    specs = store.running.topology.processes
    port = next(spec.port for spec in specs if spec.name == agent_name(shard))
    async with connect(f"127.0.0.1:{port}", message_bytes_max=1 << 20) as channel:
        yield faults_pb2_grpc.FaultInjectorStub(channel)


async def inject(store: Watch, one: faults_pb2.Fault) -> list[faults_pb2.Fault]:
    """What is active there afterwards."""
    async with injector(store) as stub, peer_errors("agent"):
        return list((await stub.Inject(faults_pb2.InjectRequest(fault=one), timeout=20)).active)


async def clear(store: Watch) -> None:
    async with injector(store) as stub, peer_errors("agent"):
        await stub.Clear(faults_pb2.ClearRequest(), timeout=20)


async def scrub(store: Watch) -> tuple[store_pb2.ScrubProgress, list[store_pb2.ScrubFinding]]:
    async with connect(store.address, message_bytes_max=1 << 20) as channel:
        stub = store_pb2_grpc.EmbeddingStoreStub(channel)
        found = [one async for one in stub.Scrub(store_pb2.ScrubRequest(), timeout=60)]
    return found[-1], [finding for one in found for finding in one.findings]


async def test_flipped_bits_are_never_read_and_a_scrub_names_their_rows(store: Watch, model: Model):
    assert await inject(store, flips(bits=7, seed=3)) == [flips(bits=7, seed=3)]
    assert len(await inject(store, flips(bits=7, seed=3))) == 1  # known: not flipped again
    (line,) = [line for line in store.lines if "were flipped" in line]
    assert "7 bits of 7 rows" in line
    async with StoreClient(store.address) as client:
        for row, weights in enumerate(await client.pull("t", np.arange(ROWS))):
            assert weights.tobytes() == model.values[row][-1]
    total, findings = await scrub(store)
    found = {(one.stripe, one.position, row) for one in findings for row in one.rows}
    assert all(f"stripe {s} position {p} row {row}" in line for s, p, row in found)
    assert (total.rows_bad, len(found)) == (7, 7)
    assert {(one.kind, one.shard) for one in findings} == {("crc", SHARD)}
    await clear(store)
    assert (await scrub(store))[0].rows_bad == 0
    await store.check(model)


async def test_an_old_disk_is_found_by_a_successor_and_not_served(store: Watch, model: Model):
    names = agent_name(SHARD), server_name(SHARD)
    pids = [store.pid(name) for name in names]
    told = (await store.map()).shards[SHARD]
    async with Load(store.address, model) as load:
        await load.steps(20)
        assert len(await inject(store, fault(faults_pb2.STALE_DISK))) == 1
        with pytest.raises(Overloaded, match="one copy of the disk is kept"):
            await inject(store, fault(faults_pb2.STALE_DISK, id="b"))
        await load.steps(60)
        lines = len(store.lines)
        await clear(store)
        await load.until(  # with streams of the other shards open, and no push
            lambda: all(store.pid(n) not in (None, p) for n, p in zip(names, pids, strict=True)),
            timeout_s=60,
        )
        await store.epoch_after(SHARD, told.epoch)
        await load.steps(20)
    said = [line for line in store.lines[lines:] if line.startswith(names[0])]
    assert any("its disk is an old one now" in line for line in said)
    begun = next(line for line in said if "agent starts" in line)
    assert f"stamp={told.epoch}" in begun  # of the old disk: an empty one has 0
    assert told.disk not in begun
    await store.check(model)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (fault(faults_pb2.BITFLIP), NotSupported, "site EMBEDDING only"),
        (flips(bits=4097), InvalidRequest, "bits is 4097"),
        (flips(program="t"), InvalidRequest, "blocks are data or parity"),
        (fault(faults_pb2.STALE_DISK, probability=0.5), InvalidRequest, "no probability"),
        (fault(faults_pb2.STALE_DISK, program="data"), InvalidRequest, "no program"),
        (fault(9), InvalidRequest, "kind 9"),
    ],
)
async def test_a_bad_fault_is_refused(store: Watch, bad: Any, error: type, message: str):
    with pytest.raises(ProaError, match=message) as caught:
        await inject(store, bad)
    assert type(caught.value) is error


async def test_agents_take_no_faults_unless_they_are_told_to(store: Watch):
    async with injector(store, SPARED) as stub, peer_errors("agent"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.List(faults_pb2.ListRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_pushes_are_hit_like_calls_of_any_service(store: Watch):
    await inject(store, fault(faults_pb2.ERROR, program="PushBlocks"))
    ids, gradients = np.arange(ROWS), np.ones((ROWS, DIM), np.float32)
    async with StoreClient(store.address, timeout_s=0.5) as client:
        await client.push({"t": (ids, gradients)})
        with pytest.raises(PushIndeterminate, match="injected fault a"):
            await client.flush()
    await clear(store)
    async with StoreClient(store.address) as client:
        await client.push({"t": (ids, gradients)})
        await client.flush()
