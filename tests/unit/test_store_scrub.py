"""What a scrub says of a shard, and a status of the store, when not all is well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.store_faults import Mix
from fakes.store_world import World
from proa.api.v1 import store_pb2
from proa.cli.store_upkeep import _is_clean
from proa.store import scrub as scrub_module
from proa.store.optimisers import LazyAdam
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Received, RowsBad
from proa.store.protocol.agent import Agent
from proa.store.protocol.layout import Block
from proa.store.protocol.storage import View
from proa.store.scrub import Scrub
from proa.store.service import survived
from proa.store.tables import Catalogue, Table

CALM = Mix(strikes=0, pushes=0, reads=0, lossy=0, doubled=0, slow=0, steps=(), tables=0)
PARITY = 2  # its shard, and its position in the stripe


class Listener:
    def handle(self, event: Received) -> None:
        assert isinstance(event.message, ms.PushDone)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One stripe, k = 2, r = 1, with data in both blocks; scrubs do not wait."""
    monkeypatch.setattr(scrub_module, "RETRY_S", 0.0)
    monkeypatch.setattr(scrub_module, "REPAIR_S_MAX", 0.05)
    found = World(2, mix=CALM, k=2, r=1)
    found._play(found._is_settled)
    for member in range(2):
        part = ms.Part(Block(0, member), np.arange(3), np.full((3, 4), 5 + member, np.uint8))
        push = found.books.payloads[9, member] = ms.Push(9, member, 0, 1, (part,))
        found.processes[member].handle(Received(Listener(), push))
    play(found)
    return found


def play(world: World) -> None:
    end = world.now + 0.5
    world._play(lambda: world.now > end)


class Scrubbed:
    """The shell of the shard with the parity, as a scrub uses it. `hidden`: cannot be read."""

    def __init__(self, world: World) -> None:
        self.world, self.shard = world, PARITY
        table = Table("t", 50, 3, LazyAdam())
        self.tables = Catalogue.new(2, 1, ["a", "b", "c"]).add(table)
        self.hidden: set[Block] = set()

    @property
    def agent(self) -> Agent:
        return self.world.processes[self.shard].agent

    def handle(self, event: RowsBad) -> None:
        self.world.processes[self.shard].handle(event)
        play(self.world)

    async def view(self, shard: int, _disk: str, block: Block, rows: np.ndarray) -> View | None:
        return None if block in self.hidden else self.world.processes[shard].disk.view(block, rows)

    async def scrub(self) -> store_pb2.ScrubProgress:
        return [one async for one in Scrub(self, self, 0).run()][-1]


async def test_a_scrub_counts_parity_that_it_could_not_compare(world: World):
    shell = Scrubbed(world)
    whole = await shell.scrub()
    assert (whole.done, whole.rows_compared, whole.stripes_unread) == (True, 3, 0)
    assert _is_clean(whole)

    shell.hidden = {Block(0, 1)}
    unread = await shell.scrub()
    assert (unread.done, unread.rows_compared, unread.stripes_unread) == (True, 0, 1)
    assert not _is_clean(unread)

    shell.hidden.clear()
    shell.agent.parity.incomplete[0] = shell.agent.parity.blocks[0]
    assert (await shell.scrub()).stripes_unread == 1


class Deaf(Scrubbed):
    """Its agent resets the block, and it is never whole again."""

    def handle(self, event: RowsBad) -> None:
        self.agent.parity.incomplete[0] = self.agent.parity.blocks[0]


@pytest.mark.parametrize(("shell", "repaired"), [(Scrubbed, 1), (Deaf, 0)])
async def test_a_scrub_says_whether_wrong_parity_was_collected_anew(
    world: World, shell: type[Scrubbed], repaired: int
):
    disk = world.processes[PARITY].disk
    disk.shelf(Block(0, PARITY)).write(np.array([1]), np.full((1, 4), 13, np.uint8))
    found = await shell(world).scrub()
    assert (found.done, found.stripes_bad, found.stripes_repaired) == (True, 1, repaired)
    assert _is_clean(found) is bool(repaired)


async def test_what_an_agent_was_told_its_successor_has_not_repaired(world: World):
    shell = Deaf(world)
    disk = world.processes[PARITY].disk
    disk.shelf(Block(0, PARITY)).write(np.array([1]), np.full((1, 4), 13, np.uint8))
    scrub = Scrub(shell, shell, 0)
    (last,) = [one async for one in scrub.run()][-1:]
    world._strike_agent(PARITY)
    play(world)
    assert not shell.agent.parity.incomplete
    assert not scrub._repaired()
    assert last.stripes_repaired == scrub.progress.stripes_repaired == 0


@pytest.mark.parametrize(
    ("r", "shards", "left"),
    [
        (2, [{}, {}, {}, {}], 2),
        (2, [{"rows_pending": 5}, {"parity_incomplete": 1}, {}, {}], 0),
        (2, [{"rows_pending": 5, "parity_incomplete": 1}, {}, {}, {}], 1),
        (2, [{"state": "down"}, {"rows_pending": 1}, {}, {}], 0),
        (1, [{"state": "opening"}, {"state": "down"}, {}], 0),
    ],
)
def test_every_shard_that_is_not_whole_is_a_loss(r: int, shards: list[dict[str, Any]], left: int):
    reports = [store_pb2.ShardReport(**{"state": "open"} | one) for one in shards]
    assert survived(r, reports) == left
