"""Somebody dies with SIGKILL while a push is at a known step, W1 to W4 (facts ecrm C5).

The agent of one shard stops itself at the step (PROA_STORE_CRASH_AT), the other one is killed, the
agent goes on. ACK is the step of a parity block: a delta is applied, and not yet acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import proa
from fakes import store_pusher
from fakes.real_store import Load, Model, started, until_sync
from fakes.store_successor import is_stopped
from proa.local.store import COORDINATOR, StoreOptions, agent_name, server_name
from proa.store.client import StoreClient
from proa.store.initial import Initialiser
from proa.store.optimisers import SGD, RowWiseAdagrad
from proa.store.tables import Table

pytestmark = [
    pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module"), pytest.mark.long
]  # fmt: skip

SHARD, OTHER = 1, 2
AGENT = agent_name(SHARD)
# At which time of each; the first ACKs are those of an agent that begins.
STEPS = {"W1": 40, "W2": 40, "W3": 40, "ACK": 400, "W4": 40}
NEVER = {"PROA_STORE_CRASH_AT": "W1:1000000000"}
SOURCES = {"PYTHONPATH": str(Path(proa.__file__).parents[1])}
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """k = 2, r = 2 on four shards: who stands still for too long may count as lost, too."""
    options = StoreOptions(tmp_path_factory.mktemp("sk"), port=0, admin_port=0, r=2, shards=4)
    async with started(options) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(watch):
    """One table for all: an agent that begins anew has ACKs to give for every parity block."""
    table = Table("t", 300, 8, RowWiseAdagrad(0.05))
    async with StoreClient(watch.address, timeout_s=60) as client:
        await client.create_table(table)
    return Model(table)


async def armed(watch, crash_at):
    """The agent begins anew, with this; its process."""
    await watch.supervisor.restart(AGENT, {"PROA_STORE_CRASH_AT": crash_at})
    await watch.whole()
    pid = watch.pid(AGENT)
    assert pid is not None
    return pid


VICTIMS = {
    "its server": (server_name(SHARD),),
    "another shard": (server_name(OTHER), agent_name(OTHER)),
    "another agent": (agent_name(OTHER),),
    "coordinator": (COORDINATOR,),
}


@pytest.mark.parametrize("victims", VICTIMS)
@pytest.mark.parametrize("step", STEPS)
async def test_who_dies_while_an_agent_is_at_a_step(watch, model, step, victims):
    names = VICTIMS[victims]
    pid = await armed(watch, f"{step}:{STEPS[step]}:STOP")
    async with Load(watch.address, model) as load:
        epochs = await watch.epochs()
        await load.until(lambda: is_stopped(pid))
        before = {name: watch.pid(name) for name in names}
        for name in names:
            watch.supervisor.kill(name)
        await until_sync(lambda: all(watch.pid(name) != before[name] for name in names))
        watch.supervisor.kill(AGENT, signal.SIGCONT)
        if victims == "its server":
            await watch.epoch_after(SHARD, epochs[SHARD])
        elif victims != "coordinator":
            await watch.epoch_after(OTHER, epochs[OTHER])
        await until_sync(lambda: all(map(watch.pid, names)))
        await watch.supervisor.restart(AGENT, NEVER)
        await load.steps(20)
    await watch.check(model)


@pytest.mark.parametrize("server_too", [False, True])
async def test_a_parity_shard_dies_with_a_delta_it_has_not_acknowledged(watch, model, server_too):
    pid = await armed(watch, f"ACK:{STEPS['ACK']}")
    epoch = (await watch.epochs())[SHARD]
    async with Load(watch.address, model) as load:
        await load.until(lambda: watch.pid(AGENT) != pid)
        if server_too:
            watch.supervisor.kill(server_name(SHARD))
        await watch.epoch_after(SHARD, epoch)
        await watch.supervisor.restart(AGENT, NEVER)
        await load.steps(20)
    await watch.check(model)


@pytest.mark.parametrize("step", STEPS)
async def test_a_client_dies_while_its_push_is_at_a_step(watch, step):
    """One step of it at a time; which one the owner stood at is known where there is one a push."""
    count = 8 if step in ("W1", "W4") else STEPS[step]
    table = Table(f"c{next(_numbers)}", 300, 4, SGD(1.0), Initialiser(kind="zeros"))
    async with StoreClient(watch.address, timeout_s=60) as client:
        await client.create_table(table)
        pid = await armed(watch, f"{step}:{count}:STOP")
        process = await asyncio.create_subprocess_exec(
            sys.executable, store_pusher.__file__, watch.address, table.name, "1",
            stdout=asyncio.subprocess.PIPE, env={**os.environ, **SOURCES},
        )  # fmt: skip
        said = {"sent": 0, "acked": 0}

        async def listen():
            async for line in process.stdout:
                what, number = line.split()
                said[what.decode()] = int(number)

        listening = asyncio.create_task(listen())
        try:
            await until_sync(lambda: is_stopped(pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await listening
            watch.supervisor.kill(AGENT, signal.SIGCONT)
        await watch.whole()
        found = await client.pull(table.name, np.arange(table.rows))
        sums = list(itertools.accumulate(map(store_pusher.gradient, range(said["sent"] + 1))))
        told = await watch.told()
        for one in told.catalogue.locate(table.name, np.arange(table.rows)):
            rows = found[one.where]
            assert (rows == rows[0, 0]).all(), f"{one.block} has half a step"
            # One after the other: a step is in a block only with all those before it.
            assert -rows[0, 0] in sums[max(said["acked"] - 1, 0) :], f"{one.block}: {said}"
            if step in ("W1", "W4") and told.catalogue.layout.shard_of(*one.block) == SHARD:
                assert -rows[0, 0] == sums[count - 1]
        await watch.supervisor.restart(AGENT, NEVER)
        await client.push({table.name: (np.arange(300), np.ones((300, 4), np.float32))})
        await client.flush()
        assert (await client.pull(table.name, np.arange(table.rows)) == found - 1).all()
    await watch.whole()
    await watch.audit()
