"""The disk of a shard on a real Valkey: as the simulated one, and what it refuses."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fakes.store_books import Violation
from fakes.store_faults import Mix
from fakes.store_twin import DATABASES, Bench, TwinDisk, TwinWorld
from fakes.valkey import SyncLink, Valkey
from proa.errors import InvalidRequest, ShardUnavailable
from proa.store.disk import commands as cm
from proa.store.disk.codec import block_field
from proa.store.disk.shard_disk import Deposed, ShardDisk
from proa.store.protocol import actions as ac
from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Extent, Layout
from proa.store.protocol.log import Entry, Mark, Sessions
from proa.store.redis_disk import RedisDisk, RedisViews

LAYOUT = Layout(2, 1, 3, (Extent(0, 3, 40, 260, 256), Extent(3, 2, 8, 12, 8)))
OWN, CODED = LAYOUT.data_of(0)[0], LAYOUT.parity_of(0)[0]
SEEDS = range(40)
# What an agent may do: for the chart's ACL.
COMMANDS = [
    "+info", "+multi", "+exec", "+watch", "+unwatch", "+get", "+set", "+hset", "+hmget",
    "+hgetall", "+hkeys", "+lrange", "+rpush", "+ltrim", "+del", "+unlink",
]  # fmt: skip


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as found:  # tmp_path is too long for a socket
        yield Path(found)


@pytest.fixture
def valkey(directory: Path) -> Iterator[Valkey]:
    with Valkey(directory / "v", databases=str(DATABASES), tcp=False) as found:
        yield found


@pytest.fixture
async def disk(valkey: Valkey) -> AsyncIterator[RedisDisk]:
    found = RedisDisk(0, valkey.server, nonce=1)
    await found.image(LAYOUT)
    yield found
    await found.close()


def rows(*indices: int) -> np.ndarray:
    return np.array(indices, np.intp)


def data(count: int, byte: int, width: int = 260) -> np.ndarray:
    return np.full((count, width), byte, np.uint8)


def wrote(version: int, *indices: int, byte: int = 7) -> st.BlockWrite:
    meta = st.BlockMeta(1, version)
    return st.BlockWrite(OWN, meta, rows(*indices), data(len(indices), byte))


# --- the same as the simulated disk


def test_whole_schedules_run_on_real_disks_as_on_simulated_ones(valkey: Valkey):
    """Every image, view, row and refusal is compared, byte for byte."""
    exchanges = 0
    for seed in SEEDS:
        valkey.client().flushall()
        bench = Bench(valkey)
        try:
            TwinWorld(seed, bench, mix=Mix(tables=0.5)).run()
        except Violation as exc:
            raise AssertionError(f"seed {seed}") from exc
        finally:
            exchanges += sum(link.exchanges for link in bench.links)
            bench.close()
    assert exchanges > 50 * len(SEEDS)


@pytest.mark.parametrize("seed", range(6))
def test_random_writes_of_wide_blocks_look_the_same(valkey: Valkey, seed: int):
    rng = np.random.default_rng(seed)
    valkey.client().flushall()
    bench = Bench(valkey)
    twin = TwinDisk("twin", LAYOUT, bench)
    twin.image(0)
    for step in range(60):
        twin.commit(0, tuple(random_writes(rng, step)))
        if step % 10 == 9:
            if step > 30:
                spoil(twin, rng)
            twin.image(0)
        for block in (*LAYOUT.data_of(0), *LAYOUT.parity_of(0)):
            twin.view(block, some_rows(rng, block))
    bench.close()


def some_rows(rng: np.random.Generator, block: Block) -> np.ndarray:
    count = LAYOUT.extent_of(block.stripe).rows
    return np.sort(rng.choice(count, rng.integers(1, count + 1), replace=False))


def random_writes(rng: np.random.Generator, step: int) -> Iterator[st.Write]:
    for block in rng.permutation(LAYOUT.data_of(0) + LAYOUT.parity_of(0))[: rng.integers(1, 4)]:
        block = Block(*map(int, block))
        chosen = some_rows(rng, block)
        content = rng.integers(
            0, 256, (len(chosen), LAYOUT.extent_of(block.stripe).width), np.uint8
        )
        worker, floor = int(rng.integers(-5, 1 << 40)), int(rng.integers(3))
        entry = Entry(step, step + 1, chosen, content, (Mark(worker, step, floor),))
        sessions = Sessions(
            {worker: (floor, frozenset({floor + 1, floor + 5})), 3: (0, frozenset())}
        )
        cut = int(step - rng.integers(4)) if rng.random() < 0.3 else None
        log = st.LogWrite(entry if rng.random() < 0.7 else None, int(step - rng.integers(8)), cut)
        reset = bool(rng.random() < 0.1)
        if block.position < LAYOUT.k:
            gone = [
                frozenset(rng.choice(8, 2).tolist()) if rng.random() < 0.3 else frozenset()
                for _ in "pl"
            ]
            meta = st.BlockMeta(step // 7, step, sessions, gone[0], gone[1])
            yield st.BlockWrite(block, meta, chosen, content, log, reset)
        else:
            applied = {m: st.Applied(1, step, bool(rng.random() < 0.5), sessions) for m in range(2)}
            yield st.StripeWrite(
                block.stripe, st.StripeMeta(step, applied), chosen, content,
                int(rng.integers(-1, 2)), log, reset,
            )  # fmt: skip
    yield st.FenceWrite(int(rng.integers(3)), int(rng.integers(9)))
    if rng.random() < 0.2:
        yield st.StampWrite(step)


def spoil(twin: TwinDisk, rng: np.random.Generator) -> None:
    """One record of every block rots."""
    for block, shelf in twin.shelves.items():
        if shelf.records:
            twin.flip(block, int(rng.choice(sorted(shelf.records))))


# --- lives


async def test_another_life_of_the_server_is_another_disk(directory: Path):
    with Valkey(directory / "v", tcp=True, appendonly="yes", appendfsync="always") as valkey:
        disk, views = RedisDisk(0, valkey.server, 1), RedisViews({0: valkey.server}, lambda: LAYOUT)
        first = (await disk.image(LAYOUT)).disk
        assert await disk.commit((wrote(5, 1, 3), st.StampWrite(4))) is None
        assert (await views.view(0, first, OWN, rows(1, 2))) is not None
        port = valkey.port
        valkey.kill()
        valkey.start(port)
        assert await views.view(0, first, OWN, rows(1, 2)) is None
        with pytest.raises(ShardUnavailable):
            await disk.commit((wrote(6, 1),))
        image = await disk.image(LAYOUT)
        assert image.disk != first
        assert (image.stamp, image.blocks[OWN].meta.version) == (4, 5)
        view = await views.view(0, image.disk, OWN, rows(1, 2, 3))
        assert view is not None
        assert view.data.sum(axis=1).tolist() == [7 * 260, 0, 7 * 260]
        await disk.close()
        await views.close()


async def test_a_server_from_a_copied_dump_is_a_disk_of_that_moment(directory: Path):
    with Valkey(directory / "v") as valkey:
        disk = RedisDisk(0, valkey.server, 1)
        name = (await disk.image(LAYOUT)).disk
        await disk.commit((wrote(5, 1),))
        valkey.copy_files(directory / "w")
        await disk.commit((wrote(6, 1, byte=9),))
        await disk.close()
    with Valkey(directory / "w") as stale:
        disk = RedisDisk(0, stale.server, 2)
        image = await disk.image(LAYOUT)
        assert image.disk != name
        assert image.blocks[OWN].meta.version == 5
        await disk.close()


async def test_a_torn_file_loses_a_whole_commit_and_never_half_of_one(directory: Path):
    """T10 of facts ecrm E2: cut within the last transaction, anywhere."""
    options = {"appendonly": "yes", "appendfsync": "always", "aof_use_rdb_preamble": "no"}
    with Valkey(directory / "v", **options) as valkey:
        disk = RedisDisk(0, valkey.server, 1)
        await disk.image(LAYOUT)
        await disk.commit((wrote(1, 1, 3, byte=1),))
        file = next((directory / "v" / "appendonlydir").glob("*.incr.aof"))
        before = file.stat().st_size
        await disk.commit((wrote(2, 1, 3, byte=2), st.StampWrite(2)))
        await disk.close()
        whole = file.read_bytes()
    for cut in (1, 7, 40, (len(whole) - before) // 2, len(whole) - before - 30):
        file.write_bytes(whole[:-cut])
        with Valkey(directory / "v", **options) as valkey:
            torn = RedisDisk(0, valkey.server, 2)
            image = await torn.image(LAYOUT)
            assert (image.stamp, image.blocks[OWN].meta.version) == (0, 1)
            found, missing = (await torn.fetch({OWN: rows(1, 3)}))[OWN]
            assert not missing
            assert (found == 1).all()
            await torn.close()


async def test_a_server_with_a_password_is_told_it(directory: Path):
    with Valkey(directory / "v") as valkey:
        client = valkey.client()
        client.acl_setuser("agent", enabled=True, passwords=["+s3"], keys=["*"], commands=COMMANDS)
        client.acl_setuser("default", enabled=False)
        server = replace(valkey.server, username="agent", password="s3")
        disk, views = RedisDisk(0, server, 1), RedisViews({0: server}, lambda: LAYOUT)
        image = await disk.image(LAYOUT)
        entry = Entry(0, 1, rows(1), data(1, 7), (Mark(1, 2, 0),))
        trim = st.BlockWrite(OWN, st.BlockMeta(1, 1), log=st.LogWrite(entry, trim_to=0))
        reset = st.BlockWrite(OWN, st.BlockMeta(1, 1), reset=True)
        for write in (wrote(1, 1), trim, replace(trim, log=st.LogWrite(entry, 1)), reset, trim):
            assert await disk.commit((write, st.FenceWrite(1, 2))) is None
        assert await views.view(0, image.disk, OWN, rows(1)) is not None
        with pytest.raises(ShardUnavailable):
            await RedisDisk(0, replace(server, password="s4"), 1).image(LAYOUT)
        await disk.close()
        await views.close()


async def test_who_took_the_disk_first_writes_no_more(valkey: Valkey, disk: RedisDisk):
    assert await disk.commit((wrote(1, 1),)) is None
    other = RedisDisk(0, valkey.server, nonce=2)
    await other.image(LAYOUT)
    for version in (2, 3):
        with pytest.raises(Deposed):
            await disk.commit((wrote(version, 1, byte=8),))
    assert (await other.image(LAYOUT)).blocks[OWN].meta.version == 1
    valkey.client().flushall()
    with pytest.raises(Deposed):
        await other.commit((wrote(3, 1),))
    await other.close()


async def test_commits_are_merged_but_fail_one_by_one(valkey: Valkey, disk: RedisDisk):
    meta = st.StripeMeta(1, {0: st.Applied(1, 1, joined=True)})
    add = st.StripeWrite(CODED.stripe, meta, rows(4), data(1, 3), 0)
    assert await disk.commit((add,)) is None
    await disk.image(LAYOUT)  # else it knows what it wrote
    valkey.client().hset(cm.rows_key(CODED), (4).to_bytes(4, "little"), b"rot")
    events = await disk.perform(
        [
            ac.Commit(1, (wrote(1, 1),)), ac.Commit(2, (add,)), ac.Commit(3, (st.StampWrite(9),)),
            ac.Commit(4, (st.StripeWrite(CODED.stripe, meta),)), ac.Fetch(5, {OWN: rows(1)}),
            ac.Commit(6, (st.StripeWrite(CODED.stripe, meta, reset=True),)), ac.Commit(7, (add,)),
        ]
    )  # fmt: skip
    bad = (CODED.stripe,)
    assert [type(event) for event in events if not isinstance(event, ac.Fetched)] == [
        ac.Committed, ac.CommitFailed, ac.Committed, ac.CommitFailed, ac.Committed, ac.Committed,
    ]  # fmt: skip
    assert events[1] == ac.CommitFailed(2, bad)
    assert events[3] == ac.CommitFailed(4, bad)
    assert (await disk.image(LAYOUT)).stamp == 9


def test_rows_that_were_just_written_are_not_read_again(valkey: Valkey):
    """Not even where they rotted since: the change is written over that."""
    link, disk = SyncLink(valkey), ShardDisk(0, 1)
    link.run(disk.image(LAYOUT))
    meta = st.StripeMeta(1, {0: st.Applied(1, 1, joined=True)})
    first, second, whole = data(1, 3), data(2, 4), np.arange(3, 5)
    assert link.run(disk.commit((st.StripeWrite(CODED.stripe, meta, rows(4), first, 0),))) is None
    valkey.client().hset(cm.rows_key(CODED), (4).to_bytes(4, "little"), b"rot")
    link.commands, link.exchanges = [], 0
    both = st.StripeWrite(CODED.stripe, meta, rows(3, 4), second, 0)
    assert link.run(disk.commit((both,))) is None
    assert link.commands[0] == cm.get_rows(CODED, rows(3))  # the other one had to be
    assert link.run(disk.commit((both,))) is None
    assert [command[0] for command in link.commands].count("HMGET") == 1
    found, missing = link.run(disk.fetch({CODED: whole}))[CODED]
    assert not missing
    assert np.array_equal(found, np.vstack((data(1, 0), first)))
    assert link.run(disk.commit((st.StripeWrite(CODED.stripe, meta, reset=True),))) is None
    assert link.run(disk.commit((both,))) is None
    assert np.array_equal(link.run(disk.fetch({CODED: whole}))[CODED][0], second)
    link.close()


async def test_a_write_of_which_nothing_is_known_leaves_nothing_to_build_upon(
    valkey: Valkey, disk: RedisDisk
):
    meta = st.StripeMeta(1, {0: st.Applied(1, 1, joined=True)})
    add = st.StripeWrite(CODED.stripe, meta, rows(4), data(1, 3), 0)
    assert await disk.commit((add,)) is None
    state = disk._disk.state
    assert state.kept.bytes > 0
    valkey.client().client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(ShardUnavailable):
        await disk.commit((add,))
    assert state.kept.bytes == 0


# --- what is refused


async def test_a_full_server_takes_nothing_of_a_commit(directory: Path):
    with Valkey(directory / "v") as valkey:
        disk = RedisDisk(0, valkey.server, 1)
        await disk.image(LAYOUT)
        assert await disk.commit((wrote(1, 1),)) is None
        valkey.client().config_set("maxmemory", "1mb")
        every = np.arange(40)
        assert await disk.commit((wrote(2, *every, byte=8), st.StampWrite(9))) == ()
        valkey.client().config_set("maxmemory", "0")
        image = await disk.image(LAYOUT)
        assert (image.stamp, image.blocks[OWN].meta.version) == (0, 1)
        assert await disk.commit((wrote(2, 1),)) is None
        await disk.close()


async def test_a_server_that_evicts_is_refused(directory: Path):
    with (
        Valkey(directory / "v", maxmemory_policy="allkeys-lru") as valkey,
        pytest.raises(InvalidRequest, match="allkeys-lru"),
    ):
        await RedisDisk(0, valkey.server, 1).image(LAYOUT)


async def test_a_disk_of_another_store_is_refused(valkey: Valkey):
    mine, other = (RedisDisk(0, valkey.server, 1, store) for store in ("mine", "other"))
    await mine.image(LAYOUT)
    with pytest.raises(InvalidRequest, match="mine"):
        await other.image(LAYOUT)
    assert await mine.commit((wrote(1, 1),)) is None
    await mine.close()


@pytest.mark.parametrize("key", [cm.METAS, cm.SESSIONS])
async def test_a_block_whose_meta_rotted_is_left_out(valkey: Valkey, disk: RedisDisk, key: bytes):
    name = (await disk.image(LAYOUT)).disk
    await disk.commit((wrote(3, 1), st.StripeWrite(CODED.stripe, st.StripeMeta(1, {}))))
    client, field = valkey.client(), block_field(OWN)
    value = bytearray(client.hget(key, field))
    value[min(12, len(value) - 1)] ^= 1
    client.hset(key, field, bytes(value))
    image = await disk.image(LAYOUT)
    assert OWN not in image.blocks
    assert CODED.stripe in image.stripes
    views = RedisViews({0: valkey.server}, lambda: LAYOUT)
    assert (await views.view(0, name, OWN, rows(1)) is None) == (key == cm.METAS)
    await views.close()


async def test_a_block_whose_log_rotted_is_left_out_of_the_image(valkey: Valkey, disk: RedisDisk):
    entry = Entry(0, 1, rows(1), data(1, 7), (Mark(1, 2, 0),))
    await disk.commit((st.BlockWrite(OWN, st.BlockMeta(1, 1), log=st.LogWrite(entry)),))
    assert OWN in (await disk.image(LAYOUT)).blocks
    valkey.client().lset(cm.outbox_key(OWN), 0, b"rot")
    assert OWN not in (await disk.image(LAYOUT)).blocks
    reset = st.BlockWrite(OWN, st.BlockMeta(2, 1), log=st.LogWrite(entry), reset=True)
    await disk.commit((reset,))
    assert len((await disk.image(LAYOUT)).blocks[OWN].outbox) == 1


async def test_a_server_that_is_not_there_is_said_to_be(directory: Path):
    gone = Valkey(directory / "v")
    with pytest.raises(ShardUnavailable, match="/v/s"):
        await RedisDisk(0, gone.server, 1).image(LAYOUT)
    assert await RedisViews({0: gone.server}, lambda: LAYOUT).view(0, "d", OWN, rows(1)) is None


# --- cost


def test_commands_are_per_block_and_never_per_row(valkey: Valkey):
    link, disk = SyncLink(valkey), ShardDisk(0, 1)
    link.run(disk.image(LAYOUT))
    every = np.arange(40)
    entry = Entry(0, 1, every, data(40, 1), (Mark(1, 1, 0),))
    meta = st.StripeMeta(1, {0: st.Applied(1, 1, joined=True)})
    link.commands, link.exchanges = [], 0
    log = st.LogWrite(entry)
    own = st.BlockWrite(OWN, st.BlockMeta(1, 1), every, data(40, 1), log)
    coded = st.StripeWrite(CODED.stripe, meta, every, data(40, 2), 0, log)
    actions = [ac.Fetch(1, {OWN: every}), ac.Commit(2, (own,)), ac.Commit(3, (coded,))]
    link.run(disk.perform(actions))
    names = [command[0] for command in link.commands]
    assert names == [
        "HMGET", "HMGET", "MULTI", "HSET", "RPUSH", "HSET", "RPUSH", "HSET", "HSET", "EXEC",
        "WATCH", "GET",
    ]  # fmt: skip
    assert link.exchanges == 3
    link.close()
