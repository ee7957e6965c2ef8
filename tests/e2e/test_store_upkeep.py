"""A real store's recovery, scrubs, snapshots and restores, on Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
import redis.asyncio

from fakes.eventually import eventually
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.cli.main import main
from proa.embedding.store import ParityStore
from proa.errors import DataLost, InvalidRequest
from proa.local.drill import DrillOptions, drill
from proa.local.store import RunningStore, StoreOptions, embedded_store, server_name
from proa.rpc import connect, peer_errors
from proa.store import snapshot
from proa.store.client import StoreClient
from proa.store.disk.commands import rows_key
from proa.store.optimisers import SGD, RowWiseAdagrad
from proa.store.places import Directory
from proa.store.protocol.layout import Block
from proa.store.protocol.records import pack
from proa.store.tables import Table
from proa.store.valkey import socket_of

TABLE = Table("user", 3000, 8, RowWiseAdagrad(0.1))
WHOLE_S = 60.0

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStore]:
    """k = 2, r = 1 on four shards, with TABLE."""
    async with running(tmp_path_factory.mktemp("st")) as found:
        async with StoreClient(found.topology.address) as client:
            await client.create_table(TABLE)
            await train(client, 8)
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def client(store: RunningStore) -> AsyncIterator[StoreClient]:
    async with StoreClient(store.topology.address, timeout_s=60) as found:
        yield found


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[RunningStore]:
    chosen = StoreOptions(run_dir=directory, port=0, admin_port=0, **options)
    async with embedded_store(chosen) as found:
        await found.supervisor.ready()
        yield found


async def stream(store: RunningStore, call: Callable[[Any], Any]) -> list[Any]:
    """All messages of one of the coordinator's streams."""
    address = store.topology.address
    async with connect(address, message_bytes_max=16 << 20) as channel, peer_errors("coordinator"):
        stub = store_pb2_grpc.EmbeddingStoreStub(channel)
        return [one async for one in call(stub)]


async def recover(store: RunningStore) -> list[store_pb2.RecoverProgress]:
    request = store_pb2.RecoverRequest(rows_per_s_max=20_000)
    return await stream(store, lambda stub: stub.Recover(request, timeout=WHOLE_S))


async def scrub(store: RunningStore) -> tuple[store_pb2.ScrubProgress, list[Any]]:
    found = await stream(store, lambda s: s.Scrub(store_pb2.ScrubRequest(), timeout=WHOLE_S))
    return found[-1], [finding for one in found for finding in one.findings]


async def save(store: RunningStore, destination: str) -> store_pb2.SnapshotProgress:
    request = store_pb2.SnapshotRequest(destination=destination)
    return (await stream(store, lambda stub: stub.Snapshot(request, timeout=WHOLE_S)))[-1]


async def restore(client: StoreClient, directory: Path, **options: bool) -> int:
    found = snapshot.Snapshot.read(Directory(directory))
    progress = [one async for one in snapshot.restore(client, found, **options)]
    return progress[-1].written


