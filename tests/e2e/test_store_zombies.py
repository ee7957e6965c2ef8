"""An agent that was stopped, replaced, and goes on where it was: nothing of it is taken.

It stops itself at a step of a push (PROA_STORE_CRASH_AT), so what it does first when it goes on is
known: it knows nothing yet of the successor that has its shard. One whose commit is refused, as the
successor took its server, is in test_store_short.
"""

from __future__ import annotations

import numpy as np
import pytest
import pytest_asyncio

from fakes.real_store import until_sync
from fakes.store_successor import succession
from fakes.store_zombie import SHARD, begun, filled, held, of_shard, step, unanswered, unchanged
from proa.local.store import StoreOptions
from proa.store.client import StoreClient

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio, pytest.mark.long]


@pytest_asyncio.fixture
async def watch(tmp_path_factory):
    """k = 2, r = 1 on three shards: every stripe is on all of them."""
    options = StoreOptions(tmp_path_factory.mktemp("zs"), port=0, admin_port=0, shards=3)
    async with succession(options, SHARD) as found:
        yield found


@pytest_asyncio.fixture
async def client(watch):
    async with StoreClient(watch.address, timeout_s=60) as found:
        yield found


@pytest.mark.parametrize("moved", [False, True])
async def test_deltas_of_who_was_replaced_are_refused(watch, client, moved):
    """It has written to its own server, which nobody reads any more; the parity does not follow.
    moved: the successor has taken pushes already, so the version it goes for is an old one."""
    model = await filled(client)
    ids, blocks = await of_shard(watch)
    await watch.armed("W3:1:STOP")
    server = watch.server(SHARD)
    before = held(server, blocks)
    old = await begun(watch, ids)
    written = held(server, blocks)
    assert all(one != other for one, other in zip(written, before, strict=True))
    await watch.taken_over(fresh=True)
    await unchanged(client, model, ids)
    if moved:
        await step(client, model, np.arange(600))
    await watch.whole()
    counts = [switch.bytes_in for switch in watch.switches]
    watch.go_on()
    # Nobody but the old one says anything to the shards now: all of its rows, and again because
    # nobody acknowledges them to it; the shards answer, to who has its shard.
    size = 2 * len(ids) * model.table.width
    await until_sync(
        lambda: (
            sum(s.bytes_in for s in watch.switches) - sum(counts) > 2 * size
            and watch.switches[SHARD].bytes_in > counts[SHARD]
        )
    )
    assert held(server, blocks) == written
    await watch.audit()
    await unchanged(client, model, ids)
    await step(client, model, np.arange(0, 600, 5))
    await watch.check(model)
    assert not old.done()
    await watch.old_ended()
    await unanswered(old)
    await watch.check(model)


async def test_what_was_written_before_a_server_was_taken_over_counts_once(watch, client):
    """The successor finds it in the outbox (ecrm F1), the old one sends it too: its deltas come
    under an old epoch."""
    model = await filled(client)
    ids, blocks = await of_shard(watch)
    await watch.armed("W3:1:STOP")
    old = await begun(watch, ids)
    model.push(ids, np.full((len(ids), 8), 100.0, np.float32))
    written = held(watch.server(SHARD), blocks)
    await watch.taken_over(fresh=False)
    watch.go_on()
    await step(client, model, np.arange(0, 600, 7))
    await watch.old_ended()
    await watch.check(model)
    assert held(watch.server(SHARD), blocks) != written
    await unanswered(old)
