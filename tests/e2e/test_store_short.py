"""The store's promises on real processes, in seconds: training through a kill, a coordinator that
dies, an owner that is stopped, replaced and goes on. The `long` tests are the thorough ones."""

from __future__ import annotations

import numpy as np
import pytest
import pytest_asyncio
import torch

from fakes.real_store import Load, Model, until_sync
from fakes.store_successor import succession
from fakes.store_training import as_at_first, trained
from fakes.store_zombie import SHARD, begun, filled, held, of_shard, step, unanswered, unchanged
from proa.local.store import COORDINATOR, StoreOptions, server_name
from proa.store.client import StoreClient
from proa.store.optimisers import RowWiseAdagrad
from proa.store.tables import Table

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """k = 2, r = 1 on three shards, one of which has a successor waiting."""
    options = StoreOptions(tmp_path_factory.mktemp("ss"), port=0, admin_port=0, shards=3)
    async with succession(options, SHARD) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def client(watch):
    async with StoreClient(watch.address, timeout_s=60) as found:
        yield found


async def test_training_through_a_kill_ends_as_it_does_without(watch):
    torch.set_num_threads(1)
    found = []
    for number, kills in ((5, {}), (6, {3: [server_name(2)]})):
        await as_at_first(watch)
        epoch = (await watch.epochs())[2]
        found.append(await trained(watch, number, 8, kills))
    assert found[0] == found[1]
    assert found[0][0][0][0] != found[0][0][0][-1]
    await watch.epoch_after(2, epoch)
    await watch.whole()
    await watch.audit()


async def test_nothing_is_lost_when_the_coordinator_dies(watch, client):
    model = Model(Table("load", 300, 8, RowWiseAdagrad(0.05)))
    await client.create_table(model.table)
    async with Load(watch.address, model) as load:
        await load.steps(8)
        await watch.killed(COORDINATOR)
        await load.steps(8)
    await watch.check(model)


async def test_a_commit_of_an_owner_that_was_stopped_and_replaced_is_refused(watch, client):
    """The successor has taken its server; a push that was accepted before is not written there. The
    last test here: the successor has the shard afterwards."""
    model = await filled(client)
    ids, blocks = await of_shard(watch)
    await watch.armed("W1:1:STOP")
    server = watch.server(SHARD)
    old = await begun(watch, ids)
    before = held(server, blocks)
    await watch.taken_over(fresh=False)
    assert held(server, blocks) == before
    said = len(watch.lines)
    watch.go_on()
    await until_sync(
        lambda: any(
            line.startswith(watch.old + " ") and "another process has taken the disk" in line
            for line in watch.lines[said:]
        )
    )
    await watch.old_ended()
    await watch.whole()
    assert held(server, blocks) == before
    await unchanged(client, model, ids)
    await step(client, model, np.arange(0, 600, 5))
    await watch.check(model)
    await unanswered(old)