async def train(client: StoreClient, steps: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(steps):
        ids = random.choice(TABLE.rows, 600, replace=False)
        gradients = random.standard_normal((600, TABLE.dim), np.float32)
        await client.push({TABLE.name: (ids, gradients)})
    await client.flush()


async def stored(client: StoreClient) -> np.ndarray:
    return await client.stored(TABLE.name, np.arange(TABLE.rows))


async def test_what_rots_is_found_named_and_repaired(store: RunningStore, client: StoreClient):
    before = await stored(client)
    total, findings = await scrub(store)
    assert (total.rows_bad, total.stripes_bad, len(findings)) == (0, 0, 0)
    assert total.rows_compared == TABLE.rows / 2  # k = 2

    catalogue = (await client._fresh(client._deadline())).catalogue
    data, parity, other = Block(0, 0), Block(1, 2), Block(2, 2)
    bad, gone = [await spoil(store, catalogue.layout, block) for block in (data, parity)]
    wrong = await spoil(store, catalogue.layout, other, crc=True)
    total, findings = await scrub(store)
    assert total.done
    assert {(one.kind, one.stripe, one.position, *one.rows) for one in findings} == {
        ("crc", *data, bad), ("crc", *parity, gone), ("parity", *other, wrong),
    }  # fmt: skip
    named = next(one for one in findings if one.position == 0)
    table, ids = catalogue.ids(data, np.array([bad]))
    assert (named.table, list(named.ids)) == (table.name, ids.tolist())
    assert (total.rows_bad, total.rows_repaired, total.stripes_bad) == (2, 2, 1)
    assert sum([await mismatches(agent) for agent in agents(store)]) == 3
    total, findings = await scrub(store)
    assert (total.rows_bad, total.stripes_bad, len(findings)) == (0, 0, 0)
    assert (await stored(client) == before).all()


def agents(store: RunningStore) -> list[int]:
    """Their admin ports."""
    return [p.admin_port for p in store.topology.processes if p.name.startswith("agent")]


async def mismatches(port: int) -> float:
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        text = await answer.text()
    name = "proa_store_scrub_mismatches_total "
    return float(next(x for x in text.splitlines() if x.startswith(name)).removeprefix(name))


async def spoil(store: RunningStore, layout: Any, block: Block, *, crc: bool = False) -> int:
    """Flip one bit of a row of a block on its server; with `crc` its checksum is made to fit."""
    directory = store.topology.directories[layout.shard_of(*block)]
    client = redis.asyncio.Redis(unix_socket_path=str(socket_of(directory)))
    try:
        records = await client.hgetall(rows_key(block))
        field, record = sorted(records.items())[3]
        spoilt = bytearray(record)
        spoilt[5] ^= 4
        if crc:
            spoilt = bytearray(pack(np.frombuffer(spoilt[:-4], np.uint8)[None])[0])
        await client.hset(rows_key(block), field, bytes(spoilt))
        return int.from_bytes(field, "little")
    finally:
        await client.aclose()


async def test_a_snapshot_has_whole_steps(store: RunningStore, client: StoreClient, tmp_path: Path):
    """Every step adds 1 to all rows, wherever they are: in a snapshot all rows are equal."""
    table = Table("counts", 900, 4, SGD(1.0))
    every = np.arange(table.rows)
    await client.create_table(table)
    start = await client.pull(table.name, every)
    stop = asyncio.Event()
    steps = 0

    async def count() -> None:
        nonlocal steps
        while not stop.is_set():
            await client.push({table.name: (every, np.full((900, 4), -1, np.float32))})
            steps += 1

    task = asyncio.create_task(count())
    try:
        for turn in range(2):
            await eventually(lambda seen=steps: steps > seen + 3)
            saved = tmp_path / f"s{turn}"
            await save(store, str(saved))
            found = snapshot.Snapshot.read(Directory(saved))
            files = next(files for one, files in found.tables if one == table)
            ids, rows = found.stored(table, files[0])
            counts = np.rint(table.weights(ids, rows) - start)
            assert len(ids) == table.rows
            assert len(np.unique(counts)) == 1, np.unique(counts)
            assert counts[0, 0] > 0
    finally:
        stop.set()
        await task
    await client.flush()


async def test_what_nothing_else_can_bring_back_comes_from_a_snapshot(
    store: RunningStore, client: StoreClient, tmp_path: Path
):
    every = np.arange(TABLE.rows)
    saved = tmp_path / "saved"
    before = await stored(client)
    assert (await save(store, f"file://{saved}")).done
    with pytest.raises(InvalidRequest, match="not empty"):
        await save(store, str(saved))
    with pytest.raises(InvalidRequest, match="wants a bucket and a folder"):
        await save(store, "s3://bucket")

    # What is pushed after the snapshot stays, wherever it is not lost.
    await client.push({TABLE.name: (every, np.ones((TABLE.rows, TABLE.dim), np.float32))})
    await client.flush()
    since = await stored(client)
    assert (since != before).any(axis=1).all()
    for shard in (1, 2):
        store.supervisor.kill(server_name(shard))
    progress = await recover(store)
    with pytest.raises(DataLost, match=TABLE.name):
        await client.pull(TABLE.name, every)
    lost: set[int] = set()
    await client.stored(TABLE.name, every, lost)
    assert lost == await only_on(store, {1, 2})
    assert 0 < len(lost) < TABLE.rows
    assert await restore(client, saved, only_lost=True) == progress[-1].rows_lost >= len(lost)
    gone = np.isin(every, list(lost))
    assert (await stored(client) == np.where(gone[:, None], before, since)).all()
    assert await restore(client, saved, only_lost=True) == 0
    assert (await recover(store))[-1].parity_pending == 0
    total, findings = await scrub(store)
    assert (total.done, total.rows_bad, total.stripes_bad) == (True, 0, 0), findings

    # One loss is made good again, with all that was pushed since.
    await train(client, 4, seed=1)
    later = await stored(client)
    store.supervisor.kill(server_name(3))
    progress = await recover(store)
    assert (progress[-1].rows_pending, progress[-1].rows_lost) == (0, 0)
    assert progress[-1].rows_done > 0
    assert (await stored(client) == later).all()
    assert await restore(client, saved) == (later != before).any(axis=1).sum()
    assert (await stored(client) == before).all()


async def only_on(store: RunningStore, shards: set[int]) -> set[int]:
    """Ids of TABLE in blocks that need more than r of these shards."""
    async with StoreClient(store.topology.address) as client:
        catalogue = (await client._fresh(client._deadline())).catalogue
    layout, found = catalogue.layout, set()
    for one in catalogue.locate(TABLE.name, np.arange(TABLE.rows)):
        stripe = one.block.stripe
        homes = [layout.shard_of(stripe, place) for place in range(layout.k + layout.r)]
        if layout.shard_of(*one.block) in shards and len(shards & set(homes)) > layout.r:
            found.update(one.where.tolist())
    return found


async def test_a_state_dict_comes_back_as_it_was(store: RunningStore):
    def through_torch() -> None:
        with ParityStore(store.topology.address) as parity_store:
            state = parity_store.table(TABLE.name).export()
            described = {"rows": TABLE.rows, "dim": TABLE.dim, "optimiser": TABLE.optimiser}
            other = parity_store.create_table("other", **described)
            other.load(state)
            again = other.export()
            assert all(np.array_equal(again[name], state[name]) for name in state)
            other.load({"weight": state["weight"]})
            assert not other.export()["optimiser"].any()

    await asyncio.to_thread(through_torch)


async def test_the_verbs(store: RunningStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    address, saved = ["--address", store.topology.address], str(tmp_path / "saved")
    for verb, code, line in (
        (["scrub"], 0, "0 bad"),
        (["snapshot", saved], 0, saved),
        (["restore", saved], 0, "0 of them changed"),
        (["recover", "--rows-per-s", "9"], 0, "nothing is left to decode"),
        (["snapshot", "s3://bucket/x"], 1, "s3://bucket/x"),
    ):
        assert await asyncio.to_thread(main, ["store", *verb, *address]) == code
        out, err = capsys.readouterr()
        assert line in out + err


@pytest.mark.long
async def test_a_snapshot_fits_a_store_of_another_shape(
    store: RunningStore, client: StoreClient, tmp_path: Path
):
    saved, before = tmp_path / "saved", await stored(client)
    await save(store, str(saved))
    async with (
        running(tmp_path / "b", k=1, shards=2) as second,
        StoreClient(second.topology.address) as other,
    ):
        await restore(other, saved)
        assert (await stored(other) == before).all()
        (saved / "0000-00000000.npz").write_bytes(b"junk")
        with pytest.raises(InvalidRequest, match="SHA-256"):
            await restore(other, saved)


@pytest.mark.long
@pytest.mark.parametrize("r", [1, 2])
async def test_a_drill(tmp_path: Path, r: int):
    lines: list[str] = []
    options = DrillOptions(tmp_path / "d", r=r, rows=2000, kills=5)
    verdict = await drill(options, lines.append)
    assert verdict.passed, (verdict, lines)
    assert len(verdict.kills) == 5
    assert verdict.rows_compared > options.rows
