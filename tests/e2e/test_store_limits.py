"""A real store at its limits: bad input, full memory, old disks, more losses than parity bears."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal

import numpy as np
import pytest
import pytest_asyncio

from fakes.real_store import Load, Model, started, until
from proa.embedding.store import ParityStore
from proa.errors import DataLost, InvalidRequest, Overloaded, PushIndeterminate
from proa.local.store import StoreOptions, agent_name, server_name
from proa.store.client import StoreClient
from proa.store.initial import Initialiser
from proa.store.optimisers import SGD, RowWiseAdagrad
from proa.store.protocol import messages as ms
from proa.store.pushing import Who, parts_of
from proa.store.tables import Table

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """A store of k = 2, r = 1 on three shards: every stripe is on all of them."""
    options = StoreOptions(run_dir=tmp_path_factory.mktemp("st"), port=0, admin_port=0, shards=3)
    async with started(options) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def client(watch):
    """Patient."""
    async with StoreClient(watch.address, timeout_s=60) as found:
        yield found


async def new_model(client, rows=600, dim=8, optimiser=None):
    """A table that nothing was pushed to."""
    kind = optimiser or RowWiseAdagrad(0.05)
    table = Table(f"t{next(_numbers)}", rows, dim, kind)
    await client.create_table(table)
    return Model(table)


async def pushed(client, model, ids):
    """One acknowledged step."""
    size = (len(ids), model.table.dim)
    gradients = np.random.default_rng(len(ids)).standard_normal(size, np.float32)
    model.push(ids, gradients)
    await client.push({model.table.name: (ids, gradients)})
    await client.flush()
    model.ack(ids)


# --- what a caller gets wrong

BAD_IDS = {
    "twice": ([1, 2, 1], "comes twice"),
    "negative": ([-1, 2, 3], "id -1 is not 0 to 599"),
    "beyond": ([0, 1, 600], "id 600 is not"),
    "2^31": ([2**31 + 5, 0, 1], "id 2147483653 is not"),
    "2^62": ([0, 1, 2**62], "id 4611686018427387904 is not"),
}


async def test_bad_input_is_refused_by_name_and_changes_nothing(watch, client):
    model = await new_model(client)
    name = model.table.name

    def wrong():
        ones = np.ones((3, 8), np.float32)
        with ParityStore(watch.address) as store:
            table = store.table(name)
            for ids, why in BAD_IDS.values():
                ids = np.array(ids, np.int64)
                with pytest.raises(InvalidRequest, match=why):
                    table.push(ids, ones)
                with pytest.raises(InvalidRequest, match=why):
                    table.pull(ids)
            ids = np.arange(3)
            for value in (np.nan, np.inf):
                bad = ones.copy()
                bad[1, 2] = value
                with pytest.raises(InvalidRequest, match=rf"{name}.*\b1\b"):
                    table.push(ids, bad)
            for shape in ((3, 7), (2, 8), (3, 9)):
                with pytest.raises(InvalidRequest, match=r"are not \[3, 8\]"):
                    table.push(ids, np.ones(shape, np.float32))
            for options in ({"rows": 601}, {"dim": 9}, {"optimiser": SGD(0.05)}):
                same = {"rows": 600, "dim": 8, "optimiser": RowWiseAdagrad(0.05)}
                with pytest.raises(
                    InvalidRequest, match=f"{name}.*exists with {next(iter(options))}"
                ):
                    store.create_table(name, **(same | options))
            with pytest.raises(InvalidRequest, match="there is no table"):
                store.table("nobody")
            store.flush()

    await asyncio.to_thread(wrong)
    await pushed(client, model, np.arange(0, 600, 7))
    await watch.check(model)


async def test_a_client_with_an_old_map_is_told_and_goes_on_with_the_new_one(watch, client):
    model = await new_model(client)
    await pushed(client, model, np.arange(600))
    old = client._maps.latest
    await watch.killed(agent_name(0))
    every = np.arange(600)
    gradients = np.ones((600, 8), np.float32)
    parts = parts_of(old.usable, {model.table.name: (every, gradients)}, everywhere=False)
    refused = await client._pusher._send(
        old.agents[0], ms.Push(77, 0, 0, old.map.shards[0].epoch, tuple(parts[0])), None, 10
    )
    assert refused.why == "STALE_MAP"
    deadline = asyncio.get_running_loop().time() + 60
    model.push(every, gradients)
    await client._pusher.push(old, Who(77, 0, lambda: 0), parts, deadline, None)
    await watch.check(model)


# --- memory


@pytest.mark.long
async def test_a_push_that_memory_has_no_room_for_is_refused_whole(watch, client):
    rows, dim, batch = 8192, 128, 128
    kind = Initialiser(kind="zeros")
    table = Table(f"t{next(_numbers)}", rows, dim, SGD(1.0), kind)
    await client.create_table(table)
    ones, every = np.ones((batch, dim), np.float32), np.arange(rows)
    async with (
        StoreClient(watch.address, timeout_s=2.0) as hasty,
        StoreClient(watch.address, timeout_s=2.0) as late,
    ):

        async def push(ids, by=hasty):
            await by.push({table.name: (ids, ones)})
            await by.flush()

        limits(watch, 1_200_000)
        done = 0

        async def fill():
            nonlocal done
            for done in range(0, rows, batch):
                await push(every[done : done + batch])

        with pytest.raises((Overloaded, PushIndeterminate), match="out of memory"):
            await fill()
        last = every[done : done + batch]
        with pytest.raises(Overloaded, match="out of memory"):
            await push(last, by=late)
        # What is there is read, and all shards stay up.
        assert (await client.pull(table.name, every[:done]) == -1).all()
        assert all(s.state == "open" for s in (await watch.report()).shards)
        limits(watch, 0)
        await watch.whole()

        async def taken():
            with contextlib.suppress(Overloaded, PushIndeterminate):
                await hasty.retry()
                return True

        await until(taken)
    found = await client.pull(table.name, every)
    # The last one once, whatever part of it was written at first, and the refused one never.
    assert (found[: done + batch] == -1).all()
    assert (found[done + batch :] == 0).all()
    await watch.audit()


def limits(watch, more):
    """maxmemory of all servers: what they have now and `more`; 0: none."""
    for shard in range(3):
        server = watch.server(shard)
        server.config_set("maxmemory", more and server.info("memory")["used_memory"] + more)


# --- shards that stop, or come back with an old disk


@pytest.mark.long
async def test_an_owner_that_was_stopped_writes_no_more(watch, client):
    model = await new_model(client)
    async with Load(watch.address, model) as load:
        await load.steps(20)
        epoch = (await watch.epochs())[1]
        watch.supervisor.kill(agent_name(1), signal.SIGSTOP)

        async def is_down():
            return not (await watch.map()).shards[1].up

        await until(is_down)
        # Its rows are read all the same, from its server or from the others.
        reads = load.reads
        await load.until(lambda: load.reads > reads + 5)
        said = len(watch.lines)
        watch.supervisor.kill(agent_name(1), signal.SIGCONT)
        await watch.epoch_after(1, epoch)
        await load.steps(20)
    await watch.check(model)
    assert any("agent of shard 1 starts again" in line for line in watch.lines[said:])


async def test_of_a_disk_from_an_old_file_only_what_differs_is_rebuilt(watch, client):
    model = await new_model(client, rows=20_000, dim=2, optimiser=SGD(0.5))
    name, every = model.table.name, np.arange(model.table.rows)
    await pushed(client, model, every)
    await watch.whole()
    watch.server(1).save()
    placed = (await watch.told()).catalogue
    own = [one for one in placed.locate(name, every) if placed.layout.shard_of(*one.block) == 1]
    assert len(own) > 3
    # Rows of three of its data blocks, and of a data block each of two of its parity blocks.
    layout = placed.layout
    parity = {
        b.stripe for b in layout.parity_of(1) if placed.placed_at(b.stripe).table.name == name
    }
    assert len(parity) > 2
    coded = [
        one
        for one in placed.locate(name, every)
        if one.block.stripe in sorted(parity)[:2] and one.block.position == 0
    ]
    assert len(coded) == 2
    changed = np.concatenate([one.where[:2] for one in (*own[:3], *coded)])
    await pushed(client, model, changed)
    names = (
        'proa_store_notes_total{kind="rebuild"}', "proa_store_rows_decoded_total",
        'proa_store_notes_total{kind="parity-reset"}',
    )  # fmt: skip
    before = [await watch.metric(1, metric) for metric in names]
    # It starts from the file that was saved before the last push, and nobody reads that.
    killing = asyncio.create_task(watch.killed(server_name(1)))
    while not killing.done():
        found = await client.pull(name, changed)
        assert [one.tobytes() for one in found] == [model.values[row][-1] for row in changed]
        await asyncio.sleep(0.01)
    await killing
    (watch.running.topology.directories[1] / "dump.rdb").unlink()
    await watch.check(model)
    counts = [await watch.metric(1, m) - b for m, b in zip(names, before, strict=True)]
    rebuilt, decoded, collected = counts
    assert (rebuilt, collected) == (3, 2)
    assert decoded == sum(placed.layout.extent_of(one.block.stripe).rows for one in own[:3])


# --- more than parity bears


@pytest_asyncio.fixture(loop_scope="module")
async def doomed(tmp_path_factory):
    """A store of its own: it is not whole afterwards."""
    options = StoreOptions(run_dir=tmp_path_factory.mktemp("st"), port=0, admin_port=0, shards=3)
    async with started(options) as found:
        yield found


async def test_more_losses_than_parity_bears_are_told_by_id(doomed):
    async with StoreClient(doomed.address, timeout_s=60) as client:
        await lose(doomed, client)


async def lose(watch, client):
    # Large blocks, too: what asks for their parity again must not keep them from being given up.
    large = await new_model(client, rows=20_000, dim=2, optimiser=SGD(0.5))
    await pushed(client, large, np.arange(20_000))
    model, every = await new_model(client), np.arange(600)
    name = model.table.name
    await pushed(client, model, every)
    await watch.killed(server_name(0), server_name(1))
    report = await watch.whole(but_lost=True)
    placed = (await watch.told()).catalogue
    by_shard = {0: [], 1: [], 2: []}
    for one in placed.locate(name, every):
        by_shard[placed.layout.shard_of(*one.block)] += one.where.tolist()
    assert sum(s.rows_lost for s in report.shards) >= len(by_shard[0]) + len(by_shard[1])
    # What the third shard has is whole; what the others had is named, and nothing invented.
    whole = np.array(sorted(by_shard[2]))
    found = await client.pull(name, whole)
    assert [one.tobytes() for one in found] == [model.values[row][-1] for row in whole]
    for lost in (by_shard[0], by_shard[1]):
        for ids in (np.array(lost[:5]), np.array([*whole[:3], lost[7]])):
            gone = set(ids) & set(lost)
            with pytest.raises(DataLost) as pulled:
                await client.pull(name, ids)
            assert pulled.value.table == name
            assert pulled.value.ids
            assert set(pulled.value.ids) <= gone
            await client.push({name: (ids, np.ones((len(ids), 8), np.float32))})
            with pytest.raises(DataLost) as refused:
                await client.flush()
            assert set(refused.value.ids) == gone
    # Tables made after it know nothing of it.
    other = await new_model(client)
    await pushed(client, other, every)
    found = await client.pull(other.table.name, every)
    assert [one.tobytes() for one in found] == [values[-1] for values in other.values]
