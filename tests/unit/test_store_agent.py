"""One running store without faults: what an agent says to pushes and deltas, good and bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.store_faults import Mix
from fakes.store_world import World
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import CommitFailed, Received, Restart
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry
from proa.store.protocol.messages import Refusal

CALM = Mix(strikes=0, pushes=0, reads=0, lossy=0, doubled=0, slow=0, steps=(), tables=0)
OWNED, FOREIGN = Block(0, 0), Block(0, 1)


class Mailbox:
    """A client that only listens."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def handle(self, event: Received) -> None:
        self.got.append(event.message)


@pytest.fixture
def world() -> World:
    found = World(2, mix=CALM, k=2, r=1)
    found._play(found._is_settled)
    return found


def rows(*indices: int) -> np.ndarray:
    return np.array(indices, np.intp)


def push(step: int, *parts: ms.Part, floor: int = 0, epoch: int = 1) -> ms.Push:
    parts = parts or (part(),)
    return ms.Push(worker=9, step=step, floor=floor, epoch=epoch, parts=parts)


def part(indices: tuple[int, ...] = (0, 2), block: Block = OWNED, width: int = 4) -> ms.Part:
    payload = np.full((len(indices), width), 7, np.uint8)
    return ms.Part(block, rows(*indices), payload)


def say(world: World, *messages: ms.Message, shard: int = 0) -> list[Any]:
    """What the shard answers."""
    box = Mailbox()
    for message in messages:
        if isinstance(message, ms.Push):
            world.books.payloads[message.worker, message.step] = message
        world.processes[shard].handle(Received(box, message))
    end = world.now + 0.2
    world._play(lambda: world.now > end)
    return box.got


def test_a_push_is_acknowledged_when_parity_has_it(world: World):
    assert say(world, push(0)) == [ms.PushDone(9, 0)]
    coded = world.processes[2].agent.parity.blocks[0]
    assert coded.vector[0].version == coded.durable[0] == 1


def test_the_same_push_twice_is_applied_once_and_answered(world: World):
    assert say(world, push(0), push(0)) == [ms.PushDone(9, 0)]
    assert say(world, push(0)) == [ms.PushDone(9, 0)]
    assert world.processes[0].agent.owner.state.blocks[OWNED].version == 1


def test_who_asks_again_while_a_push_is_queued_is_answered(world: World):
    """Who asked first may be gone: its call ended, or its answer would get lost."""
    first, again = Mailbox(), Mailbox()
    world.books.payloads.update({(9, step): push(step) for step in range(2)})
    process = world.processes[0]
    for box, step in ((first, 0), (first, 1), (again, 1)):  # step 1 waits for the round of step 0
        process.handle(Received(box, push(step)))
    assert len(process.agent.owner.pushes._queue) == 1
    end = world.now + 0.2
    world._play(lambda: world.now > end)
    assert (first.got, again.got) == ([ms.PushDone(9, 0)], [ms.PushDone(9, 1)])


@pytest.mark.parametrize(
    "bad",
    [
        part(()),
        part((0, 0)),
        part((2, 0)),
        part((-1, 0)),
        part((0, 3)),
        part((2**31 + 1,)),
        part(width=3),
        part(width=6),
        part(block=FOREIGN),
        part(block=Block(99, 0)),
    ],
    ids=[
        "empty",
        "twice",
        "disorder",
        "negative",
        "beyond",
        "2^31",
        "narrow",
        "wide",
        "foreign",
        "unknown",
    ],
)
def test_a_bad_push_is_refused_whole(world: World, bad: ms.Part):
    assert say(world, push(0, bad)) == [ms.PushRefused(9, 0, Refusal.INVALID)]
    assert world.processes[0].agent.owner.state.blocks[OWNED].version == 0


def test_a_push_has_a_number(world: World):
    """Negative ones are marks of another kind."""
    assert say(world, push(-1)) == [ms.PushRefused(9, -1, Refusal.INVALID)]


def test_a_push_names_each_block_once(world: World):
    found = say(world, push(0, part((0,)), part((1,))))
    assert found == [ms.PushRefused(9, 0, Refusal.INVALID)]


def test_a_push_by_an_old_map_is_refused(world: World):
    assert say(world, push(0, epoch=0)) == [ms.PushRefused(9, 0, Refusal.STALE_MAP)]


