"""Synchronous training on a real store: kills change neither a loss nor a byte of a table."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch

from fakes.real_store import started
from proa.embedding import ParityEmbeddingBag
from proa.embedding.store import ParityStore
from proa.local.store import COORDINATOR, StoreOptions, agent_name, server_name
from proa.store.initial import Initialiser
from proa.store.optimisers import LazyAdam, RowWiseAdagrad
from proa.store.pushing import Session

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio, pytest.mark.long]

WORKERS, STEPS, ROWS, DIM = 2, 40, 600, 8
OPTIMISERS = {"a": RowWiseAdagrad(0.1), "b": LazyAdam(0.02)}


class Meeting:
    """Sums the workers' dense gradients in the order of their numbers, as an all-reduce would."""

    def __init__(self):
        self._given = {}
        self._some = asyncio.Condition()

    async def sum(self, step, worker, gradients):
        """The same tensors for all."""
        async with self._some:
            self._given[step, worker] = gradients
            self._some.notify_all()
            await self._some.wait_for(lambda: all((step, w) in self._given for w in range(WORKERS)))
        parts = [self._given[step, w] for w in range(WORKERS)]
        return [torch.stack(one).sum(0) for one in zip(*parts, strict=True)]


def train(address, worker, top, meet, say):
    """The losses of one worker: two tables, a dense layer on top, everything by fixed seeds."""
    batches = torch.Generator().manual_seed(worker)
    losses = []
    with ParityStore(address, session=Session(5, worker, WORKERS), timeout_s=90.0) as store:
        bags = [
            ParityEmbeddingBag(
                store.create_table(
                    name, rows=ROWS, dim=DIM, optimiser=kind, init=Initialiser(seed=3)
                ),
                mode=mode,
            )
            for (name, kind), mode in zip(OPTIMISERS.items(), ("sum", "mean"), strict=True)
        ]
        for step in range(STEPS):
            ids = [torch.randint(0, ROWS, (16, 4), generator=batches) for _ in bags]
            labels = torch.rand(16, 1, generator=batches)
            parts = [bag(some) for bag, some in zip(bags, ids, strict=True)]
            loss = torch.nn.functional.mse_loss(top(torch.cat(parts, 1)), labels)
            top.zero_grad()
            loss.backward()
            store.step()
            store.flush()
            summed = meet(step, worker, [p.grad.clone() for p in top.parameters()])
            with torch.no_grad():
                for parameter, gradient in zip(top.parameters(), summed, strict=True):
                    parameter -= 0.05 * gradient
            losses.append(loss.item())
            say(worker, step)
        tables = {name: [part.tobytes() for part in store.export(name)] for name in OPTIMISERS}
    return losses, tables, [p.detach().numpy().tobytes() for p in top.parameters()]


async def run(folder, kills):
    """What all workers saw. kills: what dies, by the step of worker 0 after which it does."""
    options = StoreOptions(run_dir=folder, port=0, admin_port=0)
    loop, meeting = asyncio.get_running_loop(), Meeting()
    torch.manual_seed(7)
    top = torch.nn.Linear(2 * DIM, 1)
    async with started(options) as watch:

        def meet(step, worker, gradients):
            return asyncio.run_coroutine_threadsafe(
                meeting.sum(step, worker, gradients), loop
            ).result(120)

        def say(worker, step):
            for name in kills.get(step, ()) if worker == 0 else ():
                loop.call_soon_threadsafe(watch.supervisor.kill, name)

        found = await asyncio.gather(
            *(
                asyncio.to_thread(train, watch.address, worker, copy.deepcopy(top), meet, say)
                for worker in range(WORKERS)
            )
        )
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
