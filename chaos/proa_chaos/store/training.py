"""The load on a store: workers that train rows, all the time from the first phase to the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np

from proa.errors import ProaError
from proa.runtime.waiting import set_within
from proa.store.access import Access
from proa.store.client import StoreClient
from proa.store.optimisers import RowWiseAdagrad
from proa.store.tables import Table
from proa.store.trainer import Trainer
from proa_chaos.experiment import PHASES, Workload
from proa_chaos.load import ERROR_CHARS_MAX
from proa_chaos.store.measures import RECOVERY, Step, StoreObservations

AGAIN_S = 0.1
APART_S_MAX = 60.0  # of what is not load: beginning, comparing, setting anew


class Training:
    """Workers of `workload.store` on the store of the coordinator at `address`; what came of each
    step goes to `seen` at once. There is one table for each shape: runs share it."""

    def __init__(
        self, workload: Workload, address: str, access: Access, seen: StoreObservations, seed: int
    ) -> None:
        assert workload.store is not None
        self._workload, self._load = workload, workload.store
        self._address, self._access = address, access
        self._seen = seen
        rows, dim = self._load.rows, self._load.dim
        self.table = Table(f"chaos-{rows}x{dim}", rows, dim, RowWiseAdagrad(0.1))
        self._trainers = [
            Trainer(
                self.table, np.arange(number, rows, self._load.workers), self._load.batch,
                (seed, number),
            )
            for number in range(self._load.workers)
        ]  # fmt: skip
        self._phase, self._start_s = PHASES[0], 0.0
        self._begun, self._stop = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def begun(self) -> AsyncIterator[int]:
        """The table is there, and every row of it was pushed to; so many of them were lost, by an
        earlier run, and are set anew. Errors: Unavailable, InvalidRequest."""
        lost = 0
        async with self._client(APART_S_MAX) as client:
            await client.create_table(self.table)
            for trainer in self._trainers:
                lost += await trainer.begin(client)
        self._tasks = [asyncio.create_task(self._work(trainer)) for trainer in self._trainers]
        try:
            yield lost
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def phase(self, name: str, run_start_s: float) -> None:
        """Go on for the length of the phase. After the last one the workers have stopped."""
        loop = asyncio.get_running_loop()
        self._start_s, self._phase = run_start_s, name
        begin_s = loop.time() - run_start_s
        self._begun.set()
        length_s = self._workload.length_s(name)
        done, _ = await asyncio.wait(
            self._tasks, timeout=length_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
        self._seen.windows[name] = (begin_s, loop.time() - run_start_s)
        self._phase = RECOVERY
        if name == PHASES[-1]:
            self._stop.set()
            await asyncio.gather(*self._tasks)

    async def compare(self, phase: str) -> None:
        """All rows with their copies. Errors: ShardUnavailable, PushIndeterminate."""
        begin_s = asyncio.get_running_loop().time()
        async with self._client(APART_S_MAX) as client:
            for trainer in self._trainers:
                await trainer.check(client)
                self._seen.later.append(self._step(trainer, phase, begin_s))

    async def restore(self) -> list[int]:
        """Lost rows become what their copies are; their ids."""
        lost = sorted(set().union(*(trainer.lost for trainer in self._trainers)))
        if lost:
            async with self._client(APART_S_MAX) as client:
                for trainer in self._trainers:
                    await trainer.restore(client)
        return lost

    def _client(self, timeout_s: float) -> StoreClient:
        return StoreClient(self._address, timeout_s=timeout_s, access=self._access)

    async def _work(self, trainer: Trainer) -> None:
        loop = asyncio.get_running_loop()
        await self._begun.wait()
        async with self._client(self._seen.deadline_s) as client:
            while not self._stop.is_set():
                phase, begin_s = self._phase, loop.time()
                error: ProaError | None = None
                try:
                    await trainer.step(client)
                except ProaError as exc:
                    error = exc
                self._seen.samples.append(self._step(trainer, phase, begin_s, error))
                rate_hz = self._load.rate_hz
                next_s = begin_s + 1.0 / rate_hz if rate_hz else 0.0
                await set_within(
                    self._stop, max(next_s - loop.time(), 0.0 if error is None else AGAIN_S)
                )

    def _step(
        self, trainer: Trainer, phase: str, begin_s: float, error: ProaError | None = None
    ) -> Step:
        """`begin_s`: loop time."""
        now_s, compared = asyncio.get_running_loop().time(), trainer.compared()
        return Step(
            phase, begin_s - self._start_s, now_s - begin_s,
            status=error.status if error else "",
            error=f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX] if error else "",
            wrong=bool(compared.wrong),
            rows=compared.rows, rows_wrong=compared.wrong, rows_lost=compared.lost,
        )  # fmt: skip
