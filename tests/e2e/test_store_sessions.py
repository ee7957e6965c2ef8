"""Sessions on a real store: a number is used by one job, and no gradient is lost without a word."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import pytest_asyncio
import torch

from fakes.real_store import started
from proa.embedding import ParityEmbeddingBag
from proa.embedding.store import ParityStore
from proa.errors import InvalidRequest, PushIndeterminate, ShardUnavailable
from proa.local.store import StoreOptions, agent_name, server_name
from proa.store.client import StoreClient
from proa.store.initial import Initialiser
from proa.store.optimisers import SGD
from proa.store.pushing import Session
from proa.store.tables import Table

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

ROWS, DIM = 300, 4
EVERY = np.arange(ROWS)
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """A store of k = 2, r = 1 on three shards, whose agents take small messages."""
    options = StoreOptions(
        run_dir=tmp_path_factory.mktemp("st"), port=0, admin_port=0, shards=3,
        agent_env={n: {"PROA_STORE_MESSAGE_BYTES_MAX": str(1 << 20)} for n in range(3)},
    )  # fmt: skip
    async with started(options) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def table(watch):
    """All zero; a push of ones takes one off."""
    made = Table(f"t{next(_numbers)}", ROWS, DIM, SGD(1.0), Initialiser(kind="zeros"))
    async with StoreClient(watch.address) as client:
        await client.create_table(made)
    return made.name


def ones(table, ids=EVERY, value=1.0):
    return {table: (ids, np.full((len(ids), DIM), value, np.float32))}


def joined(watch, session, **options):
    return StoreClient(watch.address, session=session, timeout_s=options.pop("timeout_s", 60.0))


async def steps(watch, session, table, count):
    """Steps of a session with one worker, each of them acknowledged."""
    async with joined(watch, session) as client:
        for _ in range(count):
            await client.push(ones(table))
            await client.flush()


async def values(watch, table):
    """What all elements are, where all are the same."""
    async with StoreClient(watch.address, timeout_s=60) as client:
        return set(np.unique(await client.pull(table, EVERY)).tolist())


async def refused(watch, session, at):
    """It names the step, and what to say."""
    call = f"Session({session.number}, {session.worker}, {session.members}, begin={at})"
    with pytest.raises(InvalidRequest) as caught:
        async with joined(watch, session):
            pass
    message = str(caught.value)
    assert f"session {session.number}, worker {session.worker}: " in message
    assert f"stands at step {at} of it, not at begin = {session.begin}" in message
    assert call in message
    assert "new number" in message


async def test_a_number_that_was_used_is_refused_unless_one_goes_on_where_it_stands(watch, table):
    number = next(_numbers)
    await refused(watch, Session(number, 0, 1, begin=2), 0)
    await steps(watch, Session(number, 0, 1), table, 3)
    for begin in (0, 2, 4):
        await refused(watch, Session(number, 0, 1, begin=begin), 3)
    assert await values(watch, table) == {-3.0}
    await steps(watch, Session(number, 0, 1, begin=3), table, 2)
    assert await values(watch, table) == {-5.0}
    await steps(watch, Session(next(_numbers), 0, 1), table, 1)
    assert await values(watch, table) == {-6.0}


@pytest.mark.long
async def test_where_a_session_stands_survives_agents_and_servers(watch, table):
    number = next(_numbers)
    await steps(watch, Session(number, 0, 1), table, 3)
    # Gates are in memory: what remembers the session then is in the blocks, and in their parity.
    await watch.killed(*(agent_name(shard) for shard in range(3)))
    await refused(watch, Session(number, 0, 1), 3)
    for shard in range(3):
        await watch.killed(server_name(shard), agent_name(shard))
        await watch.whole()
    await refused(watch, Session(number, 0, 1, begin=1), 3)
    await steps(watch, Session(number, 0, 1, begin=3), table, 2)
    assert await values(watch, table) == {-5.0}
    await watch.audit()


async def test_of_two_jobs_with_one_number_the_first_is_told(watch, table):
    session = Session(next(_numbers), 0, 1)
    async with joined(watch, session) as first, joined(watch, session) as second:
        await first.push(ones(table))
        with pytest.raises(InvalidRequest, match="another process is worker 0; two jobs need two"):
            await first.flush()
        await second.push(ones(table))
        await second.flush()
    assert await values(watch, table) == {-1.0}


async def test_a_job_that_died_in_a_step_does_it_anew(watch, table):
    """What one of its workers had pushed is not summed with what they push now."""
    session = Session(next(_numbers), 0, 2)
    async with joined(watch, session) as dead:
        await dead.push(ones(table, value=5.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await dead.flush()
    async with joined(watch, replace(session, worker=1)) as other:
        await other.push(ones(table))
        async with joined(watch, session) as again:
            await again.push(ones(table))
            await asyncio.gather(again.flush(), other.flush())
    assert await values(watch, table) == {-2.0}


async def test_who_only_asks_takes_nobodys_place(watch, table):
    session = Session(next(_numbers), 0, 1)
    async with joined(watch, session) as client:
        await client.push(ones(table))
        await client.flush()
        await refused(watch, session, 1)
        await client.push(ones(table))
        await client.flush()
    assert await values(watch, table) == {-2.0}


async def test_sums_that_overflow_are_refused_by_name(watch, table):
    number = next(_numbers)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(joined(watch, Session(number, worker, 2)))
            for worker in range(2)
        ]
        for worker in workers:
            await worker.push(ones(table, np.array([5]), 3e38))
        for worker in workers:
            with pytest.raises(InvalidRequest, match=rf"summed over .*'{table}'.*Inf.* ids 5$"):
                await worker.flush()
        for worker in workers:
            await worker.push(ones(table))
        await asyncio.gather(*(worker.flush() for worker in workers))
    assert await values(watch, table) == {-2.0}


async def test_a_push_above_a_message_limit_is_refused_at_once(watch):
    wide = Table(f"t{next(_numbers)}", 2048, 1024, SGD(1.0), Initialiser(kind="zeros"))
    ids = np.arange(wide.rows)
    gradients = {wide.name: (ids, np.ones((wide.rows, wide.dim), np.float32))}
    async with StoreClient(watch.address, message_bytes_max=1 << 21) as client:
        await client.create_table(wide)
        with pytest.raises(InvalidRequest, match="above message_bytes_max = 2097152"):
            await client.push(gradients)
    async with StoreClient(watch.address, timeout_s=100.0) as client, asyncio.timeout(20):
        await client.push(gradients)
        with pytest.raises(InvalidRequest, match=r"shard \d: .*max .* vs\. 1048576"):
            await client.flush()


# --- torch


async def test_gradients_that_cannot_be_pushed_stay_until_they_are_discarded(watch, table):
    def work():
        with ParityStore(watch.address, session=Session(next(_numbers), 0, 1)) as store:
            bag = ParityEmbeddingBag(store.table(table), mode="sum")
            ids = torch.arange(ROWS).view(-1, 2)
            (bag(ids).sum() * float("nan")).backward()
            for _ in range(2):
                with pytest.raises(InvalidRequest, match=f"'{table}': NaN or Inf"):
                    store.step()
            store.discard()
            store.step()  # of nothing: the others of a session wait for it
            bag(ids).sum().backward()
            bag(ids).sum().backward()
            store.step()
            store.flush()

    await asyncio.to_thread(work)
    assert await values(watch, table) == {-2.0}


async def test_a_session_that_is_elsewhere_is_refused_to_torch_too(watch, table):
    session = Session(next(_numbers), 0, 1)
    await steps(watch, session, table, 1)
    with pytest.raises(InvalidRequest, match="stands at step 1"):
        await asyncio.to_thread(ParityStore, watch.address, session=session)


def go_on(store):
    """What a trainer does."""
    while True:
        with contextlib.suppress(PushIndeterminate, ShardUnavailable):
            store.retry()
            return


def train(store, bag, signalled, batches):
    """Two forwards a step; an agent stops before the second one, and goes on at the first error.
    How many there were."""
    met = 0

    def again(call):
        nonlocal met
        while True:
            try:
                return call()
            except (PushIndeterminate, ShardUnavailable):
                met += 1
                signalled(signal.SIGCONT)
                go_on(store)

    for number, ids in enumerate(batches):
        if number == 1:
            signalled(signal.SIGSTOP)
        for _ in range(2):
            again(partial(bag, ids)).sum().backward()
        again(store.step)
    again(store.flush)
    return met


@pytest.mark.long
@pytest.mark.parametrize("synchronous", [True, False])
async def test_no_gradient_is_lost_when_a_push_times_out(watch, table, synchronous):
    session = Session(next(_numbers), 0, 1) if synchronous else None
    batches = [torch.arange(ROWS).view(-1, 2) for _ in range(4)]

    def work():
        with ParityStore(watch.address, session=session, timeout_s=1.5) as store:
            bag = ParityEmbeddingBag(store.table(table), mode="sum")
            signalled = partial(watch.supervisor.kill, agent_name(1))
            return train(store, bag, signalled, batches)

    assert await asyncio.to_thread(work)
    assert await values(watch, table) == {-2.0 * len(batches)}
    await watch.whole()
    await watch.audit()