def test_pushes_beyond_the_limit_are_refused_not_dropped(world: World):
    limit = world.config.pushes_max
    found = say(world, *(push(step) for step in range(limit + 2)))
    refused = [m for m in found if isinstance(m, ms.PushRefused)]
    assert refused
    assert {m.why for m in refused} == {Refusal.OVERLOADED}
    assert len(found) == limit + 2


def delta(start: int, epoch: int = 1, term: int | None = None) -> ms.Delta:
    entry = Entry(start, start + 1, rows(0), np.ones((1, 4), np.uint8))
    return ms.Delta(OWNED, 2, 1 << 20 if term is None else term, epoch, entry, 0)


def test_parity_applies_each_delta_once_and_in_order(world: World):
    say(world, push(0, part((0,))))
    world.check_parity = lambda *_: None  # the deltas below are nobody's pushes
    say(world, delta(1), shard=2)
    versions = [(m.version, m.gap) for m in say(world, delta(1), delta(0), delta(5), shard=2)]
    assert versions == [(2, False), (2, False), (2, True)]


def test_parity_refuses_an_owner_that_was_replaced(world: World):
    say(world, ms.Fence(source=0, epoch=5), shard=2)
    assert say(world, delta(0), shard=2) == [ms.Refused(0, 5)]
    assert say(world, ms.Fence(source=0, epoch=4), shard=2) == [ms.Refused(0, 5)]


def test_parity_is_silent_about_another_life_of_its_block(world: World):
    assert say(world, delta(0, term=7), shard=2) == []


def test_parity_asks_at_once_for_a_block_that_its_owner_believes_to_be_in_it(world: World):
    """The answer to its question got lost; the question's next turn may be far, pushes wait."""
    coded = world.processes[2].agent.parity.blocks[0]
    del coded.vector[0]
    heard: list[Any] = []
    world.processes[0].handle = heard.append
    say(world, delta(0), shard=2)
    told = [event.message for event in heard if isinstance(event, Received)]
    assert ms.Join(OWNED, 2, coded.term, None) in told


def test_an_agent_whose_disk_takes_no_writes_stops(world: World):
    agent = world.processes[0].agent
    ticket = agent._journal.ticket()
    agent._journal._then[ticket] = lambda now: None
    (restart,) = agent.handle(CommitFailed(ticket), world.now)
    assert isinstance(restart, Restart)
    assert agent.handle(Received("x", push(0)), world.now) == []


# --- a disk restored from a file


def two_stripes() -> World:
    """Shard 0 owns a block of each stripe, shards 1 and 2 hold other members and parity."""
    seeds = (World(seed, mix=CALM, k=2, r=1) for seed in range(100))
    world = next(w for w in seeds if w.layout.stripes == 2 and w.layout.shards == 3)
    world._play(world._is_settled)
    return world


def restore(world: World, shard: int, disk: Any) -> None:
    world._kill(shard)
    world._start(shard, world.new_disk(disk))
    world._play(world._is_settled)
    world._audit()


def test_of_a_stale_disk_only_what_differs_is_rebuilt():
    world = two_stripes()
    shard = next(s for s in range(3) if len(world.layout.data_of(s)) == 2)
    first, second = world.layout.data_of(shard)
    say(world, push(0, part(block=first)), push(1, part(block=second)), shard=shard)
    old = world.processes[shard].disk.copy("old")
    assert say(world, push(2, part(block=second)), shard=shard) == [ms.PushDone(9, 2)]
    restore(world, shard, old)
    assert world.count["rebuild"] == 1
    blocks = world.processes[shard].agent.owner.state.blocks
    assert (blocks[first].version, blocks[second].version) == (1, 2)


def test_of_a_disk_restored_from_the_last_moment_nothing_is_rebuilt():
    world = two_stripes()
    say(world, push(0))
    restore(world, 0, world.processes[0].disk.copy("same"))
    assert world.count["rebuild"] == 0


def test_parity_restored_from_the_last_moment_is_checked_and_not_encoded_anew():
    world = two_stripes()
    shard = world.layout.shard_of(0, 2)
    say(world, push(0, part(block=OWNED)))
    restore(world, shard, world.processes[shard].disk.copy("same"))
    assert world.count["snapshot-sent"] == world.count["parity-reset"] == 0


def test_a_wiped_shard_takes_no_pushes_while_clients_may_read_its_old_disk():
    world = two_stripes()
    world._kill(0)
    started = world.now
    world._start(0, world.new_disk())
    world._play(world._is_settled)
    owner = world.processes[0].agent.owner.state
    assert owner.open_at >= started + world.config.map_ttl_s
