"""Parts of the store's recovery, scrub and snapshots, one at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.file_server import FileServer
from fakes.store_faults import Mix
from fakes.store_world import World
from proa.api.v1 import store_pb2
from proa.errors import InvalidRequest, SettingsError, Unavailable
from proa.store import snapshot
from proa.store.agent import Stuck
from proa.store.hold import Hold
from proa.store.optimisers import LazyAdam, RowWiseAdagrad
from proa.store.places import Directory, place_of
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Paced, Received
from proa.store.protocol.audit import compare
from proa.store.protocol.layout import Block
from proa.store.protocol.pace import Pace
from proa.store.protocol.rowset import NO_ROWS, RowSet
from proa.store.protocol.storage import StripeView
from proa.store.tables import Catalogue, Table
from proa.store.upkeep import decoded_since

SETS = st.frozensets(st.integers(0, 1100), max_size=20)
CALM = Mix(strikes=0, pushes=0, reads=0, lossy=0, doubled=0, slow=0, steps=(), tables=0)


# --- sets of rows


@given(SETS, SETS)
def test_a_row_set_is_a_set(one: frozenset[int], other: frozenset[int]):
    a, b = RowSet.of(one), RowSet.of(other)
    assert (a | b, a & b, a - b) == (one | other, one & other, one - other)
    assert (sorted(a), len(a), bool(a)) == (sorted(one), len(one), bool(one))
    assert all((row in a) == (row in one) for row in range(1101))
    assert a == RowSet.of_rows(a.array())
    assert a == RowSet(int.from_bytes(a.packed(1101), "little"))
    assert (a == b) == (one == other)


def test_a_whole_block_is_small():
    every = RowSet.every(1024)
    assert every == set(range(1024))
    assert every.bits.__sizeof__() < 200
    assert not NO_ROWS


# --- pace


@pytest.mark.parametrize("limit", [1000, 8000])
def test_a_pace_is_kept_on_average(limit: int):
    pace, begun, now = Pace(limit), 0, 100.0
    for _ in range(1000):  # 10 s
        now += 0.01
        while pace.is_free(now):
            pace.take(256)
            begun += 256
    assert limit * 10 <= begun <= limit * 10.3 + 512


def test_another_pace_is_leased_for_a_while():
    pace = Pace(10)
    pace.lease(500, until=5.0)
    assert (pace.limit(4.9), pace.limit(5.1)) == (500, 10)
    assert Pace(0).is_free(1.0)


# --- hold


def test_a_hold_lets_steps_that_had_begun_come_to_their_end():
    now = 0.0
    hold = Hold(lambda: now)
    with hold.push(7, 3):
        assert hold.under_way == 1
    assert (hold.taken, hold.under_way) == ({7: 3}, 0)
    hold.hold(5.0, {7: 3})
    assert (hold.refuses(7, 3), hold.refuses(7, 4), hold.refuses(8, 0)) == (False, True, True)
    now = 2.0
    assert hold.quiet_s == 2.0
    now = 5.1
    assert not hold.refuses(8, 0)
    hold.hold(5.0, {})
    hold.hold(0.0, {})
    assert not hold.refuses(8, 0)


# --- rows that are set


ADAM = Table("t", 50, 3, LazyAdam())


def test_setting_rows_sets_every_bit():
    ids = np.array([3, 9])
    weights = np.array([[np.nan, -0.0, np.inf], [1, 2, 3]], np.float32)
    state = np.random.default_rng(1).standard_normal((2, 7), np.float32)
    payload = ADAM.whole(weights, state)
    assert payload.shape == (2, ADAM.width + 1)
    stored = ADAM.update(ids, np.full((2, ADAM.width), 77, np.uint8), payload)
    assert ADAM.weights(ids, stored).tobytes() == weights.tobytes()
    whole = (stored ^ ADAM.initial_records(ids)).view(np.float32)
    assert whole[:, 3:].tobytes() == state.tobytes()


@pytest.mark.parametrize("shape", [(2, 4), (1, 3)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, int]):
    with pytest.raises(InvalidRequest, match=r"\[2, 3\]|weights|state"):
        ADAM.whole(np.zeros(shape, np.float32), np.zeros((2, 7), np.float32))


def test_a_push_that_sets_rows_is_checked():
    catalogue = Catalogue.new(2, 1, ["a", "b", "c"]).add(ADAM)
    rows = np.array([0, 1])
    good = ADAM.whole(np.zeros((2, 3), np.float32), None)
    catalogue.check(Block(0, 0), rows, good)
    bad = good.copy()
    bad[1, -1] = 9
    for payload in (bad, good[:, :-1]):
        with pytest.raises(InvalidRequest, match="bytes a row"):
            catalogue.check(Block(0, 0), rows, payload)


def test_rows_beyond_the_end_of_a_table_are_never_lost():
    catalogue = Catalogue.new(2, 1, ["a", "b", "c"]).add(ADAM)
    layout = catalogue.layout
    blocks = [Block(s, p) for s in range(layout.stripes) for p in range(2)]
    rows = sum(layout.extent_of(block.stripe).rows for block in blocks)
    assert sum(len(catalogue.padding(block)) for block in blocks) == rows - ADAM.rows > 0


# --- an agent


class Mailbox:
    def __init__(self) -> None:
        self.got: list[ms.Message] = []

    def handle(self, event: Received) -> None:
        self.got.append(event.message)


@pytest.fixture
def world() -> World:
    found = World(2, mix=CALM, k=2, r=1)
    found.update = lambda block, rows, old, payload: payload[:, :4]
    found.books.update = found.update
    for process in found.processes:
        process.agent.owner.pushes._update = found.update
    found._play(found._is_settled)
    return found


def set_rows(world: World, step: int, rows: list[int], byte: int, block: Block) -> list[ms.Message]:
    """Set these rows to `byte`; what the owner answers."""
    part = ms.Part(block, np.array(rows), np.full((len(rows), 5), byte, np.uint8))
    return say(world, ms.Push(9, step, 0, 1, (part,)))


def say(world: World, push: ms.Push) -> list[ms.Message]:
    world.books.payloads[9, push.step] = push
    box = Mailbox()
    shard = world.layout.shard_of(*push.parts[0].block)
    world.processes[shard].handle(Received(box, push))
    end = world.now + 0.5
    world._play(lambda: world.now > end)
    return box.got


def test_lost_rows_are_set_and_their_parity_starts_again(world: World):
    """It is acknowledged when no parity is left that takes the rows for what they were."""
    block = Block(0, 0)
    assert set_rows(world, 0, [0, 1, 2], 5, block) == [ms.PushDone(9, 0)]
    process, parity = world.processes[0], world.processes[2].agent.parity.blocks[0]
    owned = process.agent.owner.state.blocks[block]
    term = parity.term
    owned.lost = RowSet.of([0, 2])
    world.check_parity = lambda *_: None  # what was lost is not in the history
    world.books.owner_wrote = lambda *_: None
    gradient = ms.Part(block, np.array([0]), np.ones((1, 4), np.uint8))
    (refused,) = say(world, ms.Push(9, 7, 0, 1, (gradient,)))
    assert isinstance(refused, ms.PushRefused)
    assert (refused.why, refused.lost) == (ms.Refusal.DATA_LOST, ((block, 0),))

    assert set_rows(world, 1, [0], 6, block) == [ms.PushDone(9, 1)]
    assert parity.term > term
    assert 0 not in parity.vector  # row 2 is lost yet
    assert set_rows(world, 2, [2], 7, block) == [ms.PushDone(9, 2)]
    assert parity.vector[0].joined
    assert parity.vector[0].version == owned.version
    content, missing = world.processes[2].disk.fetch(Block(0, 2), np.arange(3))
    assert not missing
    assert content.tolist() == [[6] * 4, [5] * 4, [7] * 4]


def test_parity_that_is_not_the_sum_of_its_data_is_seen(world: World):
    for member, byte in ((0, 5), (1, 9)):
        set_rows(world, member, [0, 1, 2], byte, Block(0, member))
    rows = np.arange(3)
    members = {p: world.processes[p].disk.view(Block(0, p), rows) for p in range(2)}
    disk = world.processes[2].disk
    view = disk.view(Block(0, 2), rows)
    assert isinstance(view, StripeView)
    assert compare(world.layout, Block(0, 2), view, members, rows).tolist() == []
    assert compare(world.layout, Block(0, 2), view, {0: members[0]}, rows) is None
    disk.shelf(Block(0, 2)).write(np.array([1]), np.full((1, 4), 13, np.uint8))
    view = disk.view(Block(0, 2), rows)
    assert compare(world.layout, Block(0, 2), view, members, rows).tolist() == [1]


def test_an_agent_takes_a_pace(world: World):
    agent = world.processes[0].agent
    agent.handle(Paced(10, 1.0), 50.0)
    assert agent.owner.repair.pace.limit(50.5) == 10
    assert agent.parity.pace.limit(51.5) == 0


# --- files


class Memory:
    """A store of one table in memory."""

    def __init__(self, table: Table) -> None:
        self.table, self.rows = table, np.zeros((table.rows, table.width), np.uint8)

    async def stored(self, name: str, ids: np.ndarray, lost: object = None) -> np.ndarray:
        return self.rows[ids]

    async def create_table(self, table: Table) -> None:
        assert table == self.table

    async def set_rows(self, name: str, ids: np.ndarray, weights: np.ndarray, state: np.ndarray):
        self.rows[ids] = self.table.whole(weights, state)[:, :-1] ^ self.table.initial_records(ids)


async def test_a_snapshot_is_whole_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshot, "FILE_ROWS", 64)
    table = Table("t", 150, 3, RowWiseAdagrad(0.1))
    source, target = Memory(table), Memory(table)
    source.rows[70:140] = np.random.default_rng(0).integers(0, 256, (70, table.width))
    target.rows[10:90] = 1
    place = Directory(tmp_path / "s")
    place.claim()
    progress = [one async for one in snapshot.write(source, [table], "name", place)]
    assert (progress[-1].rows, progress[-1].written) == (150, 70)
    with pytest.raises(InvalidRequest, match="not a whole snapshot"):
        snapshot.Snapshot.read(place)
    snapshot.seal(place)
    found = snapshot.Snapshot.read(place)
    assert found.store == "name"
    assert [len(files) for _, files in found.tables] == [2]  # the first 64 rows were never pushed
    progress = [one async for one in snapshot.restore(target, found)]
    assert (target.rows == source.rows).all()
    assert progress[-1].written == 130

    part = found.tables[0][1][64]
    (tmp_path / "s" / part.name).write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="SHA-256"):
        found.stored(table, part)
    (tmp_path / "s" / snapshot.MANIFEST).write_text('{"format": 2}')
    with pytest.raises(InvalidRequest, match="format 2"):
        snapshot.Snapshot.read(place)


async def test_a_snapshot_in_a_bucket_is_the_same(tmp_path: Path):
    table = Table("t", 150, 3, RowWiseAdagrad(0.1))
    source, target = Memory(table), Memory(table)
    source.rows[70:140] = np.random.default_rng(0).integers(0, 256, (70, table.width))
    with FileServer({}) as server:
        place = place_of("s3://bucket/snap/1", {}, f"http://{server.address}", "us-east-1")
        place.claim()
        written = [one async for one in snapshot.write(source, [table], "name", place)]
        with pytest.raises(InvalidRequest, match=r"s3://bucket/snap/1/.*NoSuchKey.*not a whole"):
            snapshot.Snapshot.read(place)
        snapshot.seal(place)
        assert sorted(server.files) == [
            "/bucket/snap/1/0000-00000000.npz",
            "/bucket/snap/1/snapshot.json",
        ]
        with pytest.raises(InvalidRequest, match="s3://bucket/snap/1 is not empty"):
            place.claim()
        place_of("s3://bucket/snap/2", {}, f"http://{server.address}", "us-east-1").claim()
        found = snapshot.Snapshot.read(place)
        assert [one async for one in snapshot.restore(target, found)][-1].written == 70
        server.script = deque([503])
        with pytest.raises(Unavailable, match="s3://bucket/snap/1: HTTP 503"):
            place.put("x", b"x")
    assert written[-1].written == 70
    assert (target.rows == source.rows).all()
    with pytest.raises(SettingsError, match="PROA_STORE_S3_ENDPOINT='ftp://x'"):
        place_of("s3://bucket/x", {}, "ftp://x")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x/y", InvalidRequest),
        ("ftp://a/b", InvalidRequest),
        ("s3://bucket", InvalidRequest),
        ("s3:///folder", InvalidRequest),
    ],
)
def test_where_snapshots_go(text: str, error: type[Exception]):
    assert place_of("file:///a%20b/c", {}) == Directory(Path("/a b/c"))
    with pytest.raises(error, match=text):
        place_of(text, {})


def test_an_agent_waits_for_parity_only_as_long_as_there_is_less_and_less_to_collect():
    clock = [0.0]
    stuck = Stuck(lambda: clock[-1])
    for now, count in ((0.0, 9), (29.0, 8), (58.0, 8), (70.0, 0), (100.5, 8), (130.0, 8)):
        clock.append(now)
        assert not stuck.told(count)
    clock.append(131.0)
    assert stuck.told(8)


@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [((5, 3), (9, 4), 4), ((5, 3), (2, 0), 2), ((5, 3), (5, 1), 5), ((5, 3), (5, 3), 0)],
    ids=["more", "started again", "as many as before it died", "nothing"],
)
def test_rows_decoded_are_counted_over_lives(
    before: tuple[int, int], after: tuple[int, int], rows: int
):
    first, second = (
        store_pb2.ShardReport(rows_decoded=decoded, pushes=pushes)
        for decoded, pushes in (before, after)
    )
    assert decoded_since(first, second) == rows
