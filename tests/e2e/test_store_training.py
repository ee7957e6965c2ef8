"""Synchronous training on a real store: kills change neither a loss nor a byte of a table."""

from __future__ import annotations

import pytest
import torch

from fakes.real_store import started
from fakes.store_training import trained
from proa.local.store import COORDINATOR, StoreOptions, agent_name, server_name

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio, pytest.mark.long]

STEPS = 40


async def run(folder, kills):
    """What all workers saw."""
    async with started(StoreOptions(run_dir=folder, port=0, admin_port=0)) as watch:
        found = await trained(watch, 5, STEPS, kills)
        if kills:
            await watch.whole()
            await watch.audit()
    return found


async def test_training_through_kills_ends_as_it_does_without(tmp_path_factory):
    torch.set_num_threads(1)
    folders = [tmp_path_factory.mktemp(f"st{i}") for i in range(2)]
    clean = await run(folders[0], {})
    kills = {6: [server_name(1)], 16: [agent_name(2)], 26: [COORDINATOR], 32: [server_name(0)]}
    assert await run(folders[1], kills) == clean
    losses = clean[0][0]
    assert len(losses) == STEPS
    assert losses[-1] != losses[0]
