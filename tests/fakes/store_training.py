"""Synchronous training of a small model with its tables in a real store: two workers, dense
gradients summed in a fixed order, everything else by fixed seeds."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fakes.real_store import Watch
from proa.embedding import ParityEmbeddingBag
from proa.embedding.store import ParityStore
from proa.store.initial import Initialiser
from proa.store.optimisers import LazyAdam, RowWiseAdagrad
from proa.store.pushing import Session

WORKERS, ROWS, DIM = 2, 600, 8
OPTIMISERS = {"a": RowWiseAdagrad(0.1), "b": LazyAdam(0.02)}
Gradients = list[torch.Tensor]


class Meeting:
    """Sums the workers' dense gradients in the order of their numbers, as an all-reduce would."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], Gradients] = {}
        self._some = asyncio.Condition()

    async def sum(self, step: int, worker: int, gradients: Gradients) -> Gradients:
        """The same tensors for all."""
        async with self._some:
            self._given[step, worker] = gradients
            self._some.notify_all()
            await self._some.wait_for(lambda: all((step, w) in self._given for w in range(WORKERS)))
        parts = [self._given[step, w] for w in range(WORKERS)]
        return [torch.stack(one).sum(0) for one in zip(*parts, strict=True)]


def worker_of(
    address: str,
    session: Session,
    steps: int,
    top: torch.nn.Linear,
    meet: Callable[[int, int, Gradients], Gradients],
    say: Callable[[int, int], None],
) -> Any:
    """One worker: its losses, the tables' bytes, the dense layer's."""
    batches = torch.Generator().manual_seed(session.worker)
    losses = []
    with ParityStore(address, session=session, timeout_s=90.0) as store:
        bags = [
            ParityEmbeddingBag(
                store.create_table(
                    name, rows=ROWS, dim=DIM, optimiser=kind, init=Initialiser(seed=3)
                ),
                mode=mode,
            )
            for (name, kind), mode in zip(OPTIMISERS.items(), ("sum", "mean"), strict=True)
        ]
        for step in range(steps):
            ids = [torch.randint(0, ROWS, (16, 4), generator=batches) for _ in bags]
            labels = torch.rand(16, 1, generator=batches)
            parts = [bag(some) for bag, some in zip(bags, ids, strict=True)]
            loss = torch.nn.functional.mse_loss(top(torch.cat(parts, 1)), labels)
            top.zero_grad()
            loss.backward()
            store.step()
            store.flush()
            summed = meet(step, session.worker, [p.grad.clone() for p in top.parameters()])
            with torch.no_grad():
                for parameter, gradient in zip(top.parameters(), summed, strict=True):
                    parameter -= 0.05 * gradient
            losses.append(loss.item())
            say(session.worker, step)
        tables = {name: [part.tobytes() for part in store.export(name)] for name in OPTIMISERS}
    return losses, tables, [p.detach().numpy().tobytes() for p in top.parameters()]


async def trained(
    watch: Watch, number: int, steps: int, kills: Mapping[int, Iterable[str]]
) -> list[Any]:
    """What all workers of session `number` saw. kills: what dies, by the step of worker 0 after
    which it does."""
    loop, meeting = asyncio.get_running_loop(), Meeting()
    torch.manual_seed(7)
    top = torch.nn.Linear(2 * DIM, 1)

    def meet(step: int, worker: int, gradients: Gradients) -> Gradients:
        done = asyncio.run_coroutine_threadsafe(meeting.sum(step, worker, gradients), loop)
        return done.result(120)

    def say(worker: int, step: int) -> None:
        for name in kills.get(step, ()) if worker == 0 else ():
            loop.call_soon_threadsafe(watch.supervisor.kill, name)

    sessions = [Session(number, worker, WORKERS) for worker in range(WORKERS)]
    return await asyncio.gather(
        *(
            asyncio.to_thread(worker_of, watch.address, one, steps, copy.deepcopy(top), meet, say)
            for one in sessions
        )
    )


async def as_at_first(watch: Watch) -> None:
    """The tables' rows have their initial values again, without any optimiser's state."""

    def reset() -> None:
        with ParityStore(watch.address, timeout_s=60.0) as store:
            for name, kind in OPTIMISERS.items():
                table = store.create_table(
                    name, rows=ROWS, dim=DIM, optimiser=kind, init=Initialiser(seed=3)
                )
                draw = torch.Generator().manual_seed(3)
                table.load({"weight": torch.rand(ROWS, DIM, generator=draw).numpy()})

    await asyncio.to_thread(reset)
