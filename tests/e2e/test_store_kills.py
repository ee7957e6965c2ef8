"""Real processes are killed with SIGKILL under load: no bit of any table is other than it must be.

The store decodes what died with a Valkey, and every acknowledged push is in it once (facts ecrm E2
T3, T4). What a row may be at any time is known from a model: see `fakes.real_store`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import proa
from fakes import store_pusher
from fakes.real_store import WHOLE_S, Load, Model, started
from proa.local.store import StoreOptions, agent_name, server_name
from proa.store.client import StoreClient
from proa.store.initial import Initialiser
from proa.store.optimisers import SGD, RowWiseAdagrad
from proa.store.tables import Table

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

SOURCES = {"PYTHONPATH": str(Path(proa.__file__).parents[1])}
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """A store of k = 2, r = 1 on four shards."""
    options = StoreOptions(run_dir=tmp_path_factory.mktemp("st"), port=0, admin_port=0)
    async with started(options) as found:
        yield found


async def new_model(watch):
    """A table that nothing was pushed to."""
    table = Table(f"t{next(_numbers)}", 300, 8, RowWiseAdagrad(0.05))
    async with StoreClient(watch.address, timeout_s=60) as client:
        await client.create_table(table)
    return Model(table)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((server_name(1),), id="server"),
        pytest.param((agent_name(2),), id="agent", marks=pytest.mark.long),
        pytest.param(("coordinator",), id="coordinator", marks=pytest.mark.long),
        pytest.param((agent_name(3), server_name(3)), id="both", marks=pytest.mark.long),
    ],
)
async def test_nothing_is_lost_or_done_twice_when_processes_die(watch, names):
    model = await new_model(watch)
    async with Load(watch.address, model) as load:
        await load.steps(20)
        await watch.killed(*names)
        await load.steps(20)
    await watch.check(model)


async def test_of_a_killed_client_each_block_has_a_step_or_has_it_not(watch):
    table = Table(f"t{next(_numbers)}", 300, 4, SGD(1.0), Initialiser(kind="zeros"))
    async with StoreClient(watch.address, timeout_s=60) as client:
        await client.create_table(table)
        process = await asyncio.create_subprocess_exec(
            sys.executable, store_pusher.__file__, watch.address, table.name,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, **SOURCES},
        )  # fmt: skip
        said = {"sent": 0, "acked": 0}
        async for line in process.stdout:
            what, number = line.split()
            said[what.decode()] = int(number)
            if said["acked"] >= 12:
                process.kill()
        await process.wait()
        await watch.whole()
        found = await client.pull(table.name, np.arange(table.rows))
        sure = sum(map(store_pusher.gradient, range(said["acked"])))
        over = range(said["acked"], said["sent"] + 1)
        assert 0 < len(over) <= store_pusher.DIGITS
        may = {
            -sure - sum(map(store_pusher.gradient, some))
            for count in range(len(over) + 1)
            for some in itertools.combinations(over, count)
        }
        for one in (await watch.told()).catalogue.locate(table.name, np.arange(table.rows)):
            rows = found[one.where]
            assert (rows == rows[0, 0]).all(), f"{one.block} has half a step"
            assert rows[0, 0] in may, f"{one.block}: {rows[0, 0]} with {said}"
        # Whoever comes next is not held up by what the dead one left.
        await client.push({table.name: (np.arange(300), np.ones((300, 4), np.float32))})
        await client.flush()
        again = await client.pull(table.name, np.arange(table.rows))
    assert (again == found - 1).all()
    await watch.audit()


STEPS = ("W1", "W2", "W3", "W4")
NEVER = {"PROA_STORE_CRASH_AT": "W1:1000000000"}


async def test_agents_die_at_every_step_of_a_push(tmp_path_factory):
    """Each of the four at its own step, in the midst of pushes to all; their servers live."""
    env = {shard: {"PROA_STORE_CRASH_AT": f"{step}:30"} for shard, step in enumerate(STEPS)}
    options = StoreOptions(tmp_path_factory.mktemp("st"), port=0, admin_port=0, agent_env=env)
    async with started(options) as watch:
        model = await new_model(watch)
        for shard in env:
            watch.supervisor.hold(agent_name(shard))

        async def dies(shard):
            await watch.supervisor.down(agent_name(shard))
            await watch.supervisor.restart(agent_name(shard), NEVER)

        async with Load(watch.address, model) as load, asyncio.timeout(WHOLE_S):
            await asyncio.gather(*map(dies, env))
            await load.steps(10)
        await watch.check(model)


@pytest.mark.parametrize("step", [pytest.param(s, marks=pytest.mark.long) for s in STEPS])
async def test_an_agent_dies_at_a_step_and_its_server_with_it(watch, step):
    model = await new_model(watch)
    await watch.supervisor.restart(agent_name(1), {"PROA_STORE_CRASH_AT": f"{step}:40"})
    await watch.whole()
    pid = watch.pid(agent_name(1))
    epoch = (await watch.epochs())[1]
    async with Load(watch.address, model) as load:
        await load.until(lambda: watch.pid(agent_name(1)) != pid)
        watch.supervisor.kill(server_name(1))
        await watch.epoch_after(1, epoch)
        await watch.supervisor.restart(agent_name(1), NEVER)
        await load.steps(20)
    await watch.check(model)


# --- r = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def double(tmp_path_factory):
    """A store of k = 2, r = 2 on four shards: every stripe is on all of them."""
    options = StoreOptions(
        run_dir=tmp_path_factory.mktemp("st"), port=0, admin_port=0, r=2, shards=4
    )
    async with started(options) as found:
        yield found


async def test_two_servers_die_at_once(double):
    model = await new_model(double)
    async with Load(double.address, model) as load:
        await load.steps(20)
        await double.killed(server_name(0), server_name(2))
        await load.steps(20)
    await double.check(model)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_dies_two_at_a_time(double, seed):
    """Servers, agents, the coordinator: any two, again and again; never a third shard with them."""
    rng = random.Random(seed)
    model = await new_model(double)
    async with Load(double.address, model, seed=seed) as load:
        for _ in range(4):
            shards = rng.sample(range(4), 2)
            names = {rng.choice((server_name, agent_name))(shard) for shard in shards}
            if rng.random() < 0.3:
                names.add("coordinator")
            await double.killed(*names)
            await load.steps(10)
            await double.whole()
    await double.check(model)
